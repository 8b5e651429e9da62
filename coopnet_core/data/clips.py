"""From recordings to training clips: one pass over each source, only network-size frames kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from coopnet_core.data.frame_store import allocate_frames, is_in_file
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.prepare import DEFAULT_PIXELS, STILL_THRESHOLD, choose_size, fit_frame, thumbnail
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources import Source, SourceOptions, open_source
from coopnet_core.data.sources.interface import describe_nothing_usable
from coopnet_core.errors import NoUsableDataError
from coopnet_core.geometry.camera import Camera

Spec = str | Path
"""A path, or `render:SEED[:FRAMES]`."""
Progress = Callable[[Spec, int, int], None]
"""Called while reading with the source, the images gone through and their number."""


@dataclass(frozen=True)
class PrepareOptions(SourceOptions):
    """What to take from the sources.

    Attributes:
        gap_factor: a pause longer than this many median periods starts a new clip.
        still_threshold: mean absolute grey difference (0-255, on a 64x32 copy) to the last kept frame below which a
            frame counts as still; 0 keeps all.
        validation_share: last part of each source, by frames, that is kept for validation.
        validation_bags: sources that are for validation as a whole; then no other is split.
        minimum_frames: shorter clips are left out.
    """

    gap_factor: float = 2.5
    still_threshold: float = STILL_THRESHOLD
    validation_share: float = 0.1
    validation_bags: tuple[Spec, ...] = ()
    minimum_frames: int = 3


@dataclass
class SourceSummary:
    """What was found in one source, chosen and dropped.

    Attributes:
        name, kind, camera, why: as in `Source`.
        report: images that could not be read, notes.
        number: its place among the sources named.
        weight: share of the training targets it is to give, relative to the others; None: as many as it has.
        cameras: recorded size and intrinsics, as text, one per camera met.
        duration_s: from the first to the last usable frame, without the gaps between sequences.
        rate_hz: from the median period.
        sequences: uninterrupted parts that the source itself names.
        still: frames dropped because nothing changed.
        gaps: clip boundaries at pauses and clock jumps.
        changes: clip boundaries at a change of size or calibration.
        short: frames dropped in clips that are too short.
        train, validation: frames in clips.
    """

    name: str
    kind: str
    camera: str
    why: str
    report: ReadReport
    number: int = 0
    weight: float | None = None
    cameras: list[str] = field(default_factory=list)
    duration_s: float = 0.0
    rate_hz: float = 0.0
    sequences: int = 1
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
        sources: one summary per source that was used.
        failed: why others gave nothing.
    """

    train: list[Clip]
    validation: list[Clip]
    size: tuple[int, int]
    sources: list[SourceSummary]
    failed: list[str]

    @property
    def megabytes(self) -> float:
        """Memory held by the frames."""
        return sum(clip.images.nbytes for clip in (*self.train, *self.validation)) / 1e6


def prepare_clips(
    specs: Sequence[Spec],
    size: tuple[int, int] | None = None,
    options: PrepareOptions | None = None,
    pixels: int = DEFAULT_PIXELS,
    progress: Progress | None = None,
    weights: Sequence[float] = (),
) -> PreparedData:
    """Read sources into clips of the networks' input size, split at gaps and changes, without still frames.

    Args:
        specs: the sources, see `open_source`.
        size: (width, height) of the networks' input; None: chosen from the first camera.
        options: what to take.
        pixels: wished area when `size` is None.
        progress: called after each image.
        weights: of the first sources, in their order: how the training targets are to be shared among them.

    Returns:
        The clips. With several sources, one that holds nothing usable is named in `failed` and passed over.

    Raises:
        UsageError: a source is missing, its camera is ambiguous, or its calibration cannot be used.
        NoUsableDataError: no source holds a clip; the message gives the reason for each.
    """
    options = options or PrepareOptions()
    train: list[Clip] = []
    validation: list[Clip] = []
    summaries: list[SourceSummary] = []
    failed: list[str] = []
    for index, spec in enumerate(specs):
        try:
            with closing(open_source(spec, options)) as source:
                summary, recording = _read(spec, source, size, options, pixels, progress)
            summary.number, summary.weight = index, weights[index] if index < len(weights) else None
            size = recording.size
            parts = _split(spec, summary, recording, options)
        except NoUsableDataError as error:
            failed.append(str(error))
            continue
        summaries.append(summary)
        train += parts[0]
        validation += parts[1]
    if not train or size is None:
        only_validation = ["every source is for validation: leave at least one for training"] if validation else []
        raise NoUsableDataError("\n".join([*failed, *only_validation]))
    return PreparedData(train, validation, size, summaries, failed)


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


