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
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    scale = torch.tensor([2.0 / width, 2.0 / height], dtype=dtype, device=image.device).view(1, 2, 1, 1)
    grid = (coordinates.nan_to_num() + 0.5) * scale - 1
    return F.grid_sample(image, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of (B, C, H, W); antialiased when it shrinks."""
    if image.shape[-2:] == (height, width):
        return image
    shrinks = height < image.shape[-2] or width < image.shape[-1]
    return F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize a flow (B, 2, h, w) in pixels and rescale its values to the new pixel size."""
    factor = torch.tensor([width / flow.shape[-1], height / flow.shape[-2]], device=flow.device).view(1, 2, 1, 1)
    return resize(flow, height, width) * factor
