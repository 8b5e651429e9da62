"""Logs for the Rerun viewer (rerun.io), of trainings and of predictions. The package rerun-sdk is optional."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.data.frames import Frame
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import ALL_OUTPUTS, Prediction, Predictor
from coopnet_core.visualization import prediction_pictures

_NAMES = ("image", "depth_color", "flow", "moving")
"""Of the pictures of `prediction_pictures`, in their order."""
_PATHS, _JPEG_QUALITY = 50, 85


def rerun_module() -> ModuleType:
    """The package.

    Raises:
        UsageError: it is not installed; says how to bring it.
    """
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise UsageError(
            f"--rerun needs the package rerun-sdk ({error}). Install it with: pip install rerun-sdk (it wants Python "
            "3.11 and NumPy 2 or newer), or leave --rerun away."
        ) from None


def log_training(path: Path, output: Path) -> Path:
    """Write the figures of a run over its steps, and the pictures of its report, as an .rrd file.

    Args:
        path: the file to write.
        output: the run folder; the pictures are those that the report was last drawn with.

    Raises:
        UsageError: rerun-sdk is missing.
        NoUsableDataError: the run has logged nothing.
    """
    rerun, lines = rerun_module(), read_metrics(output / "metrics.jsonl")
    recording = _recording(rerun, path)
    for line in lines:
        recording.set_time("step", sequence=int(line["step"]))
        kind = "validation" if line.get("validation") else "train"
        for name, value in line.items():
            if isinstance(value, float):
                recording.log(f"{kind}/{name}", rerun.Scalars(value))
    try:
        pictures = json.loads((output / "report.json").read_text())["pictures"]
    except (OSError, ValueError, KeyError):
        pictures = []
    for index, (picture, _) in enumerate(pictures):
        place = f"pictures/{index // len(_NAMES)}/{_NAMES[index % len(_NAMES)]}"
        if (output / picture).is_file():
            recording.log(place, rerun.EncodedImage(path=output / picture), static=True)
    recording.flush()
    return path


class LoggedPredictor:
    """A predictor whose predictions are also written to an .rrd file, over the time of their stamps."""

    def __init__(self, predictor: Predictor, path: Path) -> None:
        """Open the file.

        Args:
            predictor: that works.
            path: the file to write.

        Raises:
            UsageError: rerun-sdk is missing.
        """
        self._predictor, self._rerun = predictor, rerun_module()
        self._recording = _recording(self._rerun, path)
        self._poses: dict[int, np.ndarray] = {}
        self._last = np.eye(4)

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._predictor.device

    def reset(self) -> None:
        """Forget the previous frame; the camera stays where it is."""
        self._predictor.reset()

    def warm_up(self, camera: Camera) -> None:
        """Run once on a blank frame of this camera."""
        self._predictor.warm_up(camera)

    def predict(self, frame: Frame, outputs: frozenset[str] = ALL_OUTPUTS) -> Prediction:
        """Process the next frame and log what comes of it.

        Raises:
            UsageError: the frame has no camera, or one that cannot be used.
        """
        prediction = self._predictor.predict(frame, outputs)
        self._log(prediction)
        return prediction

    def _log(self, prediction: Prediction) -> None:
        rerun, recording, camera = self._rerun, self._recording, prediction.camera
        recording.set_time("stamp", timestamp=np.datetime64(prediction.stamp_ns, "ns"))
        if prediction.T_previous_current is not None:
            self._last = self._poses.get(prediction.pair_stamp_ns, self._last) @ prediction.T_previous_current
        self._poses[prediction.stamp_ns] = self._last
        recording.log("world/camera", rerun.Transform3D(translation=self._last[:3, 3], mat3x3=self._last[:3, :3]))
        recording.log(
            "world/camera/image",
            rerun.Pinhole(image_from_camera=camera.matrix, resolution=[camera.width, camera.height]),
        )
        # The longer the path the seldomer, or the file would grow with the square of the frames.
        if len(self._poses) % (1 + len(self._poses) // _PATHS) == 0:
            path = np.array([pose[:3, 3] for pose in self._poses.values()])
            recording.log("world/path", rerun.LineStrips3D([path]))
        if prediction.depth is not None:
            recording.log("world/camera/image/depth", rerun.DepthImage(prediction.depth, meter=1.0))
        for name, picture in zip(_NAMES, prediction_pictures(prediction).values(), strict=True):
            place = "world/camera/image" if name == "image" else f"pictures/{name}"
            recording.log(place, rerun.Image(picture).compress(jpeg_quality=_JPEG_QUALITY))


def _recording(rerun: ModuleType, path: Path) -> object:
    """A recording that goes to a file; cameras look along z, y down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    recording = rerun.RecordingStream("coopnet")
    recording.save(path)
    recording.log("world", rerun.ViewCoordinates.RDF, static=True)
    return recording