class _Recording:
    """The kept frames of one source in one growing block, in a file where it is too large for the memory.

    Attributes:
        size: (width, height) of the kept frames, pixels.
        timeline: all frames met, and which were kept.
        cameras: of the kept frames, at network size.
    """

    def __init__(self, size: tuple[int, int], expected: int, still_threshold: float) -> None:
        self.size = size
        self.timeline = Timeline()
        self.cameras: list[Camera] = []
        self._still = StillFilter(still_threshold)
        self._images = allocate_frames(expected, *size)

    def add(self, frame: Frame) -> None:
        """Fit a frame and keep it unless it is still."""
        index = self.timeline.meet(frame.stamp_ns, frame)
        if index in self.timeline.starts[-1:]:
            self._still.forget()
        fitted = fit_frame(frame, *self.size)
        if self._still.moved(fitted.image):
            self._keep(fitted, index)

    def _keep(self, fitted: Frame, index: int) -> None:
        """Append a fitted frame."""
        assert fitted.camera is not None, "frames without a camera are refused before"
        kept = self.timeline.kept
        if len(kept) == len(self._images):
            larger = allocate_frames(2 * len(kept), *self.size)
            larger[: len(kept)] = self._images
            self._images = larger
        self._images[len(kept)] = fitted.image
        self.cameras.append(fitted.camera)
        kept.append(index)

    @property
    def place(self) -> str:
        """Where the frames are, in words, if not in memory."""
        if not is_in_file(self._images):
            return ""
        gigabytes, folder = self._images.nbytes / 1e9, tempfile.gettempdir()
        return (
            f"{gigabytes:.1f} GB of frames are more than half of the free memory: they are kept in a file in {folder}"
        )

    def clip(self, summary: SourceSummary, start: int, stop: int) -> Clip:
        """The kept frames [start, stop) as a clip; its images are a view, not a copy."""
        kept = self.timeline.kept
        stamps_ns = np.array([self.timeline.met_ns[index] for index in kept[start:stop]], np.int64)
        return Clip(
            f"{summary.name}[{kept[start]}:{kept[stop - 1] + 1}]",
            self._images[start:stop],
            stamps_ns,
            self.cameras[start],
            source=summary.number,
            weight=summary.weight,
        )


def _read(
    spec: Spec,
    source: Source,
    size: tuple[int, int] | None,
    options: PrepareOptions,
    pixels: int,
    progress: Progress | None,
) -> tuple[SourceSummary, _Recording]:
    """One pass over a source.

    Raises:
        NoUsableDataError: no frame can be used; says what became of the images.
        UsageError: from the source and from its calibration.
    """
    summary = SourceSummary(source.name, source.kind, source.camera, source.why, source.report)
    expected = options.selected(source.count)
    recording: _Recording | None = None
    for frame in source.frames():
        if frame.camera is None:
            raise NoUsableDataError(source.uncalibrated)
        if recording is None:
            size = size or choose_size(frame.camera, pixels)
            recording = _Recording(size, expected, options.still_threshold)
        recording.add(frame)
        _note_source(summary, frame)
        if progress is not None:
            progress(spec, source.report.messages, expected)
    if recording is not None and recording.place:
        source.report.note(recording.place)
    if recording is None:
        raise NoUsableDataError(
            describe_nothing_usable(source.label, source.camera, source.count, source.report, options)
        )
    return summary, recording


def _note_source(summary: SourceSummary, frame: Frame) -> None:
    """Remember each camera met, in words."""
    camera = frame.camera
    assert camera is not None, "frames without a camera are refused before"
    distortion = f" {camera.distortion_model}" if camera.is_distorted else ""
    text = f"{camera.width}x{camera.height} f={camera.fx:.0f}{distortion}"
    if text not in summary.cameras:
        summary.cameras.append(text)


def _split(
    spec: Spec, summary: SourceSummary, recording: _Recording, options: PrepareOptions
) -> tuple[list[Clip], list[Clip]]:
    """Cut a recording into clips for training and for validation; fills in the summary.

    Raises:
        NoUsableDataError: no clip is long enough.
    """
    timeline = recording.timeline
    cuts = cut(timeline, spec, options)
    train = [recording.clip(summary, *piece) for piece in cuts.train]
    validation = [recording.clip(summary, *piece) for piece in cuts.validation]
    summary.still = len(timeline.met_ns) - len(timeline.kept)
    summary.gaps, summary.changes, summary.short = len(cuts.gaps), len(timeline.changes), cuts.short
    summary.train, summary.validation = sum(map(len, train)), sum(map(len, validation))
    summary.sequences = len(timeline.starts) + 1
    summary.rate_hz, summary.duration_s = tempo(timeline.met_ns, timeline.starts)
    if not train and not validation:
        raise NoUsableDataError(no_clip(spec, timeline, cuts, options))
    return train, validation


