import numpy as np
import pytest
import torch

from coopnet_core.cotraining.families import (
    LOG_RATIO,
    MOVING,
    STATIC,
    Moments,
    Parameters,
    anchored_moments,
    asymmetric_laplace_log_density,
    fit_asymmetric_laplace,
    robust_static_moments,
    thinned,
)

FLOOR = 1e-4
N = 40_000
EVERY = {
    f"{group}-{name}": family
    for group, families in (("static", STATIC), ("moving", MOVING), ("ratio", LOG_RATIO))
    for name, family in families.items()
}
BUMPS = {name: family for name, family in EVERY.items() if name != "moving-exponential"}


def _drawn(name, seed=0):
    """Samples of a family drawn by numpy, and the parameters they were drawn with (location, scale, shape)."""
    rng = np.random.default_rng(seed)
    name = name.split("-")[1]
    if name == "asymmetric_laplace":
        return rng.exponential(0.03, N) - rng.exponential(0.02, N), (0, 0.03, 0.02)
    if name == "asymmetric_laplace_free":
        return 0.015 + rng.exponential(0.03, N) - rng.exponential(0.02, N), (0.015, 0.03, 0.02)
    if name == "laplace":
        return rng.laplace(0.01, 0.03, N), (0.01, 0.03, 0)
    if name == "student_t":
        return 0.02 + 0.05 * rng.standard_t(3, N), (0.02, 0.05, 3)
    if name == "gaussian":
        return rng.normal(0.35, 0.08, N), (0.35, 0.08, 0)
    return rng.exponential(0.2, N), (0, 0.2, 0)


def _tensor(values):
    return torch.from_numpy(np.asarray(values)).float()


def _parameters(values, dtype=torch.float32):
    return Parameters(*(torch.tensor(float(value), dtype=dtype) for value in values))


@pytest.mark.parametrize("name", EVERY)
def test_the_fit_finds_what_the_samples_were_drawn_with(name):
    samples, truth = _drawn(name)
    fitted = EVERY[name].fit(_tensor(samples), torch.ones(N), FLOOR)
    for value, expected in zip(fitted, truth, strict=True):
        assert value.item() == pytest.approx(expected, rel=0.08, abs=2e-3)


@pytest.mark.parametrize("name", EVERY)
def test_the_fit_is_a_maximum_of_the_likelihood(name):
    samples, truth = _drawn(name, seed=1)
    values, family = _tensor(samples), EVERY[name]
    best = family.fit(values, torch.ones(N), FLOOR)

    def likelihood(parameters):
        return family.log_density(values.double(), Parameters(*(p.double() for p in parameters))).mean().item()

    for index, expected in enumerate(truth):
        if expected == 0:
            continue
        for factor in (0.9, 1.1):
            other = list(best)
            other[index] = other[index] * factor
            assert likelihood(best) > likelihood(other) - 1e-6


