"""Rigid motions as 4x4 matrices. Transforms are named T_dst_src: they take coordinates in src to coordinates in dst."""

from __future__ import annotations

import torch
from torch import Tensor


def skew(vector: Tensor) -> Tensor:
    """Cross-product matrices of (..., 3) vectors: (..., 3, 3), which applied to b give a x b."""
    axes = torch.eye(3, dtype=vector.dtype, device=vector.device).expand(*vector.shape[:-1], 3, 3)
    return torch.linalg.cross(vector[..., None].expand_as(axes), axes, dim=-2)


def rotation_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """Rodrigues' formula: (..., 3) radians to (..., 3, 3) rotation matrices.

    Written with sin(x)/x and (1 - cos x)/x^2 as functions of x^2 and Taylor series near zero, so that value and
    gradient are finite at zero rotation.
    """
    squared = (axis_angle * axis_angle).sum(-1)[..., None, None]
    small = squared < 1e-4
    # The unused branch of a `where` still receives a gradient: keep its argument away from zero.
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    first = torch.where(small, 1 - squared / 6 + squared**2 / 120, angle.sin() / angle)
    second = torch.where(small, 0.5 - squared / 24 + squared**2 / 720, (1 - angle.cos()) / safe)
    cross = skew(axis_angle)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + first * cross + second * (cross @ cross)


def transform_from_vector(vector: Tensor) -> Tensor:
    """(B, 6) translation then axis-angle (radians) to (B, 4, 4): rotation first, then translation."""
    rotation = rotation_from_axis_angle(vector[:, 3:])
    upper = torch.cat([rotation, vector[:, :3, None]], dim=2)
    last = torch.eye(4, dtype=vector.dtype, device=vector.device)[3:].expand(len(vector), 1, 4)
    return torch.cat([upper, last], dim=1)


def inverse(transform: Tensor) -> Tensor:
    """T_src_dst of T_dst_src, (..., 4, 4), by transposing the rotation."""
    rotation, translation = transform[..., :3, :3], transform[..., :3, 3:]
    transposed = rotation.transpose(-1, -2)
    upper = torch.cat([transposed, -transposed @ translation], dim=-1)
    return torch.cat([upper, transform[..., 3:, :]], dim=-2)
