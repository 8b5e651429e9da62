"""The trainer: schedule, optimiser, logs, checkpoints, resume. It knows nothing of losses."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from coopnet_core.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from coopnet_core.config import StageConfig, TrainConfig
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.instrumentation import (
    gradient_shares,
    retain_gradients,
    symptoms,
    threshold_and_temperature,
)
from coopnet_core.cotraining.intrinsics import LearnedFocal, has_settled, late_change
from coopnet_core.cotraining.objective import StepOutput
from coopnet_core.cotraining.step import step
from coopnet_core.data.augmentation import augment, to_float
from coopnet_core.data.frames import Clip
from coopnet_core.data.triplets import Batch, TripletSampler
from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.errors import CheckpointError, DivergedError, UsageError
from coopnet_core.networks.bundle import NETWORKS, CoopNetworks

_BAD_STEPS_ALLOWED = 10
_SKIPPED = ("depth_skipped", "flow_skipped")
"""Figures of a step that say that a side had no pixel to learn from; counted over the run."""
_CAMERA_GROUP = "camera"
"""Name of the optimiser's group that holds a learned focal length."""
_SYMPTOM_LINES = 50
"""Logged steps over which figures are averaged before they are taken for a symptom."""


@dataclass(frozen=True)
class FocalResult:
    """A learned focal length.

    Attributes:
        factor: learned over assumed.
        late_change: its relative range over the last quarter of the run.
        settled: whether that is little enough to believe it (`has_settled`).
    """

    factor: float
    late_change: float
    settled: bool


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        best, last: checkpoints; `best` is the one with the lowest validation error.
        steps: steps of this run that are done.
        interrupted: stopped by Ctrl-C (the state was saved).
        focal: what became of the assumed focal length; None where none was learned.
    """

    best: Path
    last: Path
    steps: int
    interrupted: bool
    focal: FocalResult | None = None


@dataclass
class _Run:
    """The mutable heart of a run, all of which is saved for an exact resume."""

    networks: CoopNetworks
    optimiser: torch.optim.Optimizer
    error_model: ErrorModelState
    sampler: TripletSampler
    generator: torch.Generator
    focal: LearnedFocal | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    step: int = 0
    earlier_steps: int = 0
    fine_tuning: bool = False
    best: float = math.inf
    stage_of_best: str = ""


def train(
    config: TrainConfig,
    clips_train: Sequence[Clip],
    clips_validation: Sequence[Clip],
    output: Path,
    init: Path | None = None,
    resume: bool = False,
    data_facts: dict[str, Any] | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train the three networks together and leave a run folder.

    The folder holds config.yaml, metrics.jsonl, checkpoints/{last,best}.safetensors, state.pt and tensorboard/.

    Args:
        config: everything but the data.
        clips_train, clips_validation: at one size; validation may be empty, then the last checkpoint is the best.
        output: the run folder.
        init: weights to start from (`config.fine_tuning` is then the schedule).
        resume: continue the run in `output` exactly where it stopped.
        data_facts: recorded in the checkpoints.
        console: for progress; None is silent.

    Raises:
        UsageError: `init` and `config.networks` differ, or nothing to resume.
        DivergedError: the loss left the finite numbers; the last good checkpoint is named.
    """
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    run = _start(config, clips_train, init, device)
    if resume:
        _restore(run, output)
    stages = config.fine_tuning if run.fine_tuning else config.stages
    writer = _Writer(config, output, clips_train, data_facts or {}, resume)
    validation = None
    if clips_validation:
        validation = TripletSampler(clips_validation, config.frame_offsets, config.batch_size, config.seed)
    half = half_dtype(device) if config.mixed_precision else None
    try:
        with _stop_requests() as stop, _progress(console) as progress:
            task = progress.add_task("training", total=config.steps, completed=run.step)
            _loop(run, config, stages, validation, writer, half, device, progress, task, stop)
    finally:
        writer.save(run)
        writer.close()
    focal = None
    if run.focal is not None:
        factors = writer.focal_factors()
        focal = FocalResult(run.focal.factor(), late_change(factors), has_settled(factors))
    return TrainResult(writer.best_path, writer.last_path, run.step, interrupted=stop.is_set(), focal=focal)


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM, so that a run ends between two steps and resumes exactly.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in earlier:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stage_at(stages: Sequence[StageConfig], step_index: int, steps: int) -> tuple[int, StageConfig, int]:
    """Index and stage of a step, and how many steps of that stage came before."""
    total = sum(stage.share for stage in stages)
    start = 0.0
    for index, stage in enumerate(stages):
        end = start + steps * stage.share / total
        if step_index < round(end) or index == len(stages) - 1:
            return index, stage, step_index - round(start)
        start = end
    raise UsageError("A schedule needs at least one stage.")


