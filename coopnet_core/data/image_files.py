"""Image files in folders: which they are, their order, and the times in their names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from coopnet_core.errors import NoUsableDataError, UsageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Files that a CompressedImage can hold as they are."""
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Files that can be decoded."""
_IMAGE_FOLDERS = ("images", "image_0", "image_00", "image_2", "image_02", "rgb", "image", "data")
_TRUTH_FOLDERS = re.compile(r"depth|flow|disp|mask|semantic|occ", re.IGNORECASE)


def absolute(path: Path) -> Path:
    """The whole path without dots; links are not followed, so that names stay what they are in the data set."""
    return Path(os.path.abspath(path))


def files_with(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder with these endings, in no order."""
    return [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]


def natural_order(path: Path) -> list[tuple[int, Any]]:
    """Sort key in which frame2 comes before frame10."""
    words = re.split(r"(\d+)", path.name)
    return [(0, int(word)) if word.isdigit() else (1, word) for word in words]


def find_image_folder(
    folder: Path, left_out: Collection[Path] = (), suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> Path:
    """The folder itself where it holds images, else the one in it that does and is not named like truth.

    Args:
        folder: of the images, or of the recording.
        left_out: folders that hold something else (depth, flow).
        suffixes: endings of the images.

    Raises:
        NoUsableDataError: there are no images.
        UsageError: several folders may be meant.
    """
    if files_with(folder, suffixes):
        return folder
    others = {path.resolve() for path in left_out}
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir()
        and path.resolve() not in others
        and not _TRUTH_FOLDERS.search(path.name)
        and files_with(path, suffixes)
    ]
    known = [path for path in found if path.name in _IMAGE_FOLDERS]
    for choice in (found, known):
        if len(choice) == 1:
            return choice[0]
    if not found:
        raise NoUsableDataError(
            f"No image ({', '.join(suffixes)}) in {folder} nor in its folders. Pass the folder of the images."
        )
    names = ", ".join(path.name for path in found)
    raise UsageError(f"{folder} holds several folders of images: {names}. Pass those that are meant.")


def named_times(stems: list[str]) -> np.ndarray | None:
    """Seconds, where every stem is a time with decimals (as in the TUM recordings) and they increase."""
    if not all(re.fullmatch(r"\d+\.\d+", stem) for stem in stems):
        return None
    times = np.array([float(stem) for stem in stems])
    return times if (np.diff(times) > 0).all() else None
