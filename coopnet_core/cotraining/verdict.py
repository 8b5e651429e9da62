"""What the log of a training says of it, in words: pure functions from lines of metrics.jsonl to sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coopnet_core.config import TrainConfig
from coopnet_core.cotraining.intrinsics import has_settled, late_change
from coopnet_core.cotraining.objective import SCORED
from coopnet_core.evaluation.reports import Remark, State

Line = Mapping[str, Any]
_LATE_SHARE = 0.1
_LEAST_LINES = 5
_LITTLE = 0.9
"""Error of the rigid reconstruction over that of the unmoved image above which little has been learned."""
_SAME = 0.01
"""Relative change of the validation error that counts as none."""
_SCORED_BEFORE = ("rigid_photometric", "e_f")
"""What the best checkpoint of runs without the figures `SCORED` was chosen by."""
_DEAD = 0.002
_AT_CAP = 0.95
_MANY = 0.1


@dataclass(frozen=True)
class Verdict:
    """What became of a training.

    Attributes:
        summary: what matters most, in a sentence.
        findings: one sentence on each question, with what was measured.
    """

    summary: Remark
    findings: Sequence[Remark]


def verdict(lines: Sequence[Line], config: TrainConfig, assumed_degrees: float | None = None) -> Verdict:
    """Judge a run by its log.

    Args:
        lines: of metrics.jsonl, in order; figures may be missing or None.
        config: of the run.
        assumed_degrees: horizontal field of view from which the focal length was learned, if known.
    """
    train = [line for line in lines if not line.get("validation")]
    if not train:
        text = f"Nothing can be said: no step was logged (each {config.log_every}th is)."
        return Verdict(Remark(text, "poor"), [])
    late = _late(train)
    learned, explained = _explained(best_validation(lines), late)
    parts = [(learned, explained), _progress(lines), _mask(late, config)]
    parts.append(_focal(train, assumed_degrees))
    said = [part for part in parts if part is not None]
    summary = ", ".join([learned, *(short for short, _ in said[1:] if short)])
    # Whether it learned decides; a doubt about anything else is a doubt about the whole.
    states = [remark.state for _, remark in said]
    state: State = states[0]
    if state == "good" and any(other in ("poor", "bad") for other in states[1:]):
        state = "poor"
    losses = _lost_steps(train[-1], config)
    return Verdict(Remark(f"{summary}.", state), [*(remark for _, remark in said), *losses])


def best_validation(lines: Sequence[Line]) -> Line | None:
    """The validation that chose the best checkpoint: that of the lowest error among those that can be compared."""
    return min(_scored(lines), key=lambda pair: pair[1], default=(None, 0.0))[0]


def _scored(lines: Sequence[Line]) -> list[tuple[Line, float]]:
    """Validations that can be compared, with their errors.

    Those of the last stage; all of a run whose weights were validated before its first step.
    """
    checks = [line for line in lines if line.get("validation")]
    if checks and checks[0]["step"] != 0:
        checks = [line for line in checks if line.get("stage") == checks[-1].get("stage")]
    names = next((names for names in (SCORED, _SCORED_BEFORE) if any(_score(line, names) for line in checks)), ())
    return [(line, score) for line in checks if (score := _score(line, names)) is not None]


def _explained(check: Line | None, late: Sequence[Line]) -> tuple[str, Remark]:
    """Whether depth and odometry explain the images better than the unmoved image does."""
    on_validation = check is not None and _ratio(check) is not None
    where = "validation" if on_validation else "training"
    judged = [check] if on_validation else [line for line in late if _ratio(line) is not None]
    if not judged:
        return "Depth and odometry have not been trained yet", Remark(
            f"The run ended in the stage '{late[-1].get('stage')}', which trains the flow alone: let it go on.", "poor"
        )
    rigid, still = _mean(judged, "e_r"), _mean(judged, "e_identity")
    ratio = rigid / still
    figures = (
        f"On the {where} images the error of the rigid reconstruction (depth and odometry) is {rigid:.3f}, that of the "
        f"unmoved image {still:.3f}: {100 * ratio:.0f} %."
    )
    if ratio >= 1:
        advice = "Check the calibration, whether the camera travels, and that the images have texture; from nothing it "
        advice += "takes thousands of steps."
        return "It has NOT learned: depth and odometry explain the images no better than not moving at all", Remark(
            f"{figures} {advice}", "bad"
        )
    if ratio > _LITTLE:
        return "It has learned little: depth and odometry barely beat the unmoved image", Remark(
            f"{figures} A longer run, or a start from weights (--init), may bring more.", "poor"
        )
    return f"It has learned: depth and odometry leave {100 * ratio:.0f} % of the error of the unmoved image", Remark(
        figures, "good"
    )


def _progress(lines: Sequence[Line]) -> tuple[str, Remark]:
    """The validation error of the best weights against that of the first."""
    scored, best = _scored(lines), best_validation(lines)
    if best is None or len(scored) < 2:
        short = "without validation" if best is None else "validated only once"
        return short, Remark(
            f"The run is {short}: whether it got better on images that it does not train on is not known.", "poor"
        )
    (start, before), after = scored[0], min(score for _, score in scored)
    first = start["step"]
    since = "the weights it started from" if first == 0 else f"the first validation of the last stage (step {first})"
    if first == 0 and best is start:
        return "nothing beat the weights it started from", Remark(
            f"No validation found less error than the weights it started from ({before:.4f}): the best checkpoint "
            "holds those. The recordings may be too few or too unlike the validation images.",
            "bad",
        )
    change = after / before - 1
    figures = (
        f"Validation error (rigid + flow) of the best checkpoint (step {best['step']}) {after:.4f}, of {since} "
        f"{before:.4f}"
    )
    if change > -_SAME:
        return "validation as at the start", Remark(f"{figures}: no difference to speak of.", "poor")
    return f"validation {-100 * change:.0f} % better than at the start", Remark(
        f"{figures}: {-100 * change:.0f} % better.", "good"
    )


def _mask(late: Sequence[Line], config: TrainConfig) -> tuple[str, Remark] | None:
    """Whether pixels are withheld from depth and odometry, and how many."""
    share = _mean(late, "moving_share")
    if share is None or config.loss.rule not in ("hybrid", "hybrid_hard"):
        return None
    cap = config.loss.error_model.maximum_pi
    figures = f"On average {100 * share:.1f} % of the pixels are withheld from depth and odometry as moving"
    if share > _AT_CAP * cap:
        return "everything is taken to move", Remark(
            f"{figures}, at the cap of {100 * cap:.0f} %: the flow or the calibration is wrong, or most does move.",
            "bad",
        )
    if share < _DEAD:
        shut = _mean(late, "gate") == 0
        why = "the gate stayed shut: moving and still pixels do not separate yet" if shut else "nothing seems to move"
        return "the moving mask is silent", Remark(f"{figures}: {why}.", "poor" if shut else "plain")
    return "the moving mask lives", Remark(f"{figures} (cap {100 * cap:.0f} %).", "good")


def _focal(train: Sequence[Line], assumed_degrees: float | None) -> tuple[str, Remark] | None:
    """What became of a learned focal length."""
    factors = [value for line in train if (value := _number(line, "focal_factor")) is not None]
    if not factors:
        return None
    figures = f"The focal length is {factors[-1]:.3f} times the assumed one"
    if assumed_degrees is not None:
        half = math.tan(math.radians(assumed_degrees) / 2) / factors[-1]
        figures += f" ({math.degrees(2 * math.atan(half)):.1f} degrees of horizontal field of view)"
    figures += f"; over the last quarter of the run it changed by {100 * late_change(factors):.1f} %"
    if has_settled(factors):
        return "the focal length has settled", Remark(f"{figures}: settled.", "good")
    return "the focal length has not settled", Remark(
        f"{figures}: not settled. Go on, with recordings in which the camera turns.", "poor"
    )


def _lost_steps(last: Line, config: TrainConfig) -> list[Remark]:
    """Steps that taught nothing."""
    what = {
        "depth_skipped": "no pixel was left for depth and odometry",
        "flow_skipped": "no pixel was left for the flow",
        "steps_rejected": "something was not finite and the step was taken back",
    }
    steps = max(int(last["step"]), 1)
    remarks = []
    for name, text in what.items():
        count = _number(last, name) or 0.0
        if count:
            state: State = "poor" if count > _MANY * steps else "plain"
            remarks.append(Remark(f"In {count:.0f} of {steps} steps {text}.", state))
    if steps + config.log_every <= config.steps:
        remarks.append(Remark(f"{steps} of {config.steps} steps were logged.", "plain"))
    return remarks


def _late(train: Sequence[Line]) -> Sequence[Line]:
    """The last tenth of the log, at least some lines."""
    return train[-max(_LEAST_LINES, round(_LATE_SHARE * len(train))) :]


def _score(line: Line, names: Sequence[str]) -> float | None:
    """What the best checkpoint is chosen by."""
    found = [value for name in names if (value := _number(line, name)) is not None]
    return sum(found) if found else None


def _ratio(line: Line) -> float | None:
    rigid, still = _number(line, "e_r"), _number(line, "e_identity")
    return rigid / still if rigid is not None and still else None


def _mean(lines: Sequence[Line], name: str) -> float | None:
    values = [value for line in lines if (value := _number(line, name)) is not None]
    return sum(values) / len(values) if values else None


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
