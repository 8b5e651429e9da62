"""The loss of one step as a pure function of what the networks said: no network in here.

The same function judges estimates of networks (step.py) and free ones (benchmarks/direct.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.config import LossConfig, StageConfig
from coopnet_core.cotraining.apportionment import SideWeights, side_weights
from coopnet_core.cotraining.error_model import (
    Anchor,
    ErrorModelState,
    Evidence,
    log_disagreement,
    smoothed,
    training_mask,
    update,
)
from coopnet_core.cotraining.matches import classical_matches, matches_term
from coopnet_core.cotraining.rules import PixelEvidence, PixelWeights, pixel_weights
from coopnet_core.data.triplets import Batch
from coopnet_core.distributed import summed
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp, scaled_matrix
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.losses.consistency import charbonnier, depth_consistency
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import contact, disparity_smoothness, flow_smoothness
from coopnet_core.losses.visibility import forward_backward_visible, splat_visible, usable_visibility

_UNSEEN = 1e3
SCORED = ("rigid_unexplained", "flow_unexplained")
"""Terms whose sum on the validation part decides which weights are the best: the lower the better."""


@dataclass(frozen=True)
class RigidEstimate:
    """Depth and odometry.

    Attributes:
        disparities: per scale (B, 1, h, w), positive, of the targets.
        depth: (B, 1, H, W) of the targets.
        T_source_target: (B S, 4, 4), in the unit of the depth.
        source_depth: (B S, 1, H, W) of the sources, where the depths of both are to agree.
    """

    disparities: list[Tensor]
    depth: Tensor
    T_source_target: Tensor
    source_depth: Tensor | None = None


@dataclass(frozen=True)
class Estimates:
    """What is believed of the B S pairs of a batch, with graph.

    Attributes:
        flows: target -> source and back, finest level first, each (B S, 2, h, w) in pixels of its own grid.
        rigid: None in a stage that trains the flow alone.
    """

    flows: list[tuple[Tensor, Tensor]]
    rigid: RigidEstimate | None


@dataclass(frozen=True)
class StepOutput:
    """What one step returns.

    Attributes:
        loss: scalar with graph.
        terms: scalars by name, detached, for the logs (no host synchronisation has happened).
        error_model: the state after this batch.
        rigid_coordinates, flow_coordinates: the two sampling grids, (B S, 2, h, w), whose gradients show how the
            gradient is shared out; None where that side does not learn in this stage.
        gamma: (B S, 1, h, w) the share of each pixel that is withheld from depth and odometry, or None while only one
            side exists.
        side_weights: factors of the rigid and of the flow side, scalars.
        evidence: what the error model was fitted to, detached; None while only one side exists.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    error_model: ErrorModelState
    rigid_coordinates: Tensor | None
    flow_coordinates: Tensor | None
    gamma: Tensor | None
    side_weights: SideWeights
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Pairs:
    """The batch as B S (target, source) pairs: as the networks see it, and at the size of the losses, h x w.

    Attributes:
        full_target, full_source: (B S, 3, H, W) in [0, 1].
        target, source: (B S, 3, h, w).
        camera_matrix: (B S, 3, 3) at h x w.
        moving: (B S, 1, h, w) float, the true mask, or None where it is unknown.
    """

    full_target: Tensor
    full_source: Tensor
    target: Tensor
    source: Tensor
    camera_matrix: Tensor
    moving: Tensor | None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return tuple(self.target.shape[-2:])


@dataclass(frozen=True)
class Reconstruction:
    """One side's explanation of the target by the source: where it looked, what it found, how wrong it is."""

    warp: Warp
    image: Tensor
    error: Tensor


@dataclass(frozen=True)
class FlowSide:
    """The flow's explanation in both directions, at the size of the losses.

    Attributes:
        there: target reconstructed from the source.
        visible: (P, 1, h, w) bool, of the target's pixels.
        back: source reconstructed from the target; None where the flow does not learn.
        back_visible: of the source's pixels.
    """

    there: Reconstruction
    visible: Tensor
    back: Reconstruction | None
    back_visible: Tensor | None


