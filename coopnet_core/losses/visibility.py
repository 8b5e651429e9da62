"""Which pixels of the target are seen in the source."""

from __future__ import annotations

import torch
from torch import Tensor

from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.sampling import sample

_RELATIVE, _ABSOLUTE = 0.05, 2.0
"""Looser than the 0.01 and 0.5 of the literature, which rejected three quarters of the pixels that are really visible
while the flow was still wrong by 3 pixels, and so starved all three networks."""
_UNUSABLE_SHARE = 0.3


@torch.no_grad()
def forward_backward_visible(flow: Tensor, backward_flow: Tensor) -> Tensor:
    """Forward-backward check with a real warp of the backward flow (Sundaram et al. 2010).

    A pixel is visible where |F(p) + B(p + F(p))|^2 < 0.05 (|F|^2 + |B|^2) + 2.

    Args:
        flow: (B, 2, H, W) target to source, pixels.
        backward_flow: (B, 2, H, W) source to target.

    Returns:
        (B, 1, H, W) bool; pixels that leave the image are not visible.
    """
    warp = flow_warp(flow)
    returned = sample(backward_flow, warp.coordinates)
    mismatch = (flow + returned).square().sum(1, keepdim=True)
    length = flow.square().sum(1, keepdim=True) + returned.square().sum(1, keepdim=True)
    return warp.valid & (mismatch < _RELATIVE * length + _ABSOLUTE)


@torch.no_grad()
def usable_visibility(visible: Tensor, inside: Tensor) -> Tensor:
    """`visible`, or `inside` for those pairs where the check rejects nearly everything.

    Early in training the flow is so wrong that the check would leave nothing to learn from. (B, 1, H, W) bool.
    """
    share = visible.float().mean((1, 2, 3), keepdim=True)
    reachable = inside.float().mean((1, 2, 3), keepdim=True)
    return torch.where(share < _UNUSABLE_SHARE * reachable, inside, visible)
