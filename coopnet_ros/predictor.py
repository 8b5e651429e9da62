"""Opens the networks that the node runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coopnet_core.errors import CheckpointError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Predictor
from coopnet_core.resources import shipped_file

DEFAULT_CHECKPOINT = "models/small_rendered.safetensors"


@dataclass(frozen=True)
class PredictorRequest:
    """Which networks, where.

    Attributes:
        checkpoint: path, empty for the shipped one.
        device: auto, cpu, cuda or cuda:N.
        input_size: (width, height) of the networks' input, None for the checkpoint's.
    """

    checkpoint: str
    device: str
    input_size: tuple[int, int] | None

    @property
    def path(self) -> Path:
        """The file meant.

        Raises:
            CheckpointError: it does not exist.
        """
        if not self.checkpoint:
            return shipped_file(DEFAULT_CHECKPOINT)
        path = Path(self.checkpoint).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"Checkpoint {path} was not found: a .safetensors file written by train_from_bags was expected. Set "
                "the parameter checkpoint, or leave it empty for the shipped one."
            )
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

    predictor = StreamPredictor(path, device=request.device, input_size=request.input_size)
    # the first run of all is the slow one: it must not fall between the first two images
    predictor.warm_up(Camera.from_field_of_view(predictor.metadata.width, predictor.metadata.height, 80.0))
    return predictor
