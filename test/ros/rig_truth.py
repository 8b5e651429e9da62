"""A predictor that returns a known truth; no ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import DEPTH, FLOW, MASK, MOTION, Prediction

CAMERA = Camera(64, 32, 50.0, 50.0, 31.5, 15.5)


def turn(axis: str, degrees: float) -> np.ndarray:
    """(4, 4) rotation about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    result = np.eye(4)
    result[i, i] = result[j, j] = c
    result[i, j], result[j, i] = -s, s
    return result


def shift(x: float, y: float, z: float) -> np.ndarray:
    """(4, 4) translation."""
    result = np.eye(4)
    result[:3, 3] = (x, y, z)
    return result


@dataclass
class StubPredictor:
    """Returns a known truth on a grid of half the image's size; records what it was asked."""

    motion: np.ndarray = field(default_factory=lambda: shift(0.0, 0.0, 1.0))
    depth: Callable[[Camera], np.ndarray] = field(default_factory=lambda: true_depth)
    metric: bool = True
    fails: bool = False
    delay_s: float = 0.0
    calls: list = field(default_factory=list)
    resets: int = 0
    warmed: list = field(default_factory=list)
    device: str = "stub"
    covariance: np.ndarray | None = None
    sees_nothing: bool = False
    creeps: int = 0  # so many frames in turn stand still, then the motion counts from the first
    _previous_ns: int | None = None
    _still: list = field(default_factory=list)

    def warm_up(self, camera: Camera) -> None:
        self.warmed.append(camera)

    def reset(self) -> None:
        self.resets += 1
        self._previous_ns = None

    def predict(self, frame, outputs) -> Prediction:
        self.calls.append((frame.stamp_ns, outputs, frame))
        if self.fails:
            raise RuntimeError("CUDA out of memory")
        time.sleep(self.delay_s)
        previous, self._previous_ns = self._previous_ns, frame.stamp_ns
        reference, motion = self._creep(previous)
        camera = frame.camera.scaled(frame.camera.width // 2, frame.camera.height // 2).undistorted()
        paired = previous is not None and not self.sees_nothing
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=previous if paired else None,
            camera=camera,
            image=frame.image[::2, ::2],
            depth=self.depth(camera) if DEPTH in outputs else None,
            metric=self.metric,
            T_previous_current=motion if paired and MOTION in outputs else None,
            motion_covariance=self.covariance if paired and MOTION in outputs else None,
            reference_stamp_ns=reference,
            flow=true_flow(camera) if paired and FLOW in outputs else None,
            motion_probability=true_probability(camera) if paired and MASK in outputs else None,
            confidence=1 - true_probability(camera) if paired and MASK in outputs else None,
            infer_ms=1.5,
        )

    def _creep(self, previous: int | None) -> tuple[int | None, np.ndarray]:
        """The reference stamp and the motion of this frame."""
        if previous is None or not self.creeps:
            return None, self.motion.copy()
        self._still.append(previous)
        if len(self._still) <= self.creeps:
            return None, np.eye(4)
        since = self._still[0]
        self._still.clear()
        return since, self.motion.copy()


def _grid(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(camera.width, dtype=np.float32), np.arange(camera.height, dtype=np.float32))


def true_depth(camera: Camera) -> np.ndarray:
    """(h, w) a different value in every pixel, from 2 to about 200."""
    x, y = _grid(camera)
    return 2 + x + 12 * y


def ground_depth(camera: Camera, T_base_camera: np.ndarray, height: float, sky: float = 50.0) -> np.ndarray:
    """(h, w) of a camera at this height above level ground, `sky` at and above the horizon."""
    x, y = _grid(camera)
    rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)], axis=-1)
    down = -(rays @ T_base_camera[:3, :3].T)[..., 2]
    return np.where(down * sky > height, height / np.maximum(down, 1e-9), sky).astype(np.float32)


def true_flow(camera: Camera) -> np.ndarray:
    """(h, w, 2) differs in u and v; the first column has left the image."""
    x, y = _grid(camera)
    flow = np.stack([0.5 * x - 3, -0.25 * y], axis=-1)
    flow[:, 0] = np.nan
    return flow


def true_probability(camera: Camera) -> np.ndarray:
    """(h, w) 0.9 in the left third, 0.1 elsewhere."""
    x, _ = _grid(camera)
    return np.where(x < camera.width / 3, np.float32(0.9), np.float32(0.1))
