"""What the node counts and measures, and how it sums itself up. Pure; one lock, no ROS."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

OK, WARN, ERROR, STALE = 0, 1, 2, 3
"""Levels, with the values of diagnostic_msgs/DiagnosticStatus."""

DROP_REASONS = ("newer_frame", "disabled", "inactive", "not_wanted")
REJECT_REASONS = (
    "out_of_order",
    "malformed",
    "unknown_encoding",
    "no_camera_info",
    "uncalibrated",
    "bad_camera_info",
    "size_mismatch",
    "inference_error",
    "internal_error",
)
EVENTS = ("resets", "jumps", "gaps", "camera_changes", "lost")
_DEGRADED_SHARE = 0.5
"""Of the images that arrived in the last seconds, rejected."""
_LOST_IMAGES = 3
"""In turn: a single one is a jump or a gap."""
TIMINGS = ("decode", "infer", "publish", "total")


class Statistics:
    """Counters, rates and latencies; safe to use from several threads.

    Every image received ends as processed, dropped or rejected: `received = processed + dropped + rejected + pending`
    at any time, `pending` being the one that waits in the slot or is worked on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_s: float = 5.0, samples: int = 300) -> None:
        """Start at zero.

        Args:
            clock: seconds, monotonic.
            window_s: time over which rates are taken.
            samples: how many of the last latencies the percentiles are taken over.
        """
        self._clock = clock
        self._window_s = window_s
        self._lock = threading.Lock()
        self._received = 0
        self._lost = 0
        self._processed = 0
        self._dropped: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._unused: deque[tuple[float, str]] = deque(maxlen=2000)
        self._arrivals: deque[float] = deque(maxlen=2000)
        self._results: deque[float] = deque(maxlen=2000)
        self._timings = {name: deque(maxlen=samples) for name in TIMINGS}
        self._consecutive_errors = 0
        self._consecutive_lost = 0

    def receive(self) -> None:
        """An image has arrived."""
        with self._lock:
            self._received += 1
            self._arrivals.append(self._clock())

    def lose(self, number: int) -> None:
        """So many images were lost on the way here, as the middleware says; they are not among those received."""
        with self._lock:
            self._lost += number

    def process(self, **milliseconds: float) -> None:
        """A result has been published; `decode`, `infer`, `publish` and `total` took so many milliseconds."""
        with self._lock:
            self._processed += 1
            self._consecutive_errors = 0
            self._results.append(self._clock())
            for name, value in milliseconds.items():
                self._timings[name].append(value)

    def drop(self, reason: str) -> None:
        """An image was left out although nothing was wrong with it; one of `DROP_REASONS`."""
        with self._lock:
            self._dropped[_known(reason, DROP_REASONS)] += 1
            self._unused.append((self._clock(), reason))

    def reject(self, reason: str) -> None:
        """An image could not be used; one of `REJECT_REASONS`."""
        with self._lock:
            self._rejected[_known(reason, REJECT_REASONS)] += 1
            self._unused.append((self._clock(), reason))
            if reason == "inference_error":
                self._consecutive_errors += 1

    def count(self, event: str) -> None:
        """Something happened between frames; one of `EVENTS`."""
        with self._lock:
            self._events[_known(event, EVENTS)] += 1

    def track(self, lost: bool) -> None:
        """The odometry of an image: whether it could not be connected with the one before."""
        with self._lock:
            self._events["lost"] += lost
            self._consecutive_lost = self._consecutive_lost + 1 if lost else 0

    def snapshot(self) -> Snapshot:
        """The present figures, consistent with each other."""
        with self._lock:
            now = self._clock()
            dropped, rejected = sum(self._dropped.values()), sum(self._rejected.values())
            recent = Counter(reason for when, reason in self._unused if now - when <= self._window_s)
            return Snapshot(
                received=self._received,
                lost_before_arrival=self._lost,
                processed=self._processed,
                dropped={reason: self._dropped[reason] for reason in DROP_REASONS},
                rejected={reason: self._rejected[reason] for reason in REJECT_REASONS},
                events={event: self._events[event] for event in EVENTS},
                pending=self._received - self._processed - dropped - rejected,
                input_hz=_rate(self._arrivals, now, self._window_s),
                output_hz=_rate(self._results, now, self._window_s),
                seconds_since_input=now - self._arrivals[-1] if self._arrivals else None,
                seconds_since_result=now - self._results[-1] if self._results else None,
                timings={name: percentiles(values) for name, values in self._timings.items()},
                consecutive_errors=self._consecutive_errors,
                consecutive_lost=self._consecutive_lost,
                recent_arrivals=sum(now - when <= self._window_s for when in self._arrivals),
                recent_unused=dict(recent),
            )


