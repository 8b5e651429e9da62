"""From a source to its kept frames at network size: one pass, which can be broken off and gone on with."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from coopnet_core.data.frames import Frame, Images
from coopnet_core.data.prepare import choose_size, fit_frame, thumbnail
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources import Source
from coopnet_core.data.sources.decoding import Decoding, Size
from coopnet_core.errors import NoUsableDataError
from coopnet_core.geometry.camera import Camera

CameraRun = tuple[int, Camera]
"""A camera, and the first of the kept frames that has it."""


@dataclass(frozen=True)
class Fit:
    """How the frames of a source are made ready.

    Attributes:
        size: (width, height) of the networks' input, pixels; None: chosen for the first camera.
        pixels: wished area where it is chosen.
        still_threshold: see `StillFilter`.
    """

    size: tuple[int, int] | None
    pixels: int
    still_threshold: float

    def size_for(self, camera: Camera) -> tuple[int, int]:
        """(width, height) for a recording that begins with this camera."""
        return self.size or choose_size(camera, self.pixels)


@dataclass
class Timeline:
    """The frames of one source, one after the other: all that is needed to cut it into clips.

    Attributes:
        met_ns: stamps of all frames, still ones included.
        kept: indices into `met_ns` of the frames that were kept.
        changes: indices into `met_ns` where size or calibration changed.
        starts: indices into `met_ns`, but 0, where the source itself begins another sequence.
    """

    met_ns: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    _last_source: tuple[tuple[int, ...], Camera | None] | None = None
    _last_sequence: str | None = None

    def meet(self, stamp_ns: int, frame: Frame | None) -> int:
        """Take in the next frame (None: only its stamp is known); returns its index in `met_ns`."""
        index = len(self.met_ns)
        self.met_ns.append(stamp_ns)
        if frame is not None:
            if self._last_sequence not in (None, frame.sequence):
                self.starts.append(index)
                self._last_source = None
            self._last_sequence = frame.sequence
            source = (frame.image.shape, frame.camera)
            if self._last_source not in (None, source):
                self.changes.append(index)
            self._last_source = source
        return index


class StillFilter:
    """Tells the frames in which something moved since the last of them."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: mean absolute grey difference (0-255) of the thumbnails below which a frame is still."""
        self._threshold = threshold
        self._last_small: np.ndarray | None = None

    def moved(self, image: np.ndarray) -> bool:
        """Whether an (H, W, 3) uint8 image at network size differs from the last that did (the first always does)."""
        small = thumbnail(image)
        moved = self._last_small is None or float(np.abs(small - self._last_small).mean()) >= self._threshold
        if moved:
            self._last_small = small
        return moved

    def forget(self) -> None:
        """Take the next image for the first of a sequence."""
        self._last_small = None


