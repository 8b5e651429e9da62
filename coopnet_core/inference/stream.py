"""The stream predictor: frames in, in order; depth, camera motion, flow and moving mask out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

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
    smoothed_delta,
)
from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import STILL_THRESHOLD, choose_size, fit_frame, thumbnail
from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp, scaled_matrix
from coopnet_core.geometry.refinement import refine_motion
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.inference.prediction import ALL_OUTPUTS, DEPTH, FLOW, MASK, MOTION, Prediction
from coopnet_core.losses.visibility import forward_backward_visible
from coopnet_core.networks.bundle import SIZE_MULTIPLE, normalise
from coopnet_core.networks.flow import FINEST_STRIDE


@dataclass(frozen=True)
class _Previous:
    """The last frame, ready to be paired."""

    image: Tensor
    small: np.ndarray
    stamp_ns: int
    camera: Camera


class StreamPredictor:
    """Runs the three networks of a checkpoint on a stream of frames.

    Every frame is cropped to the aspect of the networks' input and resized to it. Frames of another camera than the
    last one start a new pair. Two equal frames are a standstill: no flow and no motion.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        device: str = "cpu",
        input_size: tuple[int, int] | None = None,
        refine: bool = True,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: a .safetensors file of this project.
            device: auto, cpu, cuda or cuda:N.
            input_size: (width, height), multiples of 32; None keeps the area of the training and takes the aspect of
                the camera.
            refine: make the odometry network's answer agree with depth and flow (geometry/refinement.py).

        Raises:
            CheckpointError: it cannot be read.
            UsageError: device or size cannot be used.
        """
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
        self._previous: _Previous | None = None

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
        self._previous = None

    def warm_up(self, camera: Camera) -> None:
        """Run a pair of blank frames of this camera, then forget them."""
        for stamp in (0, 1):
            blank = np.full((camera.height, camera.width, 3), 255 * stamp, np.uint8)
            self.predict(Frame(blank, stamp, camera))
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
        image = torch.from_numpy(fitted.image).to(self._device).permute(2, 0, 1)[None].float() / 255
        previous = self._previous
        if previous is not None and previous.camera != fitted.camera:
            previous = None
        small = thumbnail(fitted.image)
        self._previous = _Previous(image, small, fitted.stamp_ns, fitted.camera)
        if previous is not None and np.abs(small - previous.small).mean() < STILL_THRESHOLD:
            results = self._standstill(image, outputs)
        else:
            results = self._run(image, None if previous is None else previous.image, fitted.camera, outputs)
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=None if previous is None else previous.stamp_ns,
            camera=fitted.camera,
            image=fitted.image,
            metric=self.metric,
            **results,
            infer_ms=1e3 * (time.perf_counter() - start),
        )

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
            "flow": np.zeros((*size, 2), np.float32),
            "motion_probability": np.zeros(size, np.float32),
            "confidence": np.ones(size, np.float32),
        }

    def _run(
        self, image: Tensor, previous: Tensor | None, camera: Camera, outputs: frozenset[str]
    ) -> dict[str, np.ndarray | None]:
        """The networks and what follows from them, as arrays on the host."""
        needs_pair = previous is not None and bool(outputs & {MOTION, FLOW, MASK})
        depth = None
        if DEPTH in outputs or (needs_pair and outputs & {MOTION, MASK}):
            with self._autocast():
                _, depth = self._networks.depths(image)
        results: dict[str, np.ndarray | None] = dict.fromkeys(
            ("depth", "T_previous_current", "flow", "motion_probability", "confidence")
        )
        if depth is not None:
            results["depth"] = _to_host(depth)
        if previous is None or not needs_pair:
            return results
        flow_low, backward_low = self._flows(image, previous, both=MASK in outputs)
        flow = resize_flow(flow_low, *image.shape[-2:])
        warp = flow_warp(flow)
        results["flow"] = _to_host(torch.where(warp.valid, flow, torch.nan), channels_last=True)
        if depth is None:
            return results
        matrix = torch.from_numpy(camera.matrix).float().to(self._device)[None]
        T_previous_current = self._networks.motion(image, previous, flow_low, depth, matrix)
        backward = None if backward_low is None else resize_flow(backward_low, *image.shape[-2:])
        if self._refine:
            T_previous_current = self._refined(T_previous_current, depth, flow, backward, matrix)
        results["T_previous_current"] = T_previous_current[0].double().cpu().numpy()
        if backward is not None:
            evidence = self._evidence(image, previous, flow, backward, rigid_warp(depth, T_previous_current, matrix))
            gamma = posterior(evidence, self._error_model, self._error_config)
            hidden = posterior_of_hidden(evidence.log_disagreement, self._error_model, self._error_config)
            known = torch.where(evidence.visible > 0, gamma, hidden)
            results["motion_probability"] = _to_host(known)
            results["confidence"] = _to_host((1 - gamma) * evidence.visible)
        return results

    def _refined(
        self, T_previous_current: Tensor, depth: Tensor, flow: Tensor, backward: Tensor | None, matrix: Tensor
    ) -> Tensor:
        """The odometry network's answer, made to agree with depth and flow where the flow can be trusted."""
        visible = flow_warp(flow).valid if backward is None else forward_backward_visible(flow, backward)
        height, width = (side // FINEST_STRIDE for side in flow.shape[-2:])
        return refine_motion(
            T_previous_current,
            1 / resize(1 / depth, height, width),
            resize_flow(flow, height, width),
            resize(visible.float(), height, width),
            scaled_matrix(matrix, 1 / FINEST_STRIDE),
        )

    def _flows(self, image: Tensor, previous: Tensor, both: bool) -> tuple[Tensor, Tensor | None]:
        """Flow current -> previous and, if wanted, back."""
        image, previous = normalise(image), normalise(previous)
        with self._autocast():
            if both:
                return self._networks.flow.both_ways(image, previous)[0]
            return self._networks.flow(image, previous), None

    def _evidence(self, image: Tensor, previous: Tensor, flow: Tensor, backward: Tensor, rigid: Warp) -> Evidence:
        by_flow = sample(previous, flow_warp(flow).coordinates)
        by_rigid = sample(previous, rigid.coordinates)
        rigid_flow = rigid.coordinates - pixel_grid(*image.shape[-2:], image.device)
        visible = forward_backward_visible(flow, backward) & rigid.valid
        return Evidence(
            smoothed_delta(image, by_rigid, by_flow, self._error_config.smoothing),
            log_disagreement(flow, rigid_flow),
            visible.float(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=self._half, enabled=self._half is not None)


def _to_host(tensor: Tensor, channels_last: bool = False) -> np.ndarray:
    """(1, C, H, W) to (H, W) or (H, W, C) float32."""
    array = tensor[0].float().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0)) if channels_last else array[0]
