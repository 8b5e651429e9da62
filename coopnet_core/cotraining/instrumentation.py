"""What is measured of the apportionment itself while training, and what tells that a run has gone wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import ErrorModelState, Evidence, log_likelihood_ratio
from coopnet_core.cotraining.objective import StepOutput
from coopnet_core.distributed import averaged

_GRID = 2001
_LEAST_DEPTH_SPREAD = 0.02
_MOST_SKIPPED = 0.1


def retain_gradients(output: StepOutput) -> None:
    """Ask the two sampling grids to keep their gradients."""
    for coordinates in (output.rigid_coordinates, output.flow_coordinates):
        if coordinates is not None and coordinates.requires_grad:
            coordinates.retain_grad()


@torch.no_grad()
def gradient_shares(output: StepOutput) -> dict[str, float]:
    """G_r, G_f = sum over pixels of |dL/du| and fairness G_r / (G_r + G_f), after the backward pass.

    The gradient is shared out where both sides have the same unit: at the sampling grids. The grids must have been
    asked to retain their gradients before the backward pass. Processes that share a batch must all call this.
    """
    sums = []
    for coordinates in (output.rigid_coordinates, output.flow_coordinates):
        retained = coordinates is not None and coordinates.retains_grad
        gradient = coordinates.grad if retained else None
        sums.append(torch.zeros_like(output.loss) if gradient is None else gradient.norm(dim=1).sum())
    rigid, flow = averaged(torch.stack(sums)).tolist()
    total = rigid + flow
    if total == 0:
        return {}
    return {"gradient_depth": rigid, "gradient_flow": flow, "fairness": rigid / total}


@torch.no_grad()
def threshold_and_temperature(state: ErrorModelState, config: ErrorModelConfig) -> tuple[float, float]:
    """Tau and T of the photometric posterior: gamma = 1/2 at Delta = tau, and near it sigmoid((Delta - tau) / T).

    They follow the networks' progress through b_r and b_f. NaN where no Delta in [0, 1] is judged to be moving.
    """
    delta = torch.linspace(0, 1, _GRID, device=state.b_r.device).view(1, 1, 1, -1)
    evidence = Evidence(delta, torch.zeros_like(delta), torch.ones_like(delta))
    photometric = config.model_copy(update={"cue": "photometric"})
    odds = log_likelihood_ratio(evidence, state, photometric) + (state.pi / (1 - state.pi)).log()
    odds = odds.flatten()
    above = torch.nonzero(odds > 0).flatten()
    if not len(above) or int(above[0]) == 0:
        return math.nan, math.nan
    first = int(above[0])
    slope = float(odds[first] - odds[first - 1]) * (_GRID - 1)
    return float(delta.flatten()[first]), 1 / slope


def symptoms(values: Mapping[str, float], maximum_pi: float) -> dict[str, str]:
    """What the averaged figures of a run say has gone wrong: by kind, in words with what to do; empty if nothing.

    Args:
        values: means over many steps of a stage that trains depth and odometry, by the names of the log;
            `depth_skipped` is the share of the steps in which no pixel was left for them.
        maximum_pi: cap of the moving share.
    """
    found = {}
    if values["e_r"] >= values["e_identity"]:
        found["unexplained"] = (
            f"depth and odometry explain the images no better (e_r {values['e_r']:.3f}) than the unmoved image "
            f"({values['e_identity']:.3f}): check the calibration, whether the camera moves, and that the images have "
            "texture; from nothing this takes thousands of steps"
        )
    if values["depth_spread"] < _LEAST_DEPTH_SPREAD:
        found["collapsed"] = (
            f"depth has collapsed to one value (spread of its logarithm {values['depth_spread']:.3f}): start from "
            "other weights, or give it recordings in which the camera travels"
        )
    if values["depth_skipped"] > _MOST_SKIPPED:
        found["skipped"] = (
            f"in {100 * values['depth_skipped']:.0f} % of the steps no pixel was left for depth and odometry: the "
            "camera stands, the images have no texture, or the flow points out of the image"
        )
    if values["moving_share"] > 0.95 * maximum_pi:
        found["everything_moves"] = (
            f"everything moves (share of withheld pixels {values['moving_share']:.2f}, cap {maximum_pi}): the flow or "
            "the calibration is wrong, or most of the image does move"
        )
    return found
