"""Which pixels of the target are seen in the source. Decisions, not terms: nothing here has a gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.geometry.projection import flow_warp, moved_points, project
from coopnet_core.geometry.sampling import sample

_RELATIVE, _ABSOLUTE = 0.05, 2.0
"""Looser than the 0.01 and 0.5 of the literature, which rejected three quarters of the pixels that are really visible
while the flow was still wrong by 3 pixels, and so starved all three networks."""
_UNUSABLE_SHARE = 0.3

COVERED = 0.1
"""Low, because a pixel that is seen gets as little as 1/4 where the source is smaller by 1.5 along each axis, and
because errors of the flow tear holes into the coverage. See "Visibility, measured" in docs/method.md."""
_BEHIND_RELATIVE, _BEHIND_SLOPES = 0.05, 2.0
_LEAST_SHARE = 0.05


@torch.no_grad()
def forward_backward_visible(
    flow: Tensor, backward_flow: Tensor, relative: float = _RELATIVE, absolute: float = _ABSOLUTE
) -> Tensor:
    """Forward-backward check with a real warp of the backward flow (Sundaram et al. 2010).

    A pixel is visible where |F(p) + B(p + F(p))|^2 < relative (|F|^2 + |B|^2) + absolute.

    Args:
        flow: (B, 2, H, W) target to source, pixels.
        backward_flow: (B, 2, H, W) source to target.
        relative: tolerance, per square of the lengths.
        absolute: tolerance, square pixels.

    Returns:
        (B, 1, H, W) bool; pixels that leave the image are not visible.
    """
    warp = flow_warp(flow)
    returned = sample(backward_flow, warp.coordinates)
    mismatch = (flow + returned).square().sum(1, keepdim=True)
    length = flow.square().sum(1, keepdim=True) + returned.square().sum(1, keepdim=True)
    return warp.valid & (mismatch < relative * length + absolute)


@torch.no_grad()
def coverage(backward_flow: Tensor) -> Tensor:
    """How much of the source lands on each target pixel: the range map of Wang et al. (2018) [peer], not capped at 1.

    Every source pixel q is splatted bilinearly at q + B(q). Where the image neither grows nor shrinks, a target pixel
    that is seen gets 1 and a hidden one 0; where the source is smaller by s along each axis, a seen pixel gets 1 / s^2
    on average.

    Args:
        backward_flow: (B, 2, H, W) source to target, pixels; pixels without a finite flow cover nothing.

    Returns:
        (B, 1, H, W) float32, >= 0. On a GPU the order of the sum, hence the last bit, is not reproducible.
    """
    height, width = backward_flow.shape[-2:]
    covered = _framed(backward_flow, 0.0)
    for index, weight in _corners(flow_warp(backward_flow.float()).coordinates):
        covered.scatter_add_(1, index, weight)
    return covered.view(-1, 1, height + 2, width + 2)[..., 1:-1, 1:-1]


@torch.no_grad()
def splat_visible(flow: Tensor, backward_flow: Tensor, threshold: float = COVERED) -> Tensor:
    """A pixel is visible where the source, carried along its backward flow, covers it (Wang et al. 2018 [peer]).

    Unlike the forward-backward check it asks for no agreement of the two flows, so that an error of the flow costs
    pixels near occlusions only. Wang et al. weight by the capped coverage; the threshold is [ours].

    Args:
        flow: (B, 2, H, W) target to source, pixels; tells which pixels leave the image, nothing else.
        backward_flow: (B, 2, H, W) source to target.
        threshold: of the coverage.

    Returns:
        (B, 1, H, W) bool; pixels that leave the image, or whose flow is not finite, are not visible.
    """
    return flow_warp(flow).valid & (coverage(backward_flow) > threshold)


@torch.no_grad()
def rigid_visible(depth: Tensor, T_source_target: Tensor, camera_matrix: Tensor) -> Tensor:
    """A pixel is visible where no other point of the target's depth map is in front of it in the source [ours].

    A z-buffer: every target point is written to the source pixels around its projection, each of which keeps the
    nearest. A point is hidden when it lies behind all of its own by more than 5 % of their depth and twice the slope of
    its surface per pixel. It needs the depth of the target alone, hence no agreement of two depth maps. What moves by
    itself is taken to stand still, and what the target does not see hides nothing: combine it with `splat_visible`.

    Args:
        depth: (B, 1, H, W) of the target, along the optical axis.
        T_source_target: (B, 4, 4), in the unit of `depth`.
        camera_matrix: (B, 3, 3), the same camera for both images.

    Returns:
        (B, 1, H, W) bool; pixels that leave the image, that come to lie behind the camera, or whose depth is not finite
        and positive are not visible, and hide nothing.
    """
    matrix = camera_matrix.float()
    points = moved_points(depth.float(), T_source_target.float(), matrix)
    warp = project(points, matrix)
    valid = warp.valid & (depth > 0)
    z = torch.where(valid, points[:, 2:], torch.inf)
    nearest, corners = _framed(depth, torch.inf), _corners(warp.coordinates)
    for index, weight in corners:
        # A corner that is hardly touched is left out: at rest, each point would else cover its neighbours as well.
        nearest.scatter_reduce_(1, index, torch.where(weight > _LEAST_SHARE, z.flatten(1), torch.inf), "amin")
    seen = [torch.where(weight > _LEAST_SHARE, nearest.gather(1, index), 0.0) for index, weight in corners]
    front = torch.stack(seen).amax(0).view_as(depth)
    return valid & (z <= front * (1 + _BEHIND_RELATIVE) + _BEHIND_SLOPES * _slope(z))


def _framed(like: Tensor, value: float) -> Tensor:
    """(B, (H + 2) (W + 2)) float32: a flat image with a frame of one pixel, which catches what falls just outside."""
    height, width = like.shape[-2:]
    return torch.full((len(like), (height + 2) * (width + 2)), value, dtype=torch.float32, device=like.device)


def _corners(coordinates: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The four pixels around each of the coordinates (B, 2, H, W), and their bilinear weights.

    Returns:
        Four pairs (B, H W): int64 indices into a `_framed` image, and float32 weights. What lies farther out or is not
        finite has weight 0 and the index of some other pixel.
    """
    height, width = coordinates.shape[-2:]
    x, y = coordinates.flatten(2).unbind(1)
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = torch.where(near, x, 0.0), torch.where(near, y, 0.0)
    left, top = x.floor(), y.floor()
    right_share, low_share = x - left, y - top
    base = (top.long() + 1) * (width + 2) + left.long() + 1
    corners = []
    for down, vertical in ((0, 1 - low_share), (1, low_share)):
        for along, horizontal in ((0, 1 - right_share), (1, right_share)):
            corners.append((base + down * (width + 2) + along, torch.where(near, vertical * horizontal, 0.0)))
    return corners


def _slope(z: Tensor) -> Tensor:
    """Change of z (B, 1, H, W) per pixel: the smaller of both sides along each axis, so that no edge is a slope."""
    along_x, along_y = z.diff(dim=3).abs().nan_to_num(torch.inf), z.diff(dim=2).abs().nan_to_num(torch.inf)
    x = torch.minimum(F.pad(along_x, (1, 0), value=torch.inf), F.pad(along_x, (0, 1), value=torch.inf))
    y = torch.minimum(F.pad(along_y, (0, 0, 1, 0), value=torch.inf), F.pad(along_y, (0, 0, 0, 1), value=torch.inf))
    return x + y


@torch.no_grad()
def usable_visibility(visible: Tensor, inside: Tensor) -> Tensor:
    """`visible`, or `inside` for those pairs where the check rejects nearly everything.

    Early in training the flow is so wrong that the check would leave nothing to learn from. (B, 1, H, W) bool.
    """
    share = visible.float().mean((1, 2, 3), keepdim=True)
    reachable = inside.float().mean((1, 2, 3), keepdim=True)
    return torch.where(share < _UNUSABLE_SHARE * reachable, inside, visible)