@dataclass(frozen=True)
class Snapshot:
    """The figures at one moment.

    Attributes:
        received, processed, pending: numbers of images.
        lost_before_arrival: images that the middleware knows to be lost, not among those received.
        dropped, rejected: numbers of images by reason.
        events: numbers of resets, jumps, gaps, changes of camera, and images at which the odometry was lost.
        input_hz, output_hz: rates over the last seconds.
        seconds_since_input, seconds_since_result: age of the last one, None before the first.
        timings: (p50, p95) in milliseconds by stage, None before the first.
        consecutive_errors: inference errors since the last result.
        consecutive_lost: images in turn, up to the last, at which the odometry was lost.
        recent_arrivals: images received in the last seconds.
        recent_unused: numbers of images dropped or rejected in the last seconds, by reason.
    """

    received: int
    lost_before_arrival: int
    processed: int
    dropped: dict[str, int]
    rejected: dict[str, int]
    events: dict[str, int]
    pending: int
    input_hz: float
    output_hz: float
    seconds_since_input: float | None
    seconds_since_result: float | None
    timings: dict[str, tuple[float, float] | None]
    consecutive_errors: int
    consecutive_lost: int
    recent_arrivals: int
    recent_unused: dict[str, int]

    def rows(self) -> list[tuple[str, str]]:
        """Key and value pairs as they appear in /diagnostics."""
        rows = [
            ("input_hz", f"{self.input_hz:.2f}"),
            ("output_hz", f"{self.output_hz:.2f}"),
            ("received", str(self.received)),
            ("processed", str(self.processed)),
            ("dropped", str(sum(self.dropped.values()))),
            ("rejected", str(sum(self.rejected.values()))),
            ("pending", str(self.pending)),
            ("lost_before_arrival", str(self.lost_before_arrival)),
        ]
        rows += [(f"dropped.{reason}", str(number)) for reason, number in self.dropped.items()]
        rows += [(f"rejected.{reason}", str(number)) for reason, number in self.rejected.items()]
        rows += [(event, str(number)) for event, number in self.events.items()]
        for name, pair in self.timings.items():
            rows.append((f"{name}_ms.p50", "" if pair is None else f"{pair[0]:.1f}"))
            rows.append((f"{name}_ms.p95", "" if pair is None else f"{pair[1]:.1f}"))
        age = self.seconds_since_result
        rows.append(("result_age_s", "" if age is None else f"{age:.2f}"))
        return rows


def percentiles(values: deque[float] | list[float]) -> tuple[float, float] | None:
    """(median, 95th percentile), None without values."""
    if not values:
        return None
    median, high = np.percentile(np.asarray(values, dtype=np.float64), [50, 95])
    return float(median), float(high)


def assess(
    snapshot: Snapshot, state: str, no_data_timeout_s: float, missing_scale: str = "", busy_s: float = 0.0
) -> tuple[int, str]:
    """Level and one sentence for the status.

    Args:
        snapshot: the figures.
        state: lifecycle state and switch of the node: `active`, `inactive`, `disabled`, ...
        no_data_timeout_s: time without an image from which the input counts as silent.
        missing_scale: why the scale that was asked for is not known, empty where it is.
        busy_s: seconds since the networks were given what they work on; 0 while they work on nothing.
    """
    if state != "active":
        return OK, state
    if snapshot.consecutive_errors:
        return ERROR, f"degraded: inference failed on the last {snapshot.consecutive_errors} frames"
    if busy_s > no_data_timeout_s:
        return WARN, f"the networks have not come back for {busy_s:.0f} s (a first run? a hanging device?)"
    if snapshot.seconds_since_input is None:
        return WARN, "no image yet"
    if snapshot.seconds_since_input > no_data_timeout_s:
        return STALE, f"no image for {snapshot.seconds_since_input:.0f} s"
    rejected = {reason: number for reason, number in snapshot.recent_unused.items() if reason in REJECT_REASONS}
    if sum(rejected.values()) > _DEGRADED_SHARE * snapshot.recent_arrivals:
        worst = max(rejected, key=lambda reason: rejected[reason])
        return WARN, (
            f"degraded: {sum(rejected.values())} of the last {snapshot.recent_arrivals} images could not be used "
            f"({worst}: {rejected[worst]})"
        )
    if snapshot.recent_unused.get("not_wanted") and snapshot.output_hz == 0:
        return OK, "idle: nobody subscribes to an output"
    if snapshot.seconds_since_result is None or snapshot.seconds_since_result > no_data_timeout_s:
        return OK, "warming up"
    if snapshot.consecutive_lost >= _LOST_IMAGES:
        return WARN, f"odometry lost: at the last {snapshot.consecutive_lost} images the camera's motion is not known"
    if missing_scale:
        return WARN, f"running without a scale: {missing_scale}"
    return OK, "running"


def _rate(times: deque[float], now: float, window_s: float) -> float:
    """Events per second: intervals between the events of the window, over the time they span."""
    recent = [t for t in times if now - t <= window_s]
    if len(recent) < 2 or recent[-1] <= recent[0]:
        return 0.0
    return (len(recent) - 1) / (recent[-1] - recent[0])


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(f"{name!r} is not counted; known: {', '.join(names)}")
    return name
