"""Frames that are kept as JPEG and decoded whenever they are asked for: where as they are they fit nowhere."""

from __future__ import annotations

import operator
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import Any, overload

import cv2
import numpy as np

from coopnet_core.data.encodings import decode_picture

QUALITY = 95
_ENCODING = [
    *(cv2.IMWRITE_JPEG_QUALITY, QUALITY),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
]
_FIRST_ROWS = 1024


def to_jpeg(image: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB image as a JPEG of quality 95 whose colours have the full resolution.

    >>> len(to_jpeg(np.zeros((64, 96, 3), np.uint8))) < 1000
    True
    """
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _ENCODING)[1].tobytes()


class CompressedFrames:
    """Some of the frames of a `FrameCompressor`, indexed as an (N, H, W, 3) array is along its first axis; read-only.

    A frame is decoded each time it is asked for; a slice is a view. Several threads may read at once, and so may
    processes after a fork.
    """

    def __init__(self, content: _Content, places: np.ndarray, size: tuple[int, int]) -> None:
        """`places`: (N, 2) int64, offset and length of each frame in `content`; `size`: (width, height), pixels."""
        self._content, self._places, self._size = content, places, size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        return len(self._places), self._size[1], self._size[0], 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that are really held for these frames."""
        return int(self._places[:, 1].sum())

    @property
    def nbytes_in_file(self) -> int:
        """Those of them that are in a file."""
        return int(self._places[self._places[:, 0] >= self._content.in_memory, 1].sum())

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> CompressedFrames: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | CompressedFrames:
        """One frame, (H, W, 3) uint8 RGB, decoded; or a view of some.

        Raises:
            IndexError: there is no such frame.
            TypeError: neither a whole number nor a slice.
            OSError: the file cannot be read.
        """
        if isinstance(index, slice):
            return CompressedFrames(self._content, self._places[index], self._size)
        offset, length = self._places[operator.index(index)].tolist()
        return decode_picture(self._content.read(offset, length), "kept frame")

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[k] for k in range(len(self)))


class FrameCompressor:
    """Takes frames one after the other and gives them back as `CompressedFrames`.

    Their bytes are in memory while they take less than half of it, the further ones in a file without a name in the
    folder for temporary files (TMPDIR), which goes with the frames.
    """

    def __init__(self, size: tuple[int, int], free_memory: Callable[[], int]) -> None:
        """`size`: (width, height), pixels; `free_memory`: tells how many bytes are free now."""
        self._size = size
        self._content = _Content(free_memory)
        self._places = np.empty((_FIRST_ROWS, 2), np.int64)
        self._count = 0

    def append(self, image: np.ndarray) -> None:
        """Keep one more (H, W, 3) uint8 image.

        Raises:
            OSError: there is no room for it; those before are kept.
        """
        jpeg = to_jpeg(image)
        if self._count == len(self._places):
            self._places = np.concatenate([self._places, np.empty_like(self._places)])
        self._places[self._count] = self._content.append(jpeg), len(jpeg)
        self._count += 1

    def images(self) -> CompressedFrames:
        """All so far, (N, H, W, 3) uint8, a view."""
        return CompressedFrames(self._content, self._places[: self._count], self._size)


class _Content:
    """Bytes that are only ever added to, in memory and then in a file.

    The memory is that of a file which exists in memory alone: adding moves nothing, and both are read in one way,
    without a position that threads and processes would share.

    Attributes:
        in_memory: bytes that are in memory; those that follow are in the file.
    """

    def __init__(self, free_memory: Callable[[], int]) -> None:
        self._free_memory = free_memory
        self._memory: int | None = None
        self._file: int | None = None
        self.in_memory = self._in_file = 0

    def append(self, content: bytes) -> int:
        """Add bytes, all or nothing; returns their offset.

        Raises:
            OSError: there is no room for them.
        """
        # What is held is no longer free: while it is less than what still is, it is less than half of both.
        if self._file is None and self.in_memory + len(content) <= self._free_memory():
            if self._memory is None:
                self._memory = self._owned(os.memfd_create("coopnet_frames"))
            _write_at(self._memory, content, self.in_memory)
            self.in_memory += len(content)
            return self.in_memory - len(content)
        if self._file is None:
            with tempfile.TemporaryFile(prefix="coopnet_frames_", buffering=0) as file:
                self._file = self._owned(os.dup(file.fileno()))
        _write_at(self._file, content, self._in_file)
        self._in_file += len(content)
        return self.in_memory + self._in_file - len(content)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were added by one call.

        Raises:
            OSError: the file cannot be read.
        """
        if offset < self.in_memory:
            return os.pread(self._memory, length, offset)
        return os.pread(self._file, length, offset - self.in_memory)

    def _owned(self, descriptor: int) -> int:
        """An open file that is closed, and so given back, together with this object."""
        weakref.finalize(self, os.close, descriptor)
        return descriptor


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write everything; a nearly full disk takes a part first."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
