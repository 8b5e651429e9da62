"""The command `train_from_bags`: recordings in, a run folder with checkpoints out."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from coopnet_core.config import NetworksConfig, TrainConfig, load_config, preset_names
from coopnet_core.data.clips import (
    PreparedData,
    PrepareOptions,
    SourceSummary,
    Spec,
    count_targets,
    neighbour_span,
    prepare_clips,
)
from coopnet_core.data.frames import Clip
from coopnet_core.data.prepare import SMALLEST_SIDE
from coopnet_core.errors import UsageError
from coopnet_ros.command import INTERRUPTED, run_guarded

if TYPE_CHECKING:  # importing the trainer means importing torch, which --help need not wait for
    from coopnet_core.cotraining.trainer import FocalResult

_RUN_FILES = ("config.yaml", "metrics.jsonl", "state.pt", "checkpoints")
_DEFAULT_PRESET = "small"
ASSUMED_DEGREES = 70.0
"""Horizontal field of view from which an unknown camera is learned: between a webcam's and an action camera's."""

_EXAMPLES = """\
examples:
  what would be used, without training:
      train_from_bags drive.mcap --dry-run
  a first run from a checkpoint, on the CPU:
      train_from_bags drive_bag --init models/small_rendered.safetensors --output runs/drive --steps 500 --device cpu
  two bags of different cameras, one more for validation:
      train_from_bags front rear --validation-bag evening --output runs/both
  only the first 500 images, another learning rate:
      train_from_bags drive_bag --frames 0:500 --set optimiser.learning_rate=2e-4 --output runs/part
  a video with a guessed camera; KITTI, twice as often as a bag of one's own:
      train_from_bags drive.mp4 --fov 90 --output runs/video
      train_from_bags kitti/2011_09_26 my_drive --weights 2,1 --output runs/mixture
  go on after Ctrl-C, or after the process was killed:
      train_from_bags drive_bag --output runs/drive --resume

exit codes: 0 done, 2 wrong usage, 3 no usable data, 4 diverged, 130 interrupted (the state is saved)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_guarded(
        lambda: _run(_parser().parse_args(argv), Console()),
        "Interrupted before the training began: nothing was written.",
    )


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="train_from_bags",
        description="Train depth, odometry and optical flow together on recordings of a moving camera: rosbag2 (mcap "
        "or sqlite3, Image or CompressedImage with CameraInfo), videos, folders of images, KITTI raw and odometry, "
        "Cityscapes sequences, TUM RGB-D, rendered streets. Prints first what it found, chose and dropped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bags",
        nargs="*",
        metavar="RECORDING",
        help="bag (folder, .mcap, .db3), video, folder of images or of a data set, or render:SEED[:FRAMES]; which of "
        "them is seen by what lies there",
    )
    add_data_options(parser.add_argument_group("data"))
    _add_run_options(parser.add_argument_group("run"))
    return parser


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """What is taken from the bags."""
    default = PrepareOptions()
    add = group.add_argument
    add(
        "--topic",
        action="append",
        default=[],
        help="image topic; may be repeated, each bag uses the first it has (default: the only camera of the bag)",
    )
    add("--camera-info", metavar="TOPIC", help="CameraInfo topic (default: camera_info beside the image topic)")
    add(
        "--weights",
        type=_weights,
        default=(),
        metavar="W,W,...",
        help="one positive number per recording, in their order: their shares of the training targets, whatever their "
        "length (default: every image counts alike)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="intrinsics of the recordings that carry none: meta.json, the YAML of camera_calibration, a calibration "
        "file of KITTI or Cityscapes",
    )
    add(
        "--fov",
        type=_field_of_view,
        metavar="DEGREES",
        help="assume a centred pinhole of this horizontal field of view where there is no calibration at all",
    )
    add(
        "--learn-intrinsics",
        action="store_true",
        help="where there is no calibration, learn the focal length, starting from --fov (default then: "
        f"{ASSUMED_DEGREES:g}); all such recordings are taken to be of one camera, which must turn in them",
    )
    add(
        "--frames",
        type=_frame_range,
        default=default.frames,
        metavar="A:B",
        help="use the images A to B-1 of each recording, counted from 0; either may be left out (default: all)",
    )
    add(
        "--size",
        type=_size,
        metavar="WxH",
        help="input size of the networks, multiples of 32 from 64 up (default: chosen for the first camera)",
    )
    add(
        "--gap-factor",
        type=float,
        default=default.gap_factor,
        metavar="F",
        help="a pause of more than F median periods starts a new clip (default: %(default)s)",
    )
    add(
        "--still-threshold",
        type=float,
        default=default.still_threshold,
        metavar="LEVELS",
        help="drop frames that differ less than this, in grey levels (0-255) of a 64x32 copy, from the last kept one; "
        "0 keeps all (default: %(default)s)",
    )
    add(
        "--validation-share",
        type=_share,
        default=default.validation_share,
        metavar="SHARE",
        help="last part of each recording kept for validation (default: %(default)s)",
    )
    add(
        "--validation-bag",
        action="append",
        default=[],
        metavar="RECORDING",
        help="a recording for validation as a whole, may be repeated; the others are then not split",
    )


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    """How to train, and where to."""
    add = group.add_argument
    add("--output", "-o", type=Path, metavar="DIR", help="run folder to make (needed unless --dry-run)")
    add(
        "--preset",
        choices=preset_names(),
        help=f"networks and schedule (default: {_DEFAULT_PRESET}; with --init the "
        "networks are those of the checkpoint unless a preset is named)",
    )
    add(
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="YAML",
        help="settings on top of the preset; may be repeated",
    )
    add(
        "--set",
        dest="overrides",
        type=_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting on top of all others, e.g. optimiser.learning_rate=1e-4; may be repeated",
    )
    add("--settings", action="store_true", help="list every KEY of --set with its default and meaning, and exit")
    add("--init", type=Path, metavar="CHECKPOINT", help="start from these weights (.safetensors)")
    add("--resume", action="store_true", help="go on with the run in --output exactly where it stopped")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, help="optimiser steps (default: of the preset)")
    length.add_argument("--epochs", type=_positive, help="passes over the training frames, instead of --steps")
    add("--batch-size", type=_positive, help="targets per step (default: of the preset)")
    add("--device", help="auto, cpu, cuda or cuda:N (default: of the preset, auto)")
    add("--seed", type=int, help="seed of weights, order and augmentation (default: of the preset)")
    add("--dry-run", action="store_true", help="read the data and print what would be done; write nothing")


