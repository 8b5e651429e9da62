"""Opens the networks that the node runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coopnet_core.data.frames import Frame
from coopnet_core.errors import CheckpointError, CoopnetError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import DEPTH, Predictor
from coopnet_core.resources import SHIPPED_WEIGHTS, shipped_file
from coopnet_ros.pipeline import check_prediction


@dataclass(frozen=True)
class PredictorRequest:
    """Which networks, where.

    Attributes:
        checkpoint: path, empty for the shipped one.
        device: auto, cpu, cuda or cuda:N.
        input_size: (width, height) of the networks' input, None for the checkpoint's.
        refine: of `REFINE_CHOICES`.
    """

    checkpoint: str
    device: str
    input_size: tuple[int, int] | None
    refine: str = "static"

    @property
    def path(self) -> Path:
        """The file meant.

        Raises:
            CheckpointError: it does not exist, is a folder, or may not be read.
        """
        if not self.checkpoint:
            return shipped_file(SHIPPED_WEIGHTS)
        path = Path(self.checkpoint).expanduser()
        try:
            path.open("rb").close()
        except OSError as error:
            raise CheckpointError(
                f"Checkpoint {path} cannot be opened ({error.strerror}): a .safetensors file that train_from_bags has "
                "written, and that this user may read, was expected. Set the parameter checkpoint, or leave it empty "
                "for the shipped one."
            ) from error
        return path


PredictorFactory = Callable[[PredictorRequest], Predictor]


def load_predictor(request: PredictorRequest) -> Predictor:
    """Load the networks of a checkpoint and run them once.

    Raises:
        CheckpointError: the file is missing, or is no checkpoint of this package.
        UsageError: the device or the input size cannot be used.
    """
    path = request.path
    # here, not at the top: torch takes seconds to import, and the worker thread has them
    from coopnet_core.inference.stream import StreamPredictor

    predictor = StreamPredictor(path, request.device, request.input_size, request.refine)
    # the first run of all is the slow one: it must not fall between the first two images
    predictor.warm_up(Camera.from_field_of_view(predictor.metadata.width, predictor.metadata.height, 80.0))
    return predictor


def blank_frame(camera: Camera | None) -> Frame:
    """A grey frame of a camera; of a usual one where there is none."""
    camera = camera or Camera.from_field_of_view(640, 480, 80.0)
    return Frame(np.full((camera.height, camera.width, 3), 127, np.uint8), 0, camera)


def try_out(predictor: Predictor, frame: Frame) -> None:
    """Run networks that nobody has used yet on a frame, and refuse those that give no depth of it.

    Args:
        predictor: is warmed up for the camera of the frame, and remembers nothing of the frame afterwards.
        frame: with its camera.

    Raises:
        CoopnetError: what they return is no prediction (`pipeline.check_prediction`), or a pixel of their depth is not
            finite and positive. Anything else that they raise themselves.
    """
    predictor.warm_up(frame.camera)
    prediction = predictor.predict(frame, frozenset({DEPTH}))
    predictor.reset()
    check_prediction(prediction)
    depth = prediction.depth
    if depth is None:
        raise CheckpointError("Tried on an image, they gave no depth.")
    unusable = ~(np.isfinite(depth) & (depth > 0))
    if unusable.any():
        raise CheckpointError(
            f"Tried on an image, they gave a depth that is not finite and positive in {np.count_nonzero(unusable)} of "
            f"{depth.size} pixels: finite, positive numbers were expected everywhere."
        )


def load_failure(error: Exception, beside_others: bool = False) -> str:
    """Why networks could not be loaded.

    Args:
        error: what was raised.
        beside_others: whether other networks were in use meanwhile.
    """
    text = str(error) if isinstance(error, CoopnetError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError):
        text += (
            f". The node runs under {sys.executable}: install PyTorch for that Python (pip install torch), or start "
            "the node from an environment that has it, made with --system-site-packages where ROS is installed."
        )
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        text = text.rstrip(".") + ". Lower input_width and input_height, or use device:=cpu."
        if beside_others:
            text += (
                " Until the new networks are known to work they are in memory beside the old ones: deactivate, cleanup "
                "and configure load them alone."
            )
    return f"The networks could not be loaded. {text}"
