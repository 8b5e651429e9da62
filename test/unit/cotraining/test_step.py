from dataclasses import replace

import pytest
import torch

from coopnet_core.config import LossConfig, StageConfig, load_config
from coopnet_core.cotraining.apportionment import APPORTIONMENTS
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.instrumentation import gradient_shares, retain_gradients
from coopnet_core.cotraining.objective import SCORED, Estimates, RigidEstimate, objective, unexplained
from coopnet_core.cotraining.rules import RULES
from coopnet_core.cotraining.step import estimate, step
from coopnet_core.data.triplets import Batch
from coopnet_core.networks.bundle import CoopNetworks

CONFIG = load_config("cpu-small", [], {})
TOGETHER = StageConfig(name="together", share=1, consistency=0.1)


def _batch(rows=2, sources=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(rows, 3, 64, 96, generator=generator)
    # Neighbours are shifted copies, so that both sides have something to find.
    shifted = torch.stack([target.roll(shift, 3) for shift in (1, -1)[:sources]], dim=1)
    matrix = torch.tensor([[60.0, 0, 47.5], [0, 60.0, 31.5], [0, 0, 1]]).expand(rows, 3, 3)
    return Batch(target, shifted, matrix.clone())


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return CoopNetworks(CONFIG.networks)


def _run(networks, batch, stage=TOGETHER, loss=CONFIG.loss):
    return step(networks, batch, ErrorModelState.initial(), loss, stage)


def test_every_network_learns_and_the_loss_is_finite(networks):
    output = _run(networks, _batch())
    output.loss.backward()
    for name in ("depth", "pose", "flow"):
        gradients = [p.grad for p in getattr(networks, name).parameters() if p.grad is not None]
        assert gradients, name
        assert all(g.isfinite().all() for g in gradients), name
        assert sum(g.abs().sum() for g in gradients) > 0, name


def test_a_stage_trains_only_what_it_names(networks):
    stage = StageConfig(name="flow", share=1, train=("flow",), posterior="off")
    output = _run(networks, _batch(), stage)
    output.loss.backward()
    assert all(p.grad is None for p in networks.depth.parameters())
    assert "e_r" not in output.terms
    rigid = StageConfig(name="rigid", share=1, train=("depth", "pose"), posterior="coarse", consistency=0.1)
    networks.zero_grad()
    _run(networks, _batch(), rigid).loss.backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in networks.flow.parameters())


def test_the_first_stage_learns_from_matches_alone(networks):
    stage = StageConfig(name="flow", share=1, train=("flow",), posterior="off", matches=0.1, flow_photometric=False)
    output = _run(networks, _batch(), stage)
    assert {"flow_matches", "flow_smoothness"} <= set(output.terms)
    assert "flow_photometric" not in output.terms
    expected = 0.1 * output.terms["flow_matches"] + CONFIG.loss.flow_smoothness * output.terms["flow_smoothness"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in networks.flow.parameters())


def test_the_mask_and_the_model_get_no_gradient(networks):
    output = _run(networks, _batch())
    assert not output.gamma.requires_grad
    assert not output.error_model.b_r.requires_grad


def test_rows_do_not_influence_each_other_through_the_photometric_terms(networks):
    networks.eval()
    loss = LossConfig(rule="sum", auto_mask=False, occlusion="none", flow_smoothness=0, disparity_smoothness=0)
    both = _run(networks, _batch(2), loss=loss).terms["flow_photometric"]
    batch = _batch(2)
    first = Batch(batch.target[:1], batch.sources[:1], batch.camera_matrix[:1])
    second = Batch(batch.target[1:], batch.sources[1:], batch.camera_matrix[1:])
    parts = [_run(networks, part, loss=loss).terms["flow_photometric"] for part in (first, second)]
    assert both.item() == pytest.approx(float(sum(parts)) / 2, rel=0.02)


def test_rule_sum_withholds_nothing(networks):
    assert _run(networks, _batch(), loss=LossConfig(rule="sum")).gamma.max() == 0


@pytest.mark.parametrize("image", [0.0, 0.5, 1.0])
def test_constant_images_give_finite_loss_and_gradient(networks, image):
    batch = _batch()
    flat = Batch(torch.full_like(batch.target, image), torch.full_like(batch.sources, image), batch.camera_matrix)
    output = _run(networks, flat)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())


def test_identical_frames_give_finite_loss_and_gradient(networks):
    batch = _batch()
    still = Batch(batch.target, batch.target[:, None].expand(-1, 2, -1, -1, -1), batch.camera_matrix)
    output = _run(networks, still)
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_spoil_nothing(networks, value):
    batch = _batch()
    target, sources = batch.target.clone(), batch.sources.clone()
    target[0, :, 10:14, 20:30] = value
    sources[1, 0, 0, 5, 5] = value
    output = _run(networks, Batch(target, sources, batch.camera_matrix))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())
    assert all(torch.tensor(list(output.error_model.as_floats().values())).isfinite())


