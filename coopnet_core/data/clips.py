"""From recordings to training clips: one pass over each source, only network-size frames kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from coopnet_core.data.frame_store import FrameBlock, describe_place
from coopnet_core.data.frames import Clip
from coopnet_core.data.prepare import DEFAULT_PIXELS, STILL_THRESHOLD
from coopnet_core.data.prepared_cache import PreparedCache
from coopnet_core.data.recording import Fit, Recording, Timeline, read_recording
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources import Source, SourceOptions, open_source
from coopnet_core.data.sources.interface import describe_nothing_usable
from coopnet_core.errors import NoUsableDataError

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
        """Memory, or room in a file, held by the frames."""
        return sum(clip.images.nbytes for clip in (*self.train, *self.validation)) / 1e6


def prepare_clips(
    specs: Sequence[Spec],
    size: tuple[int, int] | None = None,
    options: PrepareOptions | None = None,
    pixels: int = DEFAULT_PIXELS,
    progress: Progress | None = None,
    weights: Sequence[float] = (),
    cache: PreparedCache | None = None,
) -> PreparedData:
    """Read sources into clips of the networks' input size, split at gaps and changes, without still frames.

    Args:
        specs: the sources, see `open_source`.
        size: (width, height) of the networks' input; None: chosen from the first camera.
        options: what to take.
        pixels: wished area when `size` is None.
        progress: called after each image.
        weights: of the first sources, in their order: how the training targets are to be shared among them.
        cache: where recordings prepared earlier are found, and these are kept.

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
                fit = Fit(size, pixels, options.still_threshold)
                summary, recording = _read(spec, source, fit, options, progress, cache)
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
    if cache is not None:
        cache.say_size()
    return PreparedData(train, validation, size, summaries, failed)


def _read(
    spec: Spec,
    source: Source,
    fit: Fit,
    options: PrepareOptions,
    progress: Progress | None,
    cache: PreparedCache | None,
) -> tuple[SourceSummary, Recording]:
    """The kept frames of a source, from the cache or by reading it.

    Raises:
        NoUsableDataError: no frame can be used; says what became of the images.
        UsageError: from the source and from its calibration.
    """
    expected = options.selected(source.count)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(spec, done, total)

    if cache is None:
        recording = read_recording(source, fit, expected, FrameBlock, tell)
    else:
        recording = cache.recording(source, fit, options, expected, tell)
    if recording is None:
        raise NoUsableDataError(
            describe_nothing_usable(source.label, source.camera, source.count, source.report, options)
        )
    place = describe_place(recording.images)
    if place:
        recording.report.note(place)
    summary = SourceSummary(source.name, source.kind, source.camera, source.why, recording.report)
    summary.cameras = recording.camera_texts
    return summary, recording


def _clip(recording: Recording, summary: SourceSummary, start: int, stop: int) -> Clip:
    """The kept frames [start, stop) as a clip; its images are a view, not a copy."""
    timeline = recording.timeline
    kept = timeline.kept[start:stop]
    return Clip(
        f"{summary.name}[{kept[0]}:{kept[-1] + 1}]",
        recording.images[start:stop],
        np.array([timeline.met_ns[index] for index in kept], np.int64),
        recording.camera(start),
        source=summary.number,
        weight=summary.weight,
    )


def _split(
    spec: Spec, summary: SourceSummary, recording: Recording, options: PrepareOptions
) -> tuple[list[Clip], list[Clip]]:
    """Cut a recording into clips for training and for validation; fills in the summary.

    Raises:
        NoUsableDataError: no clip is long enough.
    """
    timeline = recording.timeline
    cuts = cut(timeline, spec, options)
    train = [_clip(recording, summary, *piece) for piece in cuts.train]
    validation = [_clip(recording, summary, *piece) for piece in cuts.validation]
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
