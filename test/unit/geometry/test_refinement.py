import pytest
import torch

from coopnet_core.geometry.projection import pixel_grid, rigid_warp
from coopnet_core.geometry.refinement import refine_motion
from coopnet_core.geometry.se3 import inverse, transform_from_vector

MATRIX = torch.tensor([[[60.0, 0, 51.5], [0, 60.0, 15.5], [0, 0, 1]]])
TRUTH = transform_from_vector(torch.tensor([[0.05, -0.02, -0.8, 0.004, 0.02, -0.003]]))


def _scene(seed=0):
    depth = 3 + 20 * torch.rand(1, 1, 32, 104, generator=torch.Generator().manual_seed(seed))
    flow = rigid_warp(depth, TRUTH, MATRIX).coordinates - pixel_grid(32, 104)
    return depth, flow


def _angle(a, b):
    return torch.rad2deg(((inverse(a) @ b)[0, :3, :3].trace() - 1).div(2).clamp(-1, 1).acos()).item()


def test_exact_flow_gives_the_exact_motion():
    depth, flow = _scene()
    found = refine_motion(torch.eye(4)[None], depth, flow, torch.ones_like(depth), MATRIX, iterations=10)
    torch.testing.assert_close(found, TRUTH, atol=1e-4, rtol=0)


def test_movers_are_outvoted():
    depth, flow = _scene()
    disturbed = flow.clone()
    disturbed[..., :20] += 8.0
    found = refine_motion(torch.eye(4)[None], depth, disturbed, torch.ones_like(depth), MATRIX, iterations=20)
    assert _angle(found, TRUTH) < 0.05
    assert (found - TRUTH)[0, :3, 3].norm() < 0.05


def test_withheld_pixels_do_not_matter():
    depth, flow = _scene()
    weights = torch.ones_like(depth)
    weights[..., :50] = 0
    disturbed = flow.clone()
    disturbed[..., :50] = 30.0
    found = refine_motion(torch.eye(4)[None], depth, disturbed, weights, MATRIX, iterations=10)
    torch.testing.assert_close(found, TRUTH, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["no weight", "no texture in depth", "infinite flow"])
def test_degenerate_input_keeps_a_finite_motion(kind):
    depth, flow = _scene()
    weights = torch.ones_like(depth)
    if kind == "no weight":
        weights.zero_()
    elif kind == "no texture in depth":
        depth, flow = torch.full_like(depth, 5.0), torch.zeros_like(flow)
    else:
        flow = flow * float("inf")
    found = refine_motion(TRUTH, depth, flow, weights, MATRIX)
    assert found.isfinite().all()
    if kind != "no texture in depth":
        torch.testing.assert_close(found, TRUTH)


def test_no_flow_is_no_motion():
    depth, _ = _scene()
    found = refine_motion(TRUTH, depth, torch.zeros(1, 2, 32, 104), torch.ones_like(depth), MATRIX, iterations=10)
    torch.testing.assert_close(found, torch.eye(4)[None], atol=1e-4, rtol=0)
