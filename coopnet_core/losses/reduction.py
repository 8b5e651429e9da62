"""Means over masks that may be empty."""

from __future__ import annotations

import torch
from torch import Tensor

from coopnet_core.distributed import averaged


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights); 0, with zero gradient, when no weight is left (no host synchronisation).

    Where several processes share a batch, the weights are those of the whole batch: the mean over the processes of what
    this gives is the mean over the mask of the whole batch, whatever part of the mask each process has.

    Args:
        values: any shape. Where the weight is zero they may be anything, NaN too, and get a gradient of exactly zero;
            but an earlier operation whose derivative is not finite there makes NaN of that zero: mask its input too.
        weights: broadcastable to `values`, finite, >= 0 (bool allowed).
    """
    weights = weights.to(values.dtype).expand_as(values)
    counted = torch.where(weights > 0, values, torch.zeros_like(values))
    return (counted * weights).sum() / averaged(weights.sum()).clamp(min=1e-6)
