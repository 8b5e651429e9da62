import pytest
import torch

from coopnet_core.geometry.projection import pixel_grid, rigid_warp
from coopnet_core.geometry.refinement import MotionPrior, refine_motion
from coopnet_core.geometry.se3 import inverse, transform_from_vector

MATRIX = torch.tensor([[[60.0, 0, 51.5], [0, 60.0, 15.5], [0, 0, 1]]])
TRUTH = transform_from_vector(torch.tensor([[0.05, -0.02, -0.8, 0.004, 0.02, -0.003]]))


def _scene(seed=0):
    depth = 3 + 20 * torch.rand(1, 1, 32, 104, generator=torch.Generator().manual_seed(seed))
    flow = rigid_warp(depth, TRUTH, MATRIX).coordinates - pixel_grid(32, 104)
    return depth, flow


def _refined(start, depth, flow, weights=None, **options):
    weights = torch.ones_like(depth) if weights is None else weights
    return refine_motion(start, depth, flow, weights, MATRIX, **options).T_source_target


def _angle(a, b):
    return torch.rad2deg(((inverse(a) @ b)[0, :3, :3].trace() - 1).div(2).clamp(-1, 1).acos()).item()


def test_exact_flow_gives_the_exact_motion():
    depth, flow = _scene()
    torch.testing.assert_close(_refined(torch.eye(4)[None], depth, flow, iterations=10), TRUTH, atol=1e-4, rtol=0)


def test_movers_are_outvoted():
    depth, flow = _scene()
    disturbed = flow.clone()
    disturbed[..., :20] += 8.0
    found = _refined(torch.eye(4)[None], depth, disturbed, iterations=20)
    assert _angle(found, TRUTH) < 0.05
    assert (found - TRUTH)[0, :3, 3].norm() < 0.05


def test_withheld_pixels_do_not_matter():
    depth, flow = _scene()
    weights = torch.ones_like(depth)
    weights[..., :50] = 0
    disturbed = flow.clone()
    disturbed[..., :50] = 30.0
    found = _refined(torch.eye(4)[None], depth, disturbed, weights, iterations=10)
    torch.testing.assert_close(found, TRUTH, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["no weight", "no texture in depth", "infinite flow"])
@pytest.mark.parametrize("prior", [None, MotionPrior()])
def test_degenerate_input_keeps_a_finite_motion(kind, prior):
    depth, flow = _scene()
    weights = torch.ones_like(depth)
    if kind == "no weight":
        weights.zero_()
    elif kind == "no texture in depth":
        depth, flow = torch.full_like(depth, 5.0), torch.zeros_like(flow)
    else:
        flow = flow * float("inf")
    found = refine_motion(TRUTH, depth, flow, weights, MATRIX, prior)
    assert found.T_source_target.isfinite().all()
    assert found.covariance.isfinite().all()
    if kind != "no texture in depth":
        torch.testing.assert_close(found.T_source_target, TRUTH)
        across = found.covariance[0, 3:, 3:].diagonal().sqrt()
        torch.testing.assert_close(across, torch.full_like(across, MotionPrior().rotation))


def test_no_flow_is_no_motion():
    depth, _ = _scene()
    found = _refined(TRUTH, depth, torch.zeros(1, 2, 32, 104), iterations=10)
    torch.testing.assert_close(found, torch.eye(4)[None], atol=1e-4, rtol=0)


def test_a_prior_decides_where_the_images_say_nothing():
    """One distance only, no texture in depth: a turn and a shift aside look alike, and the prior tells them apart."""
    depth = torch.full((1, 1, 32, 104), 8.0)
    aside = transform_from_vector(torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    flow = rigid_warp(depth, aside, MATRIX).coordinates - pixel_grid(32, 104)
    flow = flow + 0.5 * torch.randn(flow.shape, generator=torch.Generator().manual_seed(0))
    sure_of_rotation = MotionPrior(along=1.0, across=1.0, rotation=1e-5)
    found = _refined(aside, depth, flow, prior=sure_of_rotation)
    assert _angle(found, aside) < 0.001
    assert (found - aside)[0, :3, 3].norm() < 0.03


def test_a_prior_that_is_right_cuts_the_error_and_one_that_is_wrong_gives_way():
    depth, flow = _scene()
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(1, 2, 4, 13, generator=generator), size=(32, 104))
    disturbed = flow + 0.5 * smooth
    alone, with_prior = _refined(TRUTH, depth, disturbed), _refined(TRUTH, depth, disturbed, prior=MotionPrior())
    assert _angle(with_prior, TRUTH) < 0.6 * _angle(alone, TRUTH)
    wrong = transform_from_vector(torch.tensor([[0.8, 0.0, 0.1, 0.0, 0.1, 0.0]]))
    misled = _refined(wrong, depth, flow, prior=MotionPrior(), iterations=10)
    assert _angle(misled, TRUTH) < 0.02
    assert (misled - TRUTH)[0, :3, 3].norm() < 0.02


@pytest.mark.parametrize("prior", [None, MotionPrior(along=1.0, across=0.05, rotation=0.001)])
def test_the_covariance_is_that_of_many_tries(prior):
    """Errors are equal within blocks of about 30 pixels, as the constant says, and the start errs as the prior says."""
    tries, generator = 300, torch.Generator().manual_seed(2)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 3, 104), indexing="ij")
    depth = (20 - 15 * rows + 2 * torch.sin(3 * columns))[None, None]
    flow = rigid_warp(depth, TRUTH, MATRIX).coordinates - pixel_grid(32, 104)
    noise = 0.4 * torch.nn.functional.interpolate(torch.randn(tries, 2, 6, 20, generator=generator), size=(32, 104))
    start = TRUTH.expand(tries, 4, 4) if prior is None else _starts(prior, tries, generator)
    batch = (start, depth.expand(tries, 1, 32, 104), flow + noise, torch.ones(tries, 1, 32, 104))
    found = refine_motion(*batch, MATRIX.expand(tries, 3, 3), prior)
    true_of_found = TRUTH.double() @ inverse(found.T_source_target.double())
    odd = (true_of_found - true_of_found.transpose(1, 2)) / 2
    errors = torch.cat([true_of_found[:, :3, 3], odd[:, [2, 0, 1], [1, 2, 0]]], dim=1)
    ratio = errors.square().mean(0).sqrt() / found.covariance.diagonal(dim1=1, dim2=2).mean(0).sqrt()
    assert (ratio > 0.6).all(), ratio
    assert (ratio < 1.4).all(), ratio


def _starts(prior, tries, generator):
    """The truth, disturbed as a prior says."""
    length = TRUTH[0, :3, 3].norm()
    across = torch.eye(3) - torch.outer(TRUTH[0, :3, 3], TRUTH[0, :3, 3]) / length**2
    turn = prior.rotation * torch.randn(tries, 3, generator=generator)
    shift = prior.across * length * torch.randn(tries, 3, generator=generator) @ across
    start = TRUTH.repeat(tries, 1, 1)
    start[:, :3, :3] = transform_from_vector(torch.cat([shift, turn], 1))[:, :3, :3] @ start[:, :3, :3]
    start[:, :3, 3] += shift
    return start
