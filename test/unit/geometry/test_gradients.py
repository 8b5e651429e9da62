"""Gradients of warps and rotations against finite differences, in float64."""

import pytest
import torch

from coopnet_core.geometry.projection import flow_warp, pixel_grid, rigid_warp
from coopnet_core.geometry.sampling import sample
from coopnet_core.geometry.se3 import inverse, rotation_from_axis_angle, transform_from_vector

MATRIX = torch.tensor([[[6.0, 0, 3.6], [0, 6.5, 2.4], [0, 0, 1]]], dtype=torch.float64).expand(2, 3, 3)


def _random(*shape, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)


# 0.01 is where the series hands over to the closed formula; 3.1 is nearly half a turn.
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.0099, 0.0101, 0.5, 3.1])
def test_rotation(angle):
    axes = torch.nn.functional.normalize(_random(2, 3, low=-1.0, high=1.0), dim=1)
    assert torch.autograd.gradcheck(rotation_from_axis_angle, (axes * angle).requires_grad_())


def test_transform_and_its_inverse():
    vector = _random(2, 6, low=-1.0, high=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: inverse(transform_from_vector(v)), vector)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_rigid_warp_in_depth_and_motion(scale):
    depth = _random(2, 1, 4, 5, low=1.0, high=4.0).requires_grad_()
    vector = (scale * _random(2, 6, low=-1.0, high=1.0, seed=1)).requires_grad_()

    def coordinates(depth, vector):
        return rigid_warp(depth, transform_from_vector(vector), MATRIX).coordinates

    assert torch.autograd.gradcheck(coordinates, (depth, vector))


def test_flow_warp_and_sampling_in_flow_and_image():
    # Fractions away from 0 and 1, where bilinear interpolation has a kink; some whole parts leave the image.
    whole = _random(2, 2, 4, 5, low=-2.0, high=2.0).round()
    flow = (whole + _random(2, 2, 4, 5, low=0.2, high=0.8, seed=1)).requires_grad_()
    image = _random(2, 3, 4, 5, low=0.0, high=1.0, seed=2).requires_grad_()
    assert not flow_warp(flow).valid.all()
    assert torch.autograd.gradcheck(lambda flow, image: sample(image, flow_warp(flow).coordinates), (flow, image))


def test_sampling_is_exact_in_double_precision():
    image = _random(1, 2, 13, 17, low=0.0, high=1.0)
    torch.testing.assert_close(sample(image, pixel_grid(13, 17).double()), image, atol=1e-13, rtol=0)
