from dataclasses import replace

import numpy as np
import pytest
import torch

from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import ErrorModelState, Evidence, posterior
from coopnet_core.cotraining.instrumentation import symptoms, threshold_and_temperature

GOOD = {"e_r": 0.1, "e_identity": 0.2, "depth_spread": 0.6, "moving_share": 0.1, "depth_skipped": 0.0}


def _state(**values):
    return replace(ErrorModelState.initial(), **{name: torch.tensor(value) for name, value in values.items()})


def test_tau_and_temperature_describe_the_posterior():
    state = _state(b_r=0.03, b_f=0.02, pi=0.15, moving_mean=0.35, moving_spread=0.1)
    config = ErrorModelConfig(cue="photometric")
    tau, temperature = threshold_and_temperature(state, config)
    near = torch.tensor([tau, tau + 0.002, tau - 0.002]).view(1, 1, 1, 3)
    gamma = posterior(Evidence(near, near, torch.ones_like(near)), state, config).flatten()
    assert gamma[0].item() == pytest.approx(0.5, abs=0.02)
    logit = (gamma / (1 - gamma)).log()
    assert 0.004 / (logit[1] - logit[2]).item() == pytest.approx(temperature, rel=0.1)


def test_the_threshold_falls_as_the_networks_progress():
    config = ErrorModelConfig()
    taus = [threshold_and_temperature(_state(b_r=b), config)[0] for b in (0.08, 0.05, 0.02)]
    assert taus == sorted(taus, reverse=True)
    assert taus[0] > taus[-1]


def test_a_shut_gate_has_no_threshold():
    tau, temperature = threshold_and_temperature(_state(b_r=0.4, moving_mean=0.3), ErrorModelConfig())
    assert np.isnan(tau)
    assert np.isnan(temperature)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"e_r": 0.25}, "unexplained", "calibration"),
        ({"depth_spread": 0.001}, "collapsed", "collapsed"),
        ({"moving_share": 0.4}, "everything_moves", "everything moves"),
        ({"depth_skipped": 0.5}, "skipped", "in 50 % of the steps no pixel was left"),
    ],
)
def test_each_symptom_is_named(change, kind, says):
    assert symptoms(GOOD, 0.4) == {}
    found = symptoms(GOOD | change, 0.4)
    assert list(found) == [kind]
    assert says in found[kind]
