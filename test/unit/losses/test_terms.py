import numpy as np
import pytest
import torch

from coopnet_core.losses.consistency import charbonnier
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import contact, disparity_smoothness, flow_smoothness
from coopnet_core.losses.visibility import forward_backward_visible, usable_visibility


def test_masked_mean_and_an_empty_mask():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert masked_mean(values, torch.tensor([True, False, True])).item() == pytest.approx(3.5)
    empty = masked_mean(values, torch.zeros(3))
    empty.backward()
    assert empty.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0, 0.0]


def test_masked_mean_equals_a_loop():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 3, 4, 5)), rng.random((2, 1, 4, 5)) * (rng.random((2, 1, 4, 5)) > 0.4)
    total, weight = 0.0, 0.0
    for b, c, y, x in np.ndindex(values.shape):
        total, weight = total + values[b, c, y, x] * weights[b, 0, y, x], weight + weights[b, 0, y, x]
    ours = masked_mean(torch.from_numpy(values), torch.from_numpy(weights)).item()
    assert ours == pytest.approx(total / weight)


def test_shrinking_the_disparity_gains_nothing():
    disparity, image = torch.rand(1, 1, 16, 16) + 0.1, torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(
        disparity_smoothness(disparity, image), disparity_smoothness(0.01 * disparity, image), rtol=1e-3, atol=1e-5
    )


def test_linear_flow_is_smooth():
    ramp = torch.linspace(0, 5, 20).expand(1, 2, 16, 20)
    assert flow_smoothness(ramp, torch.rand(1, 3, 16, 20)).item() < 1e-6
    assert flow_smoothness(ramp.square(), torch.rand(1, 3, 16, 20)).item() > 1e-3


def test_smoothness_is_cheaper_across_an_edge():
    step_image = torch.zeros(1, 3, 16, 16)
    step_image[..., 8:] = 1.0
    disparity = torch.ones(1, 1, 16, 16)
    disparity[..., 8:] = 2.0
    flat = torch.zeros(1, 3, 16, 16)
    assert disparity_smoothness(disparity, step_image) < 0.5 * disparity_smoothness(disparity, flat)


def test_forward_backward_check_warps_the_backward_flow():
    # A flow that grows along x: its inverse at the same pixel differs, at the warped pixel it matches.
    x = torch.arange(64.0).expand(1, 1, 32, 64)
    forward = torch.cat([0.2 * x, torch.zeros_like(x)], dim=1)
    backward = torch.cat([-x * 0.2 / 1.2, torch.zeros_like(x)], dim=1)
    visible = forward_backward_visible(forward, backward)
    assert visible[..., :50].all()
    assert not forward_backward_visible(forward, -backward)[..., 10:].any()


def test_opposite_errors_do_not_cancel():
    forward, backward = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    backward[:, 0], backward[:, 1] = 3.0, -3.0
    assert not forward_backward_visible(forward, backward).any()


def test_visibility_falls_back_where_the_check_leaves_nothing():
    inside = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    visible = inside.clone()
    visible[1] = False
    assert usable_visibility(visible, inside).all()
    visible[1, :, :2] = True
    assert usable_visibility(visible, inside)[1].float().mean() == 0.5


def test_charbonnier_is_zero_at_zero_with_finite_gradient():
    residual = torch.zeros(1, 2, 3, 3, requires_grad=True)
    value = charbonnier(residual)
    value.sum().backward()
    assert value.abs().max() < 1e-6
    assert residual.grad.isfinite().all()


def _street() -> torch.Tensor:
    return torch.linspace(20.0, 4.0, 32).view(1, 1, 32, 1).expand(1, 1, 32, 24).clone()


def _withheld(rows: slice, columns: slice) -> torch.Tensor:
    withheld = torch.zeros(1, 1, 32, 24)
    withheld[:, :, rows, columns] = 1
    return withheld


def test_contact_ties_withheld_pixels_to_the_ground_below_and_not_the_other_way():
    depth, withheld = _street().requires_grad_(), _withheld(slice(4, 20), slice(6, 18))
    cost = contact(depth, withheld)
    foot = depth.detach()[0, 0, 20, 0]
    assert cost.item() == pytest.approx((depth.detach()[0, 0, 4:20, 0] / foot).log().mean().item())
    cost.backward()
    along_log = depth.grad * depth.detach()
    assert along_log[withheld > 0].min() > 0
    others = along_log[withheld == 0]
    assert torch.allclose(others, torch.full_like(others, -1 / depth.numel()))
    assert along_log.sum().abs() < 1e-6, "the scale of depth is drawn along"


def test_contact_leaves_thin_regions_alone():
    assert contact(_street(), _withheld(slice(4, 24), slice(8, 10))) == 0
    assert contact(_street(), _withheld(slice(8, 10), slice(0, 24))) == 0
    assert contact(_street(), _withheld(slice(8, 11), slice(8, 11))) > 0


def test_a_column_cut_off_by_the_border_takes_the_nearest_ground_of_the_bottom_row():
    depth = _street()
    depth[..., -1, 18:] = 3.0
    cost = contact(depth, _withheld(slice(4, 32), slice(0, 18)))
    relative = (depth[0, 0, 4:, 0] / 3.0).log()
    assert cost.item() == pytest.approx(relative.abs().mean().item())


def test_a_hole_in_a_body_is_no_ground():
    whole = _withheld(slice(4, 20), slice(6, 18))
    holed = whole.clone()
    holed[:, :, 8:11, 10:13] = 0
    assert contact(_street(), holed).item() == pytest.approx(contact(_street(), whole).item())


def test_bodies_near_the_border_are_not_joined_with_it():
    depth = _street()
    cost = contact(depth, _withheld(slice(20, 30), slice(6, 18)))
    assert cost.item() == pytest.approx((depth[0, 0, 20:30, 0] / depth[0, 0, 30, 0]).log().mean().item())


def test_without_any_ground_contact_says_nothing():
    depth = _street().requires_grad_()
    cost = contact(depth, torch.ones_like(depth))
    cost.backward()
    assert cost == 0
    assert depth.grad.isfinite().all()


def test_contact_carries_the_ground_up_a_mover_that_had_gone_to_infinity():
    ground, withheld = _street(), _withheld(slice(8, 20), slice(6, 18))
    log_depth = torch.where(withheld > 0, torch.tensor(500.0), ground).log().requires_grad_()
    optimiser = torch.optim.SGD([log_depth], lr=2.0)
    for _ in range(600):
        optimiser.zero_grad()
        contact(log_depth.exp(), withheld).backward()
        optimiser.step()
    found = log_depth.exp().detach()
    movers = found[withheld > 0]
    assert torch.allclose(movers, found[0, 0, 20, 6].expand_as(movers), rtol=0.05)
    ratio = (found / ground)[withheld == 0]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3), "what is not withheld keeps its shape"