def learning_rate(config: TrainConfig, stage: StageConfig, step_index: int, steps_in_stage: int) -> float:
    """Cosine decay over the run times the stage's own factor, with a linear warm-up at the start of each stage."""
    optimiser = config.optimiser
    progress = min(step_index / config.steps, 1.0)
    decayed = optimiser.final_factor + (1 - optimiser.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    warm_up = min((steps_in_stage + 1) / (optimiser.warm_up_steps + 1), 1.0)
    return optimiser.learning_rate * stage.rate * decayed * warm_up


def _loop(
    run: _Run,
    config: TrainConfig,
    stages: Sequence[StageConfig],
    validation: TripletSampler | None,
    writer: _Writer,
    half: torch.dtype | None,
    device: torch.device,
    progress: Progress,
    task: TaskID,
    stop: threading.Event,
) -> None:
    bad_steps, clock, clock_step = 0, time.monotonic(), run.step
    while run.step < config.steps and not stop.is_set():
        _, stage, before = stage_at(stages, run.step, config.steps)
        rate = learning_rate(config, stage, run.step, before)
        _set_stage(run, config, stage, rate)
        batch = augment(to_float(run.sampler.next(stage.sources).to(device)), config.augmentation, run.generator)
        batch = _with_learned_focal(batch, run.focal)
        logs = (run.step + 1) % config.log_every == 0
        output, finite = _optimise(run, batch, config, stage, half, logs)
        bad_steps = 0 if finite else bad_steps + 1
        run.skipped["steps_rejected"] += not finite
        for name in _SKIPPED:
            if name in output.terms:
                run.skipped[name] = run.skipped[name] + output.terms[name]  # a tensor: read when it is logged
        if bad_steps > _BAD_STEPS_ALLOWED:
            bad = [name for name, value in output.terms.items() if not torch.isfinite(value)]
            raise DivergedError(
                f"Training diverged at step {run.step}: {bad_steps} steps in a row without finite loss or gradient "
                f"(not finite: {', '.join(bad) or 'the gradient'}). The last good checkpoint is {writer.last_path}. "
                "Lower optimiser.learning_rate or check the data."
            )
        run.step += 1
        if logs:
            now = time.monotonic()
            throughput = (run.step - clock_step) * config.batch_size / max(now - clock, 1e-9)
            clock, clock_step = now, run.step
            writer.log(run, stage, output, rate, throughput)
            for text in writer.new_symptoms(run.step):
                progress.console.print(f"[yellow]Step {run.step}: {text}.[/]")
        description = f"{stage.name}  loss {float(output.loss.detach()):.4f}" if logs else None
        progress.update(task, completed=run.step, description=description)
        last = run.step == config.steps
        if validation is not None and (run.step % config.validate_every == 0 or last):
            _validate(run, validation, config, stage, half, device, writer)
        if run.step % config.checkpoint_every == 0 or last:
            writer.save(run)


def _with_learned_focal(batch: Batch, focal: LearnedFocal | None) -> Batch:
    if focal is None:
        return batch
    return replace(batch, camera_matrix=focal(batch.camera_matrix, batch.assumed))


def _optimise(
    run: _Run, batch: Batch, config: TrainConfig, stage: StageConfig, half: torch.dtype | None, logs: bool
) -> tuple[StepOutput, bool]:
    """Forward, backward, clip per network, update. A step that is not finite changes nothing."""
    output = step(run.networks, batch, run.error_model, config.loss, stage, half)
    run.optimiser.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(output.loss.detach())):
        return output, False
    if logs:
        retain_gradients(output)
    output.loss.backward()
    finite = True
    for name in stage.train:
        norm = nn.utils.clip_grad_norm_(getattr(run.networks, name).parameters(), config.optimiser.gradient_clip)
        finite = finite and bool(torch.isfinite(norm))
    if run.focal is not None and run.focal.log_factor.grad is not None:
        finite = finite and bool(torch.isfinite(run.focal.log_factor.grad))
    if finite:
        if config.loss.apportionment_acts_on == "learning_rate":
            _apportion_rates(run.optimiser, output)
        run.optimiser.step()
        run.error_model = output.error_model
    return output, finite


def _apportion_rates(optimiser: torch.optim.Optimizer, output: StepOutput) -> None:
    """Multiply each network's learning rate by the factor of its side."""
    rigid, flow = (float(weight) for weight in output.side_weights)
    for group in optimiser.param_groups:
        group["lr"] *= flow if group["name"] == "flow" else rigid


def _set_stage(run: _Run, config: TrainConfig, stage: StageConfig, rate: float) -> None:
    """Give gradients and training mode to the networks of the stage alone."""
    for group in run.optimiser.param_groups:
        # That of the camera does not decay, or whatever it is would seem to settle.
        group["lr"] = config.optimiser.intrinsics_rate if group["name"] == _CAMERA_GROUP else rate
    for name in NETWORKS:
        network: nn.Module = getattr(run.networks, name)
        learns = name in stage.train
        if network.training != learns:
            network.train(learns)
        for parameter in network.parameters():
            parameter.requires_grad_(learns)


