"""The first acceptance test of the method: what a rule does to depth and flow, without the luck of training."""

from __future__ import annotations

import pytest
import torch

from benchmarks.direct import Outcome, optimise, rendered_problem, start_errors

STEPS = 60
START_PX = 0.7


@pytest.fixture(scope="module")
def problem():
    return rendered_problem([12, 14], 2, (224, 64), movers=0.25)


@pytest.fixture(scope="module")
def outcomes(problem) -> dict[str, Outcome]:
    return {rule: optimise(problem, rule, START_PX, STEPS)[0] for rule in ("sum", "min", "hybrid", "oracle")}


def test_the_start_is_off_by_what_was_asked_for(problem):
    start = start_errors(problem, START_PX)
    assert start.flow_static == pytest.approx(START_PX, rel=0.5)
    assert start.static_abs_rel > 0.02
    assert start.rotation_deg < 1e-3


def test_the_truth_needs_no_repair(problem):
    exact = start_errors(problem, 1e-6)
    assert exact.static_abs_rel < 0.03
    assert exact.flow_static < 0.35


def test_every_rule_repairs_the_flow(problem, outcomes):
    start = start_errors(problem, START_PX)
    for rule in ("sum", "hybrid", "oracle"):
        assert outcomes[rule].flow_static < 0.8 * start.flow_static, rule


def test_the_winner_takes_all_under_min_and_not_under_hybrid(outcomes):
    assert outcomes["min"].share_depth < 0.75 * outcomes["hybrid"].share_depth
    assert outcomes["hybrid"].share_depth > 0.5


def test_the_mask_is_really_on(outcomes):
    assert outcomes["hybrid"].iou_last > 0.25
    assert outcomes["hybrid"].auc_last > 0.75
    assert outcomes["oracle"].iou_last > 0.99
    assert outcomes["sum"].iou_last == 0


def test_hybrid_is_near_the_oracle_on_static_pixels(outcomes):
    assert outcomes["hybrid"].static_abs_rel < outcomes["oracle"].static_abs_rel + 0.02


def test_the_same_seed_gives_the_same_outcome(problem):
    torch.manual_seed(5)
    assert optimise(problem, "hybrid", START_PX, 3)[0] == optimise(problem, "hybrid", START_PX, 3)[0]
