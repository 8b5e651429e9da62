"""Refinement of a camera motion so that depth and flow agree: robust Gauss-Newton over six numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.geometry.projection import MINIMUM_Z, pixel_grid, rays
from coopnet_core.geometry.se3 import skew

_DAMPING = 1e-3
_LEAST_WEIGHT = 50.0
_LEAST_SCALE = 0.1
_PIXELS_PER_SAMPLE = 30.0
"""Errors of depth and flow change slowly over the image: so many pixels say as much as one independent one would."""
_LEAST_LENGTH = 1e-4
_LEAST_EIGENVALUE = 1e-9


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
    """What the images say.

    Attributes:
        points: (B, 3, N) of the target.
        found: (B, 2, N) where the flow finds them in the source, on the plane at distance 1.
        weights: (B, N).
        focal: (B, 2, 1) pixels.
    """

    points: Tensor
    found: Tensor
    weights: Tensor
    focal: Tensor


@dataclass(frozen=True)
class _Start:
    """What the odometry network says, (B, 3, 4), and the inverse covariance of its errors, (B, 6, 6): `MotionPrior`."""

    motion: Tensor
    precision: Tensor
    tolerance: float


@dataclass(frozen=True)
class _Normal:
    """Normal equations: (B, 6, 6) and (B, 6, 1), and the (B, 1, 1) median residual that they were weighted by."""

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
    matrix = camera_matrix.double()
    focal = matrix.diagonal(dim1=1, dim2=2)[:, :2, None]
    matches = _Matches(
        points=(rays(camera_matrix, height, width) * depth).flatten(2).double(),
        found=((pixel_grid(height, width, depth.device) + flow).flatten(2) - matrix[:, :2, 2:]) / focal,
        weights=weights.flatten(1).double(),
        focal=focal,
    )
    start = _start(T_source_target[:, :3].double(), prior or MotionPrior())
    least = _LEAST_EIGENVALUE * _identity(6, start.motion)
    damping = 1 + _DAMPING * _identity(6, start.motion)
    motion = start.motion
    for _ in range(iterations):
        normal = _normal_equations(motion, matches)
        motion = _updated(motion, torch.addcmul(least, normal.hessian, damping), normal.gradient)
    for _ in range(iterations if prior is not None else 0):
        information, gradient = _posterior_equations(motion, matches, start)
        motion = _updated(motion, information + least, gradient)
    if prior is None:
        information, _ = _of_the_images(_normal_equations(motion, matches))
    else:
        information, _ = _posterior_equations(motion, matches, start)
    finite = torch.cat([motion.flatten(1), information.flatten(1)], dim=1).isfinite().all(1)
    usable = (finite & (matches.weights.sum(1) > _LEAST_WEIGHT)).view(-1, 1, 1)
    information = torch.where(usable, information, _prior_equations(start.motion, start)[0])
    motion = torch.where(usable, motion, start.motion)
    refined = torch.cat([motion.to(T_source_target.dtype), T_source_target[:, 3:]], dim=1)
    return RefinedMotion(refined, torch.linalg.inv_ex(information + least)[0])


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _updated(motion: Tensor, hessian: Tensor, gradient: Tensor) -> Tensor:
    """A (B, 3, 4) motion after one step: the update is a small motion applied on the left.

    Its rotation is by Cayley's map: a rotation for any update, and the exponential to second order.
    """
    update = -torch.linalg.solve_ex(hessian, gradient)[0]
    turn = update[:, 3:]
    cross = skew(turn[:, :, 0])
    stretch = 1 + turn.square().sum(1, keepdim=True) / 4
    rotation = _identity(3, motion) + torch.baddbmm(cross, cross, cross, alpha=0.5) / stretch
    moved = rotation @ motion
    return torch.cat([moved[:, :, :3], moved[:, :, 3:] + update[:, :3]], dim=2)


def _normal_equations(motion: Tensor, matches: _Matches) -> _Normal:
    """Of the weighted residuals, in pixels, at a motion."""
    moved = torch.baddbmm(motion[:, :, 3:], motion[:, :, :3], matches.points)
    depth = moved[:, 2:]
    inverse = 1 / depth.clamp(min=MINIMUM_Z)
    seen = moved[:, :2] * inverse
    residual = (seen - matches.found) * matches.focal
    length = torch.hypot(*residual.unbind(1))
    weights = matches.weights * (depth[:, 0] > MINIMUM_Z)
    judged = torch.where(weights > 0, length, torch.nan)
    scale = judged.nanmedian(dim=1, keepdim=True).values.nan_to_num(_LEAST_SCALE).clamp(min=_LEAST_SCALE)
    weights = weights / (1 + (length / scale).square())
    jacobian = _jacobian(seen, inverse) * matches.focal[:, None]
    weighted = (jacobian * weights[:, None, None]).flatten(2)
    gradient = weighted @ residual.flatten(1)[:, :, None]
    return _Normal(weighted @ jacobian.flatten(2).transpose(1, 2), gradient, scale[:, :, None])


def _jacobian(seen: Tensor, inverse: Tensor) -> Tensor:
    """Of x/z, y/z with respect to (translation, rotation) of a point moved by t + w x X: (B, 6, 2, N).

    Args:
        seen: (B, 2, N) x/z and y/z.
        inverse: (B, 1, N) 1/z.
    """
    x, y = seen.unbind(1)
    nearness = inverse[:, 0]
    zero, product = torch.zeros_like(x), x * y
    towards = -(seen * inverse)
    square = 1 + seen.square()
    by_translation = [nearness, zero, zero, nearness, towards[:, 0], towards[:, 1]]
    by_rotation = [-product, -square[:, 1], square[:, 0], product, -y, x]
    return torch.stack(by_translation + by_rotation, dim=1).unflatten(1, (6, 2))


def _of_the_images(normal: _Normal) -> tuple[Tensor, Tensor]:
    """Information (B, 6, 6) and gradient (B, 6, 1), in units of the noise."""
    variance = _PIXELS_PER_SAMPLE * normal.scale.square()
    return normal.hessian / variance, normal.gradient / variance


def _posterior_equations(motion: Tensor, matches: _Matches, start: _Start) -> tuple[Tensor, Tensor]:
    """Information (B, 6, 6) and gradient (B, 6, 1) at a motion: of the images, and of the prior."""
    information, gradient = _of_the_images(_normal_equations(motion, matches))
    prior_information, prior_gradient = _prior_equations(motion, start)
    return information + prior_information, gradient + prior_gradient


def _start(motion: Tensor, prior: MotionPrior) -> _Start:
    """What a (B, 3, 4) answer of the odometry network is worth."""
    identity = _identity(3, motion)
    length = motion[:, :, 3].norm(dim=1).clamp(min=_LEAST_LENGTH)[:, None, None]
    direction = motion[:, :, 3:] / length
    along = direction * direction.transpose(1, 2)
    of_translation = (along / prior.along**2 + (identity - along) / prior.across**2) / length.square()
    of_rotation = (identity / prior.rotation**2).expand_as(of_translation)
    nothing = torch.zeros_like(of_translation)
    rows = [torch.cat([of_translation, nothing], dim=2), torch.cat([nothing, of_rotation], dim=2)]
    return _Start(motion, torch.cat(rows, dim=1), prior.tolerance)


def _prior_equations(motion: Tensor, start: _Start) -> tuple[Tensor, Tensor]:
    """Information (B, 6, 6) and gradient (B, 6, 1) of the distance of a motion from the one it began with."""
    turned = motion[:, :, :3] @ start.motion[:, :, :3].transpose(1, 2)
    # half of what the odd part of a small rotation has in common with each axis's cross product
    turn = 0.5 * turned.flatten(1) @ skew(_identity(3, motion)).flatten(1).T
    error = torch.cat([motion[:, :, 3] - start.motion[:, :, 3], turn], dim=1)[:, :, None]
    weighted = start.precision @ error
    trust = start.tolerance / (start.tolerance + error.transpose(1, 2) @ weighted)
    # the update (v, w) moves the translation by v + w x t, and turns by w
    jacobian = _identity(6, motion) + F.pad(-skew(motion[:, :, 3]), (3, 0, 0, 3))
    transposed = trust * jacobian.transpose(1, 2)
    return transposed @ start.precision @ jacobian, transposed @ weighted
