"""The trainer: schedule, steps, validation. It knows nothing of losses, and little of files (`run_folder.py`)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
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

from coopnet_core.config import StageConfig, TrainConfig
from coopnet_core.cotraining.faults import BAD_STEPS_ALLOWED, diverged, memory_explained
from coopnet_core.cotraining.instrumentation import gradient_shares, retain_gradients
from coopnet_core.cotraining.intrinsics import LearnedFocal, has_settled, late_change
from coopnet_core.cotraining.objective import SCORED, StepOutput
from coopnet_core.cotraining.run_folder import RunFolder, best_checkpoint, focal_factors, last_checkpoint
from coopnet_core.cotraining.run_state import CAMERA_GROUP, Run, restore, seed_everything, start, state_path
from coopnet_core.cotraining.step import step
from coopnet_core.cotraining.stopping import stop_requests
from coopnet_core.data.augmentation import augment, to_float
from coopnet_core.data.frames import Clip
from coopnet_core.data.prefetch import Batches, batches_ahead
from coopnet_core.data.triplets import Batch, TripletSampler
from coopnet_core.devices import half_dtype
from coopnet_core.distributed import (
    alone,
    average_gradients,
    averaged,
    joined,
    numbers_from_first,
    own_device,
    restarted,
    share,
    true_anywhere,
)
from coopnet_core.errors import UsageError
from coopnet_core.networks.bundle import NETWORKS
from coopnet_core.networks.parts import without_frozen

_SKIPPED = ("depth_skipped", "flow_skipped")
"""Figures of a step that say that a side had no pixel to learn from; counted over the run."""


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
        out_of_patience: ended before its last step, because validation found nothing better for long.
        start_error: validation error of the weights it started from; None where there were none, or no validation.
        best_error, best_step: that of `best`, and after which step it was measured; 0: nothing beat the start.
    """

    best: Path
    last: Path
    steps: int
    interrupted: bool
    focal: FocalResult | None = None
    out_of_patience: bool = False
    start_error: float | None = None
    best_error: float = math.inf
    best_step: int = 0


@dataclass(frozen=True)
class _Setting:
    """What a run does not change, and where its batches come from."""

    config: TrainConfig
    stages: Sequence[StageConfig]
    validation: TripletSampler | None
    size: tuple[int, int]
    half: torch.dtype | None
    device: torch.device
    batches: Batches


