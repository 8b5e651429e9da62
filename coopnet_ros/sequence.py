"""Order of stamps: what is a pair, a gap, a jump, or out of order."""

from __future__ import annotations

import threading
from enum import Enum
from typing import Generic, TypeVar

Value = TypeVar("Value")
NANOSECONDS = 1_000_000_000
_NEW_START = 3
"""Images that lie behind the newest stamp but follow each other: a short bag that loops, not disorder."""


class Arrival(Enum):
    """How the stamp of an arriving image stands to the newest one seen."""

    IN_ORDER = "in order"
    OUT_OF_ORDER = "out of order"
    JUMP = "jump back"


class Link(Enum):
    """How a frame stands to the frame processed before it."""

    FIRST = "first"
    PAIR = "pair"
    GAP = "gap"
    JUMP = "jump back"


def seconds(nanoseconds: int) -> float:
    """Nanoseconds as seconds."""
    return nanoseconds / NANOSECONDS


def classify_arrival(newest_ns: int | None, stamp_ns: int, jump_threshold_s: float) -> Arrival:
    """Whether an arriving image may be used.

    Args:
        newest_ns: stamp of the newest image accepted so far, None for the first.
        stamp_ns: stamp of this image.
        jump_threshold_s: a stamp further back than this is a new start, not disorder.
    """
    if newest_ns is None or stamp_ns > newest_ns:
        return Arrival.IN_ORDER
    if seconds(newest_ns - stamp_ns) > jump_threshold_s:
        return Arrival.JUMP
    return Arrival.OUT_OF_ORDER


class ArrivalOrder:
    """Judges the stamps of the images as they arrive.

    Attributes:
        newest_ns: stamp of the newest image accepted, None before the first.
        epoch: number of new starts. Frames of two epochs are never a pair, whatever their stamps say: the frames
            between them may have been dropped.
    """

    def __init__(self) -> None:
        """Nothing has arrived."""
        self.newest_ns: int | None = None
        self.epoch = 0
        self._behind: list[int] = []

    def judge(self, stamp_ns: int, jump_threshold_s: float) -> Arrival:
        """Take in the stamp of an arriving image; anything but OUT_OF_ORDER makes it the newest."""
        arrival = classify_arrival(self.newest_ns, stamp_ns, jump_threshold_s)
        if arrival is Arrival.OUT_OF_ORDER and self._follows(stamp_ns):
            arrival = Arrival.JUMP
        if arrival is Arrival.OUT_OF_ORDER:
            return arrival
        self._behind = []
        self.newest_ns = stamp_ns
        if arrival is Arrival.JUMP:
            self.epoch += 1
        return arrival

    def restart(self) -> None:
        """Whatever comes next is a new start."""
        self.newest_ns = None
        self.epoch += 1
        self._behind = []

    def _follows(self, stamp_ns: int) -> bool:
        """Whether this image behind the newest continues a sequence of such images that is long enough."""
        if self._behind and stamp_ns <= self._behind[-1]:
            self._behind = []
        self._behind.append(stamp_ns)
        return len(self._behind) >= _NEW_START


class Companions(Generic[Value]):
    """What arrives apart from the images, one value for each, and is matched with them by stamp (camera_info).

    One thread adds as messages arrive, another asks as images are processed.
    """

    KEPT = 8
    """So many values are remembered."""
    PATIENCE_S = 0.05
    """How long a value is waited for that should come any moment."""

    def __init__(self) -> None:
        """Nothing has arrived."""
        self._condition = threading.Condition()
        self._values: dict[int, Value] = {}
        self._asked_ns: int | None = None
        self._regular = False

    def add(self, stamp_ns: int, value: Value) -> None:
        """Take in the value of a stamp."""
        with self._condition:
            self._values.pop(stamp_ns, None)
            self._values[stamp_ns] = value
            while len(self._values) > self.KEPT:
                del self._values[next(iter(self._values))]
            self._regular |= stamp_ns == self._asked_ns  # late, but there is one for each image
            self._condition.notify_all()

    def at(self, stamp_ns: int) -> Value | None:
        """The value of exactly this stamp, where it is there."""
        with self._condition:
            return self._values.get(stamp_ns)

    def of_image(self, stamp_ns: int) -> Value | None:
        """The value of an image, which may arrive a moment after it.

        It is waited for where the image before had one: not where values come once, or with stamps of their own.
        """
        with self._condition:
            if self._regular:
                self._condition.wait_for(lambda: stamp_ns in self._values, self.PATIENCE_S)
            value = self._values.get(stamp_ns)
            self._asked_ns, self._regular = stamp_ns, value is not None
            return value

    def clear(self) -> None:
        """Forget all values."""
        with self._condition:
            self._values.clear()
            self._asked_ns, self._regular = None, False


def classify_link(previous_ns: int | None, stamp_ns: int, max_pair_gap_s: float) -> Link:
    """Whether a frame and the frame processed before it are a pair.

    Args:
        previous_ns: stamp of the frame processed before, None where there is none.
        stamp_ns: stamp of this frame.
        max_pair_gap_s: longest time between the frames of a pair.
    """
    if previous_ns is None:
        return Link.FIRST
    if stamp_ns <= previous_ns:
        return Link.JUMP
    return Link.PAIR if seconds(stamp_ns - previous_ns) <= max_pair_gap_s else Link.GAP
