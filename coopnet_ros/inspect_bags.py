"""The command `inspect_bags`: can I train on this recording, and what must I change?"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from coopnet_core.config import load_config
from coopnet_core.data.contact_sheet import contact_sheet
from coopnet_core.data.inspection import inspect_bag
from coopnet_core.data.inspection_advice import (
    BUT,
    READY,
    TrainingCost,
    Verdict,
    judge_bag,
    judge_camera,
    training_cost,
)
from coopnet_core.data.inspection_facts import BagInspection, CameraInspection, InspectionOptions, Looks
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.resources import SHIPPED_WEIGHTS
from coopnet_core.visualization import write_picture
from coopnet_ros.command import run_guarded
from coopnet_ros.train_options import ASSUMED_DEGREES, DEFAULT_PRESET, add_data_options, all_bags, prepare_options

_VERSION = 1
_OTHER_TOPICS = 8
_COLORS = {READY: "green", BUT: "yellow"}

_EXAMPLES = """\
examples:
  can I train on this, and what must I change:
      inspect_bags drive.mcap
  several recordings, pictures of each, everything in a file for scripts:
      inspect_bags front rear --output look --json look.json
  every image, not only a sample of a long recording:
      inspect_bags long_drive --all
  a camera without calibration, one of several, only a part:
      inspect_bags drive --topic /rear/image_raw --fov 80 --frames 300:

exit codes: 0 something is usable, 2 wrong usage, 3 nothing is usable, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: _run(_parser().parse_args(given), Console()), "Interrupted: --json was not written.")


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="inspect_bags",
        description="Look into recordings (rosbag2) before training on them: topics, calibration, stamps, still and "
        "too fast parts, exposure, unusable images, what train_from_bags would make of them, and a verdict.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bags", nargs="+", metavar="BAG", help="bag folder, .mcap or .db3 file")
    add = parser.add_argument
    add("--output", "-o", type=Path, metavar="DIR", help="folder for a contact sheet (PNG) of each camera")
    add("--json", type=Path, metavar="FILE", help="write everything that was found to this file")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--all", action="store_true", help="look at every image, and match every pair of neighbours")
    length.add_argument(
        "--sample",
        type=_positive,
        metavar="N",
        help="images to look at in each recording, spread evenly (default: up to 1000, at least 100, fewer the larger "
        "they are)",
    )
    add_data_options(parser.add_argument_group("data, as for train_from_bags"))
    return parser


def _positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Look into every bag, say what was found, write the files."""
    _check_output(arguments)
    config = load_config(DEFAULT_PRESET, [], {})
    # As with --learn-intrinsics, but the lack of a calibration is said.
    options = InspectionOptions(
        prepare=prepare_options(arguments, config),
        offsets=config.frame_offsets,
        pixels=config.pixels,
        assumed_fov=ASSUMED_DEGREES,
        sample=arguments.sample,
        everything=arguments.all,
        pictures=arguments.output is not None,
    )
    fov_given = _camera_is_assumed(arguments)
    bags: list[BagInspection] = []
    verdicts: list[Verdict] = []
    sheets: list[Path] = []
    size = arguments.size
    with _progress(console) as show:
        for path in map(Path, all_bags(arguments)):
            bag, looks, size = inspect_bag(path, size, options, show)
            verdict = judge_bag(bag, fov_given)
            bags.append(bag)
            verdicts.append(verdict)
            sheets += _write_sheets(arguments.output, path, bag, looks, fov_given, sheets)
    for bag, verdict in zip(bags, verdicts, strict=True):
        _print_bag(bag, verdict, fov_given, console)
    usable = [(bag, verdict) for bag, verdict in zip(bags, verdicts, strict=True) if verdict.usable]
    cost = training_cost(config, [bag.best.training for bag, _ in usable if bag.best is not None])
    command = _command(arguments, usable)
    _print_end(bags, verdicts, cost, command, console)
    for sheet in sheets:
        console.print(f"contact sheet  {sheet}", markup=False, highlight=False, soft_wrap=True)
    if arguments.json is not None:
        _write_json(arguments.json, bags, verdicts, cost, command, fov_given)
    return _exit_code(bags, verdicts)


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuse places that cannot be written before minutes are spent.

    Raises:
        UsageError: says what was found.
    """
    if arguments.output is not None and arguments.output.exists() and not arguments.output.is_dir():
        raise UsageError(f"--output {arguments.output} is a file; a folder was expected.")
    if arguments.json is not None and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        raise UsageError(f"--json {arguments.json}: the name of a file in a folder that exists was expected.")


