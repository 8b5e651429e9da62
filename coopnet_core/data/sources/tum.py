"""The layout of TUM RGB-D: lists of times and files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from coopnet_core.data.calibration import Calibration, calibration_beside, read_calibration
from coopnet_core.data.image_files import absolute
from coopnet_core.data.sources.images import ImageLayout, ImageSequence
from coopnet_core.data.stamps import stamp_ns
from coopnet_core.errors import UsageError

_LISTS = ("rgb.txt", "associations.txt", "associated.txt", "assoc.txt")
_SIZE = (640, 480)
# fx fy cx cy and k1 k2 p1 p2 k3 of the colour cameras, as the data set publishes them; images of 3 are undistorted.
_KNOWN = {
    "1": ((517.3, 516.5, 318.6, 255.3), (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)),
    "2": ((520.9, 521.0, 325.1, 249.7), (0.2312, -0.7849, -0.0033, -0.0001, 0.9172)),
    "3": ((535.4, 539.2, 320.1, 247.6), ()),
}


def find_tum(path: Path) -> ImageLayout | None:
    """The colour images that rgb.txt lists, or else an associations file.

    Raises:
        UsageError: a row of the list, or a calibration, that cannot be right.
    """
    listed = next((path / name for name in _LISTS if (path / name).is_file()), None)
    if listed is None:
        return None
    rows = _rows(listed)
    beside = calibration_beside((path,))
    calibration = read_calibration(beside) if beside else _published(absolute(path).name)
    stamps = np.array([stamp for stamp, _ in rows], np.int64)
    files = tuple(path / name for _, name in rows)
    return ImageLayout(
        "TUM RGB-D",
        "rgb",
        f"{len(rows)} colour images listed in {listed.name}",
        (ImageSequence("rgb", files, stamps, calibration),),
        (f"stamps: {listed}",),
        "a calibration file (meta.json, camera.yaml), or freiburg1, 2 or 3 in the name of the folder,",
    )


def _rows(path: Path) -> list[tuple[int, str]]:
    """(nanoseconds, file) of each colour image.

    Raises:
        UsageError: a row of another form, or none at all.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the list of images cannot be read ({error}).") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.replace(",", " ").split()
        pairs = list(zip(words[::2], words[1::2], strict=False))
        # associate.py writes colour and depth in the order in which it was given the lists.
        colour = next((pair for pair in pairs if not pair[1].startswith("depth")), None)
        stamp = None if colour is None else stamp_ns(colour[0])
        if stamp is None or len(words) % 2:
            raise UsageError(
                f"{path}, line {number}: found '{line.strip()[:60]}'; 'time rgb/file' was expected, in an association "
                "followed or preceded by 'time depth/file'."
            )
        rows.append((stamp, colour[1]))
    if not rows:
        raise UsageError(f"{path}: no image is listed. Rows 'time rgb/file' were expected.")
    return rows


def _published(name: str) -> Calibration | None:
    """The intrinsics of the camera that the name of a recording tells."""
    match = re.search(r"(?:freiburg|fr)([123])", name)
    if match is None:
        return None
    intrinsics, distortion = _KNOWN[match[1]]
    origin = f"freiburg{match[1]}, as published with the data set"
    return Calibration(origin, *intrinsics, _SIZE, "plumb_bob" if distortion else "", distortion)
