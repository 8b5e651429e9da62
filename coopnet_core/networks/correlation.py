"""Local correlation of two feature maps in plain PyTorch: no extension to compile."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_correlation(first: Tensor, second: Tensor, search_range: int) -> Tensor:
    """Mean product of features of `first` with those of `second` displaced by up to `search_range` pixels.

    Row by row as matrix products, of which a diagonal band is kept: wasteful in arithmetic, yet an order of magnitude
    faster than one pass per displacement, which is bound by memory.

    Args:
        first, second: (B, C, H, W).
        search_range: r.

    Returns:
        (B, (2 r + 1)^2, H, W); channel (dy + r)(2 r + 1) + dx + r holds the displacement (dx, dy). Zero outside.
    """
    batch, channels, height, width = first.shape
    side = 2 * search_range + 1
    padded_width = width + 2 * search_range
    padded = F.pad(second, (search_range,) * 4)
    rows = first.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
    bands = []
    for dy in range(side):
        others = padded[:, :, dy : dy + height].permute(0, 2, 1, 3).reshape(batch * height, channels, padded_width)
        products = torch.bmm(rows, others)
        # One step down and one to the right at a time: the diagonal band, seen without a copy.
        bands.append(products.as_strided((batch * height, width, side), (width * padded_width, padded_width + 1, 1)))
    stacked = torch.cat(bands, dim=2).view(batch, height, width, side * side)
    return stacked.permute(0, 3, 1, 2) / channels
