"""Edge-aware smoothness of inverse depth (first order) and of flow (second order)."""

from __future__ import annotations

import torch
from torch import Tensor

from coopnet_core.geometry.sampling import resize
from coopnet_core.losses.precision import full_precision
from coopnet_core.losses.reduction import masked_mean

_EDGE_SHARPNESS_FLOW = 10.0


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
    """Mean of |log D(p) - log D(pixel below p)| over withheld pixels p, the pixel below taken as given.

    What is withheld from depth has no other teacher, and what little weight is left drives movers to where they would
    seem to stand still: to infinity, for those that go along. Things stand on the ground, so their depth is that of the
    ground where they touch it; tied to what is below, withheld pixels take it over row by row. [ours]

    Args:
        depth: (B, 1, H, W), positive.
        withheld: (B, 1, H, W) in [0, 1], detached.
    """
    logarithm = full_precision(depth).log()
    difference = (logarithm[..., :-1, :] - logarithm[..., 1:, :].detach()).abs()
    return masked_mean(difference, withheld[..., :-1, :])
