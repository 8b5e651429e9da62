"""Where the frames of a recording are kept from reading to training: in memory, or in a file if they are too many."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from coopnet_core.errors import UsageError

_LARGEST_SHARE = 0.5
"""Of the free memory, for one recording: networks and batches need some too."""
_CGROUP = Path("/sys/fs/cgroup")


def allocate_frames(frames: int, width: int, height: int) -> np.ndarray:
    """Room for frames, (N, H, W, 3) uint8, not initialised.

    In memory, of which the system hands out no more than is written; or, where that would take more than half of what
    is free, in a file without a name in the folder for temporary files (TMPDIR), which goes with the array.

    Raises:
        UsageError: neither has the room.
    """
    shape = (max(1, frames), height, width, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if size <= _LARGEST_SHARE * free_memory():
        try:
            return np.empty(shape, np.uint8)
        except MemoryError:  # a limit of the process that the system's figures do not show
            pass
    try:
        with tempfile.TemporaryFile(prefix="coopnet_frames_") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, later it would kill the process
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise UsageError(
            f"{frames} images at {width}x{height} take {size / 1e9:.1f} GB, more than half of the free memory, and "
            f"{tempfile.gettempdir()} has no room for them ({error.strerror or error}). Use a part of the recording "
            "(--frames A:B) or a smaller --size, or name a folder with more space by the variable TMPDIR."
        ) from None


class FrameBlock:
    """The kept frames of one recording in one growing block: a `FrameStore` that ends with the process."""

    def __init__(self, size: tuple[int, int], expected: int) -> None:
        """`size`: (width, height), pixels; `expected`: frames there will be, at most, as far as is known.

        Raises:
            UsageError: as `allocate_frames`; so do the other methods.
        """
        self._size = size
        self._frames = allocate_frames(expected, *size)
        self._count = 0

    def append(self, image: np.ndarray) -> None:
        """Keep one more (H, W, 3) uint8 image."""
        self.extend(image[None])

    def extend(self, images: np.ndarray) -> None:
        """Keep more images, (N, H, W, 3) uint8."""
        count = self._count + len(images)
        if count > len(self._frames):
            larger = allocate_frames(max(count, 2 * self._count), *self._size)
            larger[: self._count] = self._frames[: self._count]
            self._frames = larger
        self._frames[self._count : count] = images
        self._count = count

    def images(self) -> np.ndarray:
        """All so far, (N, H, W, 3) uint8, a view."""
        return self._frames[: self._count]

    def progress(self, so_far: object, broken_off: bool) -> None:
        """Nothing outlives the process."""


def describe_place(frames: np.ndarray) -> str:
    """Where frames from a `FrameBlock` are, in words, if not in memory."""
    if not is_in_file(frames):
        return ""
    return (
        f"{frames.nbytes / 1e9:.1f} GB of frames are more than half of the free memory: they are kept in a file in "
        f"{tempfile.gettempdir()}"
    )


def is_in_file(frames: np.ndarray) -> bool:
    """Whether frames are kept in a file."""
    return isinstance(frames, np.memmap)


def free_memory() -> int:
    """Bytes that can be used without swapping: of the system, or of the container where it is given less."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_available_in_system(pages), _available_in_container())


def _available_in_system(otherwise: int) -> int:
    """MemAvailable, which counts what the page cache can give back."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return otherwise


def _available_in_container() -> int:
    """What a cgroup (v2) leaves; very much without one."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
        return (1 << 62) if limit == "max" else int(limit) - int(used) + int(cache)
    except (OSError, ValueError, KeyError):
        return 1 << 62
