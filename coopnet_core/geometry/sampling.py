"""Bilinear sampling at pixel coordinates, and resizing of flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(image: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear samples of `image` (B, C, H, W) at pixel `coordinates` (B, 2, h, w); the border is repeated outside.

    Pixel x sits at (2 x + 1) / W - 1, which is what `align_corners=False` means: the identity grid returns the image.
    A coordinate of NaN is sampled at 0, without a gradient: on the CPU, the backward pass of torch's grid_sample writes
    outside its memory there, and a run that diverges would end in a segmentation fault instead of a message.
    """
    height, width = image.shape[-2:]
    x, y = (_at_least_float32(coordinates.nan_to_num()) + 0.5).unbind(1)
    grid = torch.stack([x * (2.0 / width) - 1, y * (2.0 / height) - 1], dim=-1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of (B, C, H, W); antialiased when it shrinks."""
    if image.shape[-2:] == (height, width):
        return image
    shrinks = height < image.shape[-2] or width < image.shape[-1]
    return F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow (B, 2, h, w) in pixels and rescale its values to the new pixel size."""
    u, v = _at_least_float32(resize(flow, height, width)).unbind(1)
    return torch.stack([u * (width / flow.shape[-1]), v * (height / flow.shape[-2])], dim=1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
