"""The first acceptance test of the method: what a rule does to depth and flow, without the luck of training."""

from __future__ import annotations

import math

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
    focal = problem.batch.camera_matrix[0, 0, 0].item()
    assert start.rotation_deg == pytest.approx(math.degrees(0.5 * START_PX / focal), rel=0.01)


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
    assert outcomes["hybrid"].iou_first > 0.6
    assert outcomes["hybrid"].iou_last > 0.5
    assert outcomes["hybrid"].auc_last > 0.9
    assert outcomes["oracle"].iou_last > 0.99
    assert outcomes["sum"].iou_last == 0


def test_hybrid_repairs_depth_as_the_oracle_does_and_better_than_sum_and_min(outcomes):
    hybrid = outcomes["hybrid"]
    assert hybrid.static_abs_rel < outcomes["oracle"].static_abs_rel + 0.004
    assert hybrid.static_abs_rel < min(outcomes[rule].static_abs_rel for rule in ("sum", "min"))
    assert hybrid.near_abs_rel < 0.95 * min(outcomes[rule].near_abs_rel for rule in ("sum", "min"))


def test_the_flow_starves_under_min_and_not_under_hybrid(outcomes):
    assert outcomes["hybrid"].flow_static == pytest.approx(outcomes["sum"].flow_static, rel=1e-3)
    assert outcomes["hybrid"].flow_static < 0.7 * outcomes["min"].flow_static


def test_the_same_seed_gives_the_same_outcome(problem):
    torch.manual_seed(5)
    assert optimise(problem, "hybrid", START_PX, 3)[0] == optimise(problem, "hybrid", START_PX, 3)[0]
