"""What warps and samples do with values that mean nothing."""

import pytest
import torch

from coopnet_core.geometry.projection import flow_warp, inside, rigid_warp
from coopnet_core.geometry.sampling import sample
from coopnet_core.geometry.se3 import inverse, rotation_from_axis_angle, transform_from_vector

MATRIX = torch.tensor([[[20.0, 0, 9.5], [0, 20.0, 7.5], [0, 0, 1]]])
MEANINGLESS = [float("nan"), float("inf"), float("-inf")]
FORWARD = transform_from_vector(torch.tensor([[0.02, -0.01, -0.2, 0.002, 0.01, -0.003]]))


@pytest.mark.parametrize("value", MEANINGLESS)
def test_a_meaningless_flow_leaves_the_image_and_nothing_else_changes(value):
    flow = torch.zeros(1, 2, 6, 8)
    flow[0, 1, 2, 3] = value
    warp = flow_warp(flow)
    expected = torch.ones(1, 1, 6, 8, dtype=torch.bool)
    expected[0, 0, 2, 3] = False
    assert torch.equal(warp.valid, expected)


@pytest.mark.parametrize("value", MEANINGLESS)
def test_a_sample_at_a_meaningless_place_is_finite_and_hurts_no_other(value):
    image = torch.rand(1, 3, 6, 8, requires_grad=True)
    coordinates = torch.full((1, 2, 2, 2), 2.5)
    coordinates[0, 0, 0, 0] = value
    coordinates.requires_grad_()
    result = sample(image, coordinates)
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() <= 1
    valid = inside(coordinates, 6, 8)
    torch.where(valid, result, 0.0).sum().backward()
    assert image.grad.isfinite().all()
    assert coordinates.grad.isfinite().all()
    assert coordinates.grad[0, :, 0, 0].abs().max() == 0


@pytest.mark.parametrize("value", [*MEANINGLESS, -3.0])
def test_a_meaningless_depth_is_invalid_and_nothing_else_changes(value):
    depth = 2 + torch.rand(1, 1, 16, 20, generator=torch.Generator().manual_seed(0))
    clean = rigid_warp(depth, FORWARD, MATRIX)
    spoilt = depth.clone()
    spoilt[0, 0, 8, 10] = value
    warp = rigid_warp(spoilt, FORWARD, MATRIX)
    assert clean.valid[0, 0, 8, 10]
    assert not warp.valid[0, 0, 8, 10]
    others = torch.ones(16, 20, dtype=torch.bool)
    others[8, 10] = False
    assert torch.equal(warp.coordinates[..., others], clean.coordinates[..., others])
    assert torch.equal(warp.valid[..., others], clean.valid[..., others])


def test_depths_of_zero_and_of_kilometres_have_finite_coordinates_and_gradients():
    for value in (0.0, 1e-6, 1e6):
        depth = torch.full((1, 1, 16, 20), value, requires_grad=True)
        vector = torch.tensor([[0.02, -0.01, -0.2, 0.002, 0.01, -0.003]], requires_grad=True)
        warp = rigid_warp(depth, transform_from_vector(vector), MATRIX)
        assert warp.coordinates.isfinite().all()
        torch.where(warp.valid, warp.coordinates, 0.0).sum().backward()
        assert depth.grad.isfinite().all()
        assert vector.grad.isfinite().all()


def test_a_motion_that_turns_away_sees_nothing():
    vector = torch.tensor([[0.0, 0.0, 0.0, 0.0, torch.pi, 0.0]], requires_grad=True)
    warp = rigid_warp(torch.full((1, 1, 16, 20), 3.0), transform_from_vector(vector), MATRIX)
    assert not warp.valid.any()
    warp.coordinates.sum().backward()
    assert vector.grad.isfinite().all()


def test_rotations_by_many_turns_stay_rotations():
    rotation = rotation_from_axis_angle(torch.tensor([[300.0, -200.0, 100.0], [1e-30, 0.0, 0.0]]))
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-4, rtol=0)
    assert inverse(transform_from_vector(torch.zeros(1, 6))).equal(torch.eye(4)[None])
