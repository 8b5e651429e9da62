"""Videos, read through PyAV (optional: `pip install av`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from coopnet_core.data.calibration import calibration_beside, read_calibration
from coopnet_core.data.frames import Frame
from coopnet_core.data.image_files import absolute
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.cameras import FrameMaker
from coopnet_core.data.sources.decoding import Decoding
from coopnet_core.data.sources.folder import cuts, side_facts
from coopnet_core.data.sources.interface import SourceOptions, describe_file, uncalibrated
from coopnet_core.errors import NoUsableDataError, UsageError

VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".avi",
    ".webm",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".3gp",
)
DAMAGED = "damaged part of the video"


class _Video(NamedTuple):
    """A file that can be opened.

    Attributes:
        path: the file.
        announced: images it says to hold, 0 where it does not.
    """

    path: Path
    announced: int


class VideoSource:
    """Videos of one camera, one after the other, as a `Source`."""

    def __init__(self, path: Path, files: Sequence[Path], options: SourceOptions) -> None:
        """Open each file once, to see that it is a video.

        Raises:
            UsageError: PyAV is not installed.
            NoUsableDataError: no file can be opened; says why.
        """
        self._av = _pyav(files[0])
        self.name = absolute(path).name
        self.label = f"Video {path}"
        self.kind = "video" if len(files) == 1 else f"{len(files)} videos"
        self.camera = "the first video stream"
        self.report = ReadReport()
        self.decoding = Decoding()
        self._files = files
        self._videos = [video for video in map(self._probe, files) if video is not None]
        if not self._videos:
            raise NoUsableDataError(f"{self.label} cannot be read: {'; '.join(self.report.unread)}")
        self.count = sum(video.announced for video in self._videos)
        self.why = f"read by its ending ({', '.join(sorted({file.suffix for file in files}))}), with PyAV"
        expected = "a calibration file beside the video, named like it (.json, .yaml) or meta.json,"
        self.uncalibrated = uncalibrated(self.label, self.camera, f"{expected} was expected and is not there")
        self._range = options.frames
        self._maker = FrameMaker(options, self.report)
        self._index = -1

    def frames(self) -> Iterator[Frame]:
        """See `Source.frames`."""
        self._index = -1
        for video in self._videos:
            if self._range[1] is None or self._index + 1 < self._range[1]:
                yield from self._video_frames(video)

    def identity(self) -> list[str]:
        """See `Source.identity`."""
        beside = (calibration_beside((file.parent,), file.stem) for file in self._files)
        calibrations = [f"{path} {path.read_bytes()!r}" for path in beside if path is not None]
        return [f"PyAV {self._av.__version__}", *map(describe_file, self._files), *calibrations]

    def close(self) -> None:
        """Nothing is held open between the files."""

    def _probe(self, file: Path) -> _Video | None:
        """The file, or None (named in the report)."""
        try:
            with closing(self._av.open(str(file))) as container:
                if not container.streams.video:
                    self.report.unread.append(f"{file} holds no video stream")
                    return None
                stream = container.streams.video[0]
                seconds = float((stream.duration or 0) * (stream.time_base or 0)) or (container.duration or 0) / 1e6
                return _Video(file, stream.frames or round(seconds * float(stream.average_rate or 0)))
        except (self._av.FFmpegError, OSError) as error:
            self.report.unread.append(f"{file} is no video that can be read, or is cut off before its index ({error})")
            return None

    def _video_frames(self, video: _Video) -> Iterator[Frame]:
        """The frames of one file within the chosen range."""
        calibration_path = calibration_beside((video.path.parent,), video.path.stem)
        calibration = None if calibration_path is None else read_calibration(calibration_path)
        starts = cuts(*side_facts(calibration_path), video.announced or 1 << 62)
        first, stop = self._range
        decoded = 0
        with closing(self._av.open(str(video.path))) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for picture in self._pictures(container, stream, video.path):
                decoded += 1
                self._index += 1
                if stop is not None and self._index >= stop:
                    return
                if self._index < first:
                    continue
                self.report.messages += 1
                stamp = _stamp_ns(picture, decoded - 1, stream)
                what = f"{video.path}, picture {decoded - 1}"
                part = sum(start < decoded for start in starts)
                if self._maker.is_in_order(stamp, f"{video.path.name}:{part}", what):
                    # Decoding this picture took those before it: of one that is known, the conversion alone is saved.
                    image = self.decoding(partial(_converted, picture))
                    frame = self._maker.frame(image, stamp, calibration, what)
                    if frame is not None:
                        yield frame
            if decoded < stream.frames:
                self.report.unread.append(
                    f"{video.path} announces {stream.frames} images, {decoded} could be read: it is cut off or damaged"
                )

    def _pictures(self, container: Any, stream: Any, path: Path) -> Iterator[Any]:
        """The decoded pictures in the order of display; damaged ones are counted and passed over.

        So are those after them, up to the next that is coded without the help of others.
        """
        whole = True
        for pictures in self._decoded(container, stream, path):
            whole &= pictures is not None
            for picture in pictures or ():
                whole = not picture.is_corrupt and (whole or picture.key_frame)
                if whole:
                    yield picture
                else:
                    self._skip_damaged(f"{path}: the picture at {picture.time} s")

    def _decoded(self, container: Any, stream: Any, path: Path) -> Iterator[list[Any] | None]:
        """What each packet of the file gives; None (counted) for one that cannot be decoded."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:  # the file ends within a packet, or its structure is broken
                self.report.unread.append(f"{path}: nothing can be read behind a damaged place ({error})")
                packet = None
            try:
                yield stream.codec_context.decode(packet)
            except self._av.error.EOFError:  # the decoder was emptied before
                return
            except self._av.FFmpegError as error:
                self._skip_damaged(f"{path}: {error}")
                yield None
            if packet is None:
                return

    def _skip_damaged(self, what: str) -> None:
        self.report.messages += 1
        self.report.skip(DAMAGED, what)


def _converted(picture: Any) -> np.ndarray:
    """A decoded picture as (H, W, 3) uint8, RGB, upright."""
    return upright(picture.to_ndarray(format="rgb24"), picture.rotation)


def upright(image: np.ndarray, degrees: float) -> np.ndarray:
    """An image turned counterclockwise by the quarter turns that the recorder asks for (a telephone held upright)."""
    return np.ascontiguousarray(np.rot90(image, round(degrees / 90)))


def _stamp_ns(picture: Any, index: int, stream: Any) -> int:
    """The time of a picture, or of its place at the average rate where the file has no times."""
    if picture.pts is None or picture.time_base is None:
        return round(index * 1e9 / float(stream.average_rate or 30))
    return round(picture.pts * picture.time_base * 10**9)


def _pyav(file: Path) -> ModuleType:
    """PyAV.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module("av")
    except ImportError as error:
        raise UsageError(
            f"{file} is a video, and reading videos needs PyAV, which is not installed ({error}). Install it: "
            "pip install av"
        ) from None