@torch.no_grad()
def _validate(
    run: _Run,
    validation: TripletSampler,
    config: TrainConfig,
    stage: StageConfig,
    half: torch.dtype | None,
    device: torch.device,
    writer: _Writer,
) -> None:
    """The photometric errors on fixed batches, networks in evaluation mode, error model frozen."""
    run.networks.eval()
    full = replace_stage(stage)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sums: dict[str, float] = {}
        count = 0
        for batch in validation.sweep(config.validation_batches):
            known = _with_learned_focal(to_float(batch.to(device)), run.focal)
            output = step(run.networks, known, run.error_model, config.loss, full, half)
            for name, value in output.terms.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += 1
    terms = {name: value / count for name, value in sums.items()}
    score = sum(terms[name] for name in ("rigid_photometric", "e_f") if name in terms)
    # Only the last kind of stage trains all that counts: a better score of an earlier one is not comparable.
    if stage.name != run.stage_of_best or score < run.best:
        run.best, run.stage_of_best = score, stage.name
        writer.save_best(run, terms)
    writer.log_validation(run, stage, terms)


def replace_stage(stage: StageConfig) -> StageConfig:
    """The stage as it is validated: full resolution, all sources, nothing that only teaches."""
    return stage.model_copy(update={"loss_factor": 1, "sources": 99, "matches": 0.0})


def _start(config: TrainConfig, clips: Sequence[Clip], init: Path | None, device: torch.device) -> _Run:
    sampler = TripletSampler(clips, config.frame_offsets, config.batch_size, config.seed)
    networks, error_model, earlier = CoopNetworks(config.networks), ErrorModelState.initial(device), 0
    if init is not None:
        checkpoint = load_checkpoint(init)
        if checkpoint.networks.config != config.networks:
            raise UsageError(
                f"Checkpoint {init} holds networks of another configuration than the one chosen. Leave --preset away, "
                "or choose the preset it was trained with."
            )
        networks.load_state_dict(checkpoint.networks.state_dict())
        error_model, earlier = checkpoint.error_model.to(device), checkpoint.metadata.step
    networks.to(device)
    groups = [{"params": list(getattr(networks, name).parameters()), "name": name} for name in NETWORKS]
    focal = None
    if config.learn_intrinsics and any(clip.camera.assumed for clip in clips):
        focal = LearnedFocal().to(device)
        groups.append({"params": list(focal.parameters()), "name": _CAMERA_GROUP})
    optimiser = torch.optim.Adam(groups, lr=config.optimiser.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    return _Run(
        networks,
        optimiser,
        error_model,
        sampler,
        generator,
        focal,
        earlier_steps=earlier,
        fine_tuning=init is not None,
    )


def _state_path(output: Path) -> Path:
    return output / "state.pt"


def _restore(run: _Run, output: Path) -> None:
    path = _state_path(output)
    if not path.is_file():
        raise UsageError(f"Nothing to resume in {output}: {path.name} is missing. Leave --resume away to start anew.")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        run.networks.load_state_dict(state["networks"])
        if run.focal is not None:
            run.focal.load_state_dict(state["focal"])
        run.optimiser.load_state_dict(state["optimiser"])
        run.error_model = ErrorModelState.from_floats(state["error_model"], run.error_model.b_r.device)
        run.sampler.restore(json.loads(state["sampler"]))
        run.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        run.step, run.best, run.stage_of_best = state["step"], state["best"], state["stage_of_best"]
        run.skipped = Counter(state["skipped"])
        run.earlier_steps, run.fine_tuning = state["earlier_steps"], state["fine_tuning"]
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"The state of the run in {output} cannot be restored ({error}). Start a new run with --init "
            f"{output / 'checkpoints' / 'last.safetensors'}."
        ) from None


