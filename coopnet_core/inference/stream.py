"""The stream predictor: frames in, in order; depth, camera motion, flow and moving mask out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from coopnet_core.checkpoint import CheckpointMetadata, load_checkpoint
from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import (
    Evidence,
    log_disagreement,
    posterior,
    posterior_of_hidden,
    smoothed,
)
from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import choose_size, fit_frame
from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp, scaled_matrix
from coopnet_core.geometry.refinement import MotionPrior, RefinedMotion, refine_motion
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.inference.prediction import ALL_OUTPUTS, DEPTH, FLOW, MASK, MOTION, REFINE_CHOICES, Prediction
from coopnet_core.inference.standstill import Change, compare, small_view
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.visibility import forward_backward_visible
from coopnet_core.networks.bundle import SIZE_MULTIPLE, normalise
from coopnet_core.networks.flow import FINEST_STRIDE

_STATIC_BELOW = 0.3
"""Probability of motion below which a pixel takes part in the refinement."""
_LONGEST_CREEP_NS = 1_000_000_000
"""A frame is compared with the one since which the camera seems to stand, but not with an older one than this: slower
motion is standstill, and light changes."""


@dataclass(frozen=True)
class _Seen:
    """A frame that was processed, ready to be paired."""

    image: Tensor
    view: np.ndarray
    stamp_ns: int
    camera: Camera


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


class StreamPredictor:
    """Runs the three networks of a checkpoint on a stream of frames.

    Every frame is cropped to the aspect of the networks' input and resized to it. Frames of another camera than the
    last one start a new pair. Where the camera stands there is no motion, whatever moves before it; where it creeps,
    frames stand still until together they show a motion, which then counts from the frame that it began with.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        device: str = "cpu",
        input_size: tuple[int, int] | None = None,
        refine: str = "static",
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: a .safetensors file of this project.
            device: auto, cpu, cuda or cuda:N.
            input_size: (width, height), multiples of 32; None keeps the area of the training and takes the aspect of
                the camera.
            refine: one of `REFINE_CHOICES`: make the odometry network's answer agree with depth and flow
                (geometry/refinement.py).

        Raises:
            CheckpointError: it cannot be read.
            UsageError: device, size or kind of refinement cannot be used.
        """
        if refine not in REFINE_CHOICES:
            raise UsageError(f"refine is {refine!r}: one of {', '.join(REFINE_CHOICES)} was expected.")
        if input_size is not None and (min(input_size) <= 0 or any(side % SIZE_MULTIPLE for side in input_size)):
            raise UsageError(
                f"Input size {input_size[0]}x{input_size[1]}: both sides must be positive multiples of {SIZE_MULTIPLE}."
            )
        self._device = resolve_device(device)
        loaded = load_checkpoint(Path(checkpoint), self._device)
        self.metadata: CheckpointMetadata = loaded.metadata
        self._networks = loaded.networks
        self._error_model = loaded.error_model
        self._error_config = ErrorModelConfig.model_validate(loaded.metadata.error_model_config)
        self._input_size = input_size
        self._half = half_dtype(self._device)
        self._refine = refine
        self._last: _Seen | None = None
        self._reference: _Seen | None = None

    @property
    def device(self) -> str:
        """Where the networks run: cpu or cuda:N."""
        return str(self._device)

    @property
    def metric(self) -> bool:
        """Whether the checkpoint states that its depth is in metres."""
        return self.metadata.scale == "metric"

    def reset(self) -> None:
        """Forget the previous frame."""
        self._last = self._reference = None

    def warm_up(self, camera: Camera) -> None:
        """Run a pair of frames of this camera that show nothing, then forget them."""
        random = np.random.default_rng(0)
        for stamp in (0, 1):
            # coarse, or nothing of it would be left in a small network input
            noise = random.integers(0, 255, (8, 16, 3), dtype=np.uint8)
            image = cv2.resize(noise, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST)
            self.predict(Frame(image, stamp, camera))
        self.reset()

    @torch.inference_mode()
    def predict(self, frame: Frame, outputs: frozenset[str] = ALL_OUTPUTS) -> Prediction:
        """Process the next frame.

        Raises:
            UsageError: the frame has no camera.
        """
        if frame.camera is None:
            raise UsageError(
                "The frame has no camera: depth and odometry need its calibration. Publish a calibrated CameraInfo "
                "(K[0] > 0), or state the field of view."
            )
        start = time.perf_counter()
        width, height = self._input_size or self._size_for(frame.camera)
        fitted = fit_frame(frame, width, height)
        # A frame mapped from disk is read-only, which torch warns of.
        pixels = np.require(fitted.image, requirements="W")
        image = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1)[None].float() / 255
        now = _Seen(image, small_view(fitted.image), fitted.stamp_ns, fitted.camera)
        last, reference = self._last, self._reference
        if last is not None and last.camera != now.camera:
            last = reference = None
        change = None if reference is None else compare(reference.view, now.view)
        self._remember(now, change)
        if change is Change.CAMERA:
            results = self._run(image, reference.image, fitted.camera, outputs)
        elif change is Change.OBJECTS:
            results = self._run(image, last.image, fitted.camera, outputs, stands=True)
        elif change is Change.NOTHING:
            results = self._standstill(image, outputs)
        else:
            results = self._run(image, None, fitted.camera, outputs)
        paired = change not in (None, Change.UNKNOWN)
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=last.stamp_ns if paired else None,
            reference_stamp_ns=_creeping_since(change, reference, last),
            camera=fitted.camera,
            image=fitted.image,
            metric=self.metric,
            **results,
            infer_ms=1e3 * (time.perf_counter() - start),
        )

    def _remember(self, now: _Seen, change: Change | None) -> None:
        """The frame that the next ones are compared with stays the same while the camera seems to stand."""
        self._last = now
        stands = change in (Change.NOTHING, Change.OBJECTS)
        if not stands or not 0 <= now.stamp_ns - self._reference.stamp_ns < _LONGEST_CREEP_NS:
            self._reference = now

    def _size_for(self, camera: Camera) -> tuple[int, int]:
        return choose_size(camera, self.metadata.width * self.metadata.height, SIZE_MULTIPLE)

    def _standstill(self, image: Tensor, outputs: frozenset[str]) -> dict[str, np.ndarray | None]:
        """Depth of the image, and no motion of anything: matching two equal images can only invent some."""
        depth = None
        if DEPTH in outputs:
            with self._autocast():
                depth = _to_host(self._networks.depths(image)[1])
        size = tuple(image.shape[-2:])
        return {
            "depth": depth,
            "T_previous_current": np.eye(4),
            "motion_covariance": np.zeros((6, 6)),
            "flow": np.zeros((*size, 2), np.float32),
            "motion_probability": np.zeros(size, np.float32),
            "confidence": np.ones(size, np.float32),
        }

    def _run(
        self, image: Tensor, previous: Tensor | None, camera: Camera, outputs: frozenset[str], stands: bool = False
    ) -> dict[str, np.ndarray | None]:
        """The networks and what follows from them, as arrays on the host; `stands`: the camera does not move."""
        needs_pair = previous is not None and bool(outputs & {MOTION, FLOW, MASK})
        depth = None
        if DEPTH in outputs or (needs_pair and outputs & {MOTION, MASK}):
            with self._autocast():
                _, depth = self._networks.depths(image)
        results: dict[str, np.ndarray | None] = dict.fromkeys(
            ("depth", "T_previous_current", "motion_covariance", "flow", "motion_probability", "confidence")
        )
        if depth is not None:
            results["depth"] = _to_host(depth)
        if previous is None or not needs_pair:
            return results
        # who listens must not change what is computed: the refinement has the backward flow with the mask or without
        refines = self._refine == "static" and MOTION in outputs and not stands
        flow_low, flows = self._flows(image, previous, both=MASK in outputs or refines)
        results["flow"] = _to_host(torch.where(flows.inside, flows.flow, torch.nan), channels_last=True)
        if depth is None:
            return results
        matrix = torch.from_numpy(camera.matrix).float().to(self._device)[None]
        if stands:
            motion = torch.eye(4, device=self._device)[None]
            results |= {"T_previous_current": np.eye(4), "motion_covariance": np.zeros((6, 6))}
        else:
            motion = self._networks.motion(image, previous, flow_low, depth, matrix)
            if self._refine != "off":
                refined = self._refined(motion, depth, flows, matrix)
                motion = refined.T_source_target
                results["motion_covariance"] = refined.covariance[0].cpu().numpy()
            results["T_previous_current"] = motion[0].double().cpu().numpy()
        if MASK in outputs:
            evidence = self._evidence(flows, rigid_warp(depth, motion, matrix))
            gamma = posterior(evidence, self._error_model, self._error_config)
            hidden = posterior_of_hidden(evidence.log_disagreement, self._error_model, self._error_config)
            known = torch.where(evidence.visible > 0, gamma, hidden)
            results["motion_probability"] = _to_host(known)
            results["confidence"] = _to_host((1 - gamma) * evidence.visible)
        return results

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
        with self._autocast():
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._half, enabled=self._half is not None)


def _creeping_since(change: Change | None, reference: _Seen | None, last: _Seen | None) -> int | None:
    """Stamp of the reference frame of a motion, where that is not the last frame."""
    return reference.stamp_ns if change is Change.CAMERA and reference is not last else None


def _to_host(tensor: Tensor, channels_last: bool = False) -> np.ndarray:
    """(1, C, H, W) to (H, W) or (H, W, C) float32."""
    array = tensor[0].float().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if channels_last else array[0]
