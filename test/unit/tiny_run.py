"""The smallest training there is: networks, images and settings for tests of what surrounds a step."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.config import TrainConfig, config_from_tree
from coopnet_core.cotraining import trainer
from coopnet_core.data.frames import Clip
from coopnet_core.geometry.camera import Camera

CAMERA = Camera(64, 64, 60.0, 60.0, 31.5, 31.5)
_ENCODER = {"layers": [1, 1, 1, 1], "widths": [4, 4, 8, 8, 8]}
_NETWORKS = {
    "depth": {"encoder": _ENCODER, "decoder_widths": [4, 4, 8, 8, 8], "finest_scale": 1, "scales": 1},
    "pose": {"source": "flow", "width": 8},
    "flow": {"widths": [4, 4, 8, 8, 8], "projected": 8, "decoder_widths": [8, 8], "search_range": 1},
}


def tiny_clip(frames: int = 7, seed: int = 0, assumed: bool = False) -> Clip:
    """A picture of coloured clouds that moves past the camera; no two neighbouring pixels are alike."""
    coarse = np.random.default_rng(seed).integers(0, 255, (16, 32, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, (128, 64), interpolation=cv2.INTER_CUBIC)
    images = np.stack([wide[:, 2 * k : 2 * k + 64] for k in range(frames)])
    return Clip(f"clouds {seed}", images, np.arange(frames) * 10**8, replace(CAMERA, assumed=assumed))


def tiny_config(**changes: object) -> TrainConfig:
    """Four steps of two targets, everything logged, validated and saved every second step."""
    tree = {
        "networks": _NETWORKS,
        "optimiser": {"learning_rate": 1e-3, "warm_up_steps": 0},
        "stages": [{"name": "together", "share": 1.0, "sources": 1, "consistency": 0.02}],
        "steps": 4,
        "batch_size": 2,
        "log_every": 1,
        "validate_every": 2,
        "checkpoint_every": 2,
        "mixed_precision": False,
        "device": "cpu",
    }
    for name, value in changes.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return config_from_tree(tree)


def tiny_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return load_checkpoint(checkpoint).networks.state_dict()


def logged(output: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl but for the clock's; every line must be whole."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    of_the_clock = ("triplets_per_s", "data_wait_share")
    return [{name: value for name, value in line.items() if name not in of_the_clock} for line in lines]


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C while a training step is under way."""
    original, steps = trainer._train_on_a_batch, []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(trainer, "_train_on_a_batch", interrupted)


def same(first: object, second: object) -> bool:
    """Whether two nested structures of tensors and plain values are equal bit for bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def same_end(first: Path, second: Path) -> bool:
    """Whether two run folders hold the same weights, the same state of everything, and the same log."""
    states = [torch.load(output / "state.pt", weights_only=True) for output in (first, second)]
    ends = [
        [*(tiny_weights(output / "checkpoints" / f"{name}.safetensors") for name in ("last", "best")), logged(output)]
        for output in (first, second)
    ]
    return same(*states) and same(*ends)
