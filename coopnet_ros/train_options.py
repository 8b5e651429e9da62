"""The options of `train_from_bags`; those about the data are those of `inspect_bags` too."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from coopnet_core.config import TrainConfig, preset_lines
from coopnet_core.data.clips import PrepareOptions, Spec, neighbour_span
from coopnet_core.data.prepare import SMALLEST_SIDE
from coopnet_core.resources import SHIPPED_WEIGHTS
from coopnet_ros.command import image_size

DEFAULT_PRESET = "cpu-small"
ADAPTATION = "config/adapt.yaml"
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
  the shipped weights adapted to this robot, in minutes; the same, but the flow stays as it is:
      train_from_bags drive_bag --adapt --output runs/mine
      train_from_bags drive_bag --adapt --freeze flow --output runs/mine
  only the first 500 images, another learning rate:
      train_from_bags drive_bag --frames 0:500 --set optimiser.learning_rate=2e-4 --output runs/part
  a video with a guessed camera; KITTI, twice as often as a bag of one's own:
      train_from_bags drive.mp4 --fov 90 --output runs/video
      train_from_bags kitti/2011_09_26 my_drive --weights 2,1 --output runs/mixture
  go on after Ctrl-C, or after the process was killed:
      train_from_bags drive_bag --output runs/drive --resume
  write the report of an earlier run again; with its recordings, pictures too:
      train_from_bags --report runs/drive
      train_from_bags drive_bag --report runs/drive

exit codes: 0 done, 2 wrong usage, 3 no usable data, 4 diverged, 130 interrupted (the state is saved)
"""


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, and as `typed` what they were read from."""
    typed = sys.argv[1:] if argv is None else list(argv)
    return argparse.Namespace(typed=typed, **vars(_parser().parse_args(typed)))


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="train_from_bags",
        description="Train depth, odometry and optical flow together on recordings of a moving camera: rosbag2 (mcap "
        "or sqlite3, Image or CompressedImage with CameraInfo), videos, folders of images, KITTI raw and odometry, "
        "Cityscapes sequences, TUM RGB-D, rendered streets. Prints first what it found, chose and dropped.",
        epilog=presets_text() + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bags",
        nargs="*",
        metavar="RECORDING",
        help="bag (folder, .mcap, .db3), video, folder of images or of a data set, or render:SEED[:FRAMES]; which of "
        "them is seen by what lies there",
    )
    data = parser.add_argument_group("data")
    add_data_options(data)
    _add_cache_options(data)
    _add_run_options(parser.add_argument_group("run"))
    return parser


def presets_text() -> str:
    """The presets, one a line."""
    lines = preset_lines()
    width = max(map(len, lines))
    return "presets:\n" + "".join(f"  {name:{width}}  {line}\n" for name, line in lines.items()) + "\n"


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


def _add_cache_options(group: argparse._ArgumentGroup) -> None:
    """Where prepared recordings are kept."""
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep the recordings, decoded and at the size of the networks, in this folder, and read from there what "
        "was kept before (default: coopnet/prepared in $XDG_CACHE_HOME, else in ~/.cache)",
    )
    choice.add_argument("--no-cache", action="store_true", help="decode the recordings anew, keep nothing")


def _add_run_options(group: argparse._ArgumentGroup) -> None:
    """How to train, and where to."""
    add = group.add_argument
    add("--output", "-o", type=Path, metavar="DIR", help="run folder to make (needed unless --dry-run)")
    add(
        "--preset",
        metavar="NAME",
        help=f"networks and schedule, of the presets below (default: {DEFAULT_PRESET}; with --init the networks are "
        "those of the checkpoint unless a preset is named)",
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
    add(
        "--settings",
        action="store_true",
        help="list the presets and every KEY of --set with its default and meaning, and exit",
    )
    add(
        "--init",
        type=Path,
        metavar="CHECKPOINT",
        help="start from these weights (.safetensors); they stay the best until a validation finds better ones",
    )
    add(
        "--adapt",
        action="store_true",
        help=f"a short run that adapts weights to a recording: --init (default then: {Path(SHIPPED_WEIGHTS).name}, as "
        f"shipped) and the settings of {ADAPTATION} on top of the preset",
    )
    add(
        "--freeze",
        type=_names,
        default=(),
        metavar="PART,...",
        help="parts of the networks that stay as they are in --init: depth, pose, flow, depth.encoder, depth.decoder, "
        "flow.features, flow.decoder (short for --set frozen=[...])",
    )
    add("--resume", action="store_true", help="go on with the run in --output exactly where it stopped")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive, help="optimiser steps (default: of the preset)")
    length.add_argument("--epochs", type=_positive, help="passes over the training frames, instead of --steps")
    add("--batch-size", type=_positive, help="targets per step (default: of the preset)")
    add("--device", help="auto, cpu, cuda or cuda:N (default: of the preset, auto)")
    add("--seed", type=int, help="seed of weights, order and augmentation (default: of the preset)")
    add(
        "--dry-run",
        action="store_true",
        help="read the data and print what would be done; write nothing, but keep what was read in the cache",
    )
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="train nothing: write report.html of the run in DIR again, with new pictures if recordings are named",
    )
    add("--rerun", type=Path, metavar="FILE", help="write the figures over the steps and the pictures for Rerun (.rrd)")


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


def _names(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _field_of_view(text: str) -> float:
    """Degrees between 0 and 180."""
    value = float(text)
    if not 0 < value < 180:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 180 degrees")
    return value


def _size(text: str) -> tuple[int, int]:
    """WxH, both multiples of 32 and large enough for the networks."""
    width, height = image_size(text)
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


def all_bags(arguments: argparse.Namespace) -> list[Spec]:
    """The recordings to read, those for validation last."""
    return [*arguments.bags, *(bag for bag in arguments.validation_bag if bag not in arguments.bags)]


def prepare_options(arguments: argparse.Namespace, config: TrainConfig) -> PrepareOptions:
    """What the options of `add_data_options` take from the recordings."""
    return PrepareOptions(
        topics=tuple(arguments.topic),
        info=arguments.camera_info,
        calibration=arguments.calibration,
        fov_degrees=assumed_fov(arguments, config),
        frames=arguments.frames,
        gap_factor=arguments.gap_factor,
        still_threshold=arguments.still_threshold,
        validation_share=arguments.validation_share,
        validation_bags=tuple(arguments.validation_bag),
        minimum_frames=neighbour_span(config.frame_offsets) + 1,
    )


def assumed_fov(arguments: argparse.Namespace, config: TrainConfig) -> float | None:
    """Degrees to assume where there is no calibration; None: such recordings are refused."""
    return arguments.fov if arguments.fov is not None or not config.learn_intrinsics else ASSUMED_DEGREES
