"""How well the families of the error model fit errors whose moving pixels are known: KS distance and AIC.

[ours] Both are taken on pixels, which are no independent samples: neighbours share texture and smoothing. Read them as
distances between shapes, comparable between families on the same pixels; they are no significance tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coopnet_core.cotraining.families import LOG_RATIO, MOVING, STATIC, Family, Parameters

_STATIC_FLOOR, _MOVING_FLOOR = 2e-3, 0.02
_LEAST_SAMPLES = 100


@dataclass(frozen=True)
class Goodness:
    """How well one family fits one group of pixels.

    Attributes:
        group: which values, e.g. "static".
        family: name in its registry.
        ks: Kolmogorov-Smirnov distance, 0 to 1.
        aic: Akaike's criterion, smaller is better; comparable within a group only.
        nats: mean log-likelihood of a pixel, larger is better; likewise.
        samples: pixels in the group.
        location, scale, shape: the fitted `Parameters`.
    """

    group: str
    family: str
    ks: float
    aic: float
    nats: float
    samples: int
    location: float
    scale: float
    shape: float


def ks_distance(values: Tensor, cdf: Tensor, weights: Tensor | None = None) -> Tensor:
    """Largest distance between the (weighted) empirical distribution of `values` and a family's.

    Args:
        values: (N,) samples.
        cdf: (N,) the family's P(X <= value) at each.
        weights: (N,), or None for equal ones.

    >>> ks_distance(torch.tensor([0.2, 0.4]), torch.tensor([0.2, 0.4])).item()  # uniform on [0, 1]
    0.6000000238418579
    """
    ordered, order = values.sort()
    share = torch.ones_like(values) if weights is None else weights[order]
    reached = share.double().cumsum(0) / share.double().sum()
    # At a value that occurs more than once the empirical distribution jumps once, over all of them.
    first = torch.searchsorted(ordered, ordered, right=False)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    before = torch.cat([reached.new_zeros(1), reached])[first]
    expected = cdf[order].double()
    return torch.maximum((reached[last] - expected).abs(), (expected - before).abs()).max().to(values.dtype)


def aic(log_likelihood: Tensor, free: int) -> Tensor:
    """Akaike's information criterion 2 k - 2 sum(log p) of the log densities (N,) under k fitted parameters.

    >>> aic(torch.tensor([-1.0, -2.0]), 3).item()
    12.0
    """
    return 2 * free - 2 * log_likelihood.sum()


def goodness(
    group: str, name: str, family: Family, values: Tensor, parameters: Parameters, *, anchored: bool = False
) -> Goodness:
    """Both criteria for `values` (N,) under a family; `anchored` parameters were not fitted to them."""
    exact = values.double()
    likelihood = family.log_density(exact, Parameters(*(value.double() for value in parameters)))
    return Goodness(
        group,
        name,
        ks_distance(values, family.cdf(values, parameters)).item(),
        aic(likelihood, 0 if anchored else family.free).item(),
        likelihood.mean().item(),
        len(values),
        *(value.item() for value in parameters),
    )


@torch.no_grad()
def compare_families(
    delta: Tensor,
    moving: Tensor,
    visible: Tensor,
    anchor: Tensor | None = None,
    log_ratio: Tensor | None = None,
) -> tuple[Goodness, ...]:
    """Every family on the pixels it is meant for, by a known mask. All arguments have one shape.

    Args:
        delta: e_r - e_f.
        moving: bool, the truth.
        visible: bool, where both warps can be judged.
        anchor: Delta with the source displaced at random. With it the moving families are also judged as the error
            model uses them: fitted to the anchor, compared with the movers (group "moving, anchored").
        log_ratio: log(e_r / e_f). Its AIC is that of another variable than Delta and must not be compared with it.

    Returns:
        One row for each group and family; a group with less than 100 pixels has none.
    """
    static, movers = (_chosen(delta, visible & mask) for mask in (~moving, moving))
    rows = _rows("static", STATIC, static, _STATIC_FLOOR) + _rows("moving", MOVING, movers, _MOVING_FLOOR)
    if anchor is not None:
        rows += _rows("moving, anchored", MOVING, movers, _MOVING_FLOOR, _chosen(anchor, visible))
    if log_ratio is not None:
        rows += _rows("static, log ratio", LOG_RATIO, _chosen(log_ratio, visible & ~moving), _STATIC_FLOOR)
    return tuple(rows)


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask & values.isfinite()].float()


def _rows(
    group: str, families: dict[str, Family], values: Tensor, floor: float, anchor: Tensor | None = None
) -> list[Goodness]:
    """One row for each family, fitted to the values or, if there is one, to the anchor."""
    source = values if anchor is None else anchor
    if min(len(values), len(source)) < _LEAST_SAMPLES:
        return []
    fits = {name: family.fit(source, torch.ones_like(source), floor) for name, family in families.items()}
    return [
        goodness(group, name, families[name], values, fitted, anchored=anchor is not None)
        for name, fitted in fits.items()
    ]
