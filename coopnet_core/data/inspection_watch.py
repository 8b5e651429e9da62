"""One pass over the images of a camera: which are looked at, and what they show."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from coopnet_core.data.bag import RecordedImage
from coopnet_core.data.clips import Cuts
from coopnet_core.data.frames import Frame
from coopnet_core.data.inspection_facts import (
    BRIGHT,
    BRIGHTEST,
    BRIGHTNESS_JUMP,
    DARK,
    DARKEST,
    EXPOSURE,
    MARKS,
    MATCHED_ENOUGH,
    STILL,
    TOO_FAST,
    InspectionOptions,
    Look,
    PictureFacts,
)
from coopnet_core.data.prepare import choose_size, fit_frame, thumbnail
from coopnet_core.data.recording import StillFilter, Timeline
from coopnet_core.geometry.camera import Camera

_BLOCK = 5
"""Neighbouring images that are looked at together where not all are."""
_PICTURE_WIDTH, _MOST_PICTURES = 320, 400


@dataclass(frozen=True)
class LookPlan:
    """Which images to decode.

    Attributes:
        blocks: ranges [first, last + 1] of their numbers, in order, apart from each other.
        complete: whether that is all.
    """

    blocks: tuple[tuple[int, int], ...]
    complete: bool

    def wants(self, index: int) -> bool:
        """Whether an image is to be decoded."""
        return self.block(index) is not None

    def block(self, index: int) -> int | None:
        """The block that an image is in, if any."""
        position = bisect_right(self.blocks, index, key=lambda block: block[0]) - 1
        return position if position >= 0 and index < self.blocks[position][1] else None

    @property
    def images(self) -> int:
        """How many are decoded."""
        return sum(stop - start for start, stop in self.blocks)


def plan_looks(first: int, count: int, wished: int) -> LookPlan:
    """Blocks of neighbours, spread evenly over a recording.

    Args:
        first: number of the first image.
        count: images there are.
        wished: images to decode; at least one block is.

    >>> plan_looks(0, 100, 10).blocks
    ((0, 5), (95, 100))
    >>> plan_looks(10, 20, 50)
    LookPlan(blocks=((10, 30),), complete=True)
    """
    if wished >= count:
        return LookPlan(((first, first + count),), True)
    starts = np.linspace(first, first + count - _BLOCK, max(1, wished // _BLOCK)).astype(int)
    return LookPlan(tuple((int(start), int(start) + _BLOCK) for start in starts), False)


@dataclass
class _Seen:
    """What one decoded frame showed, before gaps are known.

    Attributes:
        index: its number.
        block: of the plan, that it is in.
        position: index into `Timeline.met_ns`.
        stamp_ns: its time.
        brightness: mean grey level.
        kept: whether it moved; None where there is nothing to compare it with (first of a block).
        before: the neighbour decoded before, if its number is the one before.
        match: (position of the kept frame before, share of the width, share of matched pixels).
    """

    index: int
    block: int
    position: int
    stamp_ns: int
    brightness: float
    kept: bool | None
    before: _Seen | None
    match: tuple[int, float, float] | None = None


class Watch:
    """Gathers what a pass over the images of a camera shows."""

    def __init__(self, size: tuple[int, int] | None, plan: LookPlan, options: InspectionOptions) -> None:
        self.size = size
        self.timeline = Timeline()
        self.header_ns: list[int | None] = []
        self.bag_ns: list[int] = []
        self.camera: Camera | None = None
        self.plan = plan
        self._options = options
        self._seen: list[_Seen] = []
        self._unusable: list[int] = []
        self._indices: list[int] = []
        self._block = -1
        self._still = StillFilter(options.prepare.still_threshold)
        self._last_kept: tuple[int, np.ndarray] | None = None
        # Where not all pairs are wanted, they are spread evenly.
        all_pairs = options.everything or plan.images <= options.pairs
        self._pairs_per_image = 1.0 if all_pairs else options.pairs / max(1, plan.images)
        self._pairs_due = 0.0
        self._pictures: dict[int, np.ndarray] = {}
        self._picture_step, self._picture_count = 1, 0

    def add(self, image: RecordedImage) -> None:
        """Take in the next image.

        Raises:
            UsageError: its distortion cannot be undone.
        """
        self.header_ns.append(image.header_ns)
        self.bag_ns.append(image.message.bag_ns)
        if not image.usable or image.stamp_ns is None:
            self._unusable.append(image.index)
            return
        position = self.timeline.meet(image.stamp_ns, image.frame)
        self._indices.append(image.index)
        if image.frame is not None:
            self._look(image.index, position, image.frame)

    def _look(self, index: int, position: int, frame: Frame) -> None:
        """Judge a decoded frame by those before it."""
        assert frame.camera is not None, "where there is no calibration, one is assumed"
        if self.size is None:
            self.size = choose_size(frame.camera, self._options.pixels)
        self.camera = self.camera or frame.camera
        fitted = fit_frame(frame, *self.size).image
        first_of_block = self._enter_block(index)
        moved = self._still.moved(fitted)
        before = self._seen[-1] if self._seen and self._seen[-1].index == index - 1 else None
        brightness = float(thumbnail(fitted).mean())
        # The very first frame is kept by the training too; the first of a later block is compared with nothing.
        kept = None if first_of_block and position > 0 else moved
        seen = _Seen(index, self._block, position, frame.stamp_ns, brightness, kept, before)
        if moved:
            seen.match = self._match(fitted)
            self._last_kept = (position, fitted)
        self._seen.append(seen)
        self._keep_picture(index, fitted)

    def _enter_block(self, index: int) -> bool:
        """Whether this image begins another block; then nothing before it counts."""
        block = self.plan.block(index)
        begins = block is not None and block != self._block
        if begins and block is not None:
            self._block = block
            self._still = StillFilter(self._options.prepare.still_threshold)
            self._last_kept = None
        return begins

    def _match(self, fitted: np.ndarray) -> tuple[int, float, float] | None:
        """The match of a kept frame with the one kept before, where one is due."""
        self._pairs_due += self._pairs_per_image
        if self._last_kept is None or self._pairs_due < 1.0:
            return None
        self._pairs_due = min(self._pairs_due - 1.0, 1.0)
        position, before = self._last_kept
        return position, *match_pair(before, fitted)

    def _keep_picture(self, index: int, fitted: np.ndarray) -> None:
        """Keep a small copy; when there are too many, of every second only."""
        if self._options.pictures and self._picture_count % self._picture_step == 0:
            height = max(1, round(fitted.shape[0] * _PICTURE_WIDTH / fitted.shape[1]))
            self._pictures[index] = cv2.resize(fitted, (_PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
            if len(self._pictures) > _MOST_PICTURES:
                self._pictures = dict(list(self._pictures.items())[::2])
                self._picture_step *= 2
        self._picture_count += 1

    def timeline_with_kept(self) -> Timeline:
        """The timeline with the frames that are kept: exact where all were looked at, else as in the blocks beside."""
        decided = {seen.position: seen.kept for seen in self._seen if seen.kept is not None}
        if self.plan.complete:
            self.timeline.kept = [position for position, kept in decided.items() if kept]
            return self.timeline
        share = self._kept_share()
        due, kept = 0.5, []
        for position in range(len(self.timeline.met_ns)):
            if position in decided:
                kept += [position] if decided[position] else []
                continue
            due += share[position]
            if due >= 1.0:
                due -= 1.0
                kept.append(position)
        self.timeline.kept = kept
        return self.timeline

    def _kept_share(self) -> np.ndarray:
        """For each frame met, the share that is kept around it; between blocks, in proportion to the distance."""
        judged: dict[int, list[_Seen]] = {}
        for seen in self._seen:
            if seen.kept is not None:
                judged.setdefault(seen.block, []).append(seen)
        lost = Counter(self.plan.block(index) for index in self._unusable)
        centres = [float(np.mean([seen.position for seen in inside])) for inside in judged.values()]
        shares = [
            sum(bool(seen.kept) for seen in inside) / (len(inside) + lost[block]) for block, inside in judged.items()
        ]
        positions = np.arange(len(self.timeline.met_ns), dtype=np.float64)
        return np.interp(positions, centres, shares) if centres else np.ones_like(positions)

    def cut_images(self, cuts: Cuts) -> tuple[int, ...]:
        """The numbers of the images that begin a clip after a gap or a change."""
        return tuple(self._indices[position] for position in sorted({*cuts.gaps, *self.timeline.changes}))

    def looks(self, cuts: Cuts) -> tuple[Look, ...]:
        """The images looked at with their marks; pairs across a boundary of clips are none."""
        boundaries = sorted({*cuts.gaps, *self.timeline.changes})
        first_ns = self.timeline.met_ns[0] if self.timeline.met_ns else 0
        return tuple(
            Look(
                seen.index,
                (seen.stamp_ns - first_ns) / 1e9,
                _marks(seen, boundaries),
                self._pictures.get(seen.index),
            )
            for seen in self._seen
        )

    def picture_facts(self, looks: Sequence[Look]) -> PictureFacts:
        """The shares over what was looked at."""
        if not self._seen:
            return PictureFacts(len(self.header_ns))
        matches = [seen.match for seen in self._seen if seen.match is not None]
        judged = sum(seen.kept is not None for seen in self._seen)
        neighbours = sum(seen.before is not None for seen in self._seen)
        moved = [seen.index for seen in self._seen if seen.kept and seen.position]
        count = {mark: sum(mark in look.marks for look in looks) for mark in MARKS}
        return PictureFacts(
            images=len(self.header_ns),
            looked_at=len(self._seen),
            pairs=len(matches),
            still_share=count[STILL] / max(1, judged),
            too_fast_share=count[TOO_FAST] / max(1, len(matches)),
            exposure_jump_share=count[EXPOSURE] / max(1, neighbours),
            dark_share=count[DARK] / len(looks),
            bright_share=count[BRIGHT] / len(looks),
            brightness=float(np.mean([seen.brightness for seen in self._seen])),
            motion=median([match[1] for match in matches]),
            matched=median([match[2] for match in matches]),
            marked={
                mark.replace(" ", "_"): _ranges([look.index for look in looks if mark in look.marks]) for mark in MARKS
            },
            best=_best_stretch(looks),
            moving=(moved[0] - 1, moved[-1] + 1) if moved else None,
        )


def _marks(seen: _Seen, boundaries: Sequence[int]) -> tuple[str, ...]:
    """What is to be said of an image."""

    def joined(position: int) -> bool:
        return bisect_right(boundaries, position) == bisect_right(boundaries, seen.position)

    marks = [STILL] if seen.kept is False else []
    if seen.match is not None and seen.match[2] < MATCHED_ENOUGH and joined(seen.match[0]):
        marks.append(TOO_FAST)
    if seen.before is not None and joined(seen.before.position):
        # A few levels are much of a black image: not less than what is dark is taken for the reference.
        change = abs(seen.brightness - seen.before.brightness) / max(seen.before.brightness, DARKEST)
        marks += [EXPOSURE] if change > BRIGHTNESS_JUMP else []
    marks += [DARK] if seen.brightness < DARKEST else []
    marks += [BRIGHT] if seen.brightness > BRIGHTEST else []
    return tuple(mark for mark in MARKS if mark in marks)


def match_pair(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """How far two images are apart, by the matches that also teach the flow network.

    Args:
        before, after: (H, W, 3) uint8 RGB, of one size.

    Returns:
        The median length of the flow where it is matched, as a share of the width (0 where nothing is), and the share
        of the pixels of both that are matched: where the way there and back ends where it began.
    """
    # Here, not at the top: torch takes seconds to import.
    import torch

    from coopnet_core.cotraining.matches import classical_matches

    scaled = (torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None] for image in (after, before))
    matches = classical_matches(*scaled)
    agree = matches.agree[:, 0].bool()
    lengths = matches.flow.square().sum(1).sqrt()[agree] / before.shape[1]
    return float(lengths.median()) if len(lengths) else 0.0, float(agree.float().mean())


def median(values: Sequence[float] | np.ndarray) -> float | None:
    """The median, or None of nothing."""
    return float(np.median(values)) if len(values) else None


def _ranges(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Increasing numbers as ranges [first, last + 1].

    >>> _ranges([1, 2, 3, 7])
    [(1, 4), (7, 8)]
    """
    edges = [0, *(k for k, (a, b) in enumerate(pairwise(indices), 1) if b != a + 1), len(indices)]
    return [(indices[a], indices[b - 1] + 1) for a, b in pairwise(edges) if b > a]


def _best_stretch(looks: Sequence[Look]) -> tuple[int, int] | None:
    """The longest stretch of the recording without a mark other than "still"; None where no image has one."""
    marked = [look.index for look in looks if set(look.marks) - {STILL}]
    if not marked:
        return None
    edges = [looks[0].index - 1, *marked, looks[-1].index + 1]
    start, stop = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return (start + 1, stop) if stop > start + 1 else None
