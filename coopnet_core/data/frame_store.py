"""Where the frames of a recording are kept from reading to training: in memory, in a file, or compressed."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import numpy as np

from coopnet_core.data.compressed_frames import QUALITY, CompressedFrames, FrameCompressor, to_jpeg
from coopnet_core.data.frames import Images
from coopnet_core.errors import UsageError

_LARGEST_SHARE = 0.5
"""Of the free memory, for one recording: networks and batches need some too."""
_DECODING = "about 0.7 ms at 416x128"
"""Measured on one core of a server, `decode_picture` of a rendered street and of a drive."""
_CGROUP = Path("/sys/fs/cgroup")


def allocate_frames(frames: int, width: int, height: int) -> np.ndarray:
    """Room for frames, (N, H, W, 3) uint8, not initialised.

    In memory, of which the system hands out no more than is written; or, where that would take more than half of what
    is free, in a file without a name in the folder for temporary files (TMPDIR), which goes with the array.

    Raises:
        OSError: neither has the room.
    """
    shape = (max(1, frames), height, width, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if size <= _LARGEST_SHARE * free_memory():
        try:
            return np.empty(shape, np.uint8)
        except MemoryError:  # a limit of the process that the system's figures do not show
            pass
    with tempfile.TemporaryFile(prefix="coopnet_frames_") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, later it would kill the process
        return np.memmap(file, np.uint8, "r+", shape=shape)


class FrameBlock:
    """The kept frames of one recording: a `FrameStore` that ends with the process.

    They are one growing block, as `allocate_frames` gives it; where it gives none, they are compressed instead, those
    that are there already included.
    """

    def __init__(self, size: tuple[int, int], expected: int) -> None:
        """`size`: (width, height), pixels; `expected`: frames there will be, at most, as far as is known."""
        self._size, self._expected = size, expected
        self._frames = np.empty((0, size[1], size[0], 3), np.uint8)
        self._count = 0
        self._compressor: FrameCompressor | None = None
        self._refusal = ""
        self._make_room(expected)

    def append(self, image: np.ndarray) -> None:
        """Keep one more (H, W, 3) uint8 image.

        Raises:
            UsageError: there is no room for it, even compressed.
        """
        self.extend(image[None])

    def extend(self, images: np.ndarray) -> None:
        """Keep more images, (N, H, W, 3) uint8.

        Raises:
            UsageError: as `append`.
        """
        count = self._count + len(images)
        if self._compressor is None and count > len(self._frames):
            self._make_room(max(count, 2 * self._count))
        if self._compressor is not None:
            self._compress(images)
        else:
            self._frames[self._count : count] = images
            self._count = count

    def images(self) -> Images:
        """All so far, (N, H, W, 3) uint8, a view."""
        return self._frames[: self._count] if self._compressor is None else self._compressor.images()

    def last(self) -> np.ndarray:
        """The last of them as it was given, (H, W, 3) uint8."""
        return self._frames[self._count - 1]

    def progress(self, so_far: object, broken_off: bool) -> None:
        """Nothing outlives the process."""

    def _make_room(self, frames: int) -> None:
        """A block for so many frames in all, or none any more."""
        before = self._frames[: self._count]
        try:
            self._frames = allocate_frames(frames, *self._size)
        except OSError as error:
            self._refusal = error.strerror or str(error)
            self._compressor = FrameCompressor(self._size, free_memory)
            self._compress(before)
        else:
            self._frames[: self._count] = before

    def _compress(self, images: np.ndarray) -> None:
        """Keep images compressed; as it was given only the last one."""
        for image in images:
            try:
                self._compressor.append(image)
            except OSError as error:
                raise UsageError(self._no_room(image, error)) from None
        if len(images):
            self._frames, self._count = images[-1:].copy(), 1

    def _no_room(self, image: np.ndarray, error: OSError) -> str:
        """The message where compressed frames have no room either, from this image on."""
        held = self._compressor.images()
        frames, per_frame = max(self._expected, len(held) + 1), (held.nbytes + len(to_jpeg(image))) / (len(held) + 1)
        folder = tempfile.gettempdir()
        return (
            f"{frames} images at {self._size[0]}x{self._size[1]} take {in_words(frames * image.nbytes)}, more than "
            f"half of the free memory, and {folder} has no room for them ({self._refusal}). Compressed they take about "
            f"{in_words(frames * per_frame)}; {len(held)} of them found room, {in_words(held.nbytes)}, then {folder} "
            f"had no more ({error.strerror or error}). Use a part of the recording (--frames A:B) or a smaller --size, "
            "or name a folder with more space by the variable TMPDIR."
        )


def describe_place(frames: Images) -> str:
    """Where frames from a `FrameBlock` are, in words, if not in memory as they are."""
    folder = tempfile.gettempdir()
    if isinstance(frames, CompressedFrames):
        in_file = frames.nbytes_in_file
        places = [
            *([f"{in_words(frames.nbytes - in_file)} in memory"] if in_file < frames.nbytes else []),
            *([f"{in_words(in_file)} in a file in {folder}"] if in_file else []),
        ]
        return (
            f"{in_words(math.prod(frames.shape))} of frames are more than half of the free memory, and {folder} has no "
            f"room for them: they are kept compressed, {' and '.join(places)}. JPEG at quality {QUALITY} loses a "
            "little (the images of most recordings are JPEG already), and each use of an image decodes it again "
            f"({_DECODING}). More space for --cache, or in a folder named by the variable TMPDIR, avoids both"
        )
    if not is_in_file(frames):
        return ""
    size = in_words(frames.nbytes)
    return f"{size} of frames are more than half of the free memory: they are kept in a file in {folder}"


def is_in_file(frames: Images) -> bool:
    """Whether frames are kept in a file, as they are."""
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


def in_words(size: float) -> str:
    """Bytes for people.

    >>> in_words(2_340_000), in_words(65e9)
    ('2.3 MB', '65.0 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
