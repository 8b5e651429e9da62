from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import (
    Anchor,
    ErrorModelState,
    Evidence,
    fitted_shares,
    gate_is_open,
    log_disagreement,
    posterior,
    posterior_of_hidden,
    smoothed,
    training_mask,
    update,
)
from coopnet_core.cotraining.families import MOVING, STATIC
from coopnet_core.resources import shipped_file

PHOTOMETRIC = ErrorModelConfig(cue="photometric", em_steps=10, decay=0.0)


def _sample(n=40_000, pi=0.2, b_r=0.03, b_f=0.02, mean=0.35, spread=0.08, seed=0):
    """Delta drawn from the model itself, with its labels."""
    rng = np.random.default_rng(seed)
    delta = rng.exponential(b_r, n) - rng.exponential(b_f, n)
    moving = rng.random(n) < pi
    delta[moving] = rng.normal(mean, spread, moving.sum())
    anchor = rng.normal(mean, spread, n)
    shape = (1, 1, 200, n // 200)
    flat = torch.zeros(shape)
    return (
        Evidence(torch.from_numpy(delta).float().view(shape), flat, torch.ones(shape)),
        Anchor(torch.from_numpy(anchor).float().view(shape), flat),
        torch.from_numpy(moving).view(shape),
    )


def test_em_recovers_truth_and_movers():
    evidence, anchor, moving = _sample()
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    assert state.b_r.item() == pytest.approx(0.03, rel=0.1)
    assert state.b_f.item() == pytest.approx(0.02, rel=0.1)
    assert state.pi.item() == pytest.approx(0.2, abs=0.02)
    flagged = posterior(evidence, state, PHOTOMETRIC) > 0.5
    union = (flagged | moving).sum()
    assert ((flagged & moving).sum() / union).item() > 0.9


def test_a_gate_that_is_shut_withholds_nothing():
    evidence, anchor, _ = _sample(b_r=0.4, mean=0.3)
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    assert not gate_is_open(state, PHOTOMETRIC)
    error = torch.full_like(evidence.delta, 0.1)
    assert training_mask(evidence, state, PHOTOMETRIC, error, error).max() == 0


def test_the_mask_fades_in_once_the_gate_is_open():
    evidence, anchor, _ = _sample()
    config = ErrorModelConfig(cue="photometric", ramp_steps=4)
    error = torch.full_like(evidence.delta, 0.1)
    state, shares = ErrorModelState.initial(), []
    for _ in range(5):
        state = update(state, evidence, anchor, config)
        shares.append(training_mask(evidence, state, config, error, error).mean().item())
    assert 0 < shares[0] < shares[1] < shares[3]
    assert shares[4] == pytest.approx(shares[3], rel=0.05)


def test_flow_worse_than_rigid_is_never_moving():
    evidence, anchor, _ = _sample()
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    worse = Evidence(-evidence.delta.abs(), evidence.log_disagreement, evidence.visible)
    assert posterior(worse, state, PHOTOMETRIC).max() == 0


def test_everything_moves_is_capped_per_image():
    evidence, anchor, _ = _sample(pi=0.9)
    config = ErrorModelConfig(cue="photometric", ramp_steps=1)
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    assert state.pi.item() <= config.maximum_pi
    error = torch.full_like(evidence.delta, 0.1)
    mask = training_mask(evidence, state, config, error, error)
    assert mask.mean().item() <= config.maximum_pi + 1e-4


def test_a_pair_worse_than_no_motion_has_no_mask():
    evidence, anchor, _ = _sample()
    config = ErrorModelConfig(cue="photometric", ramp_steps=1)
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    low, high = torch.full_like(evidence.delta, 0.1), torch.full_like(evidence.delta, 0.2)
    assert training_mask(evidence, state, config, low, high).max() > 0.5
    assert training_mask(evidence, state, config, high, low).max() == 0


def test_nothing_visible_changes_nothing_and_stays_finite():
    evidence, anchor, _ = _sample()
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    blind = Evidence(evidence.delta, evidence.log_disagreement, torch.zeros_like(evidence.visible))
    after = update(state, blind, anchor, PHOTOMETRIC)
    assert after.b_r == state.b_r
    assert after.pi == state.pi


def test_constant_and_infinite_evidence_keeps_the_state_finite():
    shape = (1, 1, 8, 8)
    zeros, ones = torch.zeros(shape), torch.ones(shape)
    state = update(ErrorModelState.initial(), Evidence(zeros, zeros, ones), Anchor(zeros, zeros), PHOTOMETRIC)
    assert all(np.isfinite(value) for value in state.as_floats().values())
    broken = update(state, Evidence(zeros / 0, zeros, ones), Anchor(zeros, zeros), PHOTOMETRIC)
    assert all(np.isfinite(value) for value in broken.as_floats().values())


def test_the_joint_cue_finds_movers_without_texture():
    shape = (1, 1, 20, 50)
    moving = torch.zeros(shape, dtype=torch.bool)
    moving[..., :10] = True
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator)
    evidence = Evidence(0.01 * noise, torch.where(moving, 2.0 + 0.2 * noise, -1.0 + 0.3 * noise), torch.ones(shape))
    anchor = Anchor(0.3 + 0.05 * noise, 2.0 + 0.5 * noise)
    joint = ErrorModelConfig(cue="joint", em_steps=5)
    state = update(ErrorModelState.initial(), evidence, anchor, joint)
    gamma = posterior(evidence, state, joint)
    assert gamma[moving].mean() > 0.5
    assert gamma[~moving].mean() < 0.05
    assert posterior(evidence, state, PHOTOMETRIC)[moving].mean() < 0.1


