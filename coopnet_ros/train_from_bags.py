"""The command `train_from_bags`: recordings in, a run folder with checkpoints out."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coopnet_core.config import TrainConfig
from coopnet_core.data.clips import PreparedData, Spec, count_targets, prepare_clips
from coopnet_core.data.compressed_frames import CompressedFrames
from coopnet_core.data.frames import Clip
from coopnet_core.data.prepared_cache import PreparedCache, default_folder
from coopnet_core.errors import DivergedError, UsageError
from coopnet_core.resources import SHIPPED_WEIGHTS, shipped_file
from coopnet_ros.command import INTERRUPTED, run_guarded
from coopnet_ros.train_options import all_bags, assumed_fov, parsed, prepare_options, presets_text
from coopnet_ros.train_settings import check_frozen, configuration, input_size, settings_table
from coopnet_ros.train_words import (
    say_what_was_found,
    say_what_was_gained,
    say_what_was_learned_of_the_camera,
    say_what_will_be_done,
)

if TYPE_CHECKING:  # importing it means importing torch, which --help need not wait for
    from coopnet_core.cotraining.training_report import End


_RUN_FILES = ("config.yaml", "metrics.jsonl", "state.pt", "checkpoints")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_guarded(
        lambda: _run(parsed(argv), Console()),
        "Interrupted before the training began: nothing was written.",
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Check everything that is quick to check, read the data, say what was found, train."""
    if arguments.settings:
        console.print(presets_text(), markup=False, highlight=False, soft_wrap=True, end="")
        console.print(settings_table())
        return 0
    if arguments.rerun is not None:
        from coopnet_core.rerun_log import rerun_module

        rerun_module()  # better now than after the training
    if arguments.report is not None:
        return _report_again(arguments, console)
    if not arguments.bags:
        raise UsageError(
            "No recording was named. Expected: train_from_bags RECORDING... --output DIR; see --help for examples."
        )
    if arguments.weights and len(arguments.weights) != len(arguments.bags):
        raise UsageError(
            f"--weights has {len(arguments.weights)} numbers for {len(arguments.bags)} recordings: one for each was "
            "expected, in their order."
        )
    if arguments.adapt and arguments.init is None and not arguments.resume:
        arguments.init = shipped_file(SHIPPED_WEIGHTS)
    _check_output(arguments)
    config = configuration(arguments)
    check_frozen(arguments, config)
    from coopnet_core.distributed import joined, own_device, restarted

    device = own_device(config.device)
    with joined(device) as own:
        again = restarted(device)
        # Of the processes of torchrun the first writes and speaks; started anew, they find their own run.
        if own.rank == 0 and not again:
            _refuse_another_run(arguments)
        return _run_together(arguments, config, console if own.rank == 0 else Console(quiet=True))