def objective(
    batch: Batch, estimates: Estimates, error_model: ErrorModelState, config: LossConfig, stage: StageConfig
) -> StepOutput:
    """Losses and the new state of the error model. Geometry and losses are always float32.

    Args:
        batch: float images in [0, 1].
        estimates: of exactly these pairs.
        error_model: the state before this batch.
        config: weights and rules.
        stage: what is trained, and how finely.
    """
    pairs = as_pairs(batch, stage.loss_factor)
    flow_side = _flow_side(pairs, estimates, config, stage)
    identity_error = photometric_error(pairs.target, pairs.source)
    by_flow = {"flow_unexplained": unexplained(flow_side.there.error, flow_side.visible, identity_error)}
    if estimates.rigid is None:
        weights = side_weights(error_model, config)
        everywhere = PixelWeights(torch.ones_like(flow_side.there.error), torch.ones_like(flow_side.there.error))
        loss, terms = _flow_loss(pairs, estimates, flow_side, everywhere, weights, config, stage)
        coordinates = flow_side.there.warp.coordinates
        return StepOutput(loss, _detached(terms | by_flow), error_model, None, coordinates, None, weights)

    rigid = _rigid_side(pairs, estimates.rigid)
    evidence, anchor = _evidence(pairs, flow_side, rigid, config, stage)
    error_model = update(error_model, evidence, anchor, config.error_model)
    pixels = _pixel_weights(pairs, evidence, error_model, flow_side, rigid, identity_error, config, stage)
    weights = side_weights(error_model, config)
    loss, terms = _flow_loss(pairs, estimates, flow_side, pixels, weights, config, stage)
    rigid_loss, rigid_terms = _rigid_loss(
        batch, pairs, estimates.rigid, flow_side, rigid, pixels, identity_error, weights, config, stage
    )
    return StepOutput(
        loss + rigid_loss,
        _detached(terms | rigid_terms | by_flow),
        error_model,
        rigid.warp.coordinates,
        flow_side.there.warp.coordinates if "flow" in stage.train else None,
        1 - pixels.rigid,
        weights,
        evidence,
    )


@torch.no_grad()
def unexplained(error: Tensor, seen: Tensor, identity_error: Tensor, weight: Tensor | None = None) -> Tensor:
    """The error that a reconstruction leaves over all pixels, by which one network can be held against another.

    Where nothing is seen, or the unmoved image is the better explanation, the unmoved image's error counts: a network
    gains nothing by looking away, as it would in a mean over the pixels that it learns from.

    Args:
        error: (P, 1, h, w) of the reconstruction.
        seen: (P, 1, h, w) bool, where that error means something.
        identity_error: (P, 1, h, w) of the unmoved image.
        weight: (P, 1, h, w) share of each pixel that counts; None: all alike.

    Returns:
        Scalar between 0 and the mean error of the unmoved image.
    """
    left = torch.where(seen, torch.minimum(error, identity_error), identity_error)
    return masked_mean(left, torch.ones_like(left) if weight is None else weight)


def as_pairs(batch: Batch, factor: int) -> Pairs:
    """Every target with each of its sources, and both reduced by `factor` for the losses."""
    sources = batch.sources.shape[1]
    target = batch.target.repeat_interleave(sources, dim=0)
    source = batch.sources.flatten(0, 1)
    matrix = batch.camera_matrix.repeat_interleave(sources, dim=0)
    moving = None if batch.moving is None else batch.moving.float().repeat_interleave(sources, dim=0)
    if factor == 1:
        return Pairs(target, source, target, source, matrix, moving)
    small_target, small_source = F.avg_pool2d(torch.cat([target, source]), factor).chunk(2)
    moving = None if moving is None else F.avg_pool2d(moving, factor)
    return Pairs(target, source, small_target, small_source, scaled_matrix(matrix, 1 / factor), moving)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def _reconstruct(target: Tensor, source: Tensor, warp: Warp) -> Reconstruction:
    image = sample(source, warp.coordinates)
    return Reconstruction(warp, image, photometric_error(target, image))