def test_state_survives_plain_numbers():
    state = ErrorModelState.initial()
    assert ErrorModelState.from_floats(state.as_floats()).as_floats() == state.as_floats()


def test_the_configuration_names_every_family():
    fields = ErrorModelConfig.model_fields
    assert set(get_args(fields["static_family"].annotation)) == set(STATIC)
    assert set(get_args(fields["moving_family"].annotation)) == set(MOVING)


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("moving", MOVING)
def test_every_combination_of_families_finds_movers(static, moving):
    evidence, anchor, truth = _sample()
    config = PHOTOMETRIC.model_copy(update={"static_family": static, "moving_family": moving})
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    assert all(np.isfinite(value) for value in state.as_floats().values())
    gamma = posterior(evidence, state, config)
    assert gamma.isfinite().all()
    flagged = gamma > 0.5
    iou = ((flagged & truth).sum() / (flagged | truth).sum()).item()
    assert iou > (0.7 if moving == "exponential" else 0.9)


@pytest.mark.parametrize("static", STATIC)
def test_the_static_scales_are_the_closed_form_whatever_the_family(static):
    evidence, anchor, _ = _sample()
    config = PHOTOMETRIC.model_copy(update={"static_family": static})
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    assert state.b_r.item() == pytest.approx(0.03, rel=0.12)
    assert state.b_f.item() == pytest.approx(0.02, rel=0.12)


def test_a_state_without_figures_of_families_loads_and_says_what_the_default_says():
    evidence, anchor, _ = _sample()
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    old = {name: value for name, value in state.as_floats().items() if name.split("_")[-1] not in ("location", "shape")}
    del old["static_scale"], old["moving_scale"]
    loaded = ErrorModelState.from_floats(old)
    assert loaded.as_floats() == state.as_floats()
    other = PHOTOMETRIC.model_copy(update={"static_family": "student_t", "moving_family": "student_t"})
    assert torch.equal(posterior(evidence, loaded, other), posterior(evidence, state, PHOTOMETRIC))


def test_the_shipped_weights_load():
    checkpoint = load_checkpoint(shipped_file("models/small_rendered.safetensors"))
    figures = checkpoint.error_model.as_floats()
    assert {name: figures[name] for name in checkpoint.metadata.error_model} == checkpoint.metadata.error_model
    config = ErrorModelConfig.model_validate(checkpoint.metadata.error_model_config)
    evidence, _, _ = _sample()
    assert posterior(evidence, checkpoint.error_model, config).isfinite().all()


