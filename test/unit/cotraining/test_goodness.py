import doctest
import math

import numpy as np
import pytest
import torch

from coopnet_core.cotraining import goodness as module
from coopnet_core.cotraining.families import LOG_RATIO, MOVING, STATIC
from coopnet_core.cotraining.goodness import aic, compare_families, goodness, ks_distance

N = 30_000


def _tensor(values):
    return torch.from_numpy(np.asarray(values)).float()


def _scene(seed=0, static=None):
    """Delta, truth, visibility, anchor and log ratio of an image: a static part and a bump of movers."""
    rng = np.random.default_rng(seed)
    delta = rng.exponential(0.03, N) - rng.exponential(0.02, N) if static is None else static(rng)
    moving = rng.random(N) < 0.2
    delta[moving] = rng.normal(0.3, 0.08, moving.sum())
    visible = rng.random(N) < 0.9
    anchor, ratio = rng.normal(0.3, 0.08, N), rng.normal(0.1, 0.5, N)
    flags = (torch.from_numpy(moving), torch.from_numpy(visible))
    return _tensor(delta), *flags, _tensor(anchor), _tensor(ratio)


def _by_family(rows, group):
    return {row.family: row for row in rows if row.group == group}


def test_the_examples_hold():
    assert doctest.testmod(module).failed == 0


def test_ks_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    values = np.round(rng.random(200), 2)  # with values that occur more than once
    cdf = values**2
    steps = np.unique(values)
    reached = np.array([(values <= step).mean() for step in steps])
    before = np.array([(values < step).mean() for step in steps])
    expected = max(np.abs(reached - steps**2).max(), np.abs(before - steps**2).max())
    assert ks_distance(_tensor(values), _tensor(cdf)).item() == pytest.approx(expected, abs=1e-6)


def test_ks_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(0, 1, 500)
    cdf = stats.norm.cdf(values)
    expected = stats.kstest(values, "norm").statistic
    assert ks_distance(torch.from_numpy(values), torch.from_numpy(cdf)).item() == pytest.approx(expected, abs=1e-6)


def test_weights_count_as_repetitions_do():
    values = _tensor(np.random.default_rng(0).random(300))
    weights = 1.0 + torch.arange(300) % 3
    repeated = values.repeat_interleave(weights.long())
    expected = ks_distance(repeated, repeated.sqrt()).item()
    assert ks_distance(values, values.sqrt(), weights).item() == pytest.approx(expected, abs=1e-6)


def test_aic_charges_for_parameters():
    log_density = torch.full((10,), -1.5)
    assert aic(log_density, 2).item() == pytest.approx(34)
    assert (aic(log_density, 3) - aic(log_density, 2)).item() == pytest.approx(2)


def test_the_right_families_are_near_and_preferred():
    delta, moving, visible, anchor, ratio = _scene()
    rows = compare_families(delta, moving, visible, anchor, ratio)
    static, movers = _by_family(rows, "static"), _by_family(rows, "moving")
    assert static["asymmetric_laplace"].ks < 0.015
    assert static["laplace"].ks > 2 * static["asymmetric_laplace"].ks
    assert min(static.values(), key=lambda row: row.aic).family.startswith("asymmetric_laplace")
    assert static["laplace"].aic > static["asymmetric_laplace"].aic + 100
    assert movers["gaussian"].ks < 0.02
    assert movers["exponential"].ks > 0.2
    assert movers["exponential"].aic > movers["gaussian"].aic + 1000
    # More parameters that say nothing more cost their price.
    assert movers["student_t"].aic > movers["gaussian"].aic - 1
    assert _by_family(rows, "moving, anchored")["gaussian"].ks < 0.03
    assert _by_family(rows, "static, log ratio")["gaussian"].ks < 0.015
    assert _by_family(rows, "static, log ratio")["laplace"].ks > 0.03


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("asymmetric_laplace_free", lambda rng: 0.02 + rng.exponential(0.03, N) - rng.exponential(0.01, N)),
        ("laplace", lambda rng: rng.laplace(0.01, 0.03, N)),
        ("student_t", lambda rng: 0.03 * rng.standard_t(3, N)),
    ],
)
def test_aic_prefers_the_static_family_that_was_drawn(name, draw):
    delta, moving, visible, *_ = _scene(static=draw)
    static = _by_family(compare_families(delta, moving, visible), "static")
    best = min(static.values(), key=lambda row: row.aic)
    # The free asymmetric Laplace contains the symmetric one: there it may win by chance, but not by more than that.
    assert static[name].aic <= best.aic + 4
    assert static[name].ks < 0.015
    assert static["asymmetric_laplace"].aic > static[name].aic + 10


def test_an_anchor_that_is_wrong_shows():
    delta, moving, visible, anchor, _ = _scene()
    right = _by_family(compare_families(delta, moving, visible, anchor), "moving, anchored")
    wrong = _by_family(compare_families(delta, moving, visible, anchor + 0.1), "moving, anchored")
    assert wrong["gaussian"].ks > 0.3 > right["gaussian"].ks


def test_hidden_pixels_and_those_that_are_not_finite_do_not_count():
    delta, moving, visible, *_ = _scene()
    expected = compare_families(delta, moving, visible)
    disturbed = torch.where(visible, delta, torch.full_like(delta, 5.0))
    holes = torch.cat([disturbed, torch.tensor([torch.nan, torch.inf])])
    true = torch.ones(2, dtype=torch.bool)
    rows = compare_families(holes, torch.cat([moving, ~true]), torch.cat([visible, true]))
    assert rows == expected


def test_groups_without_pixels_have_no_rows():
    delta, moving, visible, *_ = _scene()
    groups = {row.group for row in compare_families(delta, torch.zeros_like(moving), visible)}
    assert groups == {"static"}
    assert compare_families(delta, moving, torch.zeros_like(visible)) == ()


@pytest.mark.parametrize("families", [STATIC, MOVING, LOG_RATIO])
def test_constant_values_have_finite_figures(families):
    values = torch.full((200,), 0.1)
    for name, family in families.items():
        row = goodness("constant", name, family, values, family.fit(values, torch.ones(200), 0.01))
        assert all(math.isfinite(figure) for figure in (row.ks, row.aic, row.nats, row.location, row.scale, row.shape))
