"""What a predictor returns for one frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coopnet_core.data.frames import Frame
from coopnet_core.geometry.camera import Camera

DEPTH, MOTION, FLOW, MASK = "depth", "motion", "flow", "mask"
ALL_OUTPUTS = frozenset({DEPTH, MOTION, FLOW, MASK})
REFINE_CHOICES = ("static", "all", "off")
"""Refinement of the motion: on pixels that do not move, which needs the flow in both directions; on all that stay in
the image; not at all."""


@dataclass(frozen=True)
class Prediction:
    """Depth, camera motion, flow and moving mask of one frame, on the networks' grid (h x w).

    Attributes:
        stamp_ns: stamp of the frame.
        previous_stamp_ns: stamp of the frame it was paired with; None for the first frame (or after a gap): then
            T_previous_current, flow and motion_probability are None too.
        camera: the camera of the output grid.
        image: (h, w, 3) uint8 RGB, the frame on the output grid.
        depth: (h, w) float32 along the optical axis; metres if `metric`, else in the networks' own unit.
        metric: whether the scale is known.
        T_previous_current: (4, 4) float64, pose of this camera in the previous camera's optical frame, in depth's unit.
        flow: (h, w, 2) float32 pixels of the output grid (u right, v down), on the grid of this frame, towards the
            reference frame; NaN where invalid (leaves the image).
        motion_probability: (h, w) float32 in [0, 1], that the pixel belongs to an independently moving object.
        confidence: (h, w) float32 in [0, 1], agreement of the two reconstructions.
        infer_ms: wall time of the networks.
        motion_covariance: (6, 6) of u = (translation, rotation in radians), where exp(u) T_previous_current is the true
            motion, in depth's unit; None where the networks do not know.
        reference_stamp_ns: where the camera creeps, several frames in turn stand still until together they show a
            motion: the stamp of the frame since which T_previous_current was travelled, and which flow and mask refer
            to. None where that is the previous frame.
    """

    stamp_ns: int
    previous_stamp_ns: int | None
    camera: Camera
    image: np.ndarray
    depth: np.ndarray | None
    metric: bool
    T_previous_current: np.ndarray | None
    flow: np.ndarray | None
    motion_probability: np.ndarray | None
    confidence: np.ndarray | None
    infer_ms: float
    motion_covariance: np.ndarray | None = None
    reference_stamp_ns: int | None = None

    @property
    def pair_stamp_ns(self) -> int | None:
        """Stamp of the other frame of the pair: of the reference frame, else of the previous one."""
        return self.previous_stamp_ns if self.reference_stamp_ns is None else self.reference_stamp_ns


class Predictor(Protocol):
    """Anything that turns frames, in order, into predictions (the node and the evaluation know only this)."""

    @property
    def device(self) -> str:
        """Where it runs: cpu, cuda:0, ..., for people."""

    def predict(self, frame: Frame, outputs: frozenset[str] = ALL_OUTPUTS) -> Prediction:
        """Process the next frame. `outputs` names what is wanted; what is not wanted may be None.

        Raises:
            UsageError: the frame has no camera, or one that cannot be used.
        """

    def reset(self) -> None:
        """Forget the previous frame: the next prediction has no pair."""

    def warm_up(self, camera: Camera) -> None:
        """Run once on a blank frame of this camera, so that the first real frame is not slow."""