def test_a_family_new_to_an_old_state_counts_from_its_first_fit():
    evidence, anchor, _ = _sample()
    old = replace(ErrorModelState.initial(), steps=torch.tensor(1000.0))
    config = ErrorModelConfig(cue="photometric", static_family="laplace", moving_family="student_t")
    state = update(old, evidence, anchor, config)
    assert state.moving_location.item() == pytest.approx(0.35, abs=0.01)
    assert state.moving_mean.item() == pytest.approx(0.98 * 0.3 + 0.02 * 0.35, abs=1e-3)
    assert 0.01 < state.static_scale.item() < 0.1
    again = update(state, evidence, anchor, config)
    assert again.moving_location.item() == pytest.approx(state.moving_location.item(), rel=0.01)


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("moving", MOVING)
def test_useless_batches_leave_every_family_finite_and_unchanged(static, moving):
    evidence, anchor, _ = _sample()
    config = PHOTOMETRIC.model_copy(update={"static_family": static, "moving_family": moving})
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    nothing = torch.zeros_like(evidence.delta)
    blind = replace(evidence, visible=nothing)
    broken = replace(evidence, delta=nothing / 0)
    for useless in (blind, broken):
        after = update(state, useless, anchor, config).as_floats()
        assert {**after, "steps": 0, "open_steps": 0} == {**state.as_floats(), "steps": 0, "open_steps": 0}
    constant = update(state, replace(evidence, delta=nothing), Anchor(nothing, nothing), config)
    assert all(np.isfinite(value) for value in constant.as_floats().values())
    assert posterior(evidence, constant, config).isfinite().all()


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("moving", MOVING)
def test_no_family_reads_back_from_the_device(static, moving):
    evidence, anchor, _ = _sample()
    device = "meta"  # tensors without storage: reading a value fails
    evidence = Evidence(*(getattr(evidence, name).to(device) for name in ("delta", "log_disagreement", "visible")))
    anchor = Anchor(anchor.delta.to(device), anchor.log_disagreement.to(device))
    config = ErrorModelConfig(static_family=static, moving_family=moving)
    state = update(ErrorModelState.initial(device), evidence, anchor, config)
    assert posterior(evidence, state, config).shape == evidence.delta.shape


def test_log_disagreement_by_hand():
    flow, rigid = torch.zeros(1, 2, 1, 1), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert log_disagreement(flow, rigid).item() == pytest.approx(np.log(5.05 / 1.15))


def test_a_difference_is_averaged_over_its_box_and_brought_to_the_size():
    difference = torch.zeros(1, 1, 16, 16)
    difference[..., 8, 8] = 9.0
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 7:10, 7:10] = 1.0  # 9 over a box of 9
    torch.testing.assert_close(smoothed(difference, 3, (16, 16)), expected)
    coarse = smoothed(torch.full((1, 1, 4, 4), 2.0), 3, (16, 16))
    torch.testing.assert_close(coarse, torch.full((1, 1, 16, 16), 2.0))  # at the border too: the box shrinks


def test_hidden_pixels_are_judged_by_where_the_warps_point():
    config = ErrorModelConfig()
    state = ErrorModelState.initial()
    disagreement = torch.tensor([-1.0, 0.0, 2.5]).view(1, 1, 1, 3)
    still, unsure, moves = posterior_of_hidden(disagreement, state, config).flatten().tolist()
    assert still < unsure < moves
    assert still < 0.05
    assert moves > 0.5
    shut = replace(state, log_anchor_mean=state.log_static_mean + 0.1)
    assert posterior_of_hidden(disagreement, shut, config).flatten().tolist() == pytest.approx([0.1] * 3)


