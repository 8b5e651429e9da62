"""Scalar apportionment: how the two sides are weighed against each other on top of the rule per pixel. [ours].

With separate networks and Adam, a constant factor on one network's whole loss changes almost nothing: the factors act
relative to the regularisers of that side, or, if so configured, on its learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from coopnet_core.config import LossConfig
from coopnet_core.cotraining.error_model import ErrorModelState

_LIMITS = (0.25, 4.0)

SideWeights = tuple[Tensor, Tensor]
"""Factors of the rigid and of the flow side, scalars, detached."""


def _per_pixel(state: ErrorModelState, config: LossConfig) -> SideWeights:
    """No scalar at all: the rule per pixel alone."""
    one = state.b_r.new_ones(())
    return one, one


def _relative_progress(state: ErrorModelState, config: LossConfig) -> SideWeights:
    """1 / b_i: each side descends its relative error."""
    return _with_sum_two(1 / state.b_r, 1 / state.b_f)


def _importance(state: ErrorModelState, config: LossConfig) -> SideWeights:
    """What undoes the loser's smaller share of pixels in a min-type loss: (b_r + b_f) / (2 b_of_the_other)."""
    total = state.b_r + state.b_f
    return (total / (2 * state.b_f)).clamp(*_LIMITS), (total / (2 * state.b_r)).clamp(*_LIMITS)


def _progress_controller(state: ErrorModelState, config: LossConfig) -> SideWeights:
    """The side that has progressed less since the start is weighed more: ~ (r_i / mean r)^alpha, r_i = b_i / b_i(0).

    After GradNorm (Chen et al. 2018), without the shared trunk that it needs.
    """
    rigid, flow = state.b_r / state.b_r_start, state.b_f / state.b_f_start
    mean = 0.5 * (rigid + flow)
    return _with_sum_two((rigid / mean) ** config.progress_alpha, (flow / mean) ** config.progress_alpha)


def _with_sum_two(rigid: Tensor, flow: Tensor) -> SideWeights:
    total = rigid + flow
    low, high = _LIMITS[0], 2 - _LIMITS[0]
    return (2 * rigid / total).clamp(low, high), (2 * flow / total).clamp(low, high)


APPORTIONMENTS: dict[str, Callable[[ErrorModelState, LossConfig], SideWeights]] = {
    "per_pixel": _per_pixel,
    "relative_progress": _relative_progress,
    "importance": _importance,
    "progress": _progress_controller,
}


def side_weights(state: ErrorModelState, config: LossConfig) -> SideWeights:
    """The factors of the configured apportionment for the state of the error model."""
    return APPORTIONMENTS[config.apportionment](state, config)
