"""One co-training step as a pure function: networks, batch and error model in; loss and what explains it out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.config import LossConfig, StageConfig
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
from coopnet_core.data.triplets import Batch
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.losses.consistency import charbonnier
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import disparity_smoothness, flow_smoothness
from coopnet_core.losses.visibility import forward_backward_visible, usable_visibility
from coopnet_core.networks.bundle import CoopNetworks, normalise, scaled_matrix

_UNSEEN = 1e3


@dataclass(frozen=True)
class StepOutput:
    """What one step returns.

    Attributes:
        loss: scalar with graph.
        terms: scalars by name, detached, for the logs (no host synchronisation has happened).
        error_model: the state after this batch.
        rigid_coordinates, flow_coordinates: the two sampling grids, (B S, 2, h, w), whose gradients show how the
            gradient is shared out; None where that side does not learn in this stage.
        gamma: (B S, 1, h, w) the mask as used, or None while only one side exists.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    error_model: ErrorModelState
    rigid_coordinates: Tensor | None
    flow_coordinates: Tensor | None
    gamma: Tensor | None


@dataclass(frozen=True)
class Pairs:
    """The batch as B S (target, source) pairs at the size of the losses, h x w."""

    target: Tensor
    source: Tensor
    camera_matrix: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """One side's explanation of the target by the source: where it looked, what it found, how wrong it is."""

    warp: Warp
    image: Tensor
    error: Tensor


def step(
    networks: CoopNetworks,
    batch: Batch,
    error_model: ErrorModelState,
    config: LossConfig,
    stage: StageConfig,
    half: torch.dtype | None = None,
) -> StepOutput:
    """Forward pass and losses of one batch.

    Args:
        networks: the three networks; those that `stage.train` does not name get no gradient.
        batch: float images in [0, 1].
        error_model: the state before this batch.
        config: weights and rules.
        stage: what is trained, and how finely.
        half: dtype of the networks' arithmetic, or None for float32. Geometry and losses are always float32.
    """
    target, source, matrix = _as_pairs(batch)
    pairs = _reduced(target, source, matrix, stage.loss_factor)
    flows = _flows(networks, target, source, stage, half)
    flow_low, backward_low = flows[0]
    size = pairs.target.shape[-2:]
    flow, backward = resize_flow(flow_low, *size), resize_flow(backward_low, *size)
    by_flow = _reconstruct(pairs, flow_warp(flow))
    visible = _visibility(flow, backward, by_flow.warp.valid, config)

    terms: dict[str, Tensor] = {}
    loss = target.new_zeros(())
    if "flow" in stage.train:
        terms |= _flow_terms(pairs, (target, source), flows, (flow, backward), by_flow.error, visible, config, stage)
        weight = _side_weight(config, error_model, rigid=False) * config.flow
        weights = {
            "flow_photometric": weight,
            "flow_coarse": config.coarse_flow,
            "flow_smoothness": config.flow_smoothness,
            "flow_matches": stage.matches,
        }
        loss = loss + sum(weights[name] * value for name, value in terms.items())
    terms["e_f"] = masked_mean(by_flow.error.detach(), visible)
    if not {"depth", "pose"} & set(stage.train):
        return StepOutput(loss, _detached(terms), error_model, None, by_flow.warp.coordinates, None)

    disparities, depth = _depth(networks, batch, stage, half)
    rigid = _rigid_side(networks, batch, pairs, (target, source, matrix), depth, flow_low, stage)
    identity_error = photometric_error(pairs.target, pairs.source)
    evidence, anchor = _evidence(pairs, by_flow, rigid, visible, config, stage)
    error_model = update(error_model, evidence, anchor, config.error_model)
    gamma = _gamma(evidence, error_model, config, stage, rigid.error.detach(), identity_error)
    rigid_visible = rigid.warp.valid & visible
    sources = batch.sources.shape[1]
    terms["rigid_photometric"], used = _rigid_term(rigid, rigid_visible, gamma, identity_error, sources, config)
    terms["disparity_smoothness"] = torch.stack([disparity_smoothness(d, batch.target) for d in disparities]).mean()
    loss = loss + _side_weight(config, error_model, rigid=True) * config.rigid * terms["rigid_photometric"]
    loss = loss + config.disparity_smoothness * terms["disparity_smoothness"]
    if stage.consistency > 0:
        difference = charbonnier(rigid.warp.coordinates - by_flow.warp.coordinates.detach())
        terms["consistency"] = masked_mean(difference, visible * (1 - gamma))
        loss = loss + stage.consistency * terms["consistency"]
    terms |= {
        "e_r": masked_mean(rigid.error.detach(), rigid_visible),
        "e_identity": masked_mean(identity_error, torch.ones_like(identity_error)),
        "moving_share": masked_mean(gamma, visible),
        "pixel_share_depth": used.float().mean(),
        "pixel_share_flow": visible.float().mean(),
        "depth_median": depth.detach().flatten().median(),
        "depth_spread": (depth.detach().log().std((1, 2, 3))).mean(),
    }
    flow_coordinates = by_flow.warp.coordinates if "flow" in stage.train else None
    return StepOutput(loss, _detached(terms), error_model, rigid.warp.coordinates, flow_coordinates, gamma)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in terms.items()}


