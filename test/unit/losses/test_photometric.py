import numpy as np
import torch

from coopnet_core.losses.photometric import photometric_error, ssim


def _ssim_loop(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang's formula, pixel by pixel, on reflected borders."""
    padded = [np.pad(x, 1, mode="reflect") for x in (a, b)]
    out = np.empty_like(a)
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            p, q = (image[y : y + 3, x : x + 3] for image in padded)
            c1, c2 = 0.01**2, 0.03**2
            cov = ((p - p.mean()) * (q - q.mean())).mean()
            out[y, x] = ((2 * p.mean() * q.mean() + c1) * (2 * cov + c2)) / (
                (p.mean() ** 2 + q.mean() ** 2 + c1) * (p.var() + q.var() + c2)
            )
    return out


def test_ssim_equals_the_formula_pixel_by_pixel():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 7, 9))
    ours = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(ours, _ssim_loop(a, b), atol=1e-9)


def test_equal_images_have_no_error():
    image = torch.rand(2, 3, 8, 8)
    assert photometric_error(image, image).abs().max() < 1e-6


def test_autocast_does_not_reach_the_error():
    # A bright flat patch: in half precision the variance term cancels and the error is 130 times too large.
    image = torch.full((1, 3, 16, 16), 0.9) + 0.01 * torch.rand(1, 3, 16, 16)
    other = (image + 0.002).clamp(max=1)
    expected = photometric_error(image, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(photometric_error(image, other), expected)
    assert expected.dtype == torch.float32


def test_gradient_is_finite_on_constant_images():
    a = torch.full((1, 3, 6, 6), 0.5)
    b = torch.full((1, 3, 6, 6), 0.5, requires_grad=True)
    photometric_error(a, b).sum().backward()
    assert b.grad.isfinite().all()
