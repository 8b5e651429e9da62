"""Pictures of an evaluation: panels, an animation, error maps and the trajectory from above."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.evaluation.depth import DepthProtocol
from coopnet_core.evaluation.grids import truth_grid
from coopnet_core.evaluation.odometry import DegenerateAlignmentError, align, relative_to, straight_line
from coopnet_core.evaluation.session import Trajectories
from coopnet_core.inference.prediction import Prediction
from coopnet_core.plots import plot_trajectory
from coopnet_core.visualization import depth_range, error_panel, median_ratio, panel, write_animation, write_picture

_ANIMATION_FRAMES = 60
_DENSE = 0.3


class Gallery:
    """Collects panels of evenly spread frames and writes them.

    Colour ranges are those of the first pair, so that the pictures can be compared and the animation does not flicker.
    """

    def __init__(self, output: Path, pictures: int, frames: int, protocol: DepthProtocol) -> None:
        """Choose the frames.

        Args:
            output: folder for the files.
            pictures: number of panels written as PNG; 0 for no picture at all.
            frames: expected number of frames.
            protocol: of the depth, for the error maps.
        """
        self._output = output
        self._protocol = protocol
        # The first frame has no pair, hence nothing but depth: start at the second.
        last = max(frames - 1, 1)
        self._stills = (
            set(np.linspace(min(1, last), last, pictures).round().astype(int).tolist()) if pictures else set()
        )
        count = min(_ANIMATION_FRAMES, last) if pictures else 0
        self._animated = set(np.linspace(min(1, last), last, count).round().astype(int).tolist())
        self._limits: tuple[tuple[float, float] | None, float | None] = (None, None)
        self._pages: list[np.ndarray] = []
        self.panels: list[Path] = []

    def add(self, index: int, frame: Frame, prediction: Prediction, truth: FrameTruth | None) -> None:
        """Draw frame number `index`, if it is one of the chosen."""
        if index not in self._stills and index not in self._animated:
            return
        shown = None if truth is None or frame.camera is None else displayed_truth(frame, prediction, truth)
        if self._limits[1] is None and prediction.flow is not None:
            self._limits = _color_limits(prediction, shown)
        page = panel(prediction, shown, *self._limits)
        if index in self._animated:
            self._pages.append(page)
        if index in self._stills:
            self.panels.append(write_picture(self._output / f"panel_{index:05d}.png", page))
            if shown is not None and (shown.depth is not None or shown.flow is not None):
                errors = _error_maps(prediction, shown, self._protocol)
                write_picture(
                    self._output / f"errors_{index:05d}.png", error_panel(prediction.image, *errors, 0.5, 5.0)
                )

    def write_animation(self, fps: float = 10.0) -> Path | None:
        """Write animation.webp; None without a panel."""
        if len(self._pages) < 2:
            return None
        size = self._pages[-1].shape
        pages = [page for page in self._pages if page.shape == size]
        return write_animation(self._output / "animation.webp", pages, fps)


def draw_trajectories(path: Path, run: Trajectories, alignment: str, name: str = "prediction") -> Path:
    """The estimate, aligned, and the best straight line, over the truth; the bare estimate where there is no truth."""
    if run.truth is None:
        return plot_trajectory(path, None, {name: run.estimate}, "no truth; unit of the networks")
    estimates = {}
    line = straight_line(run.stamps_ns)
    for label, estimate, chosen, is_line in (
        (name, run.estimate, alignment, False),
        ("straight line", line, "7dof", True),
    ):
        try:
            estimates[label] = align(estimate, run.truth, chosen, allow_line=is_line)
        except DegenerateAlignmentError:
            continue
    return plot_trajectory(path, relative_to(run.truth), estimates, f"alignment {alignment}")


def displayed_truth(frame: Frame, prediction: Prediction, truth: FrameTruth) -> FrameTruth:
    """The truth on the prediction's grid, for pictures only (nearest pixel; sparse depth keeps all its points)."""
    height, width = prediction.image.shape[:2]

    def shown(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        grid = truth_grid(frame.camera, prediction.camera, array.shape[1], array.shape[0])
        cut = grid.truth(array)
        if cut.ndim == 2 and cut.dtype != bool and np.isfinite(cut).mean() < _DENSE:
            return _scattered(cut, height, width)
        plain = cut.astype(np.uint8) if cut.dtype == bool else cut
        small = cv2.resize(plain, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        if cut.ndim == 3:
            small = small * np.array([width / cut.shape[1], height / cut.shape[0]], np.float32)
        return small.astype(cut.dtype)

    flow = None if frame.camera is None or frame.camera.is_distorted else shown(truth.flow)
    return FrameTruth(shown(truth.depth), truth.pose, flow, shown(truth.moving), shown(truth.occluded))


def _scattered(sparse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sparse values (H, W) put into a smaller grid, the nearest depth where several meet."""
    small = np.full((height, width), np.inf, np.float32)
    y, x = np.nonzero(np.isfinite(sparse))
    rows, columns = y * height // sparse.shape[0], x * width // sparse.shape[1]
    np.minimum.at(small, (rows, columns), sparse[y, x])
    return np.where(np.isfinite(small), small, np.nan).astype(np.float32)


def _color_limits(prediction: Prediction, truth: FrameTruth | None) -> tuple[tuple[float, float] | None, float]:
    """Ranges for depth (in the prediction's unit) and flow: those of the truth where there is one.

    A flat prediction stretched over all colours would look as if it had content.
    """
    flow = prediction.flow if truth is None or truth.flow is None else truth.flow
    length = np.linalg.norm(flow, axis=-1)
    length = length[np.isfinite(length)]
    longest = max(1.0, float(np.percentile(length, 95))) if length.size else 1.0
    if prediction.depth is None:
        return None, longest
    if truth is None or truth.depth is None:
        return depth_range(prediction.depth), longest
    scale = median_ratio(truth.depth, prediction.depth)
    near, far = depth_range(truth.depth)
    return (near / scale, far / scale), longest


def _error_maps(
    prediction: Prediction, truth: FrameTruth, protocol: DepthProtocol
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Relative depth error after median scaling, and flow end-point error, (h, w) each, NaN where unknown."""
    depth_error = flow_error = None
    if truth.depth is not None and prediction.depth is not None:
        with np.errstate(invalid="ignore"):
            known = (truth.depth > protocol.minimum) & (truth.depth < protocol.cap) & (prediction.depth > 0)
        scale = np.median(truth.depth[known]) / np.median(prediction.depth[known]) if known.any() else 1.0
        with np.errstate(invalid="ignore", divide="ignore"):
            depth_error = np.where(known, np.abs(truth.depth - scale * prediction.depth) / truth.depth, np.nan)
    if truth.flow is not None and prediction.flow is not None:
        flow_error = np.linalg.norm(prediction.flow - truth.flow, axis=-1)
    return depth_error, flow_error
