"""What the report of a training needs the networks and the images for: Delta's histogram, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from coopnet_core.checkpoint import Checkpoint, load_checkpoint
from coopnet_core.config import ErrorModelConfig, TrainConfig
from coopnet_core.cotraining.error_model import fitted_shares
from coopnet_core.cotraining.instrumentation import threshold_and_temperature
from coopnet_core.cotraining.intrinsics import LearnedFocal
from coopnet_core.cotraining.step import step
from coopnet_core.cotraining.trainer import replace_stage
from coopnet_core.data.augmentation import to_float
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.triplets import TripletSampler
from coopnet_core.distributed import alone
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.visualization import prediction_pictures, write_picture

_BATCHES, _ROWS = 4, 4
_PICTURES = 4
_BINS = 80
_TAIL = (0.001, 0.999)


@torch.no_grad()
def residuals(checkpoint: Path, clips: Sequence[Clip], config: TrainConfig, focal_factor: float = 1.0) -> np.ndarray:
    """Delta = e_r - e_f of the visible pixels of batches spread evenly over the clips, (N,); on the CPU, in float32.

    Args:
        checkpoint: whose networks and error model are judged.
        clips: all of one size.
        config: of the run; its last stage says what is reconstructed.
        focal_factor: on the focal length of the cameras that are assumed.

    Returns:
        Nothing (N = 0) where the last stage has no rigid side.

    Raises:
        CheckpointError: it cannot be read.
        NoUsableDataError: no frame has all its neighbours.
    """
    loaded = load_checkpoint(checkpoint)
    stage = replace_stage(config.stages[-1])
    focal = LearnedFocal()
    focal.log_factor.fill_(math.log(focal_factor))
    deltas = []
    # What draws random numbers in a step must not disturb those of the process.
    with alone(), torch.random.fork_rng(devices=[]):
        for batch in TripletSampler(clips, config.frame_offsets, _ROWS, 0).sweep(_BATCHES):
            known = to_float(batch)
            known = replace(known, camera_matrix=focal(known.camera_matrix, known.assumed))
            evidence = step(loaded.networks, known, loaded.error_model, config.loss, stage).evidence
            if evidence is not None:
                deltas.append(evidence.delta[evidence.visible > 0].numpy())
    return np.concatenate(deltas) if deltas else np.zeros(0)


def draw_error_model(path: Path, checkpoint: Path, delta: np.ndarray) -> Path | None:
    """Delta as it was seen, and as the fitted model of a checkpoint expects it; None where there is too little to draw.

    Raises:
        ImportError: matplotlib is missing.
        CheckpointError: the checkpoint cannot be read.
    """
    from coopnet_core.plots import plot_error_model

    loaded: Checkpoint = load_checkpoint(checkpoint)
    delta = delta[np.isfinite(delta)]
    if not len(delta) or delta.min() == delta.max() or loaded.error_model.steps == 0:
        return None
    low, high = np.quantile(delta, _TAIL)
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    seen = np.histogram(delta, edges)[0] / len(delta)
    config = ErrorModelConfig.model_validate(loaded.metadata.error_model_config)
    expected = fitted_shares(torch.from_numpy(edges).float(), loaded.error_model, config).numpy()
    tau, _ = threshold_and_temperature(loaded.error_model, config)
    return plot_error_model(path, edges, seen, expected, tau)


def draw_predictions(
    folder: Path, checkpoint: Path, clips: Sequence[Clip], focal_factor: float = 1.0
) -> list[tuple[Path, str]]:
    """Image, depth, flow and moving mask of a few frames spread evenly over the clips: files with their captions.

    Raises:
        CheckpointError: it cannot be read.
        UsageError: a picture cannot be written.
    """
    width, height = clips[0].camera.width, clips[0].camera.height
    predictor = StreamPredictor(checkpoint, "cpu", input_size=(width, height))
    files = []
    for number, (clip, index) in enumerate(_chosen(clips)):
        predictor.reset()
        camera = clip.camera
        if camera.assumed:
            camera = replace(camera, fx=camera.fx * focal_factor, fy=camera.fy * focal_factor)
        for k in (index - 1, index):
            prediction = predictor.predict(Frame(clip.images[k].copy(), int(clip.stamps_ns[k]), camera))
        for kind, (caption, picture) in enumerate(prediction_pictures(prediction).items()):
            path = write_picture(folder / f"frame_{number}_{kind}.jpg", picture)
            files.append((path, f"{caption}: image {index} of {clip.name}" if kind == 0 else caption))
    return files


def _chosen(clips: Sequence[Clip]) -> Iterator[tuple[Clip, int]]:
    """Frames that have one before them, spread evenly over all clips."""
    pairs = [(clip, index) for clip in clips for index in range(1, len(clip))]
    for place in np.unique(np.linspace(0, len(pairs) - 1, min(_PICTURES, len(pairs))).round().astype(int)):
        yield pairs[place]
