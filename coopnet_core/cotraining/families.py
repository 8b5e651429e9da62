"""Density families of the error model behind three registries: one name, one fit, one density, one CDF.

[ours] The paper's own family is not known to us, so families are compared where the moving pixels are known
(`cotraining/goodness.py`) instead of one being called right.

* `STATIC`: Delta = e_r - e_f on static pixels, a peak near 0.
* `MOVING`: Delta on moving pixels, whose rigid warp lands on unrelated texture: a bump. `exponential`, the one-sided
  tail of a naive mixture, is there to be compared with.
* `LOG_RATIO`: log(e_r / e_f) on static pixels. The training model carries Delta alone, and a likelihood of the ratio
  cannot be had from it, so these serve the offline comparison only.

Fits are weighted, detached, in float32, without host synchronisation, and finite for whatever they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from coopnet_core.distributed import share, summed

_LEAST_TOTAL = 1e-6
_FIT_SAMPLES = 16384
_LOG_ZERO = -50.0
"""Log density where a one-sided family says "impossible": finite, so that one pixel cannot decide alone."""
_LEAST_DOF, _MOST_DOF, _DOF_CANDIDATES = 1.0, 64.0, 25
_STUDENT_STEPS = 10
_CDF_CELLS = 4096


class Parameters(NamedTuple):
    """What is fitted, three scalar tensors.

    Attributes:
        location: mode, median or mean; 0 where the family fixes it.
        scale: spread, in the unit of the values; for the asymmetric Laplace the one above the mode.
        shape: scale below the mode (asymmetric Laplace) or degrees of freedom (Student-t); 0 where there is none.
    """

    location: Tensor
    scale: Tensor
    shape: Tensor


class Moments(NamedTuple):
    """Mean and spread of a Gaussian, scalar tensors."""

    mean: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Family:
    """A density with its fit.

    Attributes:
        free: number of fitted parameters, for the AIC.
        fitter: (values (N,), weights (N,), floor of the scales) to parameters; given finite numbers only.
        log_density: values of any shape to log densities of that shape.
        cdf: values of any shape to P(X <= value).
    """

    free: int
    fitter: Callable[[Tensor, Tensor, float], Parameters]
    log_density: Callable[[Tensor, Parameters], Tensor]
    cdf: Callable[[Tensor, Parameters], Tensor]

    @torch.no_grad()
    def fit(self, values: Tensor, weights: Tensor, floor: float) -> Parameters:
        """Weighted fit to values of any shape; values or weights that are not finite do not count."""
        usable = values.isfinite() & weights.isfinite()
        zero = torch.zeros_like(values)
        return self.fitter(
            torch.where(usable, values, zero).flatten(), torch.where(usable, weights, zero).flatten(), floor
        )


def thinned(*maps: Tensor, most: int = _FIT_SAMPLES) -> tuple[Tensor, ...]:
    """The same pixels of several maps of one size, at most so many, spread over all rows and columns: (N,) each."""
    count = maps[0].numel()
    if count <= most:
        return tuple(values.flatten() for values in maps)
    chosen = _spread_indices(count, most, maps[0].device)
    return tuple(values.flatten().index_select(0, chosen) for values in maps)


def thinned_of_all(*maps: Tensor, most: int = _FIT_SAMPLES) -> tuple[Tensor, ...]:
    """As `thinned`, of the maps of all processes that share a batch, one after the other: all get the same pixels."""
    own = share()
    if own.count == 1:
        return thinned(*maps, most=most)
    count = maps[0].numel()
    chosen = _spread_indices(count * own.count, most, maps[0].device) - own.rank * count
    mine = (chosen >= 0) & (chosen < count)
    places = chosen.clamp(0, count - 1)
    parts = [torch.where(mine, values.flatten().index_select(0, places), 0.0) for values in maps]
    return tuple(summed(torch.stack(parts)))


def _spread_indices(count: int, most: int, device: torch.device) -> Tensor:
    """At most so many of `count` indices, evenly spread."""
    if count <= most:
        return torch.arange(count, device=device)
    # Multiples of the golden section cover the pixels evenly; every k-th pixel would be a few columns of all images.
    step = round(0.618 * count)
    while math.gcd(step, count) > 1:
        step += 1
    return torch.arange(most, device=device) * step % count


def fit_asymmetric_laplace(delta: Tensor, weights: Tensor, minimum: float) -> tuple[Tensor, Tensor]:
    """Weighted maximum likelihood: b_r = S+ + sqrt(S+ S-), b_f = S- + sqrt(S+ S-), floored."""
    total = weights.sum().clamp(min=_LEAST_TOTAL)
    positive = (weights * delta.clamp(min=0)).sum() / total
    negative = (weights * (-delta).clamp(min=0)).sum() / total
    cross = (positive * negative).sqrt()
    return (positive + cross).clamp(min=minimum), (negative + cross).clamp(min=minimum)


def weighted_moments(values: Tensor, weights: Tensor, minimum_spread: float) -> Moments:
    """Weighted mean and standard deviation, the latter floored."""
    total = weights.sum().clamp(min=_LEAST_TOTAL)
    mean = (weights * values).sum() / total
    variance = (weights * (values - mean).square()).sum() / total
    return Moments(mean, variance.sqrt().clamp(min=minimum_spread))


def anchored_moments(
    values: Tensor, weights: Tensor, anchor: Moments, prior: Tensor, least: Tensor, minimum_spread: float
) -> Moments:
    """Moments of the weighted values and of `prior` pixels that look like the anchor, as if they were one sample.

    Args:
        values, weights: of one shape.
        anchor: what to believe without any weight; its mean is also the highest that is believed.
        prior: scalar, how many pixels the anchor is worth.
        least: scalar, the lowest mean that is believed; where it lies above the anchor it prevails.
        minimum_spread: floor of the spread.
    """
    total = prior + weights.sum()
    mean = (prior * anchor.mean + (weights * values).sum()) / total
    around = prior * (anchor.spread.square() + (anchor.mean - mean).square())
    variance = (around + (weights * (values - mean).square()).sum()) / total
    bounded = torch.maximum(torch.minimum(mean, anchor.mean), least)
    return Moments(bounded, variance.sqrt().clamp(min=minimum_spread))


def robust_static_moments(values: Tensor, visible: Tensor, pi: Tensor, minimum_spread: float) -> Moments:
    """Mean and spread of the static part of `values`, when a share `pi` of them are movers, which lie above it.

    Quantiles of the lower part instead of moments: a Gaussian fitted by moments grows until it swallows the movers.

    Args:
        values: (B, 1, H, W).
        visible: (B, 1, H, W), 0 where a value does not count.
        pi: scalar.
        minimum_spread: floor of the spread.
    """
    (few,) = thinned(torch.where(visible > 0, values, torch.nan))
    pi = pi.nan_to_num(0.0)
    levels = torch.stack([0.5 * (1 - pi), 0.1587 * (1 - pi)]).to(few.dtype)
    middle, low = torch.nanquantile(few, levels)
    return Moments(middle, (middle - low).clamp(min=minimum_spread))


def asymmetric_laplace_log_density(values: Tensor, parameters: Parameters) -> Tensor:
    """With D = value - mode: -D/b_above for D >= 0, D/b_below for D < 0, less log(b_above + b_below)."""
    above, below = parameters.scale, parameters.shape
    distance = values - parameters.location
    return -torch.where(distance >= 0, distance / above, -distance / below) - (above + below).log()


def gaussian_log_density(values: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Log N(values; mean, spread)."""
    return -0.5 * ((values - mean) / spread).square() - spread.log() - 0.5 * math.log(2 * math.pi)


