"""Which pixels teach which side: the rules that compete, as small functions behind one registry.

Every rule sees the same detached evidence and answers with a weight per pixel and side, so that an ablation is a
configuration. Nothing is ever back-propagated through a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coopnet_core.config import RuleConfig
from coopnet_core.errors import UsageError


@dataclass(frozen=True)
class PixelEvidence:
    """What is known of the pixels of P pairs when they are shared out; all detached.

    Attributes:
        rigid_error, flow_error: (P, 1, h, w) photometric errors of the two reconstructions.
        disagreement: (P, 1, h, w) |F - F_rigid|, pixels of the networks' input.
        gamma: (P, 1, h, w) posterior of motion as it may be used: gated, faded in, capped; 0 while the gate is shut.
        visible: (P, 1, h, w) bool, where both reconstructions can be judged.
        moving: (P, 1, h, w) float, the truth, or None where it is unknown.
    """

    rigid_error: Tensor
    flow_error: Tensor
    disagreement: Tensor
    gamma: Tensor
    visible: Tensor
    moving: Tensor | None = None


@dataclass(frozen=True)
class PixelWeights:
    """How much each pixel teaches each side.

    Attributes:
        rigid: (P, 1, h, w) in [0, 1], for depth and odometry.
        flow: likewise, for the flow.
        divided: the sides divide the pixels among them, and both means are over all visible pixels (a mean of minima);
            otherwise each mean is over the pixels of its own side.
    """

    rigid: Tensor
    flow: Tensor
    divided: bool = False


Rule = Callable[[PixelEvidence, RuleConfig], PixelWeights]


def _sum(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """Both sides learn everywhere: movers corrupt depth and odometry."""
    everywhere = torch.ones_like(evidence.rigid_error)
    return PixelWeights(everywhere, everywhere)


def _minimum(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """Each pixel teaches the side that explains it better (GLNet, Chen et al. 2019): the winner takes all."""
    rigid = (evidence.rigid_error <= evidence.flow_error).to(evidence.rigid_error)
    return PixelWeights(rigid, 1 - rigid, divided=True)


def _soft_minimum(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """The gradient of the soft minimum of the two errors: softmax(-e / temperature)."""
    rigid = torch.sigmoid((evidence.flow_error - evidence.rigid_error) / config.soft_min_temperature)
    return PixelWeights(rigid, 1 - rigid, divided=True)


def _competition(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """The consensus of Competitive Collaboration (Ranjan et al. 2019): flow learns on moving pixels alone.

    A pixel is static where the rigid reconstruction is the better one or the two warps agree. The moderator is the
    consensus itself, not a network trained to imitate it.
    """
    static = (evidence.rigid_error < evidence.flow_error) | (evidence.disagreement < config.consensus_distance)
    rigid = static.to(evidence.rigid_error)
    return PixelWeights(rigid, 1 - rigid, divided=True)


def _threshold(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """One error alone: the share of pixels with the largest e_r of each pair is withheld from depth and odometry."""
    judged = torch.where(evidence.visible, evidence.rigid_error, torch.nan).flatten(1)
    limit = torch.nanquantile(judged, 1 - config.withheld_share, dim=1).view(-1, 1, 1, 1)
    # A pair without visible pixels has no limit: NaN, nothing is withheld.
    kept = ~(evidence.rigid_error > limit)
    return PixelWeights(kept.to(evidence.rigid_error), torch.ones_like(evidence.rigid_error))


def _hybrid(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """Flow learns wherever it sees; depth and odometry on 1 - gamma of every pixel (docs/method.md)."""
    return PixelWeights(1 - evidence.gamma, torch.ones_like(evidence.gamma))


def _hybrid_hard(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """The same with the posterior cut at one half."""
    return PixelWeights((evidence.gamma <= 0.5).to(evidence.gamma), torch.ones_like(evidence.gamma))


def _oracle(evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """The true mask instead of the posterior: the ceiling of every rule that withholds movers. For experiments."""
    if evidence.moving is None:
        raise UsageError(
            "The rule oracle needs the true moving mask of every training image; these clips have none. It is meant "
            "for rendered scenes (benchmarks/). Choose another loss.rule."
        )
    return PixelWeights(1 - evidence.moving, torch.ones_like(evidence.moving))


RULES: dict[str, Rule] = {
    "sum": _sum,
    "min": _minimum,
    "soft_min": _soft_minimum,
    "competition": _competition,
    "threshold": _threshold,
    "hybrid": _hybrid,
    "hybrid_hard": _hybrid_hard,
    "oracle": _oracle,
}


@torch.no_grad()
def pixel_weights(rule: str, evidence: PixelEvidence, config: RuleConfig) -> PixelWeights:
    """The weights of a named rule, detached.

    Raises:
        UsageError: the rule oracle without truth.
    """
    return RULES[rule](evidence, config)