@dataclass(frozen=True)
class Recording:
    """The kept frames of one source, and all that is needed to cut them into clips.

    Attributes:
        images: (N, H, W, 3) uint8, RGB.
        timeline: all frames met, and which were kept.
        cameras: of the kept frames, at network size.
        first_camera: of the first frame, as recorded.
        camera_texts: every camera met, as recorded, in words.
        report: of the reading.
    """

    images: Images
    timeline: Timeline
    cameras: list[CameraRun]
    first_camera: Camera
    camera_texts: list[str]
    report: ReadReport

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames, pixels."""
        return self.images.shape[2], self.images.shape[1]

    def camera(self, kept: int) -> Camera:
        """The camera of a kept frame."""
        return self.cameras[bisect_right(self.cameras, kept, key=lambda run: run[0]) - 1][1]


@dataclass(frozen=True)
class Progress:
    """How far a pass has come: with the frames kept so far, enough to go on without decoding anything again.

    Attributes:
        account: of `Decoding`, up to the last frame met.
        met: frames met.
        kept: indices of those that were kept, as in `Timeline`.
        cameras, first_camera: as in `Recording`.
    """

    account: list[Size | None]
    met: int
    kept: list[int]
    cameras: list[CameraRun]
    first_camera: Camera


class FrameStore(Protocol):
    """Takes the kept frames of a pass, and gives them back together."""

    def append(self, image: np.ndarray) -> None:
        """Keep one more (H, W, 3) uint8 image."""
        ...

    def images(self) -> Images:
        """All so far, (N, H, W, 3) uint8; there is at least one."""
        ...

    def last(self) -> np.ndarray:
        """The last of them as it was given, (H, W, 3) uint8: `images` may have lost a little of it."""
        ...

    def progress(self, so_far: Callable[[], Progress], broken_off: bool) -> None:
        """Told after each frame, and once more where the pass is broken off, after which nothing follows."""
        ...


OpenStore = Callable[[tuple[int, int], int], FrameStore]
"""Makes a store for frames of a size (width, height), given the number of frames at most, as far as is known."""
Tell = Callable[[int, int], None]
"""Called while reading with the images gone through and their number."""


def read_recording(
    source: Source, fit: Fit, expected: int, open_store: OpenStore, tell: Tell, earlier: Progress | None = None
) -> Recording | None:
    """One pass over a source.

    Args:
        source: not read yet.
        fit: how to make the frames ready.
        expected: images that will be gone through.
        open_store: of the kept frames.
        tell: called after each frame.
        earlier: go on from here; the store has the frames that were kept by then.

    Returns:
        The recording; None where no frame could be used (the source's report says why).

    Raises:
        NoUsableDataError: frames are not calibrated.
        UsageError: from the source and from its calibration.
    """
    source.decoding = Decoding(earlier.account if earlier else ())
    reading: _Reading | None = None
    try:
        for frame in source.frames():
            if frame.camera is None:
                raise NoUsableDataError(source.uncalibrated)
            if reading is None:
                size = fit.size_for(frame.camera)
                store = open_store(size, expected)
                reading = _Reading(
                    size, StillFilter(fit.still_threshold), store, source.decoding, frame.camera, earlier
                )
            reading.add(frame)
            store.progress(reading.progress, broken_off=False)
            tell(source.report.messages, expected)
    except BaseException:
        if reading is not None:
            store.progress(reading.progress, broken_off=True)
        raise
    return None if reading is None else reading.recording(source.report)


class _Reading:
    """A pass under way.

    `_done` is set last in every step, so that `progress` is right whenever the pass is broken off.
    """

    def __init__(
        self,
        size: tuple[int, int],
        still: StillFilter,
        store: FrameStore,
        decoding: Decoding,
        first_camera: Camera,
        earlier: Progress | None,
    ) -> None:
        self._size, self._still, self._store, self._decoding = size, still, store, decoding
        self._first_camera = first_camera
        self._timeline = Timeline()
        self._cameras: list[CameraRun] = list(earlier.cameras) if earlier else []
        self._camera_texts: list[str] = []
        self._earlier = earlier
        self._done = (0, 0)
        if earlier:
            still.moved(store.last())  # the next frame is compared with the last that was kept

    def add(self, frame: Frame) -> None:
        """Fit a frame and keep it unless it is still."""
        index = self._timeline.meet(frame.stamp_ns, frame)
        self._note_camera(frame.camera)
        if self._earlier is not None and index < self._earlier.met:
            kept = self._timeline.kept
            if len(kept) < len(self._earlier.kept) and self._earlier.kept[len(kept)] == index:
                kept.append(index)
        else:
            self._add_new(frame, index)
        self._done = (index + 1, len(self._decoding.account))

    def _add_new(self, frame: Frame, index: int) -> None:
        if index in self._timeline.starts[-1:]:
            self._still.forget()
        fitted = fit_frame(frame, *self._size)
        if self._still.moved(fitted.image):
            assert fitted.camera is not None, "frames without a camera are refused before"
            self._store.append(fitted.image)
            if not self._cameras or self._cameras[-1][1] != fitted.camera:
                self._cameras.append((len(self._timeline.kept), fitted.camera))
            self._timeline.kept.append(index)

    def _note_camera(self, camera: Camera | None) -> None:
        """Remember each camera met, in words."""
        assert camera is not None, "frames without a camera are refused before"
        distortion = f" {camera.distortion_model}" if camera.is_distorted else ""
        text = f"{camera.width}x{camera.height} f={camera.fx:.0f}{distortion}"
        if text not in self._camera_texts:
            self._camera_texts.append(text)

    def progress(self) -> Progress:
        """What is behind, whole frames only."""
        met, decoded = self._done
        kept = self._timeline.kept[: bisect_left(self._timeline.kept, met)]
        if self._earlier is not None and met < self._earlier.met:
            return self._earlier
        cameras = [run for run in self._cameras if run[0] < len(kept)]
        return Progress(self._decoding.account[:decoded], met, kept, cameras, self._first_camera)

    def recording(self, report: ReadReport) -> Recording:
        """The whole, once there is no further frame."""
        return Recording(
            self._store.images(), self._timeline, self._cameras, self._first_camera, self._camera_texts, report
        )
