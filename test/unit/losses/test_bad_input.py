"""Terms on values that mean nothing, on images without content, and on empty masks."""

import pytest
import torch

from coopnet_core.geometry.projection import rigid_warp
from coopnet_core.geometry.sampling import sample
from coopnet_core.geometry.se3 import transform_from_vector
from coopnet_core.losses.consistency import charbonnier, depth_consistency
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import disparity_smoothness, flow_smoothness
from coopnet_core.losses.visibility import (
    coverage,
    forward_backward_visible,
    rigid_visible,
    splat_visible,
    usable_visibility,
)

MATRIX = torch.tensor([[[20.0, 0, 9.5], [0, 20.0, 7.5], [0, 0, 1]]])
MEANINGLESS = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", MEANINGLESS)
def test_masked_mean_ignores_what_is_masked_out(value):
    values = torch.tensor([[1.0, value, 6.0], [2.0, 4.0, value]], requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, False, False]])
    mean = masked_mean(values, mask)
    mean.backward()
    assert mean.item() == 3.0
    torch.testing.assert_close(values.grad, mask / 3.0)


def test_masked_mean_of_nothing_but_nan_is_zero():
    values = torch.full((2, 3), float("nan"), requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3))
    mean.backward()
    assert mean.item() == 0.0
    assert values.grad.abs().max() == 0.0


def test_a_nan_that_counts_is_not_hidden():
    assert masked_mean(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.1])).isnan()


def test_photometric_error_of_constant_images_is_finite_and_in_range():
    for first in (0.0, 0.5, 1.0):
        for second in (0.0, 0.5, 1.0):
            image = torch.full((1, 3, 6, 8), second, requires_grad=True)
            error = photometric_error(torch.full((1, 3, 6, 8), first), image)
            error.sum().backward()
            assert image.grad.isfinite().all()
            assert error.min() >= 0
            assert error.max() <= 1
            assert (error.abs().max() < 1e-6) == (first == second)


def test_identical_frames_have_no_error_and_hardly_a_gradient():
    image = torch.rand(1, 3, 6, 8)
    other = image.clone().requires_grad_()
    photometric_error(image, other).sum().backward()
    assert other.grad.isfinite().all()
    # d|x|/dx at 0 is 0, and similarity is at its maximum: what is left is rounding.
    assert other.grad.abs().max() < 0.05


def test_a_nan_pixel_spoils_its_neighbourhood_alone():
    target, image = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 8, 9)
    clean = photometric_error(target, image)
    image[0, 1, 4, 5] = float("nan")
    error = photometric_error(target, image)
    spoilt = torch.zeros(1, 1, 8, 9, dtype=torch.bool)
    spoilt[..., 3:6, 4:7] = True
    assert torch.equal(error.isnan(), spoilt)
    torch.testing.assert_close(masked_mean(error, ~spoilt), clean[~spoilt].mean())


@pytest.mark.parametrize("value", [0.0, 1e-6, 0.5, 1e3])
def test_constant_disparity_and_flow_are_smooth_with_finite_gradients(value):
    image = torch.full((1, 3, 12, 16), 0.5)
    for term, channels in ((disparity_smoothness, 1), (flow_smoothness, 2)):
        values = torch.full((1, channels, 6, 8), value, requires_grad=True)
        smoothness = term(values, image)
        smoothness.backward()
        assert smoothness.item() == pytest.approx(0.0, abs=1e-6)
        assert values.grad.isfinite().all()


@pytest.mark.parametrize("length", [0.0, 1e-20, 1e6])
def test_charbonnier_of_no_and_of_huge_residuals(length):
    residual = torch.full((1, 2, 3, 3), length, requires_grad=True)
    value = charbonnier(residual)
    value.sum().backward()
    assert value.isfinite().all()
    assert residual.grad.isfinite().all()
    assert residual.grad.abs().max() <= 1