@dataclass(frozen=True)
class _View:
    """What people see of a run. Of several processes the first alone has a folder."""

    folder: RunFolder | None
    progress: Progress
    task: TaskID

    def say_warnings(self, step_index: int) -> None:
        """In the terminal, and in warnings.txt."""
        for text in [] if self.folder is None else self.folder.warnings(step_index):
            self.progress.console.print(f"Step {step_index}: {text}.", style="yellow", markup=False, soft_wrap=True)

    def last_good(self) -> str:
        """See `RunFolder.last_good`."""
        return "that of the first process" if self.folder is None else self.folder.last_good()

    def save(self, run: Run, last: bool) -> None:
        """See `RunFolder.save`."""
        if self.folder is not None:
            self.folder.save(run, last)
            self.say_warnings(run.step)


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
    Processes that torchrun has started train one model together, and the first of them writes. Those that it has
    started again resume by themselves.

    Args:
        config: everything but the data.
        clips_train, clips_validation: at one size; validation may be empty, then the last checkpoint is the best.
        output: the run folder.
        init: weights to start from (`config.fine_tuning` is then the schedule). They are validated first, and stay the
            best until a validation finds better ones.
        resume: continue the run in `output` exactly where it stopped.
        data_facts: recorded in the checkpoints.
        console: for progress; None is silent.

    Raises:
        UsageError: `init` and `config.networks` differ, nothing to resume, a batch that cannot be dealt out, no memory
            left, a part in `config.frozen` that there is not, or a stage all of which is frozen.
        CheckpointError: the disk refuses the first or the last save; those between are tried again.
        DivergedError: the loss left the finite numbers; the last good checkpoint is named.
    """
    device = own_device(config.device)
    with joined(device):
        return _train(config, clips_train, clips_validation, output, init, resume, data_facts or {}, console, device)


def _train(
    config: TrainConfig,
    clips_train: Sequence[Clip],
    clips_validation: Sequence[Clip],
    output: Path,
    init: Path | None,
    resume: bool,
    data_facts: dict[str, Any],
    console: Console | None,
    device: torch.device,
) -> TrainResult:
    """As `train`, the processes having met."""
    share().of(config.batch_size)
    resume = resume or (restarted(device) and state_path(output).exists())
    seed_everything(config.seed)
    run = start(config, clips_train, init, device)
    if resume:
        restore(run, output)
    validation = None
    if clips_validation:
        validation = TripletSampler(clips_validation, config.frame_offsets, config.batch_size, config.seed)
    stages = without_frozen(config.fine_tuning if run.fine_tuning else config.stages, run.networks, run.frozen)
    camera = clips_train[0].camera
    half = half_dtype(device) if config.mixed_precision else None
    sources = (stage_at(stages, index, config.steps)[1].sources for index in range(run.step, config.steps))
    batches = Batches(run.sampler, sources, share(), device, batches_ahead(device))
    setting = _Setting(config, stages, validation, (camera.width, camera.height), half, device, batches)
    folder = None
    if share().rank == 0:
        folder = RunFolder(config, output, clips_train, data_facts, run.step or None)
    try:
        with stop_requests() as stop, _progress(console if folder is not None else None) as progress:
            view = _View(folder, progress, progress.add_task("training", total=config.steps, completed=run.step))
            if run.step == 0:
                view.save(run, last=False)  # a run that is killed from here on can be resumed
            if run.step == 0 and run.fine_tuning:
                _validate_the_start(run, setting, view)
            interrupted = _loop(run, setting, view, stop)
            # Not after an exception: a step may be half done.
            view.save(run, last=True)
    finally:
        batches.close()
        if folder is not None:
            folder.close()
    focal = None
    if run.focal is not None:
        factors = focal_factors(output)
        focal = FocalResult(run.focal.factor(), late_change(factors), has_settled(factors))
    ended = run.step < config.steps and not interrupted
    return TrainResult(
        best_checkpoint(output),
        last_checkpoint(output),
        run.step,
        interrupted,
        focal,
        ended,
        run.start_score if math.isfinite(run.start_score) else None,
        run.best,
        run.best_step,
    )


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


def _loop(run: Run, setting: _Setting, view: _View, stop: threading.Event) -> bool:
    """Steps until the last one, a stop request or the end of the patience. Returns whether it was a stop request."""
    config = setting.config
    clock, clock_step, waited = time.monotonic(), run.step, 0.0
    while run.step < config.steps and not _out_of_patience(run, setting):
        if true_anywhere(stop.is_set(), setting.device):
            return True  # all processes at the same step, whichever was asked
        _, stage, before = stage_at(setting.stages, run.step, config.steps)
        rate = learning_rate(config, stage, run.step, before)
        logs = (run.step + 1) % config.log_every == 0
        with memory_explained(config, stage, setting.size, view.last_good()):
            output, bad = _train_on_a_batch(run, setting, stage, rate, logs)
        _count(run, output, bad)
        if run.bad_steps > BAD_STEPS_ALLOWED:
            raise diverged(run.step, run.bad_steps, bad, view.last_good())
        run.step += 1
        if logs:
            now = time.monotonic()
            throughput = (run.step - clock_step) * config.batch_size / max(now - clock, 1e-9)
            wait_share = (setting.batches.waited_s - waited) / max(now - clock, 1e-9)
            clock, clock_step, waited = now, run.step, setting.batches.waited_s
            values = _figures(output) | {"lr": rate, "triplets_per_s": throughput, "data_wait_share": wait_share}
            if view.folder is not None:
                view.folder.log(run, stage, values, has_rigid=output.rigid_coordinates is not None)
                view.say_warnings(run.step)
            view.progress.update(view.task, description=f"{stage.name}  loss {values['loss']:.4f}")
        view.progress.update(view.task, completed=run.step)
        if run.step % config.validate_every == 0 or run.step == config.steps:
            with memory_explained(config, replace_stage(stage), setting.size, view.last_good()):
                _validate(run, setting, stage, view)
            if view.folder is not None and output.evidence is not None:
                view.folder.draw_error_model(run, output.evidence)
        # The weights before a step that was not finite may be on their way to ruin: the checkpoint before is kept.
        if run.step % config.checkpoint_every == 0 and run.bad_steps == 0:
            view.save(run, last=False)
    return False


def _out_of_patience(run: Run, setting: _Setting) -> bool:
    return 0 < setting.config.patience <= run.waited and run.stage_of_best == setting.stages[-1].name


def _train_on_a_batch(
    run: Run, setting: _Setting, stage: StageConfig, rate: float, logs: bool
) -> tuple[StepOutput, list[str]]:
    """One step of the optimiser on this process's rows of the next batch; see `_optimise`."""
    _set_stage(run, setting.config, stage, rate)
    batch = setting.batches.next()
    batch = augment(to_float(batch), setting.config.augmentation, run.generator, share())
    return _optimise(run, _with_learned_focal(batch, run.focal), setting, stage, logs)


