"""From recordings to training clips: one pass over each bag, only network-size frames kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from coopnet_core.data.bag import Bag, BagReport, CameraTopics, find_camera, open_bag, read_frames
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.prepare import DEFAULT_PIXELS, STILL_THRESHOLD, choose_size, fit_frame, thumbnail
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera

Progress = Callable[[Path, int, int], None]
"""Called while reading with the bag, the images gone through and their number."""


@dataclass(frozen=True)
class PrepareOptions:
    """What to take from the bags.

    Attributes:
        topics: image topics to choose from; for each bag the first that it has; empty: found automatically.
        info: CameraInfo topic; None: found beside the image topic.
        fov_degrees: horizontal field of view to assume where there is no calibration.
        frames: first image and the one to stop before, counted in each bag.
        gap_factor: a pause longer than this many median periods starts a new clip.
        still_threshold: mean absolute grey difference (0-255, on a 64x32 copy) to the last kept frame below which a
            frame counts as still; 0 keeps all.
        validation_share: last part of each bag, by frames, that is kept for validation.
        validation_bags: bags that are for validation as a whole; then no other bag is split.
        minimum_frames: shorter clips are left out.
    """

    topics: tuple[str, ...] = ()
    info: str | None = None
    fov_degrees: float | None = None
    frames: tuple[int, int | None] = (0, None)
    gap_factor: float = 2.5
    still_threshold: float = STILL_THRESHOLD
    validation_share: float = 0.1
    validation_bags: tuple[Path, ...] = ()
    minimum_frames: int = 3


@dataclass
class BagSummary:
    """What was found in one bag, chosen and dropped.

    Attributes:
        path: the bag.
        topics: the camera's topics.
        report: images that could not be read, notes.
        source: recorded size and intrinsics, as text, one per camera met.
        duration_s: from the first to the last usable frame.
        rate_hz: from the median period.
        still: frames dropped because nothing changed.
        gaps: clip boundaries at pauses and clock jumps.
        changes: clip boundaries at a change of size or calibration.
        short: frames dropped in clips that are too short.
        train, validation: frames in clips.
    """

    path: Path
    topics: CameraTopics
    report: BagReport
    source: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    rate_hz: float = 0.0
    still: int = 0
    gaps: int = 0
    changes: int = 0
    short: int = 0
    train: int = 0
    validation: int = 0


@dataclass(frozen=True)
class PreparedData:
    """Clips for training, all at one size.

    Attributes:
        train, validation: the clips.
        size: (width, height) of the networks' input, pixels.
        bags: one summary per bag that was used.
        failed: why other bags gave nothing.
    """

    train: list[Clip]
    validation: list[Clip]
    size: tuple[int, int]
    bags: list[BagSummary]
    failed: list[str]

    @property
    def megabytes(self) -> float:
        """Memory held by the frames."""
        return sum(clip.images.nbytes for clip in (*self.train, *self.validation)) / 1e6


def prepare_clips(
    paths: Sequence[Path],
    size: tuple[int, int] | None = None,
    options: PrepareOptions | None = None,
    pixels: int = DEFAULT_PIXELS,
    progress: Progress | None = None,
) -> PreparedData:
    """Read bags into clips of the networks' input size, split at gaps and changes, without still frames.

    Args:
        paths: bags.
        size: (width, height) of the networks' input; None: chosen from the first camera.
        options: what to take.
        pixels: wished area when `size` is None.
        progress: called after each image.

    Returns:
        The clips. With several bags, one that holds nothing usable is named in `failed` and passed over.

    Raises:
        UsageError: a bag is missing, its camera is ambiguous, or its calibration cannot be used.
        NoUsableDataError: no bag holds a clip; the message gives the reason for each.
    """
    options = options or PrepareOptions()
    train: list[Clip] = []
    validation: list[Clip] = []
    summaries: list[BagSummary] = []
    failed: list[str] = []
    for path in paths:
        try:
            summary, recording = _read_bag(path, size, options, pixels, progress)
            size = recording.size
            parts = _split(summary, recording, options)
        except NoUsableDataError as error:
            failed.append(str(error))
            continue
        summaries.append(summary)
        train += parts[0]
        validation += parts[1]
    if not train or size is None:
        only_validation = ["every bag is for validation: leave at least one for training"] if validation else []
        raise NoUsableDataError("\n".join([*failed, *only_validation]))
    return PreparedData(train, validation, size, summaries, failed)


class _Recording:
    """The kept frames of one bag in one growing block of memory, with what is needed to cut it into clips.

    Attributes:
        size: (width, height) of the kept frames, pixels.
        met_ns: stamps of all frames, still ones included.
        kept: indices into `met_ns` of the frames that were kept.
        cameras: of the kept frames, at network size.
        changes: indices into `met_ns` where size or calibration changed.
    """

    def __init__(self, size: tuple[int, int], expected: int, still_threshold: float) -> None:
        self.size = size
        self.met_ns: list[int] = []
        self.kept: list[int] = []
        self.cameras: list[Camera] = []
        self.changes: list[int] = []
        self._still_threshold = still_threshold
        # Reserved for the frames announced; the system hands out the memory only as it is written.
        shape = (max(1, expected), size[1], size[0], 3)
        try:
            self._images = np.empty(shape, np.uint8)
        except MemoryError:
            gigabytes = np.prod(shape, dtype=np.float64) / 1e9
            raise UsageError(
                f"{expected} images at {size[0]}x{size[1]} take {gigabytes:.1f} GB, more than this machine gives. "
                "Use a part of the recording (--frames A:B) or a smaller --size."
            ) from None
        self._last_small: np.ndarray | None = None
        self._last_source: tuple[tuple[int, ...], Camera | None] | None = None

    def add(self, frame: Frame) -> None:
        """Fit a frame and keep it unless it is still."""
        index = len(self.met_ns)
        self.met_ns.append(frame.stamp_ns)
        source = (frame.image.shape, frame.camera)
        if self._last_source not in (None, source):
            self.changes.append(index)
        self._last_source = source
        fitted = fit_frame(frame, *self.size)
        small = thumbnail(fitted.image)
        if self._moved(small):
            self._last_small = small
            self._keep(fitted, index)

    def _moved(self, small: np.ndarray) -> bool:
        """Whether the small grey copy differs from the last kept one (the first frame always does)."""
        if self._last_small is None:
            return True
        return float(np.abs(small - self._last_small).mean()) >= self._still_threshold

    def _keep(self, fitted: Frame, index: int) -> None:
        """Append a fitted frame."""
        assert fitted.camera is not None, "frames without a camera are refused before"
        if len(self.kept) == len(self._images):
            self._images = np.concatenate([self._images, np.empty_like(self._images)])
        self._images[len(self.kept)] = fitted.image
        self.cameras.append(fitted.camera)
        self.kept.append(index)

    def clip(self, name: str, start: int, stop: int) -> Clip:
        """The kept frames [start, stop) as a clip; its images are a view, not a copy."""
        stamps_ns = np.array([self.met_ns[index] for index in self.kept[start:stop]], np.int64)
        return Clip(
            f"{name}[{self.kept[start]}:{self.kept[stop - 1] + 1}]",
            self._images[start:stop],
            stamps_ns,
            self.cameras[start],
        )


def _read_bag(
    path: Path, size: tuple[int, int] | None, options: PrepareOptions, pixels: int, progress: Progress | None
) -> tuple[BagSummary, _Recording]:
    """One pass over a bag.

    Raises:
        NoUsableDataError: no frame can be used; says what became of the images.
        UsageError: from finding the camera and from its calibration.
    """
    with open_bag(path) as bag:
        topics = _choose_topics(bag, options)
        summary = BagSummary(path, topics, BagReport())
        first, stop = options.frames
        expected = max(0, min(bag.topics[topics.image].count, stop if stop is not None else 1 << 62) - first)
        recording: _Recording | None = None
        for frame in read_frames(bag, topics, summary.report, options.fov_degrees, options.frames):
            if frame.camera is None:
                raise NoUsableDataError(_uncalibrated(path, topics))
            if recording is None:
                size = size or choose_size(frame.camera, pixels)
                recording = _Recording(size, expected, options.still_threshold)
            recording.add(frame)
            _note_source(summary, frame)
            if progress is not None:
                progress(path, summary.report.messages, expected)
        if recording is None:
            raise NoUsableDataError(_nothing_usable(bag, topics, summary.report, options))
    return summary, recording


def _choose_topics(bag: Bag, options: PrepareOptions) -> CameraTopics:
    """The camera of a bag: the first of the topics the user named that it has, else the one it has.

    Raises:
        UsageError, NoUsableDataError: from `find_camera`.
    """
    named = [topic for topic in options.topics if topic in bag.topics or f"/{topic}" in bag.topics]
    return find_camera(bag, named[0] if named else next(iter(options.topics), None), options.info)


def _uncalibrated(path: Path, topics: CameraTopics) -> str:
    """The message for a camera without intrinsics."""
    found = f"{topics.info} says K[0] = 0, which means uncalibrated" if topics.info else "there is no CameraInfo"
    return (
        f"Bag {path}: the camera of {topics.image} is not calibrated ({found}). A sensor_msgs/CameraInfo with the "
        "focal length was expected. Calibrate the camera (camera_calibration), name the topic with --camera-info, or "
        "pass --fov DEGREES to assume a centred pinhole of that horizontal field of view, or --learn-intrinsics."
    )


def _nothing_usable(bag: Bag, topics: CameraTopics, report: BagReport, options: PrepareOptions) -> str:
    """The message for a bag whose images all had to be skipped."""
    if not report.messages:
        chosen = f"--frames {options.frames[0]}:{'' if options.frames[1] is None else options.frames[1]}"
        return (
            f"Bag {bag.path}: {chosen} selects none of the {bag.topics[topics.image].count} images of {topics.image}."
        )
    reasons = "; ".join(
        f"{count} x {reason} (first: {report.examples[reason]})" for reason, count in report.skipped.most_common()
    )
    lost = "".join(f" {problem}." for problem in bag.problems)
    return f"Bag {bag.path}: none of the {report.messages} images of {topics.image} can be used: {reasons}.{lost}"


def _note_source(summary: BagSummary, frame: Frame) -> None:
    """Remember each camera met, in words."""
    camera = frame.camera
    assert camera is not None, "frames without a camera are refused before"
    distortion = f" {camera.distortion_model}" if camera.is_distorted else ""
    text = f"{camera.width}x{camera.height} f={camera.fx:.0f}{distortion}"
    if text not in summary.source:
        summary.source.append(text)


def _split(summary: BagSummary, recording: _Recording, options: PrepareOptions) -> tuple[list[Clip], list[Clip]]:
    """Cut a recording at gaps, changes and the start of the validation part; fills in the summary.

    Raises:
        NoUsableDataError: no clip is long enough.
    """
    met_ns = np.array(recording.met_ns, np.int64)
    gaps = _gap_positions(met_ns, options.gap_factor)
    boundaries = np.unique(np.array([*gaps, *recording.changes], np.int64))
    segments = np.searchsorted(boundaries, recording.kept, side="right")
    cuts = {0, len(recording.kept), *(np.flatnonzero(np.diff(segments)) + 1).tolist()}
    validation_start = _validation_start(summary.path, len(recording.kept), options)
    edges = sorted(cuts | {validation_start})
    train: list[Clip] = []
    validation: list[Clip] = []
    for start, stop in pairwise(edges):
        if stop - start < options.minimum_frames:
            summary.short += stop - start
            continue
        clip = recording.clip(summary.path.stem, start, stop)
        (validation if start >= validation_start else train).append(clip)
    summary.still = len(met_ns) - len(recording.kept)
    summary.gaps, summary.changes = len(gaps), len(recording.changes)
    summary.train, summary.validation = sum(map(len, train)), sum(map(len, validation))
    steps = np.diff(met_ns)
    period_ns = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    summary.rate_hz = 1e9 / period_ns if period_ns else 0.0
    summary.duration_s = float(steps[steps > 0].sum()) / 1e9
    if not train and not validation:
        raise NoUsableDataError(
            f"Bag {summary.path}: no clip of at least {options.minimum_frames} frames: of {len(met_ns)} usable images "
            f"{summary.still} are still, the rest is split at {len(gaps)} gaps. Record while the camera moves, or "
            "loosen --still-threshold and --gap-factor."
        )
    return train, validation


def _gap_positions(stamps_ns: np.ndarray, factor: float) -> list[int]:
    """Indices of the frames that follow a pause of more than `factor` median periods, or a clock that jumped back."""
    steps = np.diff(stamps_ns)
    if not (steps > 0).any():
        return []
    period = float(np.median(steps[steps > 0]))
    return (np.flatnonzero((steps > factor * period) | (steps <= 0)) + 1).tolist()


def _validation_start(path: Path, frames: int, options: PrepareOptions) -> int:
    """Index of the first kept frame that is for validation (`frames`: none is).

    The last block in time, so that no frame of one part is a neighbour of many of the other.
    """
    if options.validation_bags:
        return 0 if path.resolve() in [bag.resolve() for bag in options.validation_bags] else frames
    count = round(frames * options.validation_share)
    return frames - count if count >= options.minimum_frames else frames
