"""Every term's gradient against finite differences, in float64."""

import pytest
import torch

from coopnet_core.geometry.se3 import transform_from_vector
from coopnet_core.losses.consistency import charbonnier, depth_consistency
from coopnet_core.losses.photometric import photometric_error, ssim
from coopnet_core.losses.precision import full_precision
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import disparity_smoothness, flow_smoothness


def _random(*shape, low=0.1, high=0.9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*shape, dtype=torch.float64, generator=generator)
    return (low + (high - low) * values).requires_grad_()


@pytest.mark.parametrize("function", [ssim, photometric_error])
def test_photometric(function):
    assert torch.autograd.gradcheck(function, (_random(1, 2, 5, 6), _random(1, 2, 5, 6, seed=1)))


def test_masked_mean():
    assert torch.autograd.gradcheck(masked_mean, (_random(2, 2, 3, 4), _random(2, 1, 3, 4, seed=1)))


def test_masked_mean_with_some_and_with_no_pixels():
    mask = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    for some in (mask, torch.zeros_like(mask)):
        assert torch.autograd.gradcheck(lambda values, some=some: masked_mean(values, some), _random(2, 2, 3, 4))


@pytest.mark.parametrize(("function", "channels"), [(disparity_smoothness, 1), (flow_smoothness, 2)])
def test_smoothness_with_an_image_of_its_size_and_a_larger_one(function, channels):
    for size in ((5, 6), (10, 12)):
        assert torch.autograd.gradcheck(function, (_random(2, channels, 5, 6), _random(2, 3, *size, seed=1)))


def test_charbonnier_at_zero_and_elsewhere():
    residual = _random(1, 2, 3, 4, low=-3.0, high=3.0).detach()
    residual[..., :2] = 0.0
    assert torch.autograd.gradcheck(charbonnier, residual.requires_grad_())


def test_depth_consistency():
    matrix = torch.tensor([[[6.0, 0, 3.6], [0, 6.5, 2.4], [0, 0, 1]]], dtype=torch.float64)
    vector = torch.tensor([[0.1, -0.05, -0.3, 0.01, 0.03, -0.02]], dtype=torch.float64, requires_grad=True)
    # The source's depths lie above the projected ones everywhere: the kink where both agree stays away.
    depth, source_depth = _random(1, 1, 6, 8, low=2.0, high=3.0), _random(1, 1, 6, 8, low=4.0, high=6.0, seed=1)

    def error(depth, source_depth, vector):
        found = depth_consistency(depth, source_depth, transform_from_vector(vector), matrix)
        assert found.valid.sum() > 20
        return found.error

    assert torch.autograd.gradcheck(error, (depth, source_depth, vector))


def test_half_precision_is_raised_and_float32_left_alone():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert full_precision(torch.ones(2, dtype=dtype)).dtype == torch.float32
    values = torch.ones(2)
    assert full_precision(values) is values
    assert full_precision(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