@dataclass(frozen=True)
class Cuts:
    """Where a recording is cut into clips.

    Attributes:
        train, validation: (start, stop) of the clips, indices into `Timeline.kept`.
        gaps: indices into `Timeline.met_ns` of the frames that follow a pause or a clock jump.
        short: kept frames in clips that are too short, and so left out.
    """

    train: tuple[tuple[int, int], ...]
    validation: tuple[tuple[int, int], ...]
    gaps: tuple[int, ...]
    short: int


def cut(timeline: Timeline, spec: Spec, options: PrepareOptions) -> Cuts:
    """Cut a recording at its sequences, gaps, changes and the start of the validation part.

    Args:
        timeline: of the whole recording.
        spec: the source; tells whether it is for validation as a whole.
        options: what to take.
    """
    gaps = _gap_positions(np.array(timeline.met_ns, np.int64), timeline.starts, options.gap_factor)
    boundaries = np.unique(np.array([*gaps, *timeline.changes, *timeline.starts], np.int64))
    segments = np.searchsorted(boundaries, timeline.kept, side="right")
    total = len(timeline.kept)
    validation_start = _validation_start(spec, total, options)
    edges = sorted({0, total, validation_start, *(np.flatnonzero(np.diff(segments)) + 1).tolist()})
    pieces = list(pairwise(edges))
    long = [(start, stop) for start, stop in pieces if stop - start >= options.minimum_frames]
    return Cuts(
        tuple(piece for piece in long if piece[0] < validation_start),
        tuple(piece for piece in long if piece[0] >= validation_start),
        tuple(gaps),
        sum(stop - start for start, stop in pieces if (start, stop) not in long),
    )


def tempo(met_ns: Sequence[int], starts: Sequence[int] = ()) -> tuple[float, float]:
    """Rate in Hz, from the median period, and duration in seconds without the jumps back, of stamps in nanoseconds.

    Args:
        met_ns: stamps.
        starts: indices where another sequence begins; the steps to them do not count.

    >>> tempo([0, 100_000_000, 200_000_000, 500_000_000])
    (10.0, 0.5)
    """
    steps = np.delete(np.diff(np.array(met_ns, np.int64)), np.array(starts, np.int64) - 1)
    steps = steps[steps > 0]
    return (1e9 / float(np.median(steps)), float(steps.sum()) / 1e9) if len(steps) else (0.0, 0.0)


def neighbour_span(offsets: Sequence[int]) -> int:
    """Frames around a target that its sources at these offsets reach over."""
    return max(0, *offsets) - min(0, *offsets)


def count_targets(lengths: Iterable[int], offsets: Sequence[int]) -> int:
    """Frames that have all their sources, in clips of these lengths.

    >>> count_targets([10, 2], (-1, 1))
    8
    """
    return sum(max(0, length - neighbour_span(offsets)) for length in lengths)


def no_clip(spec: Spec, timeline: Timeline, cuts: Cuts, options: PrepareOptions) -> str:
    """The message for a source in which no clip is long enough."""
    met = len(timeline.met_ns)
    return (
        f"{spec}: no clip of at least {options.minimum_frames} frames: of {met} usable images "
        f"{met - len(timeline.kept)} are still, the rest is split at {len(cuts.gaps)} gaps. Record while the camera "
        "moves, or loosen --still-threshold and --gap-factor."
    )


def _gap_positions(stamps_ns: np.ndarray, starts: Sequence[int], factor: float) -> list[int]:
    """Indices of the frames that follow a pause of more than `factor` median periods, or a clock that jumped back.

    Each sequence, from one of `starts` to the next, has a period of its own.
    """
    positions = []
    for first, stop in pairwise([0, *starts, len(stamps_ns)]):
        steps = np.diff(stamps_ns[first:stop])
        if (steps > 0).any():
            period = float(np.median(steps[steps > 0]))
            positions += (np.flatnonzero((steps > factor * period) | (steps <= 0)) + first + 1).tolist()
    return positions


def _validation_start(spec: Spec, frames: int, options: PrepareOptions) -> int:
    """Index of the first kept frame that is for validation (`frames`: none is).

    The last block in time, so that no frame of one part is a neighbour of many of the other.
    """
    if options.validation_bags:
        return 0 if _place(spec) in map(_place, options.validation_bags) else frames
    count = round(frames * options.validation_share)
    return frames - count if count >= options.minimum_frames else frames


def _place(spec: Spec) -> str:
    """The same for two ways to name one source."""
    return str(Path(spec).resolve() if Path(spec).exists() else spec)
