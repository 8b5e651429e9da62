"""The poses of the robot's own odometry, at any time between two of them. Pure; one lock."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from coopnet_core.errors import UsageError
from coopnet_ros.odometry import interpolate, inverse, transform
from coopnet_ros.scale_tracker import NoSampleError
from coopnet_ros.sequence import seconds

LONGEST_GAP_S = 0.5
"""Between two poses that are still interpolated."""
_KEPT_S = 10.0
_NEW_START_S = 1.0
"""A stamp that lies back by more is a new start (a bag that loops), by less it is ignored."""
_FASTEST = 100.0
"""Metres per second; a pose that lies farther away was set, not driven to."""


class WheelPoses:
    """The poses of the last seconds; safe to use from several threads."""

    def __init__(self) -> None:
        """Nothing has arrived."""
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[np.ndarray] = []

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest pose, None before the first."""
        with self._lock:
            return self._stamps[-1] if self._stamps else None

    def clear(self) -> None:
        """Forget all poses."""
        with self._lock:
            self._stamps, self._poses = [], []

    def add(self, stamp_ns: int, position: Sequence[float], orientation: Sequence[float]) -> str:
        """Take in one pose.

        Args:
            stamp_ns: its stamp.
            position: x y z, metres.
            orientation: quaternion x y z w.

        Returns:
            What is wrong with it, for the user; empty where nothing is. Neither the pose that is ignored nor the one
            that starts anew is ever interpolated with those before it.
        """
        try:
            pose = transform(tuple(position), tuple(orientation))
        except UsageError as error:
            return f"a pose of wheel_odom is ignored. {error}"
        if not np.isfinite(pose).all():
            return f"a pose of wheel_odom is ignored: its position {tuple(position)} is not finite."
        with self._lock:
            return self._append(stamp_ns, pose)

    def _append(self, stamp_ns: int, pose: np.ndarray) -> str:
        problem = ""
        if self._stamps:
            passed = seconds(stamp_ns - self._stamps[-1])
            moved = float(np.linalg.norm((inverse(self._poses[-1]) @ pose)[:3, 3]))
            if -_NEW_START_S <= passed <= 0:
                return f"a pose of wheel_odom is ignored: its stamp lies {-passed:.3f} s before the last one."
            if passed < 0:
                problem = f"the stamps of wheel_odom went back by {-passed:.1f} s: it starts anew."
            elif moved > _FASTEST * passed:
                problem = f"wheel_odom jumped by {moved:.1f} m within {passed:.3f} s: it starts anew."
        if problem:
            self._stamps, self._poses = [], []
        self._stamps.append(stamp_ns)
        self._poses.append(pose)
        while seconds(stamp_ns - self._stamps[0]) > _KEPT_S:
            del self._stamps[0], self._poses[0]
        return problem

    def pose_at(self, stamp_ns: int) -> np.ndarray:
        """(4, 4) pose of the robot in the frame of its odometry, interpolated between the two poses around the stamp.

        Raises:
            NoSampleError: there are no such two, or they are too far apart.
        """
        with self._lock:
            if not self._stamps:
                raise NoSampleError("no wheel_odom has arrived")
            if stamp_ns > self._stamps[-1]:
                late = seconds(stamp_ns - self._stamps[-1])
                raise NoSampleError(
                    f"the newest wheel_odom is {late:.3g} s older than the image: it is late, it stopped, or its clock "
                    "is another"
                )
            after = bisect_left(self._stamps, stamp_ns)
            if self._stamps[after] == stamp_ns:
                return self._poses[after]
            if after == 0:
                early = seconds(self._stamps[0] - stamp_ns)
                raise NoSampleError(f"wheel_odom begins {early:.3g} s after the image")
            start, end = self._stamps[after - 1], self._stamps[after]
            if seconds(end - start) > LONGEST_GAP_S:
                raise NoSampleError(
                    f"wheel_odom has a gap of {seconds(end - start):.3g} s at the image, at most {LONGEST_GAP_S:g} s "
                    "are interpolated"
                )
            return interpolate(self._poses[after - 1], self._poses[after], (stamp_ns - start) / (end - start))
