"""The command `make_demo_bag`: a rendered street, or a folder of images, as a bag with its truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coopnet_core.data.bag_writer import STORAGES, BagOptions, BagWriter, check_output, mount
from coopnet_core.data.folder import FolderFrame, FolderOptions, FolderRecording, open_folder
from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_ros.command import run_guarded

_RENDERED_MOUNT = mount(1.2, 0.0, 1.5)
_FOLDER_ONLY = ("camera", "poses", "depth", "flow", "depth_scale")
_RENDERED_ONLY = ("seed", "width", "height", "fov", "movers", "static_camera")
_DEFAULTS = {"seed": 0, "width": 640, "height": 192, "fov": 80.0}
_DEFAULT_FRAMES, _DEFAULT_FPS = 200, 10.0

_EXAMPLES = """\
examples:
  a drive of 20 s through a rendered street, with exact truth:
      make_demo_bag --output demo_bag --seed 3
  a recording of images with KITTI poses:
      make_demo_bag --from-folder drive --camera drive/meta.json --poses drive/poses.txt --output drive_bag
  with depth PNGs of 5000 units per metre:
      make_demo_bag --from-folder desk --depth desk/depth --depth-scale 5000 --output desk_bag

meta.json: {"width": 828, "height": 250, "fx": 481.0, "fy": 481.0, "cx": 406.2, "cy": 115.1, "fps": 10, "cuts": [],
"distortion": [k1, k2, p1, p2, k3]}; fx .. cy may be null (not calibrated); cuts are the frames that start a new clip.

exit codes: 0 done, 2 wrong usage, 3 no usable data, 130 interrupted
"""

Item = tuple[Frame, FrameTruth, tuple[str, bytes] | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_guarded(
        lambda: _run(_parser().parse_args(argv), Console()),
        "Interrupted: the bag is not complete; what was written is in the .partial folder.",
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Check the options, then write the bag."""
    _check_combination(arguments)
    check_output(arguments.output, arguments.overwrite)
    return _from_folder(arguments, console) if arguments.from_folder else _rendered(arguments, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_demo_bag",
        description="Write a rosbag2 recording with images, CameraInfo and what is true of them (depth, odometry, "
        "flow, moving pixels): of a rendered street, or of a folder of images.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", "-o", type=Path, required=True, metavar="BAG", help="the bag folder to make")
    add("--overwrite", action="store_true", help="replace the bag if it exists")
    add("--storage", choices=STORAGES, default=STORAGES[0], help="file format (default: %(default)s)")
    add("--compressed", action="store_true", help="record CompressedImage (image files are taken as they are)")
    add("--frames", type=_positive_int, help=f"number of images (default: {_DEFAULT_FRAMES}, or all of the folder)")
    add("--fps", type=_positive, help=f"images per second (default: that of meta.json, or {_DEFAULT_FPS:g})")
    add("--dry-run", action="store_true", help="only print what would be done")
    rendered = parser.add_argument_group("rendered street").add_argument
    rendered("--seed", type=_not_negative, help="scene; the same seed gives the same bag (default: 0)")
    rendered("--width", type=_positive_int, help="pixels (default: 640)")
    rendered("--height", type=_positive_int, help="pixels (default: 192)")
    rendered("--fov", type=_field_of_view, metavar="DEGREES", help="horizontal field of view (default: 80)")
    rendered("--movers", type=_share, metavar="SHARE", help="wanted share of moving pixels, 0-0.5 (default: by seed)")
    rendered("--static-camera", action="store_true", default=None, help="the camera stands (default: it drives)")
    folder = parser.add_argument_group("folder of images").add_argument
    folder("--from-folder", type=Path, metavar="DIR", help="folder of jpg/png images, or of a recording that holds it")
    folder("--camera", type=Path, metavar="META.JSON", help="intrinsics, rate, cuts (default: meta.json of the folder)")
    folder("--poses", type=Path, metavar="FILE", help="KITTI rows (3x4 camera to world), or TUM rows by time")
    folder("--depth", type=Path, metavar="DIR", help="16-bit PNGs, 0 = unknown, with the names of the images")
    folder("--flow", type=Path, metavar="DIR", help="KITTI flow PNGs or .flo files, with the names of the images")
    folder("--depth-scale", type=_positive, metavar="UNITS", help="depth units per metre (default: meta.json, or 256)")
    folder(
        "--flow-towards",
        choices=("previous", "next"),
        default="previous",
        help="where the flow files lead. The bag's flow leads to the previous image; with `next` (KITTI, Middlebury) "
        "the images are recorded in reverse order, which makes it so (default: %(default)s)",
    )
    return parser


