"""A folder of images, with times and a calibration beside them where they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coopnet_core.data.calibration import calibration_beside, read_calibration, read_json
from coopnet_core.data.image_files import PICTURE_SUFFIXES, absolute, files_with, find_image_folder, natural_order
from coopnet_core.data.sources.images import ImageLayout, cut
from coopnet_core.data.stamps import STAMP_NAMES, named_stamps, stamps_of_images, steady_stamps
from coopnet_core.errors import UsageError

DEFAULT_FPS = 10.0


def find_folder(path: Path) -> ImageLayout:
    """The images in a folder, or in the one folder of images in it.

    Raises:
        NoUsableDataError: there is no image.
        UsageError: several folders may be meant, or a file beside the images cannot be right.
    """
    folder = find_image_folder(path, suffixes=PICTURE_SUFFIXES)
    files = sorted(files_with(folder, PICTURE_SUFFIXES), key=natural_order)
    places = (folder, *((path,) if folder != path else (absolute(folder).parent,)))
    calibration_path = calibration_beside(places)
    calibration = None if calibration_path is None else read_calibration(calibration_path)
    meta, meta_path = side_facts(calibration_path)
    starts = cuts(meta, meta_path, len(files))
    stamps, notes = _stamps(places, files, meta, meta_path)
    if starts:
        notes.append(f"{meta_path} cuts the images before {', '.join(map(str, starts))}: a new clip begins at each")
    return ImageLayout(
        "folder of images",
        folder.name,
        f"{len(files)} image files in {folder}",
        cut(folder.name, files, stamps, starts, calibration),
        tuple(notes),
    )


def side_facts(calibration_path: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The content of a meta.json, where that is the calibration: it may hold fps and cuts as well."""
    if calibration_path is None or calibration_path.suffix != ".json":
        return {}, None
    return read_json(calibration_path), calibration_path


def cuts(meta: dict[str, Any], path: Path | None, count: int) -> list[int]:
    """The images that begin a new clip, by `cuts` of meta.json, increasing.

    Raises:
        UsageError: no list of whole numbers.
    """
    found = meta.get("cuts") or []
    if not isinstance(found, list) or not all(isinstance(value, int) for value in found):
        raise UsageError(f"{path}: cuts = {found!r}; a list of frame numbers that start a new clip was expected.")
    return sorted({value for value in found if 0 < value < count})


def _stamps(
    places: tuple[Path, ...], files: list[Path], meta: dict[str, Any], meta_path: Path | None
) -> tuple[np.ndarray, list[str]]:
    """The stamps (N,) int64 ns of the images, and where they are from."""
    listed = next((place / name for place in places for name in STAMP_NAMES if (place / name).is_file()), None)
    if listed is not None:
        return stamps_of_images(listed, files), [f"stamps: {listed}"]
    stems = [file.stem for file in files]
    named = named_stamps(stems)
    if named is not None:
        return named, ["stamps: the names of the images are times"]
    fps = meta.get("fps")
    if fps is not None and (not isinstance(fps, int | float) or not 0 < fps < 1e4):
        raise UsageError(f"{meta_path}: fps = {fps!r}; the number of images per second was expected.")
    stamps, jumps = steady_stamps(stems, float(fps or DEFAULT_FPS))
    origin = f"fps of {meta_path}" if fps else f"assumed; a {STAMP_NAMES[0]} beside the images would say"
    notes = [f"stamps: {fps or DEFAULT_FPS:g} images per second ({origin})"]
    if jumps:
        notes.append(f"the numbers in the names of the images jump {jumps} times: images are missing there")
    return stamps, notes
