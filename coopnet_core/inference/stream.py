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
from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import choose_size, fit_frame
from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.computation import Computation
from coopnet_core.inference.graphs import Recorded
from coopnet_core.inference.prediction import ALL_OUTPUTS, REFINE_CHOICES, Prediction
from coopnet_core.inference.standstill import Change, compare, small_view
from coopnet_core.networks.bundle import SIZE_MULTIPLE

_LONGEST_CREEP_NS = 1_000_000_000
"""A frame is compared with the one since which the camera seems to stand, but not with an older one than this: slower
motion is standstill, and light changes."""

_COMPUTED = ("depth", "T_previous_current", "motion_covariance", "flow", "motion_probability", "confidence")
"""Fields of `Prediction` that may be missing."""


@dataclass(frozen=True)
class _Seen:
    """A frame that was processed, ready to be paired."""

    image: Tensor
    view: np.ndarray
    stamp_ns: int
    camera: Camera


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
        cuda_graphs: bool = True,
    ) -> None:
        """Load a checkpoint.

        Args:
            checkpoint: a .safetensors file of this project.
            device: auto, cpu, cuda or cuda:N.
            input_size: (width, height), multiples of 32; None keeps the area of the training and takes the aspect of
                the camera.
            refine: one of `REFINE_CHOICES`: make the odometry network's answer agree with depth and flow
                (geometry/refinement.py).
            cuda_graphs: record what a GPU does once for each size and each choice of outputs, and replay it: same
                answers, sooner.

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
        computation = Computation(loaded, refine, half_dtype(self._device))
        self._compute = (
            Recorded(computation, self._device) if cuda_graphs and self._device.type == "cuda" else computation
        )
        self._input_size = input_size
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
            results = self._computed(image, reference.image, fitted.camera, outputs)
        elif change is Change.OBJECTS:
            results = self._computed(image, last.image, fitted.camera, outputs, stands=True)
        elif change is Change.NOTHING:
            results = self._standstill(image, fitted.camera, outputs)
        else:
            results = self._computed(image, None, fitted.camera, outputs)
        paired = change not in (None, Change.UNKNOWN)
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=last.stamp_ns if paired else None,
            reference_stamp_ns=_creeping_since(change, reference, last),
            camera=fitted.camera,
            image=fitted.image,
            metric=self.metric,
            **(dict.fromkeys(_COMPUTED) | results),
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

    def _standstill(self, image: Tensor, camera: Camera, outputs: frozenset[str]) -> dict[str, np.ndarray]:
        """Depth of the image, and no motion of anything: matching two equal images can only invent some."""
        size = tuple(image.shape[-2:])
        return self._computed(image, None, camera, outputs) | {
            "T_previous_current": np.eye(4),
            "motion_covariance": np.zeros((6, 6)),
            "flow": np.zeros((*size, 2), np.float32),
            "motion_probability": np.zeros(size, np.float32),
            "confidence": np.ones(size, np.float32),
        }

    def _computed(
        self, image: Tensor, previous: Tensor | None, camera: Camera, outputs: frozenset[str], stands: bool = False
    ) -> dict[str, np.ndarray]:
        """What the networks make of an image or a pair, on the host."""
        matrix = torch.from_numpy(camera.matrix).float().to(self._device)[None]
        results = self._compute(image, previous, matrix, outputs=outputs, stands=stands)
        return {name: tensor.cpu().numpy() for name, tensor in results.items()}


def _creeping_since(change: Change | None, reference: _Seen | None, last: _Seen | None) -> int | None:
    """Stamp of the reference frame of a motion, where that is not the last frame."""
    return reference.stamp_ns if change is Change.CAMERA and reference is not last else None