def _count(run: Run, output: StepOutput, bad: Sequence[str]) -> None:
    """Keep account of the steps that taught nothing."""
    run.bad_steps = run.bad_steps + 1 if bad else 0
    run.skipped["steps_rejected"] += bool(bad)
    for name in _SKIPPED:
        if name in output.terms:
            run.skipped[name] = run.skipped[name] + output.terms[name]  # a tensor: read when it is logged


def _figures(output: StepOutput) -> dict[str, float]:
    """The figures of a step: loss, terms, and how the gradient is shared out, as means over the processes.

    The median depth is the mean of the processes' medians; all others are those of the whole batch.
    """
    names = ["loss", *output.terms]
    values = averaged(torch.stack([output.loss.detach(), *output.terms.values()])).tolist()
    return dict(zip(names, values, strict=True)) | gradient_shares(output)


def _with_learned_focal(batch: Batch, focal: LearnedFocal | None) -> Batch:
    if focal is None:
        return batch
    return replace(batch, camera_matrix=focal(batch.camera_matrix, batch.assumed))


def _optimise(
    run: Run, batch: Batch, setting: _Setting, stage: StageConfig, logs: bool
) -> tuple[StepOutput, list[str]]:
    """Forward, backward, clip per network, update; and the names of what was not finite: then nothing has changed."""
    config = setting.config
    # The forward pass moves the running means of batch normalisation.
    buffers = [(buffer, buffer.clone()) for buffer in run.networks.buffers()]
    output = step(run.networks, batch, run.error_model, config.loss, stage, setting.half)
    run.optimiser.zero_grad(set_to_none=True)
    bad = []
    if not bool(torch.isfinite(averaged(output.loss.detach()))):
        bad = [name for name, value in output.terms.items() if not torch.isfinite(averaged(value))] or ["the loss"]
    else:
        if logs:
            retain_gradients(output)
        output.loss.backward()
        bad = _bad_gradients(run, config, stage)
    if bad:
        for buffer, before in buffers:
            buffer.copy_(before)
        return output, bad
    if config.loss.apportionment_acts_on == "learning_rate":
        _apportion_rates(run.optimiser, output)
    run.optimiser.step()
    run.average(config.optimiser.ema_decay)
    run.error_model = output.error_model
    return output, []


def _bad_gradients(run: Run, config: TrainConfig, stage: StageConfig) -> list[str]:
    """Clip the gradient of each network, all processes' taken together, and name those that are not finite."""
    average_gradients(parameter for group in run.optimiser.param_groups for parameter in group["params"])
    bad = []
    for name in stage.train:
        norm = nn.utils.clip_grad_norm_(getattr(run.networks, name).parameters(), config.optimiser.gradient_clip)
        if not bool(torch.isfinite(norm)):
            bad.append(f"the gradient of {name}")
    of_focal = None if run.focal is None else run.focal.log_factor.grad
    if of_focal is not None and not bool(torch.isfinite(of_focal)):
        bad.append("the gradient of the focal length")
    return bad