def test_a_side_without_pixels_is_skipped_and_says_so(networks):
    batch = replace(_batch(), moving=torch.ones(2, 1, 64, 96, dtype=torch.bool))
    output = _run(networks, batch, loss=LossConfig(rule="oracle"))
    output.loss.backward()
    assert output.terms["rigid_photometric"] == 0
    assert output.terms["depth_skipped"] == 1
    assert output.terms["flow_skipped"] == 0
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())


def _estimates(flow_px, rows=4, depth=5.0):
    """Free estimates of `_batch`'s pairs: the same flow everywhere, a flat wall, no motion."""
    flow = torch.full((rows, 2, 16, 24), float(flow_px)).requires_grad_()
    disparity = torch.full((rows // 2, 1, 64, 96), 1 / depth).requires_grad_()
    motion = torch.eye(4).expand(rows, 4, 4)
    return Estimates(
        [(flow, flow)], RigidEstimate([disparity], 1 / disparity, motion, torch.full((rows, 1, 64, 96), 5.0))
    )


def test_a_batch_without_a_visible_pixel_gives_finite_loss_and_changes_no_model():
    estimates = _estimates(flow_px=1000.0)
    state = ErrorModelState.initial()
    output = objective(_batch(), estimates, state, LossConfig(), StageConfig(name="all", share=1))
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.terms["depth_skipped"] == 1
    assert output.terms["flow_skipped"] == 1
    assert estimates.flows[0][0].grad.isfinite().all()
    assert output.error_model.b_r == state.b_r


def test_depths_that_disagree_are_drawn_together_when_asked():
    stage = StageConfig(name="all", share=1)
    config = LossConfig(rule="sum", depth_consistency=1.0)
    agreeing = objective(_batch(), _estimates(0.0), ErrorModelState.initial(), config, stage)
    assert agreeing.terms["depth_consistency"].item() == pytest.approx(0, abs=1e-5)
    estimates = _estimates(0.0, depth=2.5)
    output = objective(_batch(), estimates, ErrorModelState.initial(), config, stage)
    assert output.terms["depth_consistency"].item() == pytest.approx(2.5 / 7.5, rel=1e-3)
    without = objective(_batch(), estimates, ErrorModelState.initial(), LossConfig(rule="sum"), stage)
    assert "depth_consistency" not in without.terms
    assert (output.loss - without.loss).item() == pytest.approx(2.5 / 7.5, rel=1e-2)


def test_the_sources_get_a_depth_only_where_it_is_wanted(networks):
    networks.eval()
    plain = estimate(networks, _batch(), TOGETHER)
    assert plain.rigid.source_depth is None
    both = estimate(networks, _batch(), TOGETHER, with_source_depth=True)
    assert torch.allclose(both.rigid.depth, plain.rigid.depth, rtol=1e-4)
    alone = networks.depths(_batch().sources.flatten(0, 1))[1]
    assert torch.allclose(both.rigid.source_depth, alone, rtol=1e-4)


def test_the_auto_mask_drops_a_static_world(networks):
    batch = _batch()
    still = Batch(batch.target, batch.target[:, None].expand(-1, 2, -1, -1, -1), batch.camera_matrix)
    assert _run(networks, still).terms["pixel_share_depth"] < 0.1


def test_gradient_shares_are_measured_at_the_sampling_grids(networks):
    output = _run(networks, _batch())
    retain_gradients(output)
    output.loss.backward()
    shares = gradient_shares(output)
    expected_r = output.rigid_coordinates.grad.norm(dim=1).sum().item()
    assert shares["gradient_depth"] == pytest.approx(expected_r)
    assert 0 < shares["fairness"] < 1


def test_reduced_losses_keep_the_camera_consistent(networks):
    networks.eval()
    fine = _run(networks, _batch(), TOGETHER)
    coarse = _run(networks, _batch(), TOGETHER.model_copy(update={"loss_factor": 2}))
    # The same rays, half the pixels: the coarse grid holds half the coordinates of the fine one (pixel centres).
    expected = (fine.rigid_coordinates[:, :, ::2, ::2] + fine.rigid_coordinates[:, :, 1::2, 1::2]) / 2
    expected = (expected + 0.5) / 2 - 0.5
    assert (coarse.rigid_coordinates - expected).abs().max() < 0.5


def test_half_precision_stays_close(networks):
    networks.eval()
    full = _run(networks, _batch())
    half = step(networks, _batch(), ErrorModelState.initial(), CONFIG.loss, TOGETHER, torch.bfloat16)
    assert half.loss.item() == pytest.approx(full.loss.item(), rel=0.02)


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("apportionment", sorted(APPORTIONMENTS))
def test_every_combination_of_rules_is_finite_and_teaches(networks, rule, apportionment):
    batch = _batch(1, 1)
    batch = replace(batch, moving=torch.zeros(1, 1, 64, 96, dtype=torch.bool))
    output = _run(networks, batch, loss=CONFIG.loss.model_copy(update={"rule": rule, "apportionment": apportionment}))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.parameters())


def test_a_divided_mean_is_the_mean_of_minima(networks):
    loss = CONFIG.loss.model_copy(update={"rule": "min", "auto_mask": False, "occlusion": "none"})
    output = _run(networks.eval(), _batch(1, 1), StageConfig(name="together", share=1, posterior="off"), loss)
    terms, divided = output.terms, output.terms["pixel_share_depth"] + output.terms["pixel_share_flow"]
    assert 0.5 < divided <= 1.0
    assert (terms["rigid_photometric"] + terms["flow_photometric"]) <= torch.minimum(terms["e_r"], terms["e_f"]) + 0.02


def test_the_oracle_withholds_the_true_movers(networks):
    moving = torch.zeros(1, 1, 64, 96, dtype=torch.bool)
    moving[..., 20:40] = True
    output = _run(
        networks, replace(_batch(1, 2), moving=moving), loss=CONFIG.loss.model_copy(update={"rule": "oracle"})
    )
    assert torch.equal(output.gamma, moving.float().expand(2, -1, -1, -1))


def test_apportionment_of_learning_rates_leaves_the_loss_alone(networks):
    networks.eval()
    state = replace(ErrorModelState.initial(), b_r=torch.tensor(0.3), b_f=torch.tensor(0.02), steps=torch.tensor(1e6))
    totals = []
    for acts_on, rule in (("learning_rate", "relative_progress"), ("loss", "per_pixel"), ("loss", "relative_progress")):
        loss = CONFIG.loss.model_copy(update={"apportionment": rule, "apportionment_acts_on": acts_on})
        torch.manual_seed(0)
        output = step(networks, _batch(), state, loss, TOGETHER)
        totals.append(output.loss.item())
    assert totals[0] == pytest.approx(totals[1])
    assert totals[2] != pytest.approx(totals[1], rel=1e-3)
    assert float(output.side_weights[1]) > float(output.side_weights[0])


def test_withheld_pixels_are_tied_to_the_ground_below_when_asked():
    moving = torch.zeros(2, 1, 64, 96, dtype=torch.bool)
    moving[:, :, 20:40, 30:60] = True
    batch, stage = replace(_batch(), moving=moving), StageConfig(name="all", share=1)
    estimates = _estimates(0.0)
    plain = objective(batch, estimates, ErrorModelState.initial(), LossConfig(rule="oracle"), stage)
    assert "contact" not in plain.terms
    tilted = torch.linspace(1, 2, 64).view(1, 1, 64, 1).expand(2, 1, 64, 96)
    rigid = replace(estimates.rigid, depth=tilted)
    config = LossConfig(rule="oracle", contact=1.0)
    output = objective(batch, replace(estimates, rigid=rigid), ErrorModelState.initial(), config, stage)
    expected = (tilted[:, :, 40:41].log() - tilted[:, :, 20:40].log()).mean()
    assert output.terms["contact"].item() == pytest.approx(expected.item(), rel=0.02)


def test_what_is_unexplained_is_not_reduced_by_looking_away():
    """Four pixels: explained well, worse than the unmoved image, not seen, moving."""
    error, still = (torch.tensor(values).view(1, 1, 1, 4) for values in ([0.1, 0.5, 0.0, 0.3], [0.4, 0.2, 0.6, 0.7]))
    seen, static = torch.tensor([True, True, False, True]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert unexplained(error, seen.view(1, 1, 1, 4), still).item() == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)
    found = unexplained(error, seen.view(1, 1, 1, 4), still, static.view(1, 1, 1, 4))
    assert found.item() == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    nowhere = unexplained(error, torch.zeros(1, 1, 1, 4, dtype=torch.bool), still)
    assert nowhere.item() == pytest.approx(still.mean().item()), "as bad as standing still, not 0"


def test_a_step_says_what_each_side_leaves_unexplained(networks):
    output = _run(networks, _batch())
    for name in SCORED:
        assert 0 < output.terms[name] <= output.terms["e_identity"] + 1e-6
    flow_alone = StageConfig(name="flow", share=1, train=("flow",), posterior="off")
    assert set(SCORED) & set(_run(networks, _batch(), flow_alone).terms) == {"flow_unexplained"}
