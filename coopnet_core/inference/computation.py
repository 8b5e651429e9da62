"""What the networks of a checkpoint make of an image or a pair: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coopnet_core.checkpoint import Checkpoint
from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import (
    Evidence,
    log_disagreement,
    posterior,
    posterior_of_hidden,
    smoothed,
)
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp, scaled_matrix
from coopnet_core.geometry.refinement import MotionPrior, RefinedMotion, refine_motion
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.inference.prediction import DEPTH, FLOW, MASK, MOTION
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.visibility import forward_backward_visible
from coopnet_core.networks.bundle import normalise
from coopnet_core.networks.flow import FINEST_STRIDE

_STATIC_BELOW = 0.3
"""Probability of motion below which a pixel takes part in the refinement."""


@dataclass(frozen=True)
class _Flows:
    """What flow makes of a pair, at the size of the images.

    Attributes:
        image, previous: (1, 3, H, W) in [0, 1].
        flow: (1, 2, H, W) towards the previous image.
        inside: (1, 1, H, W) bool, the flow stays in the image.
        error: (1, 1, H, W) photometric, of the image reconstructed by the flow; None where the flow back is not wanted.
        visible: (1, 1, H, W) bool, both directions agree; None where the flow back is not wanted.
    """

    image: Tensor
    previous: Tensor
    flow: Tensor
    inside: Tensor
    error: Tensor | None = None
    visible: Tensor | None = None


class Computation:
    """The networks and what follows from them. Nothing in here waits for the device, or asks what it computed."""

    def __init__(self, loaded: Checkpoint, refine: str, half: torch.dtype | None) -> None:
        """Of a checkpoint, on its device.

        Args:
            loaded: networks and error model; the weights of convolutions become what they are computed in.
            refine: one of `REFINE_CHOICES`.
            half: what the networks of depth and flow compute in; None: float32.
        """
        self._networks, self._error_model = loaded.networks, loaded.error_model
        self._error_config = ErrorModelConfig.model_validate(loaded.metadata.error_model_config)
        self._refine, self._half = refine, half
        if half is not None:
            for module in (*self._networks.depth.modules(), *self._networks.flow.modules()):
                if isinstance(module, nn.Conv2d):
                    module.to(half)  # once, or autocast does it for every image

    def __call__(
        self, image: Tensor, previous: Tensor | None, matrix: Tensor, *, outputs: frozenset[str], stands: bool
    ) -> dict[str, Tensor]:
        """What is wanted, and what comes with it.

        Args:
            image, previous: (1, 3, H, W) in [0, 1]; without a previous one there is nothing but depth.
            matrix: (1, 3, 3) of the camera at this size.
            outputs: of `ALL_OUTPUTS`.
            stands: the camera does not move.

        Returns:
            Fields of `Prediction`, as it describes them.
        """
        needs_pair = previous is not None and bool(outputs & {MOTION, FLOW, MASK})
        depth = None
        results: dict[str, Tensor] = {}
        if DEPTH in outputs or (needs_pair and outputs & {MOTION, MASK}):
            with self._autocast(image):
                _, depth = self._networks.depths(image)
            results["depth"] = depth[0, 0].float()
        if not needs_pair:
            return results
        # who listens must not change what is computed: the refinement has the backward flow with the mask or without
        refines = self._refine == "static" and MOTION in outputs and not stands
        flow_low, flows = self._flows(image, previous, both=MASK in outputs or refines)
        results["flow"] = torch.where(flows.inside, flows.flow, torch.nan)[0].permute(1, 2, 0).contiguous()
        if depth is None:
            return results
        motion = torch.eye(4, device=image.device)[None]
        covariance = torch.zeros(1, 6, 6, dtype=torch.float64, device=image.device)
        if not stands:
            motion, covariance = self._motion(flow_low, flows, depth, matrix)
        results["T_previous_current"] = motion[0].double()
        if covariance is not None:
            results["motion_covariance"] = covariance[0]
        if MASK in outputs:
            evidence = self._evidence(flows, rigid_warp(depth, motion, matrix))
            gamma = posterior(evidence, self._error_model, self._error_config)
            hidden = posterior_of_hidden(evidence.log_disagreement, self._error_model, self._error_config)
            results["motion_probability"] = torch.where(evidence.visible > 0, gamma, hidden)[0, 0]
            results["confidence"] = ((1 - gamma) * evidence.visible)[0, 0]
        return results

    def _motion(self, flow_low: Tensor, flows: _Flows, depth: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """(1, 4, 4), refined as wished, and its covariance (1, 6, 6) where it was."""
        motion = self._networks.motion(flows.image, flows.previous, flow_low, depth, matrix)
        if self._refine == "off":
            return motion, None
        refined = self._refined(motion, depth, flows, matrix)
        return refined.T_source_target, refined.covariance

    def _refined(self, motion: Tensor, depth: Tensor, flows: _Flows, matrix: Tensor) -> RefinedMotion:
        """The odometry network's answer, made to agree with depth and flow where the flow can be trusted.

        What moves is told from the network's own answer: after a refinement on all pixels large movers already fit.
        """
        height, width = (side // FINEST_STRIDE for side in flows.flow.shape[-2:])
        if self._refine == "all":
            weights = resize(flows.inside.float(), height, width)
        else:
            evidence = self._evidence(flows, rigid_warp(depth, motion, matrix))
            gamma = posterior(evidence, self._error_model, self._error_config)
            weights = resize(flows.visible.float(), height, width) * (resize(gamma, height, width) < _STATIC_BELOW)
        return refine_motion(
            motion,
            1 / resize(1 / depth, height, width),
            resize_flow(flows.flow, height, width),
            weights,
            scaled_matrix(matrix, 1 / FINEST_STRIDE),
            MotionPrior(),
        )

    def _flows(self, image: Tensor, previous: Tensor, both: bool) -> tuple[Tensor, _Flows]:
        """Flow current -> previous as the network gives it, and what it makes of the pair; back as well if wanted."""
        with self._autocast(image):
            if both:
                flow_low, backward_low = self._networks.flow.both_ways(normalise(image), normalise(previous))[0]
            else:
                flow_low, backward_low = self._networks.flow(normalise(image), normalise(previous)), None
        size = tuple(image.shape[-2:])
        flow = resize_flow(flow_low, *size)
        warp = flow_warp(flow)
        if backward_low is None:
            return flow_low, _Flows(image, previous, flow, warp.valid)
        visible = forward_backward_visible(flow, resize_flow(backward_low, *size))
        error = photometric_error(image, sample(previous, warp.coordinates))
        return flow_low, _Flows(image, previous, flow, warp.valid, error, visible)

    def _evidence(self, flows: _Flows, rigid: Warp) -> Evidence:
        size = tuple(flows.image.shape[-2:])
        delta = photometric_error(flows.image, sample(flows.previous, rigid.coordinates)) - flows.error
        rigid_flow = rigid.coordinates - pixel_grid(*size, flows.image.device)
        return Evidence(
            smoothed(delta, self._error_config.smoothing, size),
            log_disagreement(flows.flow, rigid_flow),
            (flows.visible & rigid.valid).float(),
        )

    def _autocast(self, image: Tensor) -> torch.autocast:
        return torch.autocast(image.device.type, dtype=self._half, enabled=self._half is not None)
