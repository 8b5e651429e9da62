"""The layouts of KITTI: raw data (drives) and odometry (sequences)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from coopnet_core.data.calibration import Calibration, kitti_calibration
from coopnet_core.data.image_files import PICTURE_SUFFIXES, absolute, files_with, natural_order
from coopnet_core.data.sources.images import ImageLayout, ImageSequence
from coopnet_core.data.stamps import stamps_of_images, steady_stamps

_FPS = 10.0
# Colour before grey, left before right.
_RAW_CAMERAS = ("image_02", "image_03", "image_00", "image_01")
_ODOMETRY_CAMERAS = ("image_2", "image_3", "image_0", "image_1")
_RAW_CALIBRATION, _RAW_TIMES = "calib_cam_to_cam.txt", "timestamps.txt"
_CALIBRATION, _TIMES = "calib.txt", "times.txt"


def find_raw(path: Path) -> ImageLayout | None:
    """The drives at a path: a drive, one of its image folders, or a folder (of a day, of all days) that holds drives.

    Raises:
        UsageError: a calibration or a file of times that cannot be right.
    """
    place, asked = absolute(path), None
    if place.name == "data" and _is_raw_camera(place.parent):
        place = place.parent
    if _is_raw_camera(place):
        asked, drives = place.name, [place.parent]
    else:
        drives = _drives(place) or [drive for day in _folders(place) for drive in _drives(day)]
    if not drives:
        return None
    sequences, notes, cameras = [], [], set()
    for drive in drives:
        camera = asked or next(name for name in _RAW_CAMERAS if _is_raw_camera(drive / name))
        cameras.add(camera)
        calibration_path = next(
            (place / _RAW_CALIBRATION for place in (drive, drive.parent) if (place / _RAW_CALIBRATION).is_file()), None
        )
        # The images of the _extract drives are as the camera took them, those of _sync are rectified.
        key = f"{'K' if drive.name.endswith('_extract') else 'P_rect'}_{camera[-2:]}"
        calibration = None if calibration_path is None else kitti_calibration(calibration_path, key)
        sequences += _sequence(drive.name, drive / camera / "data", drive / camera / _RAW_TIMES, calibration, notes)
    return ImageLayout(
        "KITTI raw",
        ", ".join(sorted(cameras)),
        f"image_0?/data in {_places(drives)}",
        tuple(sequences),
        tuple(notes),
        f"{_RAW_CALIBRATION} in the drive or beside it",
    )


def find_odometry(path: Path) -> ImageLayout | None:
    """The sequences at a path: a sequence, one of its image folders, the folder of sequences, or the one that holds it.

    Raises:
        UsageError: a calibration or a file of times that cannot be right.
    """
    place = absolute(path)
    if place.name in _ODOMETRY_CAMERAS and _odometry_camera(place.parent) is not None:
        found = {place.parent: place.name}
    else:
        candidates = [place, *_folders(place), *_folders(place / "sequences")]
        found = {folder: camera for folder in candidates if (camera := _odometry_camera(folder))}
    if not found:
        return None
    sequences, notes = [], []
    for folder, camera in found.items():
        calibration = kitti_calibration(folder / _CALIBRATION, f"P{camera[-1]}")
        sequences += _sequence(folder.name, folder / camera, folder / _TIMES, calibration, notes)
    return ImageLayout(
        "KITTI odometry",
        ", ".join(sorted(set(found.values()))),
        f"image_? and {_CALIBRATION} in {_places(list(found))}",
        tuple(sequences),
        tuple(notes),
        _CALIBRATION,
    )


def _is_raw_camera(folder: Path) -> bool:
    return bool(re.fullmatch(r"image_0[0-3]", folder.name)) and (folder / "data").is_dir()


def _drives(folder: Path) -> list[Path]:
    """The folder if it is a drive, else the drives in it."""
    return [
        place for place in (folder, *_folders(folder)) if any(_is_raw_camera(place / name) for name in _RAW_CAMERAS)
    ]


def _odometry_camera(folder: Path) -> str | None:
    """The image folder to use, where a folder is a sequence."""
    if not (folder / _CALIBRATION).is_file():
        return None
    return next((name for name in _ODOMETRY_CAMERAS if (folder / name).is_dir()), None)


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=natural_order) if folder.is_dir() else []


def _places(folders: list[Path]) -> str:
    """The folders in a few words."""
    names = ", ".join(folder.name for folder in folders[:3])
    return f"{names}{', ..' if len(folders) > 3 else ''} ({len(folders)} in all)" if len(folders) > 1 else names


def _sequence(
    name: str, folder: Path, times: Path, calibration: Calibration | None, notes: list[str]
) -> list[ImageSequence]:
    """The images of one folder with their times; none where there is no image."""
    files = sorted(files_with(folder, PICTURE_SUFFIXES), key=natural_order)
    if not files:
        notes.append(f"{folder} holds no image")
        return []
    stamps: np.ndarray
    if times.is_file():
        stamps = stamps_of_images(times, files)
    else:
        stamps, _ = steady_stamps([file.stem for file in files], _FPS)
        notes.append(f"{times} is not there: {_FPS:g} images per second are assumed")
    return [ImageSequence(name, tuple(files), stamps, calibration)]