def _apportion_rates(optimiser: torch.optim.Optimizer, output: StepOutput) -> None:
    """Multiply each network's learning rate by the factor of its side."""
    rigid, flow = (float(weight) for weight in output.side_weights)
    for group in optimiser.param_groups:
        group["lr"] *= flow if group["name"] == "flow" else rigid


def _set_stage(run: Run, config: TrainConfig, stage: StageConfig, rate: float) -> None:
    """Give gradients and training mode to the networks of the stage alone, and to nothing that is frozen."""
    for group in run.optimiser.param_groups:
        # That of the camera does not decay, or whatever it is would seem to settle.
        group["lr"] = config.optimiser.intrinsics_rate if group["name"] == CAMERA_GROUP else rate
    for name in NETWORKS:
        network: nn.Module = getattr(run.networks, name)
        learns = name in stage.train
        if network.training != learns:
            network.train(learns)
        for parameter in network.parameters():
            parameter.requires_grad_(learns)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(learns and stage.batch_statistics)
    for part in run.frozen:
        for module in part.modules:
            module.eval()
        for parameter in part.parameters:
            parameter.requires_grad_(False)


def _validate_the_start(run: Run, setting: _Setting, view: _View) -> None:
    """Measure the weights that training starts from: what it makes of them must be better to be kept as the best."""
    stage = setting.stages[0]
    run.stage_of_best = ""  # stopped before its first step, a run measures them again
    with memory_explained(setting.config, replace_stage(stage), setting.size, view.last_good()):
        _validate(run, setting, stage, view)
    run.start_score = run.best


def _validate(run: Run, setting: _Setting, stage: StageConfig, view: _View) -> None:
    """Measure, and keep the best weights. The first process does it alone; what follows from it is known to all."""
    if setting.validation is None:
        return
    last = setting.stages[-1]
    # Weights that were given are good at everything from the start: all that comes of them is judged alike.
    judge = last if run.fine_tuning else stage
    if view.folder is not None:
        with alone():
            terms = _validation_terms(run, setting, judge)
        view.folder.log_validation(run, stage, terms)
        score = sum(terms[name] for name in SCORED if name in terms)
        # Only the last kind of stage trains all that counts: a better score of an earlier one is not comparable.
        if judge.name != run.stage_of_best:
            run.best, run.waited = math.inf, 0
        if score < run.best and view.folder.save_best(run, terms):
            run.best, run.best_step, run.waited = score, run.step, 0
        else:
            run.waited += stage.name == last.name
        view.say_warnings(run.step)
    run.stage_of_best = judge.name
    run.best, waited = numbers_from_first([run.best, run.waited], setting.device)
    run.waited = int(waited)


@torch.no_grad()
def _validation_terms(run: Run, setting: _Setting, stage: StageConfig) -> dict[str, float]:
    """The photometric errors on fixed batches, networks in evaluation mode, error model frozen."""
    networks = run.product.eval()
    full = replace_stage(stage)
    sums: dict[str, float] = {}
    count = 0
    with torch.random.fork_rng(devices=[setting.device] if setting.device.type == "cuda" else []):
        torch.manual_seed(0)
        for batch in setting.validation.sweep(setting.config.validation_batches):
            known = _with_learned_focal(to_float(batch.to(setting.device)), run.focal)
            output = step(networks, known, run.error_model, setting.config.loss, full, setting.half)
            for name, value in output.terms.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += 1
    return {name: value / count for name, value in sums.items()}


def replace_stage(stage: StageConfig) -> StageConfig:
    """The stage as it is validated: full resolution, all sources, nothing that only teaches."""
    return stage.model_copy(update={"loss_factor": 1, "sources": 99, "matches": 0.0})


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(quiet=True),
    )
