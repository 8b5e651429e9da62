from dataclasses import replace
from typing import get_args

import pytest
import torch

from coopnet_core.config import LossConfig
from coopnet_core.cotraining.apportionment import APPORTIONMENTS, side_weights
from coopnet_core.cotraining.error_model import ErrorModelState


def _state(b_r=0.1, b_f=0.1, b_r_start=0.1, b_f_start=0.1):
    values = {"b_r": b_r, "b_f": b_f, "b_r_start": b_r_start, "b_f_start": b_f_start}
    return replace(ErrorModelState.initial(), **{name: torch.tensor(value) for name, value in values.items()})


def _weights(name, state, **config):
    return [float(weight) for weight in side_weights(state, LossConfig(apportionment=name, **config))]


def test_every_configurable_apportionment_is_registered():
    assert set(get_args(LossConfig.model_fields["apportionment"].annotation)) == set(APPORTIONMENTS)


@pytest.mark.parametrize("name", sorted(APPORTIONMENTS))
def test_equal_sides_are_weighed_equally(name):
    assert _weights(name, _state()) == pytest.approx([1, 1])


def test_each_by_hand():
    state = _state(b_r=0.06, b_f=0.02, b_r_start=0.08, b_f_start=0.08)
    assert _weights("per_pixel", state) == [1, 1]
    assert _weights("relative_progress", state) == pytest.approx([0.5, 1.5])
    assert _weights("importance", state) == pytest.approx([2.0, 0.08 / 0.12])
    # r = 0.75 and 0.25, mean 0.5: 1.5 and 0.5, whose sum is two already.
    assert _weights("progress", state) == pytest.approx([1.5, 0.5])
    root = 3**0.5
    assert _weights("progress", state, progress_alpha=0.5) == pytest.approx([2 * root / (root + 1), 2 / (root + 1)])


@pytest.mark.parametrize("name", sorted(APPORTIONMENTS))
@pytest.mark.parametrize("sides", [(1e-6, 1.0), (1.0, 1e-6)])
def test_no_side_is_ever_starved_or_drowned(name, sides):
    weights = _weights(name, _state(*sides))
    assert min(weights) >= 0.25
    assert max(weights) <= 4
