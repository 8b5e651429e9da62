"""What `train_from_bags` says of its recordings, its plan and its result."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coopnet_core.config import TrainConfig
from coopnet_core.data.clips import PreparedData, SourceSummary, count_targets
from coopnet_ros.train_settings import settings_in_words

if TYPE_CHECKING:  # importing the trainer means importing torch, which --help need not wait for
    from coopnet_core.cotraining.trainer import FocalResult, TrainResult


def say_what_was_found(data: PreparedData, console: Console) -> None:
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


def say_what_will_be_done(
    arguments: argparse.Namespace, config: TrainConfig, data: PreparedData, console: Console
) -> None:
    """The plan of the run."""
    targets = count_targets(map(len, data.train), config.frame_offsets)
    start = f"from {arguments.init}" if arguments.init else "resumed" if arguments.resume else "from random weights"
    lines = (
        f"input size   {data.size[0]}x{data.size[1]}, {data.megabytes:.0f} MB of frames",
        f"clips        {len(data.train)} for training ({targets} targets), {len(data.validation)} for validation",
        f"run          {config.steps} steps of {config.batch_size} targets "
        f"({config.steps * config.batch_size / max(1, targets):.1f} passes), {start}, device {config.device}, "
        f"seed {config.seed}",
        f"settings     {settings_in_words(arguments, config)}",
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


def say_what_was_gained(result: TrainResult, console: Console) -> None:
    """The validation error against that of the weights the run started from."""
    before, best = result.start_error, result.best_error
    if result.best_step == 0:
        said = f"nothing beat the weights it started from (error {before:.4f}): best.safetensors holds those"
    else:
        said = f"error {best:.4f} at step {result.best_step}, {before:.4f} before ({100 * (best / before - 1):+.1f} %)"
    style = "yellow" if result.best_step == 0 else None
    console.print(f"validation       {said}", style=style, markup=False, highlight=False, soft_wrap=True)


def say_what_was_learned_of_the_camera(focal: FocalResult, assumed_degrees: float, console: Console) -> None:
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