def _asymmetric_laplace_cdf(values: Tensor, parameters: Parameters) -> Tensor:
    above, below = parameters.scale, parameters.shape
    distance = values - parameters.location
    low = below * (distance.clamp(max=0) / below).exp()
    high = above * (-distance.clamp(min=0) / above).exp()
    return torch.where(distance >= 0, 1 - high / (above + below), low / (above + below))


def _fit_fixed_mode(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    above, below = fit_asymmetric_laplace(values, weights, floor)
    return Parameters(torch.zeros_like(above), above, below)


def _fit_free_mode(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    """Maximum likelihood: the mode is the value m that minimises sqrt(S+(m)) + sqrt(S-(m)) (Kotz et al. 2001, 3.5)."""
    ordered, share = _ordered(values, weights)
    mass, moment = share.cumsum(0), (share * ordered).cumsum(0)
    below = (ordered * mass - moment).clamp(min=0)
    above = (moment[-1] - moment - ordered * (mass[-1] - mass)).clamp(min=0)
    best = (above.sqrt() + below.sqrt()).argmin(0, keepdim=True)
    mode = ordered.gather(0, best).squeeze(0)
    above, below = fit_asymmetric_laplace(values - mode, weights, floor)
    return Parameters(mode, above, below)


def _fit_laplace(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    """Maximum likelihood: weighted median and mean absolute distance from it."""
    middle = _quantile(*_ordered(values, weights), 0.5)
    total = weights.sum().clamp(min=_LEAST_TOTAL)
    scale = ((weights * (values - middle).abs()).sum() / total).clamp(min=floor)
    return Parameters(middle, scale, torch.zeros_like(scale))


def _laplace_log_density(values: Tensor, parameters: Parameters) -> Tensor:
    return -(values - parameters.location).abs() / parameters.scale - (2 * parameters.scale).log()


def _laplace_cdf(values: Tensor, parameters: Parameters) -> Tensor:
    return _asymmetric_laplace_cdf(values, Parameters(parameters.location, parameters.scale, parameters.scale))


def _fit_gaussian(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    mean, spread = weighted_moments(values, weights, floor)
    return Parameters(mean, spread, torch.zeros_like(mean))


def _gaussian_log_density(values: Tensor, parameters: Parameters) -> Tensor:
    return gaussian_log_density(values, parameters.location, parameters.scale)


def _gaussian_cdf(values: Tensor, parameters: Parameters) -> Tensor:
    return torch.special.ndtr((values - parameters.location) / parameters.scale)


def _fit_student_t(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    """A fixed number of ECME steps (Liu and Rubin 1994) with the scale normalised as by Kent et al. (1994).

    The degrees of freedom are the best of 25 between 1 and 64, which needs no host synchronisation: the density hardly
    depends on them beyond that resolution.
    """
    ordered, share = _ordered(values, weights)
    low, location, high = (_quantile(ordered, share, level) for level in (0.25, 0.5, 0.75))
    scale = (0.5 * (high - low)).clamp(min=floor)
    exponents = torch.linspace(math.log(_LEAST_DOF), math.log(_MOST_DOF), _DOF_CANDIDATES, device=values.device)
    candidates = exponents.exp().to(values.dtype)
    dof = torch.full_like(location, 4.0)
    for _ in range(_STUDENT_STEPS):
        square = ((ordered - location) / scale).square()
        factor = share * (dof + 1) / (dof + square)
        total = factor.sum().clamp(min=_LEAST_TOTAL)
        location = (factor * ordered).sum() / total
        scale = ((factor * (ordered - location).square()).sum() / total).sqrt().clamp(min=floor)
        square = ((ordered - location) / scale).square()
        tails = torch.log1p(square / candidates[:, None]) @ share
        likelihood = _student_norm(candidates) - 0.5 * (candidates + 1) * tails
        dof = candidates.gather(0, likelihood.argmax(0, keepdim=True)).squeeze(0)
    return Parameters(location, scale, dof)


def _student_t_log_density(values: Tensor, parameters: Parameters) -> Tensor:
    dof, scale = parameters.shape, parameters.scale
    square = ((values - parameters.location) / scale).square()
    return _student_norm(dof) - scale.log() - 0.5 * (dof + 1) * torch.log1p(square / dof)


def _student_norm(dof: Tensor) -> Tensor:
    """Log of the factor that makes a Student-t of scale 1 integrate to one."""
    return torch.lgamma(0.5 * (dof + 1)) - torch.lgamma(0.5 * dof) - 0.5 * (math.pi * dof).log()


def _student_t_cdf(values: Tensor, parameters: Parameters) -> Tensor:
    """Numerical: with x = sqrt(dof) tan(a), the density becomes cos(a)^(dof - 1), bounded on a bounded range."""
    dof = parameters.shape
    angle = torch.atan((values - parameters.location) / (parameters.scale * dof.sqrt()))
    grid = torch.linspace(-0.5 * math.pi, 0.5 * math.pi, _CDF_CELLS + 1, dtype=values.dtype, device=values.device)
    height = grid.cos().clamp(min=0).pow(dof - 1)
    cumulated = torch.cat([height.new_zeros(1), (0.5 * (height[1:] + height[:-1])).cumsum(0)])
    position = ((angle / math.pi + 0.5) * _CDF_CELLS).clamp(0, _CDF_CELLS - 1e-3)
    cell = position.long()
    low, high = cumulated[cell], cumulated[cell + 1]
    return (low + (position - cell) * (high - low)) / cumulated[-1]


def _fit_exponential(values: Tensor, weights: Tensor, floor: float) -> Parameters:
    """Maximum likelihood over the values >= 0: the others are impossible under it."""
    weights = weights * (values >= 0)
    scale = ((weights * values).sum() / weights.sum().clamp(min=_LEAST_TOTAL)).clamp(min=floor)
    return Parameters(torch.zeros_like(scale), scale, torch.zeros_like(scale))


def _exponential_log_density(values: Tensor, parameters: Parameters) -> Tensor:
    inside = -values / parameters.scale - parameters.scale.log()
    return torch.where(values >= 0, inside, torch.full_like(inside, _LOG_ZERO))


def _exponential_cdf(values: Tensor, parameters: Parameters) -> Tensor:
    return 1 - (-values.clamp(min=0) / parameters.scale).exp()


def _ordered(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N,) in ascending order, and the share of the total weight that each has."""
    ordered, order = values.sort()
    return ordered, weights.gather(0, order) / weights.sum().clamp(min=_LEAST_TOTAL)


def _quantile(ordered: Tensor, share: Tensor, level: float) -> Tensor:
    """The first of the ascending values (N,) at which the cumulated share reaches the level, a scalar."""
    reached = (share.cumsum(0) < level).sum().clamp(max=len(ordered) - 1)
    return ordered.gather(0, reached[None]).squeeze(0)


_FREE_MODE = Family(3, _fit_free_mode, asymmetric_laplace_log_density, _asymmetric_laplace_cdf)
_LAPLACE = Family(2, _fit_laplace, _laplace_log_density, _laplace_cdf)
_STUDENT_T = Family(3, _fit_student_t, _student_t_log_density, _student_t_cdf)
_GAUSSIAN = Family(2, _fit_gaussian, _gaussian_log_density, _gaussian_cdf)

STATIC: dict[str, Family] = {
    "asymmetric_laplace": Family(2, _fit_fixed_mode, asymmetric_laplace_log_density, _asymmetric_laplace_cdf),
    "asymmetric_laplace_free": _FREE_MODE,
    "laplace": _LAPLACE,
    "student_t": _STUDENT_T,
}
MOVING: dict[str, Family] = {
    "gaussian": _GAUSSIAN,
    "student_t": _STUDENT_T,
    "exponential": Family(1, _fit_exponential, _exponential_log_density, _exponential_cdf),
}
LOG_RATIO: dict[str, Family] = {"gaussian": _GAUSSIAN, "laplace": _LAPLACE}