def _run_together(arguments: argparse.Namespace, config: TrainConfig, console: Console) -> int:
    """The part of `_run` in which all processes of a run take part."""
    data = _prepare(arguments, config, console)
    # The frames are hashed once, and only where somebody asks for it.
    facts = {} if arguments.dry_run and not arguments.resume else _facts(data)
    if arguments.resume:
        _check_same_data(facts["train_sha256"], data, arguments.output)
    config = _with_epochs(config, data, arguments.epochs)
    say_what_was_found(data, console)
    say_what_will_be_done(arguments, config, data, console)
    if arguments.dry_run:
        return 0
    return _train(arguments, config, data, facts, console)


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuse a folder that is none, and to resume what is not there.

    Raises:
        UsageError: says what was found and what to do.
    """
    output: Path | None = arguments.output
    if output is None:
        if arguments.dry_run and not arguments.resume:
            return
        raise UsageError("--output DIR is missing: name the folder for checkpoints and logs, or pass --dry-run.")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file; a new or empty folder was expected.")
    if arguments.resume:
        missing = [name for name in ("config.yaml", "state.pt") if not (output / name).exists()]
        if missing:
            raise UsageError(
                f"Nothing to resume in {output}: {' and '.join(missing)} missing. Name the folder of the interrupted "
                "run, or start anew in another folder without --resume."
            )
        if arguments.init is not None:
            raise UsageError("--resume goes on with the weights of the run, --init names others: choose one.")


def _refuse_another_run(arguments: argparse.Namespace) -> None:
    """Refuse to write over another run.

    Raises:
        UsageError: says what was found and what to do.
    """
    output: Path | None = arguments.output
    if output is None or arguments.resume:
        return
    found = [name for name in _RUN_FILES if (output / name).exists()]
    if found:
        raise UsageError(
            f"--output {output} holds another run ({', '.join(found)}). Continue it with --resume, or name a new "
            "folder."
        )


def _prepare(arguments: argparse.Namespace, config: TrainConfig, console: Console) -> PreparedData:
    """Read all recordings, showing progress."""
    bags = all_bags(arguments)
    options = prepare_options(arguments, config)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[Spec, Any] = {}

        def show(spec: Spec, done: int, total: int) -> None:
            if spec not in tasks:
                tasks[spec] = progress.add_task(f"reading {escape(Path(spec).name)}", total=total)
            progress.update(tasks[spec], completed=done)

        def say(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        cache = None if arguments.no_cache else PreparedCache(arguments.cache or default_folder(), say)
        return prepare_clips(bags, input_size(arguments), options, config.pixels, show, arguments.weights, cache)


def _check_same_data(train_sha256: str, data: PreparedData, output: Path) -> None:
    """Refuse to resume with other frames: the run's place in its shuffled data would mean nothing.

    Raises:
        UsageError: the frames differ from those the run was started with.
    """
    from coopnet_core.checkpoint import read_metadata
    from coopnet_core.cotraining.run_folder import last_checkpoint

    facts = read_metadata(last_checkpoint(output)).data
    before, compressed = facts.get("train_sha256"), facts.get("frames_compressed", False)
    if before is not None and before != train_sha256:
        if compressed != _compressed(data):
            raise UsageError(
                f"The frames of the run in {output} were {'' if compressed else 'not '}kept compressed, for want of "
                f"room, and now they are{' not' if compressed else ''}. Resume with as much free memory and space in "
                f"--cache and TMPDIR as then, or start a new run with --init {last_checkpoint(output)}."
            )
        raise UsageError(
            f"The training frames are not those of the run in {output} ({sum(map(len, data.train))} frames now). "
            "Resume with the same recordings and data options, or start a new run from its weights with --init "
            f"{last_checkpoint(output)}."
        )


def _with_epochs(config: TrainConfig, data: PreparedData, epochs: int | None) -> TrainConfig:
    """The number of steps that makes so many passes over the training frames."""
    if epochs is None:
        return config
    steps = max(1, math.ceil(epochs * count_targets(map(len, data.train), config.frame_offsets) / config.batch_size))
    return config.model_copy(update={"steps": steps})


def _train(
    arguments: argparse.Namespace, config: TrainConfig, data: PreparedData, facts: dict[str, Any], console: Console
) -> int:
    """Hand over to the trainer and say where the result is."""
    from coopnet_core.cotraining.trainer import train

    began = time.monotonic()
    try:
        result = train(
            config,
            data.train,
            data.validation,
            arguments.output,
            init=arguments.init,
            resume=arguments.resume,
            data_facts=facts,
            console=console,
        )
    except KeyboardInterrupt:  # a second Ctrl-C, or one before the first step: the trainer saves on the others
        console.print("interrupted; what was saved before is in the output folder", style="yellow")
        return INTERRUPTED
    except DivergedError as error:
        _report(arguments, config, data, console, began, "diverged", str(error))
        raise
    if result.focal is not None:
        say_what_was_learned_of_the_camera(result.focal, assumed_fov(arguments, config), console)
    if result.start_error is not None:
        say_what_was_gained(result, console)
    console.print(f"best checkpoint  {result.best}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"last checkpoint  {result.last}", markup=False, highlight=False, soft_wrap=True)
    end, words = "done", ""
    if result.out_of_patience:
        end = "out of patience"
        words = f"ended at step {result.steps}: {config.patience} validations in a row found nothing better (patience)"
    if result.interrupted:
        end, words = "interrupted", f"interrupted at step {result.steps}; go on with the same command and --resume"
    if words:
        console.print(words, style="yellow", soft_wrap=True)
    _report(arguments, config, data, console, began, end, words)
    return INTERRUPTED if result.interrupted else 0


def _report(
    arguments: argparse.Namespace,
    config: TrainConfig,
    data: PreparedData,
    console: Console,
    began: float,
    end: End,
    words: str,
) -> None:
    """Leave report.html in the run folder. Of several processes the first does, while none of them trains any more.

    Args:
        began: of the training, on the monotonic clock, seconds.
        end, words: as in `Session`.
    """
    from coopnet_core.cotraining.stopping import stop_requests
    from coopnet_core.cotraining.training_report import Session, report_of_a_training
    from coopnet_core.distributed import own_device, share

    if share().rank > 0:
        return
    assumed = any(clip.camera.assumed for clip in data.train)
    session = Session(
        arguments.typed,
        [str(bag) for bag in all_bags(arguments)],
        time.monotonic() - began,
        end,
        words,
        str(own_device(config.device)),
        None if arguments.init is None else str(arguments.init),
        assumed_fov(arguments, config) if assumed else None,
    )
    # The request that ended the run often comes twice, from a terminal and from what was started there.
    with stop_requests():
        report_of_a_training(arguments.output, console, data, session, arguments.rerun)


def _report_again(arguments: argparse.Namespace, console: Console) -> int:
    """Write the report of an earlier run, without training.

    Raises:
        UsageError: the folder holds no run.
    """
    from coopnet_core.cotraining.training_report import write_training_report

    data = None
    if arguments.bags:
        # The images as the run saw them: the options are those of a resume.
        arguments.output, arguments.resume = arguments.report, True
        _check_output(arguments)
        data = _prepare(arguments, configuration(arguments), console)
    page, missing = write_training_report(arguments.report, data, rerun=arguments.rerun)
    for text in (f"report           {page}", *missing):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _facts(data: PreparedData) -> dict[str, Any]:
    """What the checkpoints remember of their data; the hashes are of the frames at network size."""
    return {
        "sources": [
            {
                "name": source.name,
                "kind": source.kind,
                "topic": source.camera,
                "camera": source.cameras,
                "weight": source.weight,
                "seconds": round(source.duration_s, 3),
                "train_frames": source.train,
                "validation_frames": source.validation,
            }
            for source in data.sources
        ],
        "frames_compressed": _compressed(data),
        "train_sha256": _digest(data.train),
        "validation_sha256": _digest(data.validation),
    }


def _compressed(data: PreparedData) -> bool:
    """Whether any training frames are kept as JPEG, which changes them a little."""
    return any(isinstance(clip.images, CompressedFrames) for clip in data.train)


def _digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over all images of the clips, in order."""
    digest = hashlib.sha256()
    for clip in clips:
        for image in clip.images:
            digest.update(memoryview(image).cast("B"))
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
