"""Refinement of a camera motion so that depth and flow agree: robust Gauss-Newton over six numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from coopnet_core.geometry.projection import MINIMUM_Z, pixel_grid, rays
from coopnet_core.geometry.se3 import transform_from_vector

_DAMPING = 1e-3
_LEAST_WEIGHT = 50.0
_LEAST_SCALE = 0.1


def refine_motion(
    T_source_target: Tensor, depth: Tensor, flow: Tensor, weights: Tensor, camera_matrix: Tensor, iterations: int = 6
) -> Tensor:
    """The motion near `T_source_target` whose rigid flow explains `flow` best.

    Minimises sum w rho(|pi(K T D K^-1 p) - (p + F)|) by iteratively reweighted Gauss-Newton with the Cauchy weight
    1 / (1 + (r / c)^2), c the median residual of the iteration. [ours]

    Args:
        T_source_target: (B, 4, 4) to start from.
        depth: (B, 1, h, w) of the target.
        flow: (B, 2, h, w) target -> source, pixels of this grid.
        weights: (B, 1, h, w), 0 where depth or flow means nothing or the pixel moves.
        camera_matrix: (B, 3, 3) of this grid.
        iterations: of Gauss-Newton.

    Returns:
        (B, 4, 4). Rows with too little weight, or whose answer is not finite, keep their start.
    """
    height, width = depth.shape[-2:]
    points = (rays(camera_matrix, height, width) * depth).flatten(2).double()
    matches = (pixel_grid(height, width, depth.device) + flow).flatten(2).double()
    weights = weights.flatten(1).double()
    matrix = camera_matrix.double()
    motion = T_source_target.double()
    for _ in range(iterations):
        motion = _gauss_newton(motion, points, matches, weights, matrix)
    usable = (weights.sum(1) > _LEAST_WEIGHT) & motion.isfinite().all(2).all(1)
    return torch.where(usable.view(-1, 1, 1), motion, T_source_target.double()).to(T_source_target.dtype)


def _gauss_newton(motion: Tensor, points: Tensor, matches: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """One reweighted step; the update is a small motion applied on the left."""
    moved = motion[:, :3, :3] @ points + motion[:, :3, 3:]
    in_front = moved[:, 2] > MINIMUM_Z
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2].clamp(min=MINIMUM_Z)
    fx, fy = matrix[:, 0, 0, None], matrix[:, 1, 1, None]
    predicted = torch.stack([fx * x / z + matrix[:, 0, 2, None], fy * y / z + matrix[:, 1, 2, None]], dim=1)
    residual = predicted - matches
    length = residual.square().sum(1).sqrt()
    weights = weights * in_front
    judged = torch.where(weights > 0, length, torch.nan)
    scale = judged.nanmedian(dim=1).values.nan_to_num(_LEAST_SCALE).clamp(min=_LEAST_SCALE)
    weights = weights / (1 + (length / scale[:, None]).square())
    zero = torch.zeros_like(x)
    # d(pixel)/d(translation, rotation) of a point moved by t + w x X.
    row_u = torch.stack([fx / z, zero, -fx * x / z**2, -fx * x * y / z**2, fx * (1 + x**2 / z**2), -fx * y / z], dim=1)
    row_v = torch.stack([zero, fy / z, -fy * y / z**2, -fy * (1 + y**2 / z**2), fy * x * y / z**2, fy * x / z], dim=1)
    hessian, gradient = 0.0, 0.0
    for row, error in ((row_u, residual[:, 0]), (row_v, residual[:, 1])):
        weighted = row * weights[:, None]
        hessian = hessian + weighted @ row.transpose(1, 2)
        gradient = gradient + (weighted @ error[:, :, None])
    diagonal = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2))
    damped = hessian + _DAMPING * diagonal + 1e-9 * torch.eye(6, dtype=hessian.dtype, device=hessian.device)
    update = -torch.linalg.solve_ex(damped, gradient)[0][:, :, 0]
    return transform_from_vector(update) @ motion
