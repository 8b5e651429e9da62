"""One co-training step as a pure function: networks, batch and error model in; loss and what explains it out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coopnet_core.config import LossConfig, StageConfig
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.objective import Estimates, RigidEstimate, StepOutput, objective
from coopnet_core.data.triplets import Batch
from coopnet_core.networks.bundle import CoopNetworks, normalise


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
        batch: float images in [0, 1]; pixels that are not finite are taken for black.
        error_model: the state before this batch.
        config: weights and rules.
        stage: what is trained, and how finely.
        half: dtype of the networks' arithmetic, or None for float32. Geometry and losses are always float32.
    """
    # One pixel that is not finite would reach every pixel through the networks.
    batch = replace(batch, target=_finite(batch.target), sources=_finite(batch.sources))
    estimates = estimate(networks, batch, stage, half, with_source_depth=config.depth_consistency > 0)
    return objective(batch, estimates, error_model, config, stage)


def _finite(images: Tensor) -> Tensor:
    return images.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def estimate(
    networks: CoopNetworks,
    batch: Batch,
    stage: StageConfig,
    half: torch.dtype | None = None,
    with_source_depth: bool = False,
) -> Estimates:
    """What the networks say of every pair of a batch; all frames of one network in one call."""
    sources = batch.sources.shape[1]
    target, source = batch.target.repeat_interleave(sources, dim=0), batch.sources.flatten(0, 1)
    with _learning("flow", stage), _autocast(target, half):
        flows = networks.flow.both_ways(normalise(target), normalise(source))
    if not {"depth", "pose"} & set(stage.train):
        return Estimates(flows, None)
    with _learning("depth", stage), _autocast(target, half):
        images = torch.cat([batch.target, source]) if with_source_depth else batch.target
        disparities, depths = networks.depths(images)
        rows = len(batch.target)
        disparities, depth = [disparity[:rows] for disparity in disparities], depths[:rows]
    with _learning("pose", stage):
        # A learned focal length answers for the geometry alone: the network would trade it for motion.
        matrix = batch.camera_matrix.detach().repeat_interleave(sources, dim=0)
        pair_depth = depth.repeat_interleave(sources, dim=0)
        T_source_target = networks.motion(target, source, flows[0][0], pair_depth, matrix)
    source_depth = depths[rows:] if with_source_depth else None
    return Estimates(flows, RigidEstimate(disparities, depth, T_source_target, source_depth))


def _learning(network: str, stage: StageConfig) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(network in stage.train and torch.is_grad_enabled())


def _autocast(like: Tensor, half: torch.dtype | None) -> torch.autocast:
    return torch.autocast(like.device.type, dtype=half, enabled=half is not None)
