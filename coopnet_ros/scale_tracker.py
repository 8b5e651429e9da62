"""One scale from many single measurements of it: median and spread over a window of time. Pure numpy."""

from __future__ import annotations

from collections import deque

import numpy as np

from coopnet_core.errors import CoopnetError
from coopnet_ros.sequence import seconds

FEWEST_SAMPLES = 5
"""Two of them may be wrong without an effect on the median."""
LARGEST_SPREAD = 0.5
"""Samples that scatter more than this have no scale in common."""
_TO_STANDARD_DEVIATION = 1.4826
"""Of a normal distribution, over its median absolute deviation."""


class NoSampleError(CoopnetError):
    """A frame says nothing about the scale; the message says why."""


class ScaleTracker:
    """Keeps the samples of the last seconds. Time is that of the images' stamps; time that goes back does not pass."""

    def __init__(self, window_s: float, max_age_s: float) -> None:
        """Start without a sample. Both times may be set later as well.

        Args:
            window_s: samples older than this, seen from the newest one, are forgotten.
            max_age_s: so long after the newest sample all are forgotten.
        """
        self.window_s = window_s
        self.max_age_s = max_age_s
        self._samples: deque[tuple[float, float]] = deque()
        self._stamp_ns: int | None = None
        self._now = self._newest = 0.0

    @property
    def age_s(self) -> float:
        """Time since the newest sample; since the start where there was none."""
        return self._now - self._newest

    @property
    def samples(self) -> int:
        """How many samples are kept."""
        return len(self._samples)

    def tick(self, stamp_ns: int) -> None:
        """Time has gone on to this stamp."""
        if self._stamp_ns is not None:
            self._now += max(0.0, seconds(stamp_ns - self._stamp_ns))
        self._stamp_ns = stamp_ns
        if self.age_s > self.max_age_s:
            self._samples.clear()

    def add(self, metres_per_unit: float) -> None:
        """Add a sample of now.

        Raises:
            NoSampleError: it is not finite and positive.
        """
        if not np.isfinite(metres_per_unit) or metres_per_unit <= 0:
            raise NoSampleError(f"a scale of {metres_per_unit} was measured, a positive number was expected")
        self._newest = self._now
        self._samples.append((self._now, float(np.log(metres_per_unit))))
        while self._now - self._samples[0][0] > self.window_s:
            self._samples.popleft()

    def estimate(self) -> tuple[float, float]:
        """The median of the samples, metres per unit, and their relative standard deviation.

        Both are taken over the logarithms, and from medians: up to half of the samples may be wrong.

        Raises:
            NoSampleError: too few samples, or they scatter too much to mean anything.
        """
        if len(self._samples) < FEWEST_SAMPLES:
            raise NoSampleError(f"{len(self._samples)} of {FEWEST_SAMPLES} samples so far")
        logarithms = np.array([logarithm for _, logarithm in self._samples])
        median = np.median(logarithms)
        spread = _TO_STANDARD_DEVIATION * float(np.median(np.abs(logarithms - median)))
        if spread > LARGEST_SPREAD:
            raise NoSampleError(
                f"the samples scatter by {100 * spread:.0f} %, at most {100 * LARGEST_SPREAD:.0f} % were expected"
            )
        return float(np.exp(median)), spread