class _Writer:
    """Everything a run leaves on disk."""

    def __init__(
        self, config: TrainConfig, output: Path, clips: Sequence[Clip], facts: dict[str, Any], resume: bool
    ) -> None:
        self._config, self._output, self._facts = config, output, facts
        self._camera = clips[0].camera
        self.last_path = output / "checkpoints" / "last.safetensors"
        self.best_path = output / "checkpoints" / "best.safetensors"
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        self._metrics: TextIO = (output / "metrics.jsonl").open("a" if resume else "w")
        self._tensorboard = SummaryWriter(str(output / "tensorboard"))
        self._recent: deque[dict[str, float]] = deque(maxlen=_SYMPTOM_LINES)
        self._said: set[str] = set()

    def log(self, run: _Run, stage: StageConfig, output: StepOutput, rate: float, throughput: float) -> None:
        """One line of training figures."""
        values = {"loss": float(output.loss.detach())} | {name: float(value) for name, value in output.terms.items()}
        if output.rigid_coordinates is not None:
            state = output.error_model.as_floats()
            tau, temperature = threshold_and_temperature(output.error_model, self._config.loss.error_model)
            gates = {
                "separation": float(output.error_model.separation()),
                "log_separation": float(output.error_model.log_separation()),
                "tau": tau,
                "temperature": temperature,
            }
            values |= state | gates
        if run.focal is not None:
            values["focal_factor"] = run.focal.factor()
        values |= {name: float(count) for name, count in run.skipped.items()}
        values |= gradient_shares(output) | {"lr": rate, "triplets_per_s": throughput}
        self._recent.append(values | {"step": float(run.step)})
        self._write({"step": run.step, "stage": stage.name, "validation": False} | values)

    def new_symptoms(self, step_index: int) -> list[str]:
        """What the last logged steps say has gone wrong and had not been said yet; kept in warnings.txt as well."""
        if len(self._recent) < _SYMPTOM_LINES or any("e_r" not in values for values in self._recent):
            return []
        names = ("e_r", "e_identity", "depth_spread", "moving_share")
        means = {name: sum(values[name] for values in self._recent) / len(self._recent) for name in names}
        first, last = self._recent[0], self._recent[-1]
        steps = max(last["step"] - first["step"], 1.0)
        means["depth_skipped"] = (last["depth_skipped"] - first["depth_skipped"]) / steps
        found = symptoms(means, self._config.loss.error_model.maximum_pi)
        new = {kind: text for kind, text in found.items() if kind not in self._said}
        self._said |= set(new)
        if new:
            with (self._output / "warnings.txt").open("a") as file:
                file.writelines(f"step {step_index}: {text}\n" for text in new.values())
        return list(new.values())

    def focal_factors(self) -> list[float]:
        """All factors of a learned focal length that the run has logged, those before a resume too."""
        lines = map(json.loads, (self._output / "metrics.jsonl").read_text().splitlines())
        return [line["focal_factor"] for line in lines if line.get("focal_factor") is not None]

    def log_validation(self, run: _Run, stage: StageConfig, terms: dict[str, float]) -> None:
        """One line of validation figures."""
        self._write({"step": run.step, "stage": stage.name, "validation": True} | terms)

    def save(self, run: _Run) -> None:
        """last.safetensors and state.pt, each replaced whole; the first `best` is the first `last`."""
        save_checkpoint(self.last_path, run.networks, self._metadata(run, {}))
        if not self.best_path.exists():
            save_checkpoint(self.best_path, run.networks, self._metadata(run, {}))
        partial = _state_path(self._output).with_suffix(".pt.partial")
        torch.save(_state(run), partial)
        os.replace(partial, _state_path(self._output))

    def save_best(self, run: _Run, figures: dict[str, float]) -> None:
        """best.safetensors, with the validation figures it reached."""
        save_checkpoint(self.best_path, run.networks, self._metadata(run, figures))

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._tensorboard.close()

    def _write(self, line: dict[str, Any]) -> None:
        # JSON knows no NaN.
        rounded = {
            k: ((round(v, 7) if math.isfinite(v) else None) if isinstance(v, float) else v) for k, v in line.items()
        }
        self._metrics.write(json.dumps(rounded) + "\n")
        self._metrics.flush()
        prefix = "validation" if line["validation"] else "train"
        for name, value in line.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(f"{prefix}/{name}", value, line["step"])

    def _camera_matrix(self, run: _Run) -> list[list[float]]:
        matrix = self._camera.matrix
        if run.focal is not None and self._camera.assumed:
            matrix[[0, 1], [0, 1]] *= run.focal.factor()
        return matrix.tolist()

    def _metadata(self, run: _Run, figures: dict[str, float]) -> CheckpointMetadata:
        return CheckpointMetadata(
            networks=self._config.networks.model_dump(mode="json"),
            width=self._camera.width,
            height=self._camera.height,
            camera_matrix=self._camera_matrix(run),
            error_model=run.error_model.as_floats(),
            error_model_config=self._config.loss.error_model.model_dump(mode="json"),
            step=run.earlier_steps + run.step,
            data=self._facts,
            figures=figures,
        )


def _state(run: _Run) -> dict[str, Any]:
    return {
        "networks": run.networks.state_dict(),
        "skipped": {name: float(count) for name, count in run.skipped.items()},
        "focal": None if run.focal is None else run.focal.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "error_model": run.error_model.as_floats(),
        "sampler": json.dumps(run.sampler.state()),
        "generator": run.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "step": run.step,
        "best": run.best,
        "stage_of_best": run.stage_of_best,
        "earlier_steps": run.earlier_steps,
        "fine_tuning": run.fine_tuning,
    }


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
    )
