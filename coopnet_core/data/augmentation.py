"""Augmentation on the device, drawn once per row and applied to all its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from coopnet_core.config import AugmentationConfig
from coopnet_core.data.triplets import Batch
from coopnet_core.distributed import Share

_LUMINANCE = (0.299, 0.587, 0.114)


def to_float(batch: Batch) -> Batch:
    """uint8 images to float32 in [0, 1]."""
    return replace(batch, target=batch.target.float() / 255, sources=batch.sources.float() / 255)


def augment(batch: Batch, config: AugmentationConfig, generator: torch.Generator, share: Share | None = None) -> Batch:
    """Mirror and recolour the rows of a float batch; K follows the mirror.

    The draws come from a generator on the CPU, so that a run is the same on every device.

    Args:
        batch: the rows of this process.
        config: how much.
        generator: moves on by the draws for the rows of all processes.
        share: which of the processes that share each batch this is.
    """
    frames = torch.cat([batch.target[:, None], batch.sources], dim=1)
    own = share or Share()
    rows = own.of(len(frames) * own.count)

    def draw() -> Tensor:
        """Uniform in [0, 1), one per row."""
        return torch.rand(len(frames) * own.count, generator=generator)[rows].to(frames.device)

    flips = draw() < config.flip
    frames = torch.where(flips.view(-1, 1, 1, 1, 1), frames.flip(-1), frames)
    matrix = _flip_matrix(batch.camera_matrix, flips, frames.shape[-1])
    moving = batch.moving
    if moving is not None:
        moving = torch.where(flips.view(-1, 1, 1, 1), moving.flip(-1), moving)
    frames = _recolour(frames, config, draw)
    return Batch(frames[:, 0], frames[:, 1:], matrix, moving, batch.assumed)


def _flip_matrix(matrix: Tensor, flips: Tensor, width: int) -> Tensor:
    flipped = matrix.clone()
    flipped[:, 0, 2] = width - 1 - matrix[:, 0, 2]
    return torch.where(flips.view(-1, 1, 1), flipped, matrix)


def _recolour(frames: Tensor, config: AugmentationConfig, draw: Callable[[], Tensor]) -> Tensor:
    def factor(spread: float) -> Tensor:
        return (1 + spread * (2 * draw() - 1)).view(-1, 1, 1, 1, 1)

    weights = torch.tensor(_LUMINANCE, device=frames.device).view(1, 1, 3, 1, 1)
    grey = (frames * weights).sum(2, keepdim=True)
    saturation = factor(config.saturation)
    to_grey = draw() < config.grey
    saturation = torch.where(to_grey.view(-1, 1, 1, 1, 1), torch.zeros_like(saturation), saturation)
    frames = grey + (frames - grey) * saturation
    mean = grey.mean((1, 2, 3, 4), keepdim=True)
    frames = (mean + (frames - mean) * factor(config.contrast)) * factor(config.brightness)
    return frames.clamp(0, 1)