@pytest.mark.parametrize("value", MEANINGLESS)
def test_meaningless_flow_is_never_visible(value):
    flow = torch.zeros(1, 2, 6, 8)
    flow[0, 0, 2, 3] = value
    expected = torch.ones(1, 1, 6, 8, dtype=torch.bool)
    expected[0, 0, 2, 3] = False
    assert torch.equal(forward_backward_visible(flow, torch.zeros(1, 2, 6, 8)), expected)
    # Interpolation may hand it on to the neighbours, not farther.
    hidden = ~forward_backward_visible(torch.zeros(1, 2, 6, 8), flow)
    assert hidden[0, 0, 2, 3]
    assert hidden.sum() == hidden[..., 1:4, 2:5].sum()
    assert torch.equal(splat_visible(flow, torch.zeros(1, 2, 6, 8)), expected)
    # A source pixel without a flow covers nothing; the pixel that it would have covered is not seen.
    assert torch.equal(splat_visible(torch.zeros(1, 2, 6, 8), flow), expected)
    assert coverage(flow).isfinite().all()


def test_a_source_that_has_left_the_image_covers_nothing():
    far = torch.full((2, 2, 6, 8), 1e9)
    assert coverage(far).abs().max() == 0
    nothing = splat_visible(torch.zeros(2, 2, 6, 8), far)
    assert not nothing.any()
    everywhere = torch.ones_like(nothing)
    assert usable_visibility(nothing, everywhere).all()
    assert not usable_visibility(nothing, nothing).any()


@pytest.mark.parametrize("value", [*MEANINGLESS, 0.0, -3.0])
def test_meaningless_depth_is_not_visible_and_hides_nothing(value):
    depth = torch.full((1, 1, 16, 20), 3.0)
    depth[0, 0, 8, 10] = value
    visible = rigid_visible(depth, torch.eye(4)[None], MATRIX)
    expected = torch.ones(1, 1, 16, 20, dtype=torch.bool)
    expected[0, 0, 8, 10] = False
    assert torch.equal(visible, expected)


def test_nothing_is_visible_behind_the_camera():
    backward = transform_from_vector(torch.tensor([[0.0, 0.0, -5.0, 0.0, 0.0, 0.0]]))
    assert not rigid_visible(torch.full((1, 1, 16, 20), 3.0), backward, MATRIX).any()


@pytest.mark.parametrize("value", [*MEANINGLESS, 0.0, -3.0])
@pytest.mark.parametrize("side", ["target", "source"])
def test_unknown_depths_are_invalid_and_have_no_gradient(value, side):
    depths = {"target": torch.full((1, 1, 16, 20), 3.0), "source": torch.full((1, 1, 16, 20), 4.0)}
    depths[side][0, 0, 8, 10] = value
    for depth in depths.values():
        depth.requires_grad_()
    vector = torch.tensor([[0.01, 0.01, 0.1, 0.0, 0.0, 0.0]], requires_grad=True)
    found = depth_consistency(depths["target"], depths["source"], transform_from_vector(vector), MATRIX)
    assert found.error.isfinite().all()
    assert 0 < (~found.valid).sum() < 100
    masked_mean(found.error, found.valid).backward()
    for depth in depths.values():
        assert depth.grad.isfinite().all()
    assert depths[side].grad[0, 0, 8, 10] == 0
    assert vector.grad.isfinite().all()
    assert vector.grad.abs().max() > 0


def test_depths_that_share_nothing_cost_nothing():
    depth = torch.full((1, 1, 16, 20), 3.0, requires_grad=True)
    vector = torch.tensor([[0.0, 0.0, -5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = depth_consistency(depth, depth, transform_from_vector(vector), MATRIX)
    assert not found.valid.any()
    loss = masked_mean(found.error, found.valid)
    loss.backward()
    assert loss.item() == 0.0
    assert depth.grad.abs().max() == 0
    assert vector.grad.abs().max() == 0


def test_a_reconstruction_of_which_nothing_is_visible_has_no_loss_and_no_gradient():
    depth = torch.full((1, 1, 16, 20), 3.0, requires_grad=True)
    vector = torch.tensor([[0.0, 0.0, -5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    warp = rigid_warp(depth, transform_from_vector(vector), MATRIX)
    error = photometric_error(torch.rand(1, 3, 16, 20), sample(torch.rand(1, 3, 16, 20), warp.coordinates))
    loss = masked_mean(error, warp.valid)
    loss.backward()
    assert loss.item() == 0.0
    assert depth.grad.abs().max() == 0
    assert vector.grad.abs().max() == 0
