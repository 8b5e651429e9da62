"""What lies at a path: the first format that recognises its own marks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coopnet_core.data.bag_storage import STORAGE_SUFFIXES
from coopnet_core.data.image_files import PICTURE_SUFFIXES, files_with, natural_order
from coopnet_core.data.sources.bags import BagSource
from coopnet_core.data.sources.cityscapes import find_cityscapes
from coopnet_core.data.sources.folder import find_folder
from coopnet_core.data.sources.images import ImageLayout, ImageSource
from coopnet_core.data.sources.interface import Source, SourceOptions
from coopnet_core.data.sources.kitti import find_odometry, find_raw
from coopnet_core.data.sources.rendered import PREFIX, RenderedSource
from coopnet_core.data.sources.tum import find_tum
from coopnet_core.data.sources.video import VIDEO_SUFFIXES, VideoSource
from coopnet_core.errors import NoUsableDataError, UsageError

_LAYOUTS: tuple[Callable[[Path], ImageLayout | None], ...] = (find_cityscapes, find_tum, find_odometry, find_raw)
"""From the most particular marks to the least."""
_KNOWN = (
    "a rosbag2 recording (folder, .mcap, .db3), a video, a folder of images, KITTI raw or odometry, Cityscapes "
    "sequences, TUM RGB-D, or render:SEED"
)
_BAG_ENDINGS = (*STORAGE_SUFFIXES, *(f"{suffix}.zstd" for suffix in STORAGE_SUFFIXES), ".bag")


def open_source(spec: str | Path, options: SourceOptions | None = None) -> Source:
    """Open a recording of any kind.

    Args:
        spec: a path, or `render:SEED[:FRAMES]`.
        options: how to read it.

    Returns:
        The source, to be closed by the caller (`contextlib.closing`).

    Raises:
        UsageError: no such path, of no known kind, or a file beside the images that cannot be right.
        NoUsableDataError: recognised, but empty.
    """
    options = options or SourceOptions()
    if isinstance(spec, str) and spec.startswith(PREFIX):
        return RenderedSource(spec, options)
    path = Path(spec)
    if not path.exists():
        raise UsageError(f"No recording at {path}: neither a folder nor a file. Expected: {_KNOWN}.")
    return _open_folder(path, options) if path.is_dir() else _open_file(path, options)


def _open_file(path: Path, options: SourceOptions) -> Source:
    """A single file.

    Raises:
        UsageError: of no known kind.
    """
    if path.name.endswith(_BAG_ENDINGS) or path.name == "metadata.yaml":
        return BagSource(path, options)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(path, [path], options)
    hint = " It is one image: name its folder." if path.suffix.lower() in PICTURE_SUFFIXES else ""
    raise UsageError(f"{path} is no recording.{hint} Expected: {_KNOWN}.")


def _open_folder(path: Path, options: SourceOptions) -> Source:
    """A folder, by what it holds.

    Raises:
        NoUsableDataError: nothing that is known.
    """
    if _holds_bag(path):
        return BagSource(path, options)
    for find in _LAYOUTS:
        layout = find(path)
        if layout is not None:
            return ImageSource(path, layout, options)
    videos = sorted(files_with(path, VIDEO_SUFFIXES), key=natural_order)
    folders = [folder for folder in (path, *path.iterdir()) if folder.is_dir() and files_with(folder, PICTURE_SUFFIXES)]
    if videos and folders and path not in folders:
        raise UsageError(
            f"{path} holds videos ({videos[0].name}, {len(videos)} in all) and images ({folders[0].name}). Name those "
            "that are meant."
        )
    if folders:
        return ImageSource(path, find_folder(path), options)
    if videos:
        return VideoSource(path, videos, options)
    inside = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _holds_bag(folder))
    if inside:
        names = " ".join(str(path / name) for name in inside[:4])
        raise UsageError(f"{path} is a folder of bags ({', '.join(inside)}), not a bag. Name the bags: {names}")
    content = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    raise NoUsableDataError(f"{path} holds no recording (it holds: {content}). Expected: {_KNOWN}.")


def _holds_bag(folder: Path) -> bool:
    """Whether a folder is a bag: its metadata, or files of a storage."""
    return (folder / "metadata.yaml").is_file() or any(
        child.name.endswith(_BAG_ENDINGS[:-1]) for child in folder.iterdir()
    )
