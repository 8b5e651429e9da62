"""Files that are never half there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a file that is being written; one that is found belongs to a process that was killed."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that at every moment, a kill or a power cut included, the old or the new one is there whole.

    Args:
        path: the file; its folder is made.
        write: given the path to write the content to, beside `path`.

    Raises:
        OSError and what `write` raises: the old file is untouched, what was written of the new one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        reach_the_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    reach_the_disk(path.parent)


def reach_the_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: a rename must not overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