def _positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text: str) -> float:
    """A share in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def _weights(text: str) -> tuple[float, ...]:
    """Positive numbers, separated by commas."""
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(f"{text!r} is not W,W,... with positive numbers, such as 2,1")
    return weights


def _field_of_view(text: str) -> float:
    """Degrees between 0 and 180."""
    value = float(text)
    if not 0 < value < 180:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 180 degrees")
    return value


def _size(text: str) -> tuple[int, int]:
    """WxH, both multiples of 32 and large enough for the networks."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 416x128") from None
    if min(width, height) < SMALLEST_SIDE or width % 32 or height % 32:
        raise argparse.ArgumentTypeError(f"{text}: both must be multiples of 32 from 64 up, such as 416x128")
    return width, height


def _frame_range(text: str) -> tuple[int, int | None]:
    """A:B with either left out."""
    first, colon, stop = text.partition(":")
    try:
        frames = (int(first or 0), int(stop) if stop else None)
    except ValueError:
        frames, colon = (0, None), ""
    if not colon or frames[0] < 0 or (frames[1] is not None and frames[1] <= frames[0]):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with 0 <= A < B, such as 0:500 or 500:")
    return frames


def _setting(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE; --settings lists the keys")
    return key.strip(), value.strip()


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Check everything that is quick to check, read the data, say what was found, train."""
    if arguments.settings:
        console.print(_settings_table())
        return 0
    if not arguments.bags:
        raise UsageError(
            "No recording was named. Expected: train_from_bags RECORDING... --output DIR; see --help for examples."
        )
    if arguments.weights and len(arguments.weights) != len(arguments.bags):
        raise UsageError(
            f"--weights has {len(arguments.weights)} numbers for {len(arguments.bags)} recordings: one for each was "
            "expected, in their order."
        )
    _check_output(arguments)
    config = _configuration(arguments)
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
    if arguments.resume:
        _check_same_data(data, arguments.output)
    config = _with_epochs(config, data, arguments.epochs)
    _say_what_was_found(data, console)
    _say_what_will_be_done(arguments, config, data, console)
    if arguments.dry_run:
        return 0
    return _train(arguments, config, data, console)


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


def _configuration(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration of the run: preset (or the resumed run's own), files, overrides, options.

    Raises:
        UsageError: see `load_config`; also when the device is not there.
    """
    from coopnet_core.devices import resolve_device

    overrides = dict(arguments.overrides)
    for name in ("steps", "batch_size", "seed", "device"):
        if getattr(arguments, name) is not None:
            overrides[name] = str(getattr(arguments, name))
    if arguments.resume:
        config = load_config(arguments.preset, [arguments.output / "config.yaml", *arguments.config], overrides)
    else:
        config = load_config(arguments.preset or _DEFAULT_PRESET, arguments.config, overrides)
    if arguments.init is not None and arguments.preset is None:
        config = config.model_copy(update={"networks": _networks_of(arguments.init)})
    if arguments.learn_intrinsics:
        config = config.model_copy(update={"learn_intrinsics": True})
    resolve_device(config.device)
    return config


def _networks_of(checkpoint: Path) -> NetworksConfig:
    """The configuration of the networks in a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    from coopnet_core.checkpoint import read_metadata

    return NetworksConfig.model_validate(read_metadata(checkpoint).networks)


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

        return prepare_clips(bags, _input_size(arguments), options, config.pixels, show, arguments.weights)


def all_bags(arguments: argparse.Namespace) -> list[Spec]:
    """The recordings to read, those for validation last."""
    return [*arguments.bags, *(bag for bag in arguments.validation_bag if bag not in arguments.bags)]


def prepare_options(arguments: argparse.Namespace, config: TrainConfig) -> PrepareOptions:
    """What the options of `add_data_options` take from the recordings."""
    return PrepareOptions(
        topics=tuple(arguments.topic),
        info=arguments.camera_info,
        calibration=arguments.calibration,
        fov_degrees=_assumed_fov(arguments, config),
        frames=arguments.frames,
        gap_factor=arguments.gap_factor,
        still_threshold=arguments.still_threshold,
        validation_share=arguments.validation_share,
        validation_bags=tuple(arguments.validation_bag),
        minimum_frames=neighbour_span(config.frame_offsets) + 1,
    )


def _assumed_fov(arguments: argparse.Namespace, config: TrainConfig) -> float | None:
    """Degrees to assume where there is no calibration; None: such recordings are refused."""
    return arguments.fov if arguments.fov is not None or not config.learn_intrinsics else ASSUMED_DEGREES


def _input_size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The size the user chose, else that of the resumed run, else None (to be chosen for the first camera)."""
    from coopnet_core.checkpoint import read_metadata

    if arguments.size is not None or not arguments.resume:
        return arguments.size
    metadata = read_metadata(_last_checkpoint(arguments.output))
    return metadata.width, metadata.height


def _last_checkpoint(output: Path) -> Path:
    """Where the trainer keeps the newest weights of a run."""
    return output / "checkpoints" / "last.safetensors"


def _check_same_data(data: PreparedData, output: Path) -> None:
    """Refuse to resume with other frames: the run's place in its shuffled data would mean nothing.

    Raises:
        UsageError: the frames differ from those the run was started with.
    """
    from coopnet_core.checkpoint import read_metadata

    before = read_metadata(_last_checkpoint(output)).data.get("train_sha256")
    if before is not None and before != _digest(data.train):
        raise UsageError(
            f"The training frames are not those of the run in {output} ({sum(map(len, data.train))} frames now). "
            "Resume with the same recordings and data options, or start a new run from its weights with --init "
            f"{_last_checkpoint(output)}."
        )


def _targets(clips: Sequence[Clip], config: TrainConfig) -> int:
    """Frames that have all their sources."""
    return count_targets(map(len, clips), config.frame_offsets)


def _with_epochs(config: TrainConfig, data: PreparedData, epochs: int | None) -> TrainConfig:
    """The number of steps that makes so many passes over the training frames."""
    if epochs is None:
        return config
    steps = max(1, math.ceil(epochs * _targets(data.train, config) / config.batch_size))
    return config.model_copy(update={"steps": steps})


def _say_what_was_found(data: PreparedData, console: Console) -> None:
    """One row per recording, then the decisions and the losses in sentences."""
    table = Table(title="Recordings", show_lines=True)
    for name in ("recording", "camera", "found", "dropped", "used"):
        table.add_column(name, overflow="fold")
    weighted = sum(source.weight or 0.0 for source in data.sources if source.train)
    for source in data.sources:
        unusable = sum(source.report.skipped.values())
        parts = f" in {source.sequences} sequences" if source.sequences > 1 else ""
        share = f"\n{100 * source.weight / weighted:.0f} % of the targets" if source.weight and source.train else ""
        table.add_row(
            f"{escape(source.name)}\n{source.kind}\n{escape(source.camera)}",
            escape("\n".join(source.cameras)),
            f"{source.report.messages} images{parts}\n{source.duration_s:.1f} s at {source.rate_hz:.1f} Hz\n"
            f"{source.gaps} gaps",
            f"{unusable} unusable\n{source.still} still\n{source.short} in short clips",
            f"{source.train} train\n{source.validation} validation{share}",
        )
    console.print(table)
    for source in data.sources:
        for remark in _remarks(source):
            console.print(f"{source.name}: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for reason in data.failed:
        console.print(f"not used: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)


def _remarks(source: SourceSummary) -> Iterator[str]:
    """What a user should know about a recording, one sentence each."""
    yield f"{source.kind}: {source.why}"
    yield from source.report.notes
    for reason, count in source.report.skipped.most_common():
        yield f"{count} images not used, {reason}; first: {source.report.examples[reason]}"
    if source.changes:
        cameras = ", ".join(source.cameras)
        yield f"size or calibration changes {source.changes} times ({cameras}): a new clip begins at each"
    yield from source.report.unread


def _say_what_will_be_done(
    arguments: argparse.Namespace, config: TrainConfig, data: PreparedData, console: Console
) -> None:
    """The plan of the run."""
    targets = _targets(data.train, config)
    start = f"from {arguments.init}" if arguments.init else "resumed" if arguments.resume else "from random weights"
    lines = (
        f"input size   {data.size[0]}x{data.size[1]}, {data.megabytes:.0f} MB of frames in memory",
        f"clips        {len(data.train)} for training ({targets} targets), {len(data.validation)} for validation",
        f"run          {config.steps} steps of {config.batch_size} targets "
        f"({config.steps * config.batch_size / max(1, targets):.1f} passes), {start}, device {config.device}, "
        f"seed {config.seed}",
        f"output       {arguments.output or '(none: dry run)'}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if config.learn_intrinsics:
        guessed = sum(clip.camera.assumed for clip in data.train)
        note = f"the focal length of {guessed} of {len(data.train)} training clips is learned"
        console.print(
            note if guessed else "all cameras are calibrated: --learn-intrinsics has nothing to do", style="yellow"
        )
    if not data.validation:
        console.print("no clip is left for validation: the last checkpoint will count as the best", style="yellow")


def _train(arguments: argparse.Namespace, config: TrainConfig, data: PreparedData, console: Console) -> int:
    """Hand over to the trainer and say where the result is."""
    from coopnet_core.cotraining.trainer import train

    try:
        result = train(
            config,
            data.train,
            data.validation,
            arguments.output,
            init=arguments.init,
            resume=arguments.resume,
            data_facts=_facts(data),
            console=console,
        )
    except KeyboardInterrupt:  # a second Ctrl-C, or one before the first step: the trainer saves on the others
        console.print("interrupted; what was saved before is in the output folder", style="yellow")
        return INTERRUPTED
    if result.focal is not None:
        _say_what_was_learned_of_the_camera(result.focal, _assumed_fov(arguments, config), console)
    console.print(f"best checkpoint  {result.best}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"last checkpoint  {result.last}", markup=False, highlight=False, soft_wrap=True)
    if result.out_of_patience:
        console.print(
            f"ended at step {result.steps}: {config.patience} validations in a row found nothing better (patience)",
            style="yellow",
        )
    if result.interrupted:
        console.print(f"interrupted at step {result.steps}; go on with the same command and --resume", style="yellow")
        return INTERRUPTED
    return 0


def _say_what_was_learned_of_the_camera(focal: FocalResult, assumed_degrees: float, console: Console) -> None:
    """The learned field of view, whether it can be believed, and what to do with it."""
    degrees = math.degrees(2 * math.atan(math.tan(math.radians(assumed_degrees) / 2) / focal.factor))
    changed = f"it changed by {100 * focal.late_change:.1f} % over the last quarter of the run"
    console.print(
        f"camera           horizontal field of view {degrees:.1f} degrees, started from {assumed_degrees:g} (focal "
        f"length x {focal.factor:.3f}); {changed}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if focal.settled:
        advice = f"settled: use it with --fov {degrees:.1f}; a calibration (camera_calibration) would be better still"
    else:
        advice = f"not settled: go on with --init and --fov {degrees:.1f}, on recordings in which the camera turns"
    console.print(advice, style="yellow", soft_wrap=True)


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
        "train_sha256": _digest(data.train),
        "validation_sha256": _digest(data.validation),
    }


def _digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over all images of the clips, in order."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(memoryview(clip.images).cast("B"))
    return digest.hexdigest()


def _settings_table() -> Table:
    """Every key of --set."""
    table = Table("key", "default", "meaning", title="Settings (defaults before the preset)")
    for key, default, meaning in _settings(TrainConfig):
        table.add_row(key, escape(default), escape(meaning))
    return table


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of every leaf of the configuration tree."""
    for name, entry in model.model_fields.items():
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, BaseModel):
            yield from _settings(entry.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, str(entry.default), entry.description or ""


if __name__ == "__main__":
    sys.exit(main())
