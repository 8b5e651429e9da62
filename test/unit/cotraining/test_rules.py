from typing import get_args

import numpy as np
import pytest
import torch

from coopnet_core.config import LossConfig, RuleConfig
from coopnet_core.cotraining.rules import RULES, PixelEvidence, pixel_weights
from coopnet_core.errors import UsageError

CONFIG = RuleConfig()


def _row(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def _evidence(rigid, flow, gamma=None, moving=None, disagreement=None, visible=None):
    rigid, flow = _row(*rigid), _row(*flow)
    zeros = torch.zeros_like(rigid)
    return PixelEvidence(
        rigid,
        flow,
        zeros + 9 if disagreement is None else _row(*disagreement),
        zeros if gamma is None else _row(*gamma),
        torch.ones_like(rigid, dtype=torch.bool) if visible is None else visible,
        None if moving is None else _row(*moving),
    )


def _weights(rule, evidence, config=CONFIG):
    weights = pixel_weights(rule, evidence, config)
    return weights.rigid.flatten().tolist(), weights.flow.flatten().tolist(), weights.divided


def test_every_configurable_rule_is_registered():
    assert set(get_args(LossConfig.model_fields["rule"].annotation)) == set(RULES)


def test_each_rule_by_hand():
    evidence = _evidence(rigid=(0.1, 0.3, 0.2), flow=(0.2, 0.1, 0.2), gamma=(0.0, 0.6, 0.4), moving=(0.0, 1.0, 0.0))
    ones = [1.0, 1.0, 1.0]
    assert _weights("sum", evidence) == (ones, ones, False)
    assert _weights("min", evidence) == ([1, 0, 1], [0, 1, 0], True)
    assert _weights("hybrid", evidence) == (pytest.approx([1, 0.4, 0.6]), ones, False)
    assert _weights("hybrid_hard", evidence) == ([1, 0, 1], ones, False)
    assert _weights("oracle", evidence) == ([1, 0, 1], ones, False)
    rigid, flow, divided = _weights("soft_min", evidence)
    expected = np.exp(-np.array([0.1, 0.3, 0.2]) / 0.05)
    expected /= expected + np.exp(-np.array([0.2, 0.1, 0.2]) / 0.05)
    assert rigid == pytest.approx(expected.tolist(), rel=1e-5)
    assert np.add(rigid, flow).tolist() == pytest.approx(ones)
    assert divided


def test_the_consensus_is_static_where_the_warps_agree():
    evidence = _evidence(rigid=(0.1, 0.3, 0.3), flow=(0.2, 0.2, 0.2), disagreement=(5.0, 0.5, 5.0))
    assert _weights("competition", evidence) == ([1, 1, 0], [0, 0, 1], True)


def test_the_threshold_withholds_its_share_of_each_pair():
    errors = torch.rand(2, 1, 40, 50, generator=torch.Generator().manual_seed(0))
    errors[1] *= 5
    visible = torch.ones_like(errors, dtype=torch.bool)
    evidence = PixelEvidence(errors, errors, errors, errors, visible)
    kept = pixel_weights("threshold", evidence, RuleConfig(withheld_share=0.2)).rigid
    assert kept.mean((1, 2, 3)).tolist() == pytest.approx([0.8, 0.8], abs=1e-3)
    for pair in range(2):
        assert errors[pair][kept[pair] == 0].min() > errors[pair][kept[pair] == 1].max()


def test_the_threshold_judges_visible_pixels_only():
    visible = _row(1.0, 1.0, 1.0, 0.0) > 0
    evidence = _evidence(rigid=(0.1, 0.2, 0.3, 100.0), flow=(0.0,) * 4, visible=visible)
    assert _weights("threshold", evidence, RuleConfig(withheld_share=0.5))[0] == [1, 1, 0, 0]
    blind = _evidence(rigid=(0.1, 0.2), flow=(0.0, 0.0), visible=_row(0.0, 0.0) > 0)
    assert _weights("threshold", blind)[0] == [1, 1]


def test_the_oracle_needs_the_truth():
    with pytest.raises(UsageError, match="true moving mask"):
        pixel_weights("oracle", _evidence((0.1,), (0.1,)), CONFIG)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_weights_are_shares_without_gradient(rule):
    generator = torch.Generator().manual_seed(1)
    errors = torch.rand(4, 2, 1, 8, 9, generator=generator, requires_grad=True)
    rigid, flow, distance, gamma = errors
    visible = torch.rand(2, 1, 8, 9, generator=generator) > 0.3
    weights = pixel_weights(rule, PixelEvidence(rigid, flow, distance, gamma, visible, gamma.round()), CONFIG)
    for side in (weights.rigid, weights.flow):
        assert not side.requires_grad
        assert side.shape == rigid.shape
        assert side.min() >= 0
        assert side.max() <= 1
