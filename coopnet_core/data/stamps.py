"""Times written in text files and file names, exact to the nanosecond."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from coopnet_core.errors import UsageError

STAMP_NAMES = ("timestamps.txt", "times.txt", "stamps.txt")
"""Files looked for beside images."""
_MICROSECOND_DIGITS, _NANOSECOND_DIGITS = 16, 19
_EXPECTED = (
    "seconds (1305031102.175304), nanoseconds (1403636579763555584) or date and time (2011-09-26 13:02:25.964389445)"
)


def stamp_ns(text: str) -> int | None:
    """Nanoseconds of a time in seconds, whole micro- or nanoseconds since 1970, or date and time; None: none of them.

    Examples:
        >>> stamp_ns("1305031102.175304"), stamp_ns("1.036224e-01"), stamp_ns("1403636579763555584")
        (1305031102175304000, 103622400, 1403636579763555584)
        >>> stamp_ns("1970-01-01 00:00:01.000000002")
        1000000002
    """
    text = text.strip()
    if text.isdigit() and len(text) in (_MICROSECOND_DIGITS, _NANOSECOND_DIGITS):
        return int(text) * (1000 if len(text) == _MICROSECOND_DIGITS else 1)
    date = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?", text)
    try:
        if date:
            whole = datetime.fromisoformat(f"{date[1]} {date[2]}").replace(tzinfo=timezone.utc)
            return int(whole.timestamp()) * 10**9 + int(Decimal(date[3] or "0").scaleb(9))
        value = Decimal(text)
    except (InvalidOperation, ValueError):
        return None
    return int(value.scaleb(9).to_integral_value()) if value.is_finite() and abs(value) < 10**10 else None


def read_stamps(path: Path) -> np.ndarray:
    """A file with one time per row, (N,) int64 nanoseconds; empty rows and those that start with # are passed over.

    Raises:
        UsageError: unreadable, empty, or a row that is no time; names the row.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the times cannot be read ({error}).") from None
    stamps = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        stamp = stamp_ns(line)
        if stamp is None:
            raise UsageError(
                f"{path}, line {number}: found '{line.strip()[:60]}'; one time per image was expected, as {_EXPECTED}."
            )
        stamps.append(stamp)
    if not stamps:
        raise UsageError(f"{path}: no time in it. One row per image was expected.")
    return np.array(stamps, np.int64)


def stamps_of_images(path: Path, images: list[Path]) -> np.ndarray:
    """The times in a file that belong to these images: one per row, or by the number in the images' names.

    Returns:
        (N,) int64 nanoseconds.

    Raises:
        UsageError: from `read_stamps`; or the numbers of images and rows do not fit.
    """
    stamps = read_stamps(path)
    if len(stamps) == len(images):
        return stamps
    numbers = [int(image.stem) if image.stem.isdigit() else -1 for image in images]
    if min(numbers) >= 0 and max(numbers) < len(stamps):
        return stamps[numbers]
    raise UsageError(
        f"{path} has {len(stamps)} rows, there are {len(images)} images ({images[0].name} .. {images[-1].name}). "
        "Expected one row per image, or images named by the number of their row, counted from 0."
    )


def named_stamps(stems: list[str]) -> np.ndarray | None:
    """(N,) int64 nanoseconds where every file name is a time, in seconds with decimals or in micro- or nanoseconds."""
    timelike = all(
        re.fullmatch(r"\d+\.\d+", stem) or (stem.isdigit() and len(stem) in (_MICROSECOND_DIGITS, _NANOSECOND_DIGITS))
        for stem in stems
    )
    return np.array([stamp_ns(stem) for stem in stems], np.int64) if timelike else None


def steady_stamps(stems: list[str], fps: float) -> tuple[np.ndarray, int]:
    """Stamps at a steady rate, by the numbers at the end of the names where these increase, else by the order.

    Numbers that jump mean that images are missing: their stamps jump as well. The median step counts as one image.

    Returns:
        (N,) int64 nanoseconds from 0, and how often the numbers jump.
    """
    found = [re.search(r"(\d+)$", stem) for stem in stems]
    numbers = np.array([int(match[1]) for match in found if match], np.float64)
    places, jumps = np.arange(len(stems), dtype=np.float64), 0
    if len(numbers) == len(stems) > 1 and (np.diff(numbers) > 0).all():
        steps = np.diff(numbers)
        places = (numbers - numbers[0]) / np.median(steps)
        jumps = int((steps > 2 * np.median(steps)).sum())
    return np.round(places * 1e9 / fps).astype(np.int64), jumps