def _camera_is_assumed(arguments: argparse.Namespace) -> bool:
    """Whether the user says what to do where there is no calibration."""
    return arguments.learn_intrinsics or arguments.fov is not None or arguments.calibration is not None


def _exit_code(bags: Sequence[BagInspection], verdicts: Sequence[Verdict]) -> int:
    """0 where anything is usable, 2 where no bag is at any of the paths, else 3."""
    if any(verdict.usable for verdict in verdicts):
        return 0
    return UsageError.exit_code if all(bag.wrong_path for bag in bags) else NoUsableDataError.exit_code


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Path, int, int], None]]:
    """A progress bar for each bag."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[Path, Any] = {}

        def show(path: Path, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(f"looking into {escape(path.name)}", total=total)
            progress.update(tasks[path], completed=done, total=total)

        yield show


def _command(arguments: argparse.Namespace, usable: Sequence[tuple[BagInspection, Verdict]]) -> str | None:
    """The call of `train_from_bags` that uses what is usable, with the options given and those needed."""
    if not usable:
        return None
    words = ["train_from_bags"]
    for_validation = [str(Path(path)) for path in arguments.validation_bag]
    words += [bag.path for bag, _ in usable if bag.path not in for_validation]
    # Once a topic is named for one bag, each bag needs one, and takes the first it has: those with a choice come first.
    topics = list(arguments.topic)
    if any("--topic" in verdict.options for _, verdict in usable):
        by_choice = sorted(usable, key=lambda found: "--topic" not in found[1].options)
        topics += [bag.best.topic for bag, _ in by_choice if bag.best is not None]
    for topic in dict.fromkeys(topics):
        words += ["--topic", topic]
    learns = arguments.learn_intrinsics or any("--learn-intrinsics" in verdict.options for _, verdict in usable)
    words += ["--learn-intrinsics"] if learns else []
    words += _given_options(arguments, every_bag=len(usable) == len(all_bags(arguments)))
    return shlex.join([*words, "--init", SHIPPED_WEIGHTS, "--output", "runs/mine"])


def _given_options(arguments: argparse.Namespace, every_bag: bool) -> list[str]:
    """The options of the data group that differ from their defaults, but topics and --learn-intrinsics, as typed."""
    default = _parser().parse_args(["bag"])
    own = {"bags", "output", "json", "all", "sample", "topic", "learn_intrinsics"}
    # There is one weight for each bag: where some are left out, the user must say anew.
    own |= set() if every_bag else {"weights"}
    words: list[str] = []
    for name, value in vars(arguments).items():
        if name in own or value == getattr(default, name):
            continue
        option = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            words += [option, _typed(name, one)]
    return words


def _typed(name: str, value: Any) -> str:
    """The value of an option as it is typed."""
    separator = {"frames": ":", "size": "x"}.get(name, ",")
    return (
        separator.join("" if part is None else f"{part}" for part in value) if isinstance(value, tuple) else str(value)
    )


# What is printed


def _print_bag(bag: BagInspection, verdict: Verdict, fov_given: bool, console: Console) -> None:
    """Topics, cameras and the verdict of one bag."""
    console.rule(f"[bold]{escape(bag.path)}[/]", align="left")
    if bag.topics:
        console.print(_topic_table(bag))
    for camera in bag.cameras:
        console.print(_camera_table(camera))
        if len(bag.cameras) > 1:
            own = judge_camera(camera, fov_given)
            _say(console, f"{camera.topic}: {own.text}", _COLORS.get(own.state, "red"))
    _say(console, verdict.text, f"bold {_COLORS.get(verdict.state, 'red')}")
    for remark in verdict.remarks:
        _say(console, f"  {'*' if remark.serious else '-'} {remark.sentence}", "yellow" if remark.serious else "dim")
    for camera in bag.cameras:
        for note in camera.notes:
            _say(console, f"  - {note}", "dim")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _topic_table(bag: BagInspection) -> Table:
    table = Table(title="Topics", title_justify="left")
    for name in ("topic", "type", "messages", "Hz", "first image", "frame_id"):
        table.add_column(name, overflow="fold", justify="right" if name in ("messages", "Hz") else "left")
    shown = [topic for topic in bag.topics if topic.role != "other"]
    others = [topic for topic in bag.topics if topic.role == "other"]
    for topic in [*shown, *others[:_OTHER_TOPICS]]:
        size = f"{topic.width}x{topic.height} " if topic.width else ""
        mark = "* " if topic.role in ("camera", "calibration") else ""
        table.add_row(
            escape(mark + topic.name),
            escape(topic.type),
            str(topic.count),
            "?" if topic.rate_hz is None else f"{topic.rate_hz:.1f}",
            escape(size + topic.encoding),
            escape(topic.frame_id),
            style="" if mark else "dim",
        )
    hidden = len(others) - _OTHER_TOPICS
    table.caption = "* the camera and its calibration, as train_from_bags finds them" + (
        f"; {hidden} other topics are not shown, --json has all" if hidden > 0 else ""
    )
    table.caption_justify = "left"
    return table


def _camera_table(camera: CameraInspection) -> Table:
    table = Table("", "found", title=escape(camera.topic), title_justify="left", show_header=False)
    for name, text in _camera_rows(camera):
        table.add_row(name, escape(text))
    return table


def _camera_rows(camera: CameraInspection) -> Iterator[tuple[str, str]]:
    """What is known of a camera, (name, text)."""
    calibration, stamps, pictures, training = camera.calibration, camera.stamps, camera.pictures, camera.training
    yield "chosen", camera.why
    yield "calibration", "\n".join(_calibration_lines(camera))
    if stamps.rate_hz:
        yield (
            "stamps",
            f"{stamps.duration_s:.1f} s at {stamps.rate_hz:.1f} Hz, period {stamps.period_ms:.1f} +- "
            f"{stamps.jitter_ms:.1f} ms (95 %)\n{stamps.gaps} gaps (longest step {stamps.longest_pause_s:.2f} s), "
            f"{stamps.missing} images missing, {stamps.jumps_back} jumps back, {stamps.repeated} repeated, "
            f"{stamps.zero} zero",
        )
    if stamps.delay_ms is not None and stamps.delay_spread_ms is not None:
        yield (
            "recorded",
            f"{_delay(stamps.delay_ms)} after the header stamp (spread {stamps.delay_spread_ms:.0f} ms, 5 to 95 %)",
        )
    every = "every one of" if training.exact else f"{pictures.looked_at + sum(camera.unusable.values())} of"
    yield "looked at", f"{every} {pictures.images} images, {pictures.pairs} pairs of neighbours matched"
    if pictures.looked_at:
        motion = "" if pictures.motion is None else f", flow {100 * pictures.motion:.1f} % of the width"
        matched = "" if pictures.matched is None else f" with {100 * pictures.matched:.0f} % of the pixels matched"
        yield (
            "pictures",
            f"{_percent(pictures.still_share)} still, {_percent(pictures.too_fast_share)} of the pairs too far apart"
            f"{motion}{matched} (medians)\n{_percent(pictures.exposure_jump_share)} exposure jumps, "
            f"{_percent(pictures.dark_share)} dark, {_percent(pictures.bright_share)} overexposed, mean brightness "
            f"{pictures.brightness:.0f} of 255",
        )
    for reason, count in camera.unusable.items():
        yield "unusable", f"{count} x {reason}; first: {camera.examples[reason]}"
    about = "" if training.exact else "about "
    yield (
        "training",
        f"{training.usable} usable images, {about}{training.still} still, {training.short} in short clips, "
        f"{training.gaps} gaps, {training.changes} changes\n{about}{training.train_clips} clips for training "
        f"({training.train_images} images, {training.targets} targets), {training.validation_clips} for validation "
        f"({training.validation_images} images)\ninput {training.width}x{training.height}, {training.frames_mb:.0f} MB "
        "of frames",
    )
    if calibration.frame_id and calibration.rectified:
        yield "rectified", "by the name of the topic"


def _calibration_lines(camera: CameraInspection) -> Iterator[str]:
    facts = camera.calibration
    if facts.state == "missing":
        yield f"{facts.topic}: no message can be read" if facts.topic else "no CameraInfo"
    else:
        yield f"{facts.topic}: {facts.width}x{facts.height}, {facts.state}, frame {facts.frame_id or '(none)'}"
        fx, cx, fy, cy = (facts.k[index] for index in (0, 2, 4, 5))
        numbers = ", ".join(f"{value:g}" for value in facts.d) or "none"
        yield f"K fx {fx:.1f} fy {fy:.1f} cx {cx:.1f} cy {cy:.1f}, D {facts.distortion_model or 'no model'} ({numbers})"
    if facts.used:
        width, height, fx, fy, cx, cy = facts.used
        guess = "assumed" if facts.assumed else "used, rectified by P" if facts.rectified else "used"
        yield (
            f"{guess} for {width:.0f}x{height:.0f}: fx {fx:.1f} fy {fy:.1f} cx {cx:.1f} cy {cy:.1f}, "
            f"{facts.fov_degrees:.0f} degrees wide"
        )


def _print_end(
    bags: Sequence[BagInspection],
    verdicts: Sequence[Verdict],
    cost: TrainingCost,
    command: str | None,
    console: Console,
) -> None:
    """All bags in a line each, what a training takes, and how to start it."""
    if len(bags) > 1:
        console.rule("[bold]all[/]", align="left")
        for bag, verdict in zip(bags, verdicts, strict=True):
            _say(console, f"{bag.path}: {_short(verdict.text)}", _COLORS.get(verdict.state, "red"))
    if command is None:
        return
    console.rule("[bold]training[/]", align="left")
    _say(console, f"targets       {cost.targets}, a default run sees each {cost.passes:.0f} times")
    _say(
        console,
        f"time          about {_duration(cost.minutes_from_weights)} with --init, "
        f"{_duration(cost.minutes_from_nothing)} from nothing: {cost.how}",
    )
    _say(
        console,
        f"disk          {cost.frames_mb:.0f} MB of frames in the cache (in memory with --no-cache), "
        f"{cost.disk_mb:.0f} MB for the run folder",
    )
    _say(console, f"command       {command}")


def _short(text: str) -> str:
    """The first line of a verdict, not too long."""
    line = text.splitlines()[0]
    return line if len(line) <= 160 else f"{line[:157]}..."


def _delay(milliseconds: float) -> str:
    """A delay, in seconds where that is easier to read (another clock, rather than a late recorder)."""
    return f"{milliseconds:.0f} ms" if abs(milliseconds) < 10_000 else f"{milliseconds / 1000:.1f} s"


def _duration(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# What is written


def _write_sheets(
    folder: Path | None,
    path: Path,
    bag: BagInspection,
    looks: Sequence[Looks],
    fov_given: bool,
    written: Sequence[Path],
) -> list[Path]:
    """A contact sheet of each camera of a bag."""
    found: list[Path] = []
    for camera, seen in zip(bag.cameras, looks, strict=True) if folder is not None else ():
        stamps = camera.stamps
        title = (
            f"{path.name}  {camera.topic}  {seen.images} images, {stamps.duration_s:.1f} s at {stamps.rate_hz:.1f} Hz"
        )
        sheet = contact_sheet(seen, title, judge_camera(camera, fov_given).text)
        if sheet is not None:
            topic = re.sub(r"\W+", "_", camera.topic).strip("_")
            own = path.resolve().stem if path.is_file() else path.resolve().name
            name = own if len(bag.cameras) == 1 else f"{own}_{topic}"
            found.append(write_picture(_free_name(folder, name, [*written, *found]), sheet))
    return found


def _free_name(folder: Path, name: str, taken: Sequence[Path]) -> Path:
    """A name that no other sheet of this run has: two bags may be called alike."""
    names = (folder / f"{name}{'' if number == 1 else f'_{number}'}.png" for number in range(1, len(taken) + 2))
    return next(path for path in names if path not in taken)


def _write_json(
    path: Path,
    bags: Sequence[BagInspection],
    verdicts: Sequence[Verdict],
    cost: TrainingCost,
    command: str | None,
    fov_given: bool,
) -> None:
    """Everything that was found. The keys are those of docs/training.md and of the dataclasses."""
    content = {
        "version": _VERSION,
        "usable": any(verdict.usable for verdict in verdicts),
        "bags": [
            asdict(bag)
            | {
                "verdict": asdict(verdict) | {"usable": verdict.usable},
                "cameras": [
                    asdict(camera)
                    | {"verdict": asdict(own := judge_camera(camera, fov_given)) | {"usable": own.usable}}
                    for camera in bag.cameras
                ],
            }
            for bag, verdict in zip(bags, verdicts, strict=True)
        ],
        "training": asdict(cost) | {"command": command},
    }
    path.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: a CameraInfo may hold anything."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
