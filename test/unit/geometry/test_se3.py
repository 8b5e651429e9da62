import numpy as np
import torch

from coopnet_core.geometry.se3 import inverse, rotation_from_axis_angle, transform_from_vector


def _rodrigues(axis_angle: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.Rodrigues(axis_angle)[0]


def test_rotation_equals_opencv():
    rng = np.random.default_rng(0)
    for scale in (1e-6, 1e-3, 0.1, 3.0):
        axis_angle = rng.normal(size=3) * scale
        ours = rotation_from_axis_angle(torch.from_numpy(axis_angle)).numpy()
        np.testing.assert_allclose(ours, _rodrigues(axis_angle), atol=1e-9)


def test_gradient_at_zero_rotation_is_finite_and_right():
    vector = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    rotation_from_axis_angle(vector)[0, 2, 1].backward()
    assert vector.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_inverse():
    transform = transform_from_vector(torch.randn(5, 6, dtype=torch.float64))
    identity = torch.eye(4, dtype=torch.float64).expand(5, 4, 4)
    torch.testing.assert_close(inverse(transform) @ transform, identity)


def test_translation_comes_after_rotation():
    transform = transform_from_vector(torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0, np.pi / 2]]))
    moved = transform[0] @ torch.tensor([1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(moved[:3], torch.tensor([1.0, 3.0, 3.0]))