def _pairs(moving_mean, share, anchor_mean=2.0, seed=0):
    """Log disagreement of static pixels around -1, movers around `moving_mean`, and an anchor beyond them."""
    rng = np.random.default_rng(seed)
    shape = (1, 1, 100, 200)
    moving = rng.random(shape) < share
    values = np.where(moving, rng.normal(moving_mean, 0.4, shape), rng.normal(-1.0, 0.6, shape))
    anchor = rng.normal(anchor_mean, 0.5, shape)
    zeros = torch.zeros(shape)
    evidence = Evidence(zeros, torch.from_numpy(values).float(), torch.ones(shape))
    return evidence, Anchor(zeros, torch.from_numpy(anchor).float()), torch.from_numpy(moving)


@pytest.mark.parametrize("moving_mean", [0.9, 1.4])
def test_movers_that_disagree_less_than_the_anchor_are_found(moving_mean):
    evidence, anchor, moving = _pairs(moving_mean, share=0.1)
    config = ErrorModelConfig(cue="correspondence")
    state = ErrorModelState.initial()
    for _ in range(20):
        state = update(state, evidence, anchor, config)
    assert state.log_moving_mean.item() == pytest.approx(moving_mean, abs=0.25)
    assert state.log_anchor_mean.item() == pytest.approx(2.0, abs=0.05)
    flagged = posterior(evidence, state, config) > 0.5
    assert ((flagged & moving).sum() / (flagged | moving).sum()).item() > 0.8


def test_without_movers_the_fit_stays_near_the_anchor_and_flags_nothing():
    evidence, anchor, _ = _pairs(1.0, share=0.0)
    config = ErrorModelConfig(cue="correspondence")
    state = ErrorModelState.initial()
    for _ in range(50):
        state = update(state, evidence, anchor, config)
    assert state.pi.item() == pytest.approx(config.minimum_pi)
    assert (posterior(evidence, state, config) > 0.5).float().mean() < 0.01


def test_the_gate_asks_the_anchor_and_not_the_fitted_movers():
    evidence, anchor, _ = _pairs(0.9, share=0.1, anchor_mean=-0.8)
    config = ErrorModelConfig(cue="correspondence")
    state = update(ErrorModelState.initial(), evidence, anchor, config)
    assert state.log_moving_mean > state.log_static_mean + state.log_static_spread
    assert not gate_is_open(state, config)


def test_a_state_of_another_unit_of_disagreement_is_not_believed():
    state = replace(ErrorModelState.initial(), log_static_mean=torch.tensor(-0.9), steps=torch.tensor(500.0))
    old = {name: value for name, value in state.as_floats().items() if "anchor" not in name}
    assert ErrorModelState.from_floats(old).as_floats() == ErrorModelState.initial().as_floats()


def test_caution_multiplies_the_odds_of_what_is_withheld():
    evidence, anchor, _ = _sample()
    base = ErrorModelConfig(cue="photometric", ramp_steps=1, maximum_pi=0.99)
    state = update(ErrorModelState.initial(), evidence, anchor, base)
    error = torch.full_like(evidence.delta, 0.1)
    plain, careful = (
        training_mask(evidence, state, base.model_copy(update={"caution": caution}), error, error).double()
        for caution in (1.0, 4.0)
    )
    between = (plain > 1e-3) & (plain < 0.99)
    odds = (careful / (1 - careful) / (plain / (1 - plain)))[between]
    assert torch.allclose(odds, torch.full_like(odds, 4.0), rtol=1e-2)
    assert torch.equal(careful == 0, plain == 0)


def test_the_shares_of_the_fitted_model_are_those_of_its_pixels():
    evidence, anchor, _ = _sample()
    state = update(ErrorModelState.initial(), evidence, anchor, PHOTOMETRIC)
    edges = torch.linspace(-0.3, 0.8, 551)
    shares = fitted_shares(edges, state, PHOTOMETRIC)
    assert shares.sum().item() == pytest.approx(1, abs=0.01)
    counts, _ = np.histogram(evidence.delta.numpy(), edges[::10].numpy())
    np.testing.assert_allclose(shares.view(55, 10).sum(1).numpy(), counts / evidence.delta.numel(), atol=0.012)
