"""The shared photometric error of both reconstructions, never below float32: else the variance term cancels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.losses.precision import full_precision

_C1, _C2 = 0.01**2, 0.03**2
SSIM_WEIGHT = 0.85


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity over a 3x3 box with reflection padding (Wang et al. 2004; box as in Godard et al. 2017).

    Args:
        first, second: (B, C, H, W) float32 or float64 in [0, 1]; a pixel that is not finite spoils its neighbours too.

    Returns:
        (B, C, H, W) in [-1, 1], 1 where the neighbourhoods are equal.
    """
    # The five moments in one call: one pass over the memory instead of five.
    moments = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    pooled = _box_means(F.pad(moments, (1, 1, 1, 1), mode="reflect"))
    mean_1, mean_2, square_1, square_2, product = pooled.chunk(5, dim=1)
    variance_1, variance_2 = square_1 - mean_1 * mean_1, square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    numerator = (2 * mean_1 * mean_2 + _C1) * (2 * covariance + _C2)
    denominator = (mean_1 * mean_1 + mean_2 * mean_2 + _C1) * (variance_1 + variance_2 + _C2)
    return numerator / denominator


def _box_means(values: Tensor) -> Tensor:
    """Means over 3x3 boxes, (B, C, H + 2, W + 2) to (B, C, H, W).

    On a CPU as a convolution, which is five to eight times as fast there as pooling; on a GPU a convolution might round
    to fewer bits (TF32).
    """
    if values.is_cuda:
        return F.avg_pool2d(values, 3, stride=1)
    channels = values.shape[1]
    return F.conv2d(values, values.new_full((channels, 1, 3, 3), 1 / 9), groups=channels)


def photometric_error(target: Tensor, reconstruction: Tensor) -> Tensor:
    """E = 0.85 clip((1 - SSIM)/2, 0, 1) + 0.15 |I - I^|, both averaged over the channels.

    Args:
        target, reconstruction: (B, C, H, W) in [0, 1]; half precision is converted to float32.

    Returns:
        (B, 1, H, W) float32; float64 of float64.
    """
    with torch.autocast(target.device.type, enabled=False):
        target, reconstruction = full_precision(target), full_precision(reconstruction)
        dissimilarity = ((1 - ssim(target, reconstruction)) / 2).clamp(0, 1).mean(1, keepdim=True)
        difference = (target - reconstruction).abs().mean(1, keepdim=True)
        return SSIM_WEIGHT * dissimilarity + (1 - SSIM_WEIGHT) * difference
