"""Edge-aware smoothness of inverse depth (first order) and of flow (second order)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.geometry.sampling import resize
from coopnet_core.losses.precision import full_precision
from coopnet_core.losses.reduction import masked_mean

_EDGE_SHARPNESS_FLOW = 10.0
_HOLE, _THIN = 7, 3
"""Pixels: smaller holes in what is withheld are not ground, thinner regions are no bodies."""


def _gradient_x(image: Tensor) -> Tensor:
    return image[..., :, 1:] - image[..., :, :-1]


def _gradient_y(image: Tensor) -> Tensor:
    return image[..., 1:, :] - image[..., :-1, :]


def disparity_smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """Mean |grad d*| exp(-|grad I|), with d* = d / mean(d) so that shrinking the depth gains nothing (Godard 2019).

    Args:
        disparity: (B, 1, h, w), positive.
        image: (B, 3, H, W) in [0, 1], resized to the disparity.

    Returns:
        A scalar.
    """
    disparity = full_precision(disparity)
    image = resize(image, *disparity.shape[-2:])
    normalised = disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
    weight_x = torch.exp(-_gradient_x(image).abs().mean(1, keepdim=True))
    weight_y = torch.exp(-_gradient_y(image).abs().mean(1, keepdim=True))
    along_x = (_gradient_x(normalised).abs() * weight_x).mean()
    along_y = (_gradient_y(normalised).abs() * weight_y).mean()
    return along_x + along_y


def flow_smoothness(flow: Tensor, image: Tensor) -> Tensor:
    """Mean |second derivative of F| exp(-10 |grad I|) (Jonschkowski et al. 2020), F in pixels of its own grid.

    Args:
        flow: (B, 2, h, w).
        image: (B, 3, H, W) in [0, 1], resized to the flow.

    Returns:
        A scalar.
    """
    flow = full_precision(flow)
    image = resize(image, *flow.shape[-2:])
    total = flow.new_zeros(())
    for gradient, crop in ((_gradient_x, (..., slice(1, None))), (_gradient_y, (..., slice(1, None), slice(None)))):
        edges = gradient(image).abs().mean(1, keepdim=True)
        weight = torch.exp(-_EDGE_SHARPNESS_FLOW * edges[crop])
        total = total + (gradient(gradient(flow)).abs() * weight).mean()
    return total


def contact(depth: Tensor, withheld: Tensor) -> Tensor:
    """Mean of |log D(p) - log D(foot of p)| over withheld pixels p, the foot taken as given.

    What is withheld from depth has no other teacher, and what little weight is left drives movers to where they would
    seem to stand still: to infinity, for those that go along. Things stand on the ground and their sides are upright:
    a pixel's depth is that of the ground where its column meets it. The logarithms are relative to their mean over the
    image: nothing else holds the scale of depth, and a pull that always goes one way would carry it off. [ours]

    Args:
        depth: (B, 1, H, W), positive.
        withheld: (B, 1, H, W) in [0, 1], detached. Regions thinner than three pixels are left alone.
    """
    logarithm = full_precision(depth).log()
    logarithm = logarithm - logarithm.mean((2, 3), keepdim=True)
    mover = _bodies(withheld)
    foot, known = _foot(logarithm.detach(), mover)
    return masked_mean((logarithm - foot).abs(), (mover & known).to(logarithm))


def _bodies(withheld: Tensor) -> Tensor:
    """(B, 1, H, W) bool: what is withheld, its holes filled (closing) and without thin false alarms (opening)."""
    # Beyond the border is nothing: without it, the closing would join bodies with the border near by.
    border = _HOLE // 2
    filled = -_largest(-_largest(F.pad(withheld, (border,) * 4), _HOLE), _HOLE)[..., border:-border, border:-border]
    return _largest(-_largest(-filled, _THIN), _THIN) > 0.5


def _largest(mask: Tensor, size: int) -> Tensor:
    return F.max_pool2d(mask, size, stride=1, padding=size // 2)


def _foot(value: Tensor, mover: Tensor) -> tuple[Tensor, Tensor]:
    """The value of the first pixel below that is not of a mover, (B, 1, H, W), and where there is one.

    Where the lower border cuts the column off, the nearest ground of the bottom row stands in: not far above the foot.
    """
    height, width = value.shape[-2:]
    rows = torch.arange(height, device=value.device)[:, None].expand_as(value)
    row = _next_where(~mover, rows, dim=2)
    below = value.gather(2, row.clamp(max=height - 1))
    ground = ~mover[:, :, -1:]
    columns = torch.arange(width, device=value.device).expand_as(ground)
    after = _next_where(ground, columns, dim=3)
    before = width - 1 - _next_where(ground.flip(3), columns, dim=3).flip(3)
    before_is_nearer = (before >= 0) & ((after == width) | (columns - before < after - columns))
    column = torch.where(before_is_nearer, before, after)
    beside = value[:, :, -1:].gather(3, column.clamp(0, width - 1))
    return torch.where(row < height, below, beside), (row < height) | (column < width)


def _next_where(wanted: Tensor, index: Tensor, dim: int) -> Tensor:
    """The first index at or after each place along `dim` where `wanted` holds; the length of `dim` where none does."""
    found = torch.where(wanted, index, index.new_full((), wanted.shape[dim]))
    return found.flip(dim).cummin(dim).values.flip(dim)
