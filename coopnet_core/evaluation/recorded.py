"""Predictions that were saved while a node ran (the folder that `record_outputs` writes), replayed for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import fit_frame
from coopnet_core.errors import NoUsableDataError
from coopnet_core.inference.prediction import Prediction

OPTICAL_IN_BODY = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""T_base_camera of a camera that looks along the body's x axis (REP 103), at its origin."""


class RecordedPredictions:
    """One `<stamp_ns>.npz` per frame, any of these arrays in it.

    depth or depth_relative (h, w); flow (h, w, 2); probability (h, w), or mask (h, w) uint8; previous_stamp_ns of the
    pair; pose (4, 4), T_odom_base at this stamp; T_previous_current (4, 4) in the camera's optical frame, which goes
    before the poses; confidence (h, w).
    """

    def __init__(self, folder: Path, T_base_camera: np.ndarray | None = None) -> None:
        """List the files.

        Args:
            folder: the output of `record_outputs`, or its `frames/`.
            T_base_camera: (4, 4) mounting of the camera on the frame that `pose` moves; by default looking ahead.

        Raises:
            NoUsableDataError: the folder holds no such file.
        """
        inner = folder / "frames"
        files = (inner if inner.is_dir() else folder).glob("*.npz")
        self._files = {int(file.stem): file for file in files if file.stem.isdigit()}
        if not self._files:
            raise NoUsableDataError(
                f"{folder} holds no <stamp>.npz: a folder written by record_outputs was expected. Did the node run?"
            )
        self._stamps = sorted(self._files)
        self._T_base_camera = OPTICAL_IN_BODY if T_base_camera is None else T_base_camera

    def __len__(self) -> int:
        return len(self._files)

    def predict(self, frame: Frame) -> Prediction | None:
        """The recorded prediction of a frame; None where there is none."""
        if frame.stamp_ns not in self._files:
            return None
        with np.load(self._files[frame.stamp_ns]) as content:
            arrays = {name: content[name] for name in content.files}
        depth = arrays.get("depth", arrays.get("depth_relative"))
        probability = arrays.get("probability")
        if probability is None and "mask" in arrays:
            probability = (arrays["mask"] >= 128).astype(np.float32)
        flow = arrays.get("flow")
        grid = next((array for array in (depth, flow, probability) if array is not None), None)
        fitted = frame if grid is None else fit_frame(frame, grid.shape[1], grid.shape[0])
        if fitted.camera is None:
            return None
        previous_stamp_ns, motion = self._motion(frame.stamp_ns, arrays)
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=previous_stamp_ns,
            camera=fitted.camera,
            image=fitted.image,
            depth=depth,
            metric="depth" in arrays,
            T_previous_current=motion,
            flow=flow,
            motion_probability=probability,
            confidence=arrays.get("confidence"),
            infer_ms=float("nan"),
        )

    def _motion(self, stamp_ns: int, arrays: Mapping[str, np.ndarray]) -> tuple[int | None, np.ndarray | None]:
        """The stamp of the pair's first frame, and T_previous_current in the optical frame."""
        index = self._stamps.index(stamp_ns)
        previous = int(arrays["previous_stamp_ns"]) if "previous_stamp_ns" in arrays else None
        if previous is None and index > 0 and "pose" in arrays and not {"flow", "T_previous_current"} & arrays.keys():
            previous = self._stamps[index - 1]
        if previous is None:
            return None, None
        if "T_previous_current" in arrays:
            return previous, arrays["T_previous_current"]
        earlier = self._pose(previous)
        if earlier is None or "pose" not in arrays:
            return previous, None
        in_body = np.linalg.inv(earlier) @ arrays["pose"]
        T_base_camera = self._T_base_camera.copy()
        if "depth_relative" in arrays:  # the node leaves the lever arm away where it does not know the metre
            T_base_camera[:3, 3] = 0.0
        return previous, np.linalg.inv(T_base_camera) @ in_body @ T_base_camera

    def _pose(self, stamp_ns: int) -> np.ndarray | None:
        if stamp_ns not in self._files:
            return None
        with np.load(self._files[stamp_ns]) as content:
            return content["pose"] if "pose" in content.files else None
