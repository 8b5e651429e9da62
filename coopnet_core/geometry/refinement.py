"""Refinement of a camera motion so that depth and flow agree: robust Gauss-Newton over six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coopnet_core.geometry.projection import MINIMUM_Z, pixel_grid, rays
from coopnet_core.geometry.se3 import skew, transform_from_vector

_DAMPING = 1e-3
_LEAST_WEIGHT = 50.0
_LEAST_SCALE = 0.1
_PIXELS_PER_SAMPLE = 30.0
"""Errors of depth and flow change slowly over the image: so many pixels say as much as one independent one would."""
_LEAST_LENGTH = 1e-4


@dataclass(frozen=True)
class MotionPrior:
    """How far the odometry network's answer is trusted: standard deviations of its errors.

    [ours] Measured on rendered scenes and on KITTI.

    Attributes:
        along: of the translation's length, relative to it.
        across: of the translation across its direction, relative to its length.
        rotation: radians, about each axis.
        tolerance: squared distance in standard deviations from which on the prior gives way (Cauchy): where depth and
            flow on static pixels clearly say something else, the network was misled, mostly by movers.
    """

    along: float = 1.0
    across: float = 0.02
    rotation: float = 0.002
    tolerance: float = 5.0


@dataclass(frozen=True)
class RefinedMotion:
    """A motion and how certain it is.

    Attributes:
        T_source_target: (B, 4, 4).
        covariance: (B, 6, 6) float64 of u = (translation, rotation in radians), where exp(u) T_source_target is the
            true motion: errors seen in the source frame, in the unit of the depth. The error of that unit itself (a
            depth that is too large everywhere) is not in it.
    """

    T_source_target: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class _Matches:
    """(B, 3, N) points of the target, (B, 2, N) their matches in the source, (B, N) weights, (B, 3, 3) K."""

    points: Tensor
    pixels: Tensor
    weights: Tensor
    matrix: Tensor


@dataclass(frozen=True)
class _Normal:
    """Normal equations: (B, 6, 6) and (B, 6, 1), and the (B,) median residual that they were weighted by."""

    hessian: Tensor
    gradient: Tensor
    scale: Tensor


def refine_motion(
    T_source_target: Tensor,
    depth: Tensor,
    flow: Tensor,
    weights: Tensor,
    camera_matrix: Tensor,
    prior: MotionPrior | None = None,
    iterations: int = 4,
) -> RefinedMotion:
    """The motion near `T_source_target` whose rigid flow explains `flow` best.

    Minimises sum w rho(|pi(K T D K^-1 p) - (p + F)|) by iteratively reweighted Gauss-Newton with the Cauchy weight
    1 / (1 + (r / c)^2), c the median residual of the iteration. With a prior, as many iterations more, from what the
    images alone say, of the maximum a posteriori: residuals in units of c, `_PIXELS_PER_SAMPLE` pixels to a sample,
    and the squared distance from `T_source_target` in units of the prior. [ours]

    Args:
        T_source_target: (B, 4, 4) to start from, and what the prior is about.
        depth: (B, 1, h, w) of the target.
        flow: (B, 2, h, w) target -> source, pixels of this grid.
        weights: (B, 1, h, w), 0 where depth or flow means nothing or the pixel moves.
        camera_matrix: (B, 3, 3) of this grid.
        prior: how far `T_source_target` is trusted; None: it is only the start.
        iterations: of Gauss-Newton, with and without the prior.

    Returns:
        The motion. Rows with too little weight, or whose answer is not finite, keep their start, and the covariance
        of the prior (without one: of a prior of the default).
    """
    height, width = depth.shape[-2:]
    start = T_source_target.double()
    matches = _Matches(
        points=(rays(camera_matrix, height, width) * depth).flatten(2).double(),
        pixels=(pixel_grid(height, width, depth.device) + flow).flatten(2).double(),
        weights=weights.flatten(1).double(),
        matrix=camera_matrix.double(),
    )
    motion = start
    for _ in range(iterations):
        normal = _normal_equations(motion, matches)
        diagonal = torch.diag_embed(normal.hessian.diagonal(dim1=1, dim2=2))
        motion = _updated(motion, normal.hessian + _DAMPING * diagonal, normal.gradient)
    for _ in range(iterations if prior is not None else 0):
        motion = _updated(motion, *_posterior_equations(motion, start, matches, prior))
    information = _posterior_equations(motion, start, matches, prior)[0]
    finite = torch.cat([motion.flatten(1), information.flatten(1)], dim=1).isfinite().all(1)
    usable = (finite & (matches.weights.sum(1) > _LEAST_WEIGHT)).view(-1, 1, 1)
    information = torch.where(usable, information, _prior_equations(start, start, prior or MotionPrior())[0])
    motion = torch.where(usable, motion, start)
    return RefinedMotion(motion.to(T_source_target.dtype), torch.linalg.inv_ex(_solvable(information))[0])


def _updated(motion: Tensor, hessian: Tensor, gradient: Tensor) -> Tensor:
    """After one step; the update is a small motion applied on the left."""
    return transform_from_vector(-torch.linalg.solve_ex(_solvable(hessian), gradient)[0][:, :, 0]) @ motion


def _solvable(hessian: Tensor) -> Tensor:
    return hessian + 1e-9 * torch.eye(6, dtype=hessian.dtype, device=hessian.device)


def _normal_equations(motion: Tensor, matches: _Matches) -> _Normal:
    """Of the weighted residuals, in pixels, at a motion."""
    moved = motion[:, :3, :3] @ matches.points + motion[:, :3, 3:]
    in_front = moved[:, 2] > MINIMUM_Z
    x, y, z = moved[:, 0], moved[:, 1], moved[:, 2].clamp(min=MINIMUM_Z)
    matrix = matches.matrix
    fx, fy = matrix[:, 0, 0, None], matrix[:, 1, 1, None]
    predicted = torch.stack([fx * x / z + matrix[:, 0, 2, None], fy * y / z + matrix[:, 1, 2, None]], dim=1)
    residual = predicted - matches.pixels
    length = residual.square().sum(1).sqrt()
    weights = matches.weights * in_front
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
    return _Normal(hessian, gradient, scale)


def _posterior_equations(
    motion: Tensor, start: Tensor, matches: _Matches, prior: MotionPrior | None
) -> tuple[Tensor, Tensor]:
    """Information (B, 6, 6) and gradient (B, 6, 1) at a motion: of the images, and of the prior where there is one."""
    normal = _normal_equations(motion, matches)
    variance = (_PIXELS_PER_SAMPLE * normal.scale.square())[:, None, None]
    information, gradient = normal.hessian / variance, normal.gradient / variance
    if prior is None:
        return information, gradient
    prior_information, prior_gradient = _prior_equations(motion, start, prior)
    return information + prior_information, gradient + prior_gradient


def _prior_equations(motion: Tensor, start: Tensor, prior: MotionPrior) -> tuple[Tensor, Tensor]:
    """Information (B, 6, 6) and gradient (B, 6, 1) of the distance of a motion from the one it began with."""
    identity = torch.eye(3, dtype=motion.dtype, device=motion.device).expand(len(motion), 3, 3)
    length = start[:, :3, 3].norm(dim=1).clamp(min=_LEAST_LENGTH)
    direction = start[:, :3, 3] / length[:, None]
    along = direction[:, :, None] * direction[:, None, :]
    relative = along / prior.along**2 + (identity - along) / prior.across**2
    precision = relative / length.square()[:, None, None]
    shift = (motion[:, :3, 3] - start[:, :3, 3])[:, :, None]
    turned = motion[:, :3, :3] @ start[:, :3, :3].transpose(1, 2)
    odd = (turned - turned.transpose(1, 2)) / 2
    turn = torch.stack([odd[:, 2, 1], odd[:, 0, 2], odd[:, 1, 0]], dim=1)[:, :, None]
    distance = (shift.transpose(1, 2) @ precision @ shift) + turn.square().sum(1, keepdim=True) / prior.rotation**2
    trust = 1 / (1 + distance / prior.tolerance)
    # the update (v, w) moves the translation by v + w x t, and turns by w
    of_shift = torch.cat([identity, -skew(motion[:, :3, 3])], dim=2).transpose(1, 2)
    of_turn = torch.cat([torch.zeros_like(identity), identity / prior.rotation**2], dim=2).transpose(1, 2)
    information = of_shift @ precision @ of_shift.transpose(1, 2)
    information[:, 3:, 3:] += identity / prior.rotation**2
    gradient = of_shift @ precision @ shift + of_turn @ turn
    return trust * information, trust * gradient
