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
from coopnet_core.data.clips import BagSummary, PreparedData, PrepareOptions, prepare_clips
from coopnet_core.data.frames import Clip
from coopnet_core.data.prepare import SMALLEST_SIDE
from coopnet_core.errors import UsageError
from coopnet_ros.command import INTERRUPTED, run_guarded

if TYPE_CHECKING:  # importing the trainer means importing torch, which --help need not wait for
    from coopnet_core.cotraining.trainer import FocalResult

_RUN_FILES = ("config.yaml", "metrics.jsonl", "state.pt", "checkpoints")
_DEFAULT_PRESET = "small"
_ASSUMED_DEGREES = 70.0
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
  go on after Ctrl-C:
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
        description="Train depth, odometry and optical flow together on recordings of a moving camera (rosbag2, mcap "
        "or sqlite3, Image or CompressedImage with CameraInfo). Prints first what it found, chose and dropped.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bags", nargs="*", type=Path, metavar="BAG", help="bag folder, .mcap or .db3 file")
    _add_data_options(parser.add_argument_group("data"))
    _add_run_options(parser.add_argument_group("run"))
    return parser


def _add_data_options(group: argparse._ArgumentGroup) -> None:
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
        "--fov",
        type=_field_of_view,
        metavar="DEGREES",
        help="assume a centred pinhole of this horizontal field of view where there is no calibration",
    )
    add(
        "--learn-intrinsics",
        action="store_true",
        help="where there is no calibration, learn the focal length, starting from --fov (default then: "
        f"{_ASSUMED_DEGREES:g}); all such recordings are taken to be of one camera, which must turn in them",
    )
    add(
        "--frames",
        type=_frame_range,
        default=default.frames,
        metavar="A:B",
        help="use the images A to B-1 of each bag, counted from 0; either may be left out (default: all)",
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
        help="last part of each bag kept for validation (default: %(default)s)",
    )
    add(
        "--validation-bag",
        type=Path,
        action="append",
        default=[],
        metavar="BAG",
        help="a bag for validation as a whole, may be repeated; the others are then not split",
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
        raise UsageError("No bag was named. Expected: train_from_bags BAG... --output DIR; see --help for examples.")
    _check_output(arguments)
    config = _configuration(arguments)
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
    """Refuse to write over another run, and to resume what is not there.

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
    found = [name for name in _RUN_FILES if (output / name).exists()]
    if arguments.resume:
        missing = [name for name in ("config.yaml", "state.pt") if name not in found]
        if missing:
            raise UsageError(
                f"Nothing to resume in {output}: {' and '.join(missing)} missing. Name the folder of the interrupted "
                "run, or leave --resume away to start anew."
            )
        if arguments.init is not None:
            raise UsageError("--resume goes on with the weights of the run, --init names others: choose one.")
    elif found:
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
    """Read all bags, showing progress."""
    bags = [*arguments.bags, *(bag for bag in arguments.validation_bag if bag not in arguments.bags)]
    options = PrepareOptions(
        topics=tuple(arguments.topic),
        info=arguments.camera_info,
        fov_degrees=_assumed_fov(arguments, config),
        frames=arguments.frames,
        gap_factor=arguments.gap_factor,
        still_threshold=arguments.still_threshold,
        validation_share=arguments.validation_share,
        validation_bags=tuple(arguments.validation_bag),
        minimum_frames=_targets_span(config) + 1,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[Path, Any] = {}

        def show(path: Path, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(f"reading {escape(path.name)}", total=total)
            progress.update(tasks[path], completed=done)

        return prepare_clips(bags, _input_size(arguments), options, config.pixels, show)


def _assumed_fov(arguments: argparse.Namespace, config: TrainConfig) -> float | None:
    """Degrees to assume where there is no calibration; None: such recordings are refused."""
    return arguments.fov if arguments.fov is not None or not config.learn_intrinsics else _ASSUMED_DEGREES


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
            "Resume with the same bags and data options, or start a new run from its weights with --init "
            f"{_last_checkpoint(output)}."
        )


def _targets_span(config: TrainConfig) -> int:
    """Frames around a target that its sources reach over."""
    return max(0, *config.frame_offsets) - min(0, *config.frame_offsets)


def _targets(clips: Sequence[Clip], config: TrainConfig) -> int:
    """Frames that have all their sources."""
    return sum(max(0, len(clip) - _targets_span(config)) for clip in clips)


def _with_epochs(config: TrainConfig, data: PreparedData, epochs: int | None) -> TrainConfig:
    """The number of steps that makes so many passes over the training frames."""
    if epochs is None:
        return config
    steps = max(1, math.ceil(epochs * _targets(data.train, config) / config.batch_size))
    return config.model_copy(update={"steps": steps})


def _say_what_was_found(data: PreparedData, console: Console) -> None:
    """One row per bag, then the decisions and the losses in sentences."""
    table = Table(title="Recordings", show_lines=True)
    for name in ("bag", "camera", "found", "dropped", "used"):
        table.add_column(name, overflow="fold")
    for bag in data.bags:
        unusable = sum(bag.report.skipped.values())
        table.add_row(
            f"{escape(bag.path.name)}\n{escape(bag.topics.image)}",
            escape("\n".join(bag.source)),
            f"{bag.report.messages} images\n{bag.duration_s:.1f} s at {bag.rate_hz:.1f} Hz\n{bag.gaps} gaps",
            f"{unusable} unusable\n{bag.still} still\n{bag.short} in short clips",
            f"{bag.train} train\n{bag.validation} validation",
        )
    console.print(table)
    for bag in data.bags:
        for remark in _remarks(bag):
            console.print(f"{bag.path.name}: {remark}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for reason in data.failed:
        console.print(f"not used: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)


def _remarks(bag: BagSummary) -> Iterator[str]:
    """What a user should know about a bag, one sentence each."""
    info = bag.topics.info or "no CameraInfo"
    yield f"camera topic {bag.topics.image} with {info}: {bag.topics.why}"
    yield from bag.report.notes
    for reason, count in bag.report.skipped.most_common():
        yield f"{count} images not used, {reason}; first: {bag.report.examples[reason]}"
    if bag.changes:
        yield f"size or calibration changes {bag.changes} times ({', '.join(bag.source)}): a new clip begins at each"
    yield from bag.report.unread


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
        "bags": [
            {
                "name": bag.path.name,
                "topic": bag.topics.image,
                "camera": bag.source,
                "seconds": round(bag.duration_s, 3),
                "train_frames": bag.train,
                "validation_frames": bag.validation,
            }
            for bag in data.bags
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
