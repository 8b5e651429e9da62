"""How the gradient is shared out between the two sides, measured where both have the same unit: the sampling grids."""

from __future__ import annotations

import torch

from coopnet_core.cotraining.step import StepOutput


@torch.no_grad()
def gradient_shares(output: StepOutput) -> dict[str, float]:
    """G_r, G_f = sum over pixels of |dL/du| and fairness G_r / (G_r + G_f), after the backward pass.

    The grids must have been asked to retain their gradients before it.
    """
    sums = []
    for coordinates in (output.rigid_coordinates, output.flow_coordinates):
        retained = coordinates is not None and coordinates.retains_grad
        gradient = coordinates.grad if retained else None
        sums.append(0.0 if gradient is None else float(gradient.norm(dim=1).sum()))
    total = sum(sums)
    if total == 0:
        return {}
    rigid, flow = sums
    return {"gradient_depth": rigid, "gradient_flow": flow, "fairness": rigid / total}


def retain_gradients(output: StepOutput) -> None:
    """Ask the two sampling grids to keep their gradients."""
    for coordinates in (output.rigid_coordinates, output.flow_coordinates):
        if coordinates is not None and coordinates.requires_grad:
            coordinates.retain_grad()
