"""The image sequences of Cityscapes: snippets of 30 images around each annotated one."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from coopnet_core.data.calibration import Calibration, cityscapes_calibration, read_json
from coopnet_core.data.image_files import absolute
from coopnet_core.data.sources.images import ImageLayout, ImageSequence

_IMAGES, _CAMERAS = "leftImg8bit_sequence", "camera"
_FPS = 17.0
_NAME = re.compile(r"(?P<city>.+)_(?P<sequence>\d{6})_(?P<frame>\d{6})_leftImg8bit\.png")
Key = tuple[str, str, int]
"""City, number of the sequence, number of the frame."""


def find_cityscapes(path: Path) -> ImageLayout | None:
    """The snippets at a path: the data set, its image folder, a split or a city of it.

    Raises:
        UsageError: a camera file that cannot be right.
    """
    place = absolute(path)
    root = next((folder for folder in (place, *place.parents) if (folder / _IMAGES).is_dir()), None)
    if root is None or not (place == root or place.is_relative_to(root / _IMAGES)):
        return None
    files = {key: file for file in (root / _IMAGES if place == root else place).rglob("*.png") if (key := _key(file))}
    cameras = _camera_files(root / _CAMERAS)
    known: dict[Path, Calibration] = {}
    sequences = []
    for keys in _snippets(sorted(files)):
        camera = _camera_of(keys, cameras)
        if camera is not None and camera not in known:
            known[camera] = cityscapes_calibration(camera, read_json(camera))
        stamps = np.round((np.array([frame for *_, frame in keys]) - keys[0][2]) * 1e9 / _FPS).astype(np.int64)
        name = "_".join(map(str, keys[0]))
        sequences.append(ImageSequence(name, tuple(files[key] for key in keys), stamps, known.get(camera)))
    return ImageLayout(
        "Cityscapes",
        "leftImg8bit",
        f"{_IMAGES} in {root}, {len(sequences)} snippets",
        tuple(sequences),
        (f"stamps: {_FPS:g} images per second, the rate of the data set",),
        f"{_CAMERAS}/SPLIT/CITY/*_camera.json",
    )


def _key(file: Path) -> Key | None:
    match = _NAME.fullmatch(file.name)
    return (match["city"], match["sequence"], int(match["frame"])) if match else None


def _snippets(keys: list[Key]) -> list[list[Key]]:
    """Runs of consecutive frames of one sequence."""
    starts = [
        index
        for index, (before, after) in enumerate(pairwise(keys), 1)
        if before[:2] != after[:2] or after[2] != before[2] + 1
    ]
    return [keys[first:stop] for first, stop in pairwise([0, *starts, len(keys)]) if stop > first]


def _camera_files(folder: Path) -> dict[tuple[str, str], list[tuple[int, Path]]]:
    """(frame, file) of every camera file, by city and sequence."""
    found: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for file in sorted(folder.rglob("*_camera.json")):
        match = _NAME.fullmatch(file.name.replace("_camera.json", "_leftImg8bit.png"))
        if match:
            found.setdefault((match["city"], match["sequence"]), []).append((int(match["frame"]), file))
    return found


def _camera_of(keys: list[Key], cameras: dict[tuple[str, str], list[tuple[int, Path]]]) -> Path | None:
    """The camera file of a snippet: that of its annotated frame, else the nearest of its sequence."""
    middle = (keys[0][2] + keys[-1][2]) / 2
    files = cameras.get(keys[0][:2], [])
    return min(files, key=lambda entry: abs(entry[0] - middle))[1] if files else None