def _positive(text: str) -> float:
    return _number(text, float, lambda value: 0 < value < 1e9, "a positive number")


def _positive_int(text: str) -> int:
    return _number(text, int, lambda value: value > 0, "a positive whole number")


def _not_negative(text: str) -> int:
    return _number(text, int, lambda value: value >= 0, "a whole number from 0")


def _share(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value <= 0.5, "a share from 0 to 0.5")


def _field_of_view(text: str) -> float:
    return _number(text, float, lambda value: 10 <= value <= 150, "degrees from 10 to 150")


def _number(text: str, kind: type, good: object, expected: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"{text!r}: {expected} was expected")
    return value


def _check_combination(arguments: argparse.Namespace) -> None:
    """Refuse options of the mode that is not used.

    Raises:
        UsageError: naming them.
    """
    wrong = _RENDERED_ONLY if arguments.from_folder else _FOLDER_ONLY
    given = [f"--{name.replace('_', '-')}" for name in wrong if getattr(arguments, name) is not None]
    if given:
        mode = "a rendered street: leave out --from-folder" if arguments.from_folder else "--from-folder DIR"
        raise UsageError(f"{', '.join(given)} can only be used with {mode}.")


def _rendered(arguments: argparse.Namespace, console: Console) -> int:
    chosen = {name: _given(arguments, name, default) for name, default in _DEFAULTS.items()}
    camera = Camera.from_field_of_view(chosen["width"], chosen["height"], chosen["fov"])
    frames, fps = arguments.frames or _DEFAULT_FRAMES, arguments.fps or _DEFAULT_FPS
    moves = not arguments.static_camera
    config = SceneConfig(chosen["seed"], frames, camera, fps, arguments.movers, camera_moves=moves)
    console.print(
        f"Rendering {frames} images of {camera.width}x{camera.height} at {fps:g} Hz ({frames / fps:.1f} s), "
        f"scene {config.seed}, with depth, odometry, flow, moving and occluded pixels"
    )
    items = ((frame, truth, None) for frame, truth in iter_rendered(config))
    options = _bag_options(arguments, fps, rendered=True)
    return _write(arguments, console, items, frames, options)


def _from_folder(arguments: argparse.Namespace, console: Console) -> int:
    recording = open_folder(
        FolderOptions(
            arguments.from_folder,
            arguments.camera,
            arguments.poses,
            arguments.depth,
            arguments.flow,
            arguments.fps,
            arguments.depth_scale,
            arguments.flow_towards,
            arguments.frames,
        )
    )
    for note in recording.notes:
        console.print(f"  {escape(note)}", soft_wrap=True)
    console.print(f"Recording {len(recording)} images at {recording.fps:g} Hz")
    options = _bag_options(arguments, recording.fps, rendered=False)
    return _write(arguments, console, _items(recording), len(recording), options)


def _items(recording: FolderRecording) -> Iterator[Item]:
    item: FolderFrame
    for item in recording:
        yield item.frame, item.truth, item.encoded


def _given(arguments: argparse.Namespace, name: str, default: float) -> float:
    value = getattr(arguments, name)
    return default if value is None else value


def _bag_options(arguments: argparse.Namespace, fps: float, rendered: bool) -> BagOptions:
    return BagOptions(
        storage=arguments.storage,
        compressed=arguments.compressed,
        overwrite=arguments.overwrite,
        T_base_camera=_RENDERED_MOUNT if rendered else mount(),
        period_ns=round(1e9 / fps),
    )


def _write(
    arguments: argparse.Namespace, console: Console, items: Iterable[Item], count: int, options: BagOptions
) -> int:
    form = "CompressedImage" if options.compressed else "Image"
    console.print(f"  to {escape(str(arguments.output))} ({options.storage}, {form})", soft_wrap=True)
    if arguments.dry_run:
        console.print("Dry run: nothing was written.")
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with BagWriter(arguments.output, options) as writer, Progress(*columns, console=console) as progress:
        task = progress.add_task("images", total=count)
        for frame, truth, encoded in items:
            writer.write(frame, truth, encoded)
            progress.advance(task)
    console.print(
        f"[green]done:[/] {escape(str(arguments.output))}, {_megabytes(arguments.output):.0f} MB", soft_wrap=True
    )
    return 0


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