@pytest.mark.parametrize("name", EVERY)
def test_weights_count_as_repetitions_do(name):
    samples, _ = _drawn(name)
    values = _tensor(samples[:2000])
    twice = torch.arange(2000) % 2
    weighted = EVERY[name].fit(values, 1.0 + twice, FLOOR)
    repeated = torch.cat([values, values[twice > 0]])
    expected = EVERY[name].fit(repeated, torch.ones_like(repeated), FLOOR)
    assert torch.allclose(torch.stack(list(weighted)), torch.stack(list(expected)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_density_integrates_to_one_and_to_the_cdf(name):
    parameters = _parameters(_drawn(name)[1], torch.float64)
    low = 0.0 if name == "moving-exponential" else -40.0
    values = torch.linspace(low, 40, 4_000_001, dtype=torch.float64)
    density = EVERY[name].log_density(values, parameters).exp()
    assert torch.trapezoid(density, values).item() == pytest.approx(1.0, abs=1e-4)
    cumulated = torch.cumulative_trapezoid(density, values)
    cdf = EVERY[name].cdf(values[1:], parameters)
    assert (cdf - cumulated).abs().max().item() < 2e-4


@pytest.mark.parametrize("name", EVERY)
def test_the_cdf_climbs_from_zero_to_one(name):
    parameters = _parameters(_drawn(name)[1])
    cdf = EVERY[name].cdf(torch.linspace(-1e4, 1e4, 100_001), parameters)
    assert (cdf.diff() >= -1e-6).all()
    assert cdf[0].item() == pytest.approx(0, abs=1e-5)
    assert cdf[-1].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("case", ["constant", "no weights", "nan", "one finite"])
def test_whatever_is_given_the_fit_is_finite(name, case):
    values, weights = torch.full((4, 1, 5, 5), 0.1), torch.ones(4, 1, 5, 5)
    if case == "no weights":
        weights = torch.zeros_like(weights)
    if case == "nan":
        values = values * torch.nan
    if case == "one finite":
        values, weights = values / 0, weights * torch.nan
        values[0], weights[0] = 0.1, 1.0
    family = EVERY[name]
    fitted = family.fit(values, weights, FLOOR)
    assert all(value.isfinite() and value.ndim == 0 for value in fitted)
    assert fitted.scale >= FLOOR * (1 - 1e-5)
    probes = torch.tensor([-1.0, 0.0, 0.1, 1.0])
    assert family.log_density(probes, fitted).isfinite().all()
    assert family.cdf(probes, fitted).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_values_that_are_not_finite_do_not_count(name):
    values = _tensor(_drawn(name)[0][:1000])
    holes = torch.cat([values, torch.tensor([torch.nan, torch.inf, -torch.inf])])
    fitted = EVERY[name].fit(holes, torch.ones_like(holes), FLOOR)
    expected = EVERY[name].fit(values, torch.ones_like(values), FLOOR)
    assert torch.allclose(torch.stack(list(fitted)), torch.stack(list(expected)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_fit_has_no_graph_and_stays_float32(name):
    values = _tensor(_drawn(name)[0][:500]).requires_grad_()
    fitted = EVERY[name].fit(values, torch.ones(500), FLOOR)
    assert not any(value.requires_grad for value in fitted)
    assert {value.dtype for value in fitted} == {torch.float32}


@pytest.mark.parametrize("name", BUMPS)
def test_densities_and_cdfs_agree_with_scipy(name):
    stats = pytest.importorskip("scipy.stats")
    location, scale, shape = (float(value) for value in _drawn(name)[1])
    kind = name.split("-")[1]
    if kind.startswith("asymmetric"):
        kappa = (shape / scale) ** 0.5
        reference = stats.laplace_asymmetric(kappa, location, (scale * shape) ** 0.5)
    else:
        reference = {
            "laplace": stats.laplace(location, scale),
            "student_t": stats.t(max(shape, 1), location, scale),
            "gaussian": stats.norm(location, scale),
        }[kind]
    values = np.linspace(-1, 1, 201)
    parameters = _parameters((location, scale, shape), torch.float64)
    density = BUMPS[name].log_density(torch.from_numpy(values), parameters).numpy()
    assert np.allclose(density, reference.logpdf(values), atol=1e-5)
    assert np.allclose(BUMPS[name].cdf(torch.from_numpy(values), parameters).numpy(), reference.cdf(values), atol=1e-5)


def test_the_closed_form_is_the_maximum_of_the_likelihood():
    values, ones = _tensor(_drawn("static-asymmetric_laplace")[0]), torch.ones(N)
    best = fit_asymmetric_laplace(values, ones, FLOOR)

    def likelihood(b_r, b_f):
        return asymmetric_laplace_log_density(values, Parameters(torch.tensor(0.0), b_r, b_f)).mean()

    for factor_r, factor_f in [(1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)]:
        assert likelihood(*best) > likelihood(best[0] * factor_r, best[1] * factor_f)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_read_back_from_the_device_nor_left_on_another(name):
    # Tensors without storage: reading a value, or mixing in one of another device, fails.
    values = torch.empty(30_000, device="meta")
    fitted = EVERY[name].fit(*thinned(values, values), FLOOR)
    assert all(value.device.type == "meta" and value.ndim == 0 for value in fitted)
    assert EVERY[name].log_density(values, fitted).device.type == "meta"


def test_the_lower_part_tells_the_static_moments_in_spite_of_movers():
    rng = np.random.default_rng(0)
    values = rng.normal(-1.0, 0.5, N)
    values[: N // 5] = rng.normal(2.0, 0.3, N // 5)
    visible = np.ones(N)
    values[::10], visible[::10] = 100.0, 0.0
    mean, spread = robust_static_moments(_tensor(values), _tensor(visible), torch.tensor(0.2), 0.01)
    assert mean.item() == pytest.approx(-1.0, abs=0.03)
    assert spread.item() == pytest.approx(0.5, rel=0.05)


def test_the_tails_of_student_t_ignore_outliers():
    rng = np.random.default_rng(0)
    samples = rng.normal(0.0, 0.02, N)
    samples[: N // 50] = rng.uniform(0.5, 1.0, N // 50)
    fitted = STATIC["student_t"].fit(_tensor(samples), torch.ones(N), FLOOR)
    assert abs(fitted.location.item()) < 1e-3
    assert 0.01 < fitted.scale.item() < 0.02
    assert fitted.shape.item() < 10
    assert MOVING["gaussian"].fit(_tensor(samples), torch.ones(N), FLOOR).scale.item() > 0.08


def test_a_gaussian_gives_student_t_many_degrees_of_freedom():
    samples = np.random.default_rng(0).normal(0.3, 0.1, N)
    assert STATIC["student_t"].fit(_tensor(samples), torch.ones(N), FLOOR).shape.item() > 30


def test_the_exponential_finds_negative_values_impossible_but_finite():
    family = MOVING["exponential"]
    parameters = family.fit(torch.tensor([0.1, 0.3, -5.0]), torch.ones(3), FLOOR)
    assert parameters.scale.item() == pytest.approx(0.2)
    density = family.log_density(torch.tensor([-0.1, 0.2]), parameters)
    assert density[0].item() == -50
    assert density[1].item() == pytest.approx(-1 - np.log(0.2), abs=1e-5)


def test_thinning_keeps_values_with_their_weights_from_every_column():
    columns = torch.arange(416.0).expand(4, 1, 128, 416)
    values, weights = thinned(columns, columns / 2)
    assert torch.equal(values, 2 * weights)
    assert len(values) == 16384
    assert len(values.unique()) == 416
    few = torch.rand(10)
    assert torch.equal(thinned(few, few)[0], few)


def test_anchored_moments_are_those_of_the_sample_with_the_anchor_in_it():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(0.4, 0.2, 500), rng.random(500)
    anchor, prior = (0.9, 0.3), 80.0
    mean = np.average(np.r_[values, anchor[0]], weights=np.r_[weights, prior])
    spread = np.sqrt((weights @ (values - mean) ** 2 + prior * (0.3**2 + (0.9 - mean) ** 2)) / (weights.sum() + prior))
    moments = Moments(*map(torch.tensor, anchor))
    found = anchored_moments(_tensor(values), _tensor(weights), moments, torch.tensor(prior), torch.tensor(0.0), 0.01)
    assert found.mean.item() == pytest.approx(mean, rel=1e-4)
    assert found.spread.item() == pytest.approx(spread, rel=1e-4)
    bounded = anchored_moments(_tensor(values), _tensor(weights), moments, torch.tensor(prior), torch.tensor(0.8), 0.01)
    assert bounded.mean.item() == pytest.approx(0.8)
    above = anchored_moments(_tensor(values + 2), _tensor(weights), moments, torch.tensor(1.0), torch.tensor(0.8), 0.01)
    assert above.mean.item() == pytest.approx(0.9)