def _flow_side(pairs: Pairs, estimates: Estimates, config: LossConfig, stage: StageConfig) -> FlowSide:
    flow, back = (resize_flow(flow, *pairs.size) for flow in estimates.flows[0])
    there = _reconstruct(pairs.target, pairs.source, flow_warp(flow))
    visible = _visibility(flow, back, there.warp.valid, config)
    if "flow" not in stage.train or not stage.flow_photometric:
        return FlowSide(there, visible, None, None)
    reverse = _reconstruct(pairs.source, pairs.target, flow_warp(back))
    return FlowSide(there, visible, reverse, _visibility(back, flow, reverse.warp.valid, config))


def _visibility(flow: Tensor, backward: Tensor, inside: Tensor, config: LossConfig) -> Tensor:
    if config.occlusion == "none":
        return inside
    check = splat_visible if config.occlusion == "splatting" else forward_backward_visible
    return usable_visibility(check(flow, backward), inside)


def _flow_loss(
    pairs: Pairs,
    estimates: Estimates,
    side: FlowSide,
    pixels: PixelWeights,
    weights: SideWeights,
    config: LossConfig,
    stage: StageConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the flow learns from, and its figures; the loss is 0 where it does not learn."""
    terms = {"e_f": masked_mean(side.there.error.detach(), side.visible)}
    if "flow" not in stage.train:
        return side.there.error.new_zeros(()), terms
    images = torch.cat([pairs.full_target, pairs.full_source])
    terms["flow_smoothness"] = flow_smoothness(torch.cat(estimates.flows[0]), images)
    loss = config.flow_smoothness * terms["flow_smoothness"]
    if stage.flow_photometric:
        terms["flow_photometric"] = _flow_photometric(side, pixels)
        terms["flow_skipped"] = (summed((side.visible & (pixels.flow > 0)).sum()) == 0).float()
        loss = loss + _in_loss(weights, config)[1] * config.flow * terms["flow_photometric"]
        if config.coarse_flow > 0 and len(estimates.flows) > 1:
            terms["flow_coarse"] = _coarse_flow_term(pairs, estimates.flows[1:])
            loss = loss + config.coarse_flow * terms["flow_coarse"]
    if stage.matches > 0:
        matches = classical_matches(pairs.full_target, pairs.full_source)
        terms["flow_matches"] = matches_term(estimates.flows, matches)
        loss = loss + stage.matches * terms["flow_matches"]
    return loss, terms


def _flow_photometric(side: FlowSide, pixels: PixelWeights) -> Tensor:
    """Mean of e_f over the pixels that teach the flow.

    From source to target there is no rigid reconstruction to divide the pixels with: that direction teaches only under
    rules that let the flow learn everywhere.
    """
    there = _side_mean(side.there.error, side.visible, pixels.flow, pixels.divided)
    if pixels.divided:
        return there
    return 0.5 * (there + masked_mean(side.back.error, side.back_visible))


def _side_mean(error: Tensor, seen: Tensor, weight: Tensor, divided: bool) -> Tensor:
    """Mean of the error over the pixels of one side, or over all seen pixels where the sides divide them."""
    weighted = seen * weight
    mean = masked_mean(error, weighted)
    if not divided:
        return mean
    return mean * (summed(weighted.sum()) / summed(seen.sum()).clamp(min=1))


def _in_loss(weights: SideWeights, config: LossConfig) -> SideWeights | tuple[float, float]:
    return weights if config.apportionment_acts_on == "loss" else (1.0, 1.0)


def _coarse_flow_term(pairs: Pairs, coarse: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The photometric error of the coarser flows on images of their own size: far matches are found there."""
    terms = []
    images = torch.cat([pairs.full_target, pairs.full_source])
    others = torch.cat([pairs.full_source, pairs.full_target])
    for flows in coarse:
        flow = torch.cat(flows)
        small, other = resize(torch.cat([images, others]), *flow.shape[-2:]).chunk(2)
        warp = flow_warp(flow)
        terms.append(masked_mean(photometric_error(small, sample(other, warp.coordinates)), warp.valid))
    return torch.stack(terms).mean()


def _at_pairs(depth: Tensor, rigid: RigidEstimate, pairs: Pairs) -> Tensor:
    """Depth of the targets (B, 1, H, W), once for each source, at the size of the losses."""
    sources = len(rigid.T_source_target) // len(depth)
    return resize(depth.repeat_interleave(sources, dim=0), *pairs.size)


def _rigid_side(pairs: Pairs, rigid: RigidEstimate) -> Reconstruction:
    depth = _at_pairs(rigid.depth, rigid, pairs)
    return _reconstruct(pairs.target, pairs.source, rigid_warp(depth, rigid.T_source_target, pairs.camera_matrix))


@torch.no_grad()
def _evidence(
    pairs: Pairs, flow_side: FlowSide, rigid: Reconstruction, config: LossConfig, stage: StageConfig
) -> tuple[Evidence, Anchor]:
    """Both cues with their anchors; the photometric one from reduced images early in training."""
    factor = config.error_model.coarse_factor if stage.posterior == "coarse" else 1
    window = config.error_model.smoothing
    shift = _random_shift(pairs.source)
    unrelated = pairs.source.roll(shift, dims=(2, 3))
    by_flow = flow_side.there
    error_rigid, error_flow, error_unrelated = _errors(pairs.target, rigid, by_flow, unrelated, factor)
    grid = pixel_grid(*pairs.size, pairs.target.device)
    flow, rigid_flow = (stage.loss_factor * (side.warp.coordinates - grid) for side in (by_flow, rigid))
    evidence = Evidence(
        smoothed(error_rigid - error_flow, window, pairs.size),
        log_disagreement(flow, rigid_flow),
        (flow_side.visible & rigid.warp.valid).float(),
    )
    anchor = Anchor(
        smoothed(error_unrelated - error_flow, window, pairs.size),
        log_disagreement(flow, rigid_flow.roll(1, dims=0).roll(shift, dims=(2, 3))),
    )
    return evidence, anchor


def _errors(
    target: Tensor, rigid: Reconstruction, by_flow: Reconstruction, unrelated: Tensor, factor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the rigid and the flow reconstruction and of an unrelated image, on images reduced by `factor`."""
    if factor == 1:
        return rigid.error, by_flow.error, photometric_error(target, unrelated)
    images = (F.avg_pool2d(image, factor) for image in (target, rigid.image, by_flow.image, unrelated))
    reduced, *others = images
    error_rigid, error_flow, error_unrelated = (photometric_error(reduced, other) for other in others)
    return error_rigid, error_flow, error_unrelated


def _random_shift(image: Tensor) -> tuple[int, int]:
    """At least an eighth of the width and a quarter of the height, at random."""
    height, width = image.shape[-2:]
    dy = int(torch.randint(height // 4, 3 * height // 4 + 1, ()))
    dx = int(torch.randint(width // 8, 7 * width // 8 + 1, ()))
    return dy, dx


@torch.no_grad()
def _pixel_weights(
    pairs: Pairs,
    evidence: Evidence,
    error_model: ErrorModelState,
    flow_side: FlowSide,
    rigid: Reconstruction,
    identity_error: Tensor,
    config: LossConfig,
    stage: StageConfig,
) -> PixelWeights:
    gamma = torch.zeros_like(evidence.delta)
    if stage.posterior != "off":
        gamma = training_mask(evidence, error_model, config.error_model, rigid.error, identity_error)
    distance = (rigid.warp.coordinates - flow_side.there.warp.coordinates).square().sum(1, keepdim=True).sqrt()
    known = PixelEvidence(
        rigid.error.detach(),
        flow_side.there.error.detach(),
        stage.loss_factor * distance,
        gamma,
        evidence.visible > 0,
        pairs.moving,
    )
    return pixel_weights(config.rule, known, config.rules)


def _rigid_loss(
    batch: Batch,
    pairs: Pairs,
    estimate: RigidEstimate,
    flow_side: FlowSide,
    rigid: Reconstruction,
    pixels: PixelWeights,
    identity_error: Tensor,
    weights: SideWeights,
    config: LossConfig,
    stage: StageConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What depth and odometry learn from, and the figures of that side."""
    visible = rigid.warp.valid & flow_side.visible
    terms: dict[str, Tensor] = {}
    terms["rigid_photometric"], used = _rigid_photometric(
        rigid.error, visible, pixels, identity_error, batch.sources.shape[1], config
    )
    terms["disparity_smoothness"] = torch.stack(
        [disparity_smoothness(disparity, batch.target) for disparity in estimate.disparities]
    ).mean()
    loss = _in_loss(weights, config)[0] * config.rigid * terms["rigid_photometric"]
    loss = loss + config.disparity_smoothness * terms["disparity_smoothness"]
    if stage.consistency > 0:
        difference = charbonnier(rigid.warp.coordinates - flow_side.there.warp.coordinates.detach())
        terms["consistency"] = masked_mean(difference, flow_side.visible * pixels.rigid)
        loss = loss + stage.consistency * terms["consistency"]
    if config.contact > 0:
        terms["contact"] = _contact(estimate.depth, 1 - pixels.rigid)
        loss = loss + config.contact * terms["contact"]
    if config.depth_consistency > 0 and estimate.source_depth is not None:
        terms["depth_consistency"] = _depth_consistency(pairs, estimate, flow_side.visible * pixels.rigid)
        loss = loss + config.depth_consistency * terms["depth_consistency"]
    depth = estimate.depth.detach()
    terms |= {
        "e_r": masked_mean(rigid.error.detach(), visible),
        "e_identity": identity_error.mean(),
        "rigid_unexplained": unexplained(rigid.error, visible, identity_error, pixels.rigid),
        "moving_share": masked_mean(1 - pixels.rigid, flow_side.visible),
        "pixel_share_depth": used.mean(),
        "depth_skipped": (summed(used.sum()) == 0).float(),
        "pixel_share_flow": (flow_side.visible * pixels.flow).mean(),
        "weight_rigid": weights[0],
        "weight_flow": weights[1],
        "depth_median": depth.flatten().median(),
        "depth_spread": depth.log().std((1, 2, 3)).mean(),
    }
    return loss, terms


def _contact(depth: Tensor, withheld: Tensor) -> Tensor:
    """The tie of withheld pixels to what is below, withheld as far as any source says so."""
    withheld = withheld.unflatten(0, (len(depth), -1)).amax(dim=1)
    return contact(depth, resize(withheld, *depth.shape[-2:]))


def _depth_consistency(pairs: Pairs, estimate: RigidEstimate, weight: Tensor) -> Tensor:
    depth = _at_pairs(estimate.depth, estimate, pairs)
    source_depth = resize(estimate.source_depth, *pairs.size)
    found = depth_consistency(depth, source_depth, estimate.T_source_target, pairs.camera_matrix)
    return masked_mean(found.error, found.valid * weight)


def _rigid_photometric(
    error: Tensor, visible: Tensor, pixels: PixelWeights, identity_error: Tensor, sources: int, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Weighted mean of e_r, minimum over the sources that see the pixel (Godard et al. 2019), and the weights used."""
    by_source = torch.where(visible, error, torch.full_like(error, _UNSEEN)).unflatten(0, (-1, sources))
    error, choice = by_source.min(dim=1)
    weight = pixels.rigid.unflatten(0, (-1, sources)).gather(1, choice[:, None])[:, 0]
    used = error < _UNSEEN
    if config.auto_mask:
        still = identity_error.unflatten(0, (-1, sources)).amin(dim=1)
        used = used & (error.detach() < still)
    error = torch.where(used, error, torch.zeros_like(error))
    return _side_mean(error, used, weight, pixels.divided), used * weight