def _as_pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    sources = batch.sources.shape[1]
    target = batch.target.repeat_interleave(sources, dim=0)
    return target, batch.sources.flatten(0, 1), batch.camera_matrix.repeat_interleave(sources, dim=0)


def _reduced(target: Tensor, source: Tensor, matrix: Tensor, factor: int) -> Pairs:
    if factor == 1:
        return Pairs(target, source, matrix)
    images = F.avg_pool2d(torch.cat([target, source]), factor)
    reduced_target, reduced_source = images.chunk(2)
    return Pairs(reduced_target, reduced_source, scaled_matrix(matrix, 1 / factor))


def _flows(
    networks: CoopNetworks, target: Tensor, source: Tensor, stage: StageConfig, half: torch.dtype | None
) -> list[tuple[Tensor, Tensor]]:
    """Flows target -> source and back at 1/4, 1/8, 1/16, 1/32 of the size, from one pass over all images."""
    learns = "flow" in stage.train
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()), _autocast(target, half):
        return networks.flow.both_ways(normalise(target), normalise(source))


def _flow_terms(
    pairs: Pairs,
    full: tuple[Tensor, Tensor],
    flows: list[tuple[Tensor, Tensor]],
    sized: tuple[Tensor, Tensor],
    error: Tensor,
    visible: Tensor,
    config: LossConfig,
    stage: StageConfig,
) -> dict[str, Tensor]:
    """What the flow learns from, unweighted, by name.

    Args:
        pairs: at the size of the losses.
        full: target and source as the networks see them.
        flows: there and back at all levels; `sized`: the finest, at the size of the losses.
        error, visible: of the flow there.
        config, stage: which terms are wanted.
    """
    target, source = full
    terms = {"flow_smoothness": flow_smoothness(torch.cat(flows[0]), torch.cat(full))}
    if stage.flow_photometric:
        terms["flow_photometric"] = 0.5 * (masked_mean(error, visible) + _backward_term(pairs, *sized, config))
        if config.coarse_flow > 0:
            terms["flow_coarse"] = _coarse_flow_term(target, source, flows[1:])
    if stage.matches > 0:
        terms["flow_matches"] = matches_term(flows, classical_matches(target, source))
    return terms


