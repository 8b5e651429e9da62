"""Back-projection, projection and the rigid warp u_r(p) = pi(K T D(p) K^-1 p), in float32 (float64 stays float64).

Coordinates are pixels, (B, 2, H, W), x right and y down; pixel (0, 0) is the centre of the top-left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MINIMUM_Z = 1e-3
"""Points nearer than this (or behind the camera) are clamped to it and marked invalid, never projected mirrored."""


@dataclass(frozen=True)
class Warp:
    """Where each target pixel is found in the source.

    Attributes:
        coordinates: (B, 2, H, W) pixels in the source image.
        valid: (B, 1, H, W) bool, in front of the camera and inside the image.
    """

    coordinates: Tensor
    valid: Tensor


def pixel_grid(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 2, H, W) float32 pixel coordinates."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y])[None]


def inside(coordinates: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) bool: the coordinates can be interpolated from pixels of a height x width image."""
    x, y = coordinates[:, :1], coordinates[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def rays(camera_matrix: Tensor, height: int, width: int) -> Tensor:
    """K^-1 p of every pixel: (B, 3, H, W) with z = 1, for K of (B, 3, 3)."""
    grid = pixel_grid(height, width, camera_matrix.device)
    focal = torch.stack([camera_matrix[:, 0, 0], camera_matrix[:, 1, 1]], 1)[..., None, None]
    centre = camera_matrix[:, :2, 2][..., None, None]
    xy = (grid - centre) / focal
    return torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)


def scaled_matrix(camera_matrix: Tensor, scale: float) -> Tensor:
    """K (B, 3, 3) of the image resized by `scale`: c' = (c + 0.5) s - 0.5."""
    scaled = camera_matrix.clone()
    scaled[:, :2, :2] *= scale
    scaled[:, :2, 2] = (scaled[:, :2, 2] + 0.5) * scale - 0.5
    return scaled


def moved_points(depth: Tensor, T_source_target: Tensor, camera_matrix: Tensor) -> Tensor:
    """The surface points of the target in the source's camera frame, (B, 3, H, W); the third is their depth there.

    Args:
        depth: (B, 1, H, W) of the target, along the optical axis.
        T_source_target: (B, 4, 4), in the unit of `depth`.
        camera_matrix: (B, 3, 3), the same camera for both images.
    """
    height, width = depth.shape[-2:]
    points = rays(camera_matrix, height, width) * depth
    moved = (T_source_target[:, :3, :3] @ points.flatten(2)) + T_source_target[:, :3, 3:]
    return moved.unflatten(2, (height, width))


def project(points: Tensor, camera_matrix: Tensor) -> Warp:
    """Where points (B, 3, H, W) in the frame of a camera (B, 3, 3) are seen in its image, of H x W pixels too."""
    z = points[:, 2:]
    in_front = z > MINIMUM_Z
    normalised = points[:, :2] / z.clamp(min=MINIMUM_Z)
    focal = torch.stack([camera_matrix[:, 0, 0], camera_matrix[:, 1, 1]], 1)[..., None, None]
    coordinates = normalised * focal + camera_matrix[:, :2, 2][..., None, None]
    return Warp(coordinates, in_front & inside(coordinates, *points.shape[-2:]))


def rigid_warp(depth: Tensor, T_source_target: Tensor, camera_matrix: Tensor) -> Warp:
    """Project every target pixel into the source image.

    Args:
        depth: (B, 1, H, W) of the target, along the optical axis. A depth that is not finite gives an invalid pixel,
            and spoils the gradient with respect to the motion.
        T_source_target: (B, 4, 4), in the unit of `depth`.
        camera_matrix: (B, 3, 3), the same camera for both images.
    """
    return project(moved_points(depth, T_source_target, camera_matrix), camera_matrix)


def flow_warp(flow: Tensor) -> Warp:
    """The warp u_f(p) = p + F(p) of a flow (B, 2, H, W) in pixels."""
    height, width = flow.shape[-2:]
    coordinates = pixel_grid(height, width, flow.device) + flow
    return Warp(coordinates, inside(coordinates, height, width))
