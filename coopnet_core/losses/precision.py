"""The precision of the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """`values` as float32; float64 stays, so that gradients can be checked by finite differences."""
    return values if values.dtype == torch.float64 else values.float()
