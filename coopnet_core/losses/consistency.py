"""Couplings: of the rigid flow with the optical flow, and of the depths of two frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coopnet_core.geometry.projection import moved_points, project
from coopnet_core.geometry.sampling import sample
from coopnet_core.losses.precision import full_precision

_WHOLE = 1 - 1e-3
"""Bilinear weights of four known neighbours add up to 1 but for rounding."""


@dataclass(frozen=True)
class DepthConsistency:
    """How well two depth maps tell of the same surface.

    Attributes:
        error: (B, 1, H, W) in [0, 1), 0 where they agree (or nothing is known).
        valid: (B, 1, H, W) bool, the pixel lands inside the source, before the camera, and both depths are known.
    """

    error: Tensor
    valid: Tensor


def charbonnier(residual: Tensor, epsilon: float = 0.1) -> Tensor:
    """Robust length of (B, 2, H, W) residuals in pixels: sqrt(|r|^2 + eps^2) - eps, (B, 1, H, W)."""
    return (residual.square().sum(1, keepdim=True) + epsilon**2).sqrt() - epsilon


def depth_consistency(
    depth: Tensor, source_depth: Tensor, T_source_target: Tensor, camera_matrix: Tensor
) -> DepthConsistency:
    """|D_a' - D_b'| / (D_a' + D_b'), the geometry consistency of SC-SfMLearner (Bian et al. 2019) [peer].

    D_a' is the depth of the target's surface point in the source's camera, D_b' the source's depth where it lands.
    Gradients reach both depths and the motion. What moves or is hidden does not agree in truth either: weight it away.

    Args:
        depth: (B, 1, H, W) of the target, along the optical axis; unknown where it is NaN, infinite or not positive.
        source_depth: (B, 1, H, W) of the source, in the same unit.
        T_source_target: (B, 4, 4), in the unit of the depths.
        camera_matrix: (B, 3, 3), the same camera for both images.
    """
    depth, source_depth = full_precision(depth), full_precision(source_depth)
    known, source_known = (value.isfinite() & (value > 0) for value in (depth, source_depth))
    # Unknown values are replaced before the arithmetic: masked afterwards, their gradient would be 0 * NaN.
    points = moved_points(torch.where(known, depth, 1.0), T_source_target, camera_matrix)
    warp = project(points, camera_matrix)
    filled = torch.where(source_known, source_depth, 1.0)
    sampled, share = sample(torch.cat([filled, source_known.to(filled.dtype)], 1), warp.coordinates).split(1, dim=1)
    valid = warp.valid & known & (share > _WHOLE)
    projected = torch.where(valid, points[:, 2:], 1.0)
    sampled = torch.where(valid, sampled, 1.0)
    return DepthConsistency((projected - sampled).abs() / (projected + sampled), valid)