def _coarse_flow_term(target: Tensor, source: Tensor, coarse: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The photometric error of the coarser flows on images of their own size: far matches are found there."""
    terms = []
    images, others = torch.cat([target, source]), torch.cat([source, target])
    for flow, backward in coarse:
        height, width = flow.shape[-2:]
        small, other = resize(torch.cat([images, others]), height, width).chunk(2)
        warp = flow_warp(torch.cat([flow, backward]))
        terms.append(masked_mean(photometric_error(small, sample(other, warp.coordinates)), warp.valid))
    return torch.stack(terms).mean()


def _depth(
    networks: CoopNetworks, batch: Batch, stage: StageConfig, half: torch.dtype | None
) -> tuple[list[Tensor], Tensor]:
    learns = "depth" in stage.train
    with torch.set_grad_enabled(learns and torch.is_grad_enabled()), _autocast(batch.target, half):
        return networks.depths(batch.target)


def _autocast(like: Tensor, half: torch.dtype | None) -> torch.autocast:
    return torch.autocast(like.device.type, dtype=half, enabled=half is not None)


def _rigid_side(
    networks: CoopNetworks,
    batch: Batch,
    pairs: Pairs,
    full: tuple[Tensor, Tensor, Tensor],
    depth: Tensor,
    flow_low: Tensor,
    stage: StageConfig,
) -> Reconstruction:
    target, source, matrix = full
    sources = batch.sources.shape[1]
    pair_depth = depth.repeat_interleave(sources, dim=0)
    with torch.set_grad_enabled("pose" in stage.train and torch.is_grad_enabled()):
        T_source_target = networks.motion(target, source, flow_low, pair_depth, matrix)
    reduced_depth = resize(pair_depth, *pairs.target.shape[-2:])
    return _reconstruct(pairs, rigid_warp(reduced_depth, T_source_target, pairs.camera_matrix))


def _reconstruct(pairs: Pairs, warp: Warp) -> Reconstruction:
    image = sample(pairs.source, warp.coordinates)
    return Reconstruction(warp, image, photometric_error(pairs.target, image))


def _visibility(flow: Tensor, backward: Tensor, inside: Tensor, config: LossConfig) -> Tensor:
    if not config.occlusion:
        return inside
    return usable_visibility(forward_backward_visible(flow, backward), inside)


def _backward_term(pairs: Pairs, flow: Tensor, backward: Tensor, config: LossConfig) -> Tensor:
    """The flow's error from source to target: computed for the visibility anyway, it teaches as well."""
    reverse = _reconstruct(Pairs(pairs.source, pairs.target, pairs.camera_matrix), flow_warp(backward))
    return masked_mean(reverse.error, _visibility(backward, flow, reverse.warp.valid, config))


def _side_weight(config: LossConfig, state: ErrorModelState, *, rigid: bool) -> Tensor | float:
    """Scalar apportionment, mean 1: each side descends its relative error under `relative_progress`."""
    if config.apportionment == "per_pixel":
        return 1.0
    inverse_r, inverse_f = 1 / state.b_r, 1 / state.b_f
    own = inverse_r if rigid else inverse_f
    return (2 * own / (inverse_r + inverse_f)).clamp(0.25, 1.75).detach()


@torch.no_grad()
def _evidence(
    pairs: Pairs,
    by_flow: Reconstruction,
    rigid: Reconstruction,
    visible: Tensor,
    config: LossConfig,
    stage: StageConfig,
) -> tuple[Evidence, Anchor]:
    """Both cues with their anchors; the photometric one from reduced images early in training."""
    factor = config.error_model.coarse_factor if stage.posterior == "coarse" else 1
    window = config.error_model.smoothing
    shift = _random_shift(pairs.source)
    unrelated = pairs.source.roll(shift, dims=(2, 3))
    error_rigid, error_flow, error_unrelated = _errors(pairs.target, rigid, by_flow, unrelated, factor)
    size = pairs.target.shape[-2:]
    grid = pixel_grid(*size, pairs.target.device)
    flow, rigid_flow = (stage.loss_factor * (side.warp.coordinates - grid) for side in (by_flow, rigid))
    evidence = Evidence(
        smoothed(error_rigid - error_flow, window, size),
        log_disagreement(flow, rigid_flow),
        (visible & rigid.warp.valid).float(),
    )
    anchor = Anchor(
        smoothed(error_unrelated - error_flow, window, size),
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


def _gamma(
    evidence: Evidence,
    state: ErrorModelState,
    config: LossConfig,
    stage: StageConfig,
    rigid_error: Tensor,
    identity_error: Tensor,
) -> Tensor:
    if config.rule == "sum" or stage.posterior == "off":
        return torch.zeros_like(evidence.delta)
    return training_mask(evidence, state, config.error_model, rigid_error, identity_error)


def _rigid_term(
    rigid: Reconstruction, visible: Tensor, gamma: Tensor, identity_error: Tensor, sources: int, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Weighted mean of e_r, minimum over the sources that see the pixel (Godard et al. 2019), and the pixels used."""
    error = torch.where(visible, rigid.error, torch.full_like(rigid.error, _UNSEEN)).unflatten(0, (-1, sources))
    error, choice = error.min(dim=1)
    gamma = gamma.unflatten(0, (-1, sources)).gather(1, choice[:, None])[:, 0]
    used = error < _UNSEEN
    if config.auto_mask:
        still = identity_error.unflatten(0, (-1, sources)).amin(dim=1)
        used = used & (error.detach() < still)
    weight = used.float() * (1 - gamma)
    return masked_mean(torch.where(used, error, torch.zeros_like(error)), weight), used
