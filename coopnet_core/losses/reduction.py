"""Means over masks that may be empty."""

from __future__ import annotations

from torch import Tensor


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights); 0, with zero gradient, when no weight is left (no host synchronisation).

    Args:
        values: any shape, finite wherever the weight is zero too.
        weights: broadcastable to `values`, >= 0 (bool allowed).
    """
    weights = weights.to(values.dtype).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)
