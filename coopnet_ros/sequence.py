"""Order of stamps: what is a pair, a gap, a jump, or out of order."""

from __future__ import annotations

from enum import Enum

NANOSECONDS = 1_000_000_000


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
