"""The mutable heart of a run: how it starts, and how it is saved and restored so that a resume is exact."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coopnet_core.checkpoint import load_checkpoint, refuse_other_networks
from coopnet_core.config import TrainConfig
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.intrinsics import LearnedFocal
from coopnet_core.data.frames import Clip
from coopnet_core.data.triplets import TripletSampler
from coopnet_core.distributed import copy_from_first, share
from coopnet_core.errors import CheckpointError, UsageError
from coopnet_core.networks.bundle import NETWORKS, CoopNetworks
from coopnet_core.networks.parts import Part, chosen_parts, learning_parameters
from coopnet_core.networks.shared_norm import share_batch_norm

_UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)
CAMERA_GROUP = "camera"
"""Name of the optimiser's group that holds a learned focal length."""


@dataclass
class Run:
    """Everything that a step changes.

    Attributes:
        networks: those that learn.
        averaged: the running mean of their weights; None without `optimiser.ema_decay`.
        optimiser: one group per network, one more for a learned focal length.
        error_model: the state after the last accepted step.
        sampler: and its position.
        generator: of the augmentation.
        focal: a learned focal length, or None.
        skipped: steps so far, by the name of what went without a pixel or was rejected.
        bad_steps: steps that were rejected in a row.
        step: steps done.
        earlier_steps: those of the runs before, from whose weights this one started.
        fine_tuning: it started from weights.
        frozen: parts of the networks that do not learn.
        start_score: validation error of the weights it started from; infinite where there are none.
        best: lowest validation error, of the stage `stage_of_best`.
        best_step: after which it was measured.
        waited: validations since then.
    """

    networks: CoopNetworks
    averaged: CoopNetworks | None
    optimiser: torch.optim.Optimizer
    error_model: ErrorModelState
    sampler: TripletSampler
    generator: torch.Generator
    focal: LearnedFocal | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    bad_steps: int = 0
    step: int = 0
    earlier_steps: int = 0
    fine_tuning: bool = False
    frozen: Sequence[Part] = ()
    start_score: float = math.inf
    best: float = math.inf
    best_step: int = 0
    stage_of_best: str = ""
    waited: int = 0

    @property
    def product(self) -> CoopNetworks:
        """The networks that are validated and kept."""
        return self.networks if self.averaged is None else self.averaged

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the running mean of the weights towards those after an accepted step."""
        if self.averaged is None:
            return
        # Early means forget faster, or the random start would stay in them.
        keep = min(decay, (1 + self.step) / (10 + self.step))
        pairs = zip(self.averaged.state_dict().values(), self.networks.state_dict().values(), strict=True)
        for mean, value in pairs:
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


def start(config: TrainConfig, clips: Sequence[Clip], init: Path | None, device: torch.device) -> Run:
    """A run at its first step.

    Raises:
        UsageError: `init` and `config.networks` differ, or the networks have no part of a name in `config.frozen`.
        NoUsableDataError: from the sampler.
    """
    sampler = TripletSampler(clips, config.frame_offsets, config.batch_size, config.seed)
    networks, error_model, earlier = CoopNetworks(config.networks), ErrorModelState.initial(device), 0
    if init is not None:
        checkpoint = load_checkpoint(init)
        refuse_other_networks(init, checkpoint.networks.config, config.networks)
        networks.load_state_dict(checkpoint.networks.state_dict())
        error_model, earlier = checkpoint.error_model.to(device), checkpoint.metadata.step
    networks.to(device)
    if share().count > 1:
        share_batch_norm(networks)
        # The same seed gives the same weights, but perhaps not in two builds of PyTorch.
        copy_from_first(networks.state_dict().values())
    frozen = chosen_parts(networks, config.frozen)
    learning = {name: learning_parameters(getattr(networks, name), frozen) for name in NETWORKS}
    groups: list[dict[str, Any]] = [{"params": weights, "name": name} for name, weights in learning.items() if weights]
    focal = None
    if config.learn_intrinsics and any(clip.camera.assumed for clip in clips):
        focal = LearnedFocal().to(device)
        groups.append({"params": list(focal.parameters()), "name": CAMERA_GROUP})
    return Run(
        networks,
        copy.deepcopy(networks).requires_grad_(False).eval() if config.optimiser.ema_decay > 0 else None,
        torch.optim.Adam(groups, lr=config.optimiser.learning_rate, fused=True),
        error_model,
        sampler,
        torch.Generator().manual_seed(config.seed),
        focal,
        earlier_steps=earlier,
        fine_tuning=init is not None,
        frozen=frozen,
    )


def seed_everything(seed: int) -> None:
    """Start the global generators, whoever draws from them, at one place."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def state_path(output: Path) -> Path:
    """Where a run folder keeps what an exact resume needs."""
    return output / "state.pt"


def state_of(run: Run) -> dict[str, Any]:
    """All of it as plain data and tensors; without a scaler, as bfloat16 needs none."""
    return {
        "networks": run.networks.state_dict(),
        "averaged": None if run.averaged is None else run.averaged.state_dict(),
        "skipped": {name: float(count) for name, count in run.skipped.items()},
        "bad_steps": run.bad_steps,
        "focal": None if run.focal is None else run.focal.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "error_model": run.error_model.as_floats(),
        "sampler": json.dumps(run.sampler.state()),
        "generator": run.generator.get_state(),
        "random": _random_state(),
        "step": run.step,
        "start_score": run.start_score,
        "best": run.best,
        "best_step": run.best_step,
        "stage_of_best": run.stage_of_best,
        "waited": run.waited,
        "earlier_steps": run.earlier_steps,
        "fine_tuning": run.fine_tuning,
    }


def restore(run: Run, output: Path) -> None:
    """Continue where the state in a run folder was saved.

    Raises:
        UsageError: there is none.
        CheckpointError: it cannot be read, or does not fit the configuration.
    """
    path = state_path(output)
    if not path.is_file():
        raise UsageError(f"Nothing to resume in {output}: {path.name} is missing. Leave --resume away to start anew.")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        run.networks.load_state_dict(state["networks"])
        if run.averaged is not None:
            # A run that is told to average from here on starts the mean from its weights.
            run.averaged.load_state_dict(state["averaged"] or state["networks"])
        if run.focal is not None:
            run.focal.load_state_dict(state["focal"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.error_model = ErrorModelState.from_floats(state["error_model"], run.error_model.b_r.device)
        run.sampler.restore(json.loads(state["sampler"]))
        run.generator.set_state(state["generator"])
        _set_random_state(state["random"])
        run.step, run.best, run.stage_of_best = state["step"], state["best"], state["stage_of_best"]
        run.skipped, run.bad_steps, run.waited = Counter(state["skipped"]), state["bad_steps"], state["waited"]
        run.earlier_steps, run.fine_tuning = state["earlier_steps"], state["fine_tuning"]
        run.start_score, run.best_step = state["start_score"], state["best_step"]
    except (*_UNREADABLE, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The state of the run in {output} cannot be restored ({error}). Start a new run with --init "
            f"{output / 'checkpoints' / 'last.safetensors'}."
        ) from None


def _random_state() -> dict[str, Any]:
    """Of every generator that code might draw from, this package's own (in `Run`) aside."""
    version, words, spare = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the global one, whoever draws from it)
    return {
        "python": (version, torch.tensor(words), spare),
        "numpy": json.dumps(numpy_state, default=np.ndarray.tolist),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, words, spare = state["python"]
    random.setstate((version, tuple(words.tolist()), spare))
    np.random.set_state(json.loads(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
