"""The robot's path from the camera's, with a mounting that may move, or become another on the way. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import (
    OdometryEstimate,
    adjoint,
    exponential,
    inverse,
    logarithm,
    rotation_only,
    scaled,
)
from coopnet_ros.sequence import seconds


@dataclass(frozen=True)
class _Placed:
    """A pose in the odometry frame.

    Its translation is the sum of two parts, because they have different units until the scale is known.

    Attributes:
        rotation: (3, 3).
        path: (3,) what the camera's path makes of it, in the estimate's unit.
        lever: (3,) what the distances between camera and robot make of it, metres.
    """

    rotation: np.ndarray
    path: np.ndarray
    lever: np.ndarray

    def after(self, T: np.ndarray) -> _Placed:
        """This pose times a part of the camera's path, (4, 4)."""
        return _Placed(self.rotation @ T[:3, :3], self.path + self.rotation @ T[:3, 3], self.lever)

    def across(self, T: np.ndarray) -> _Placed:
        """This pose times a mounting or its inverse, (4, 4)."""
        return _Placed(self.rotation @ T[:3, :3], self.path, self.lever + self.rotation @ T[:3, 3])

    def matrix(self, metric: bool) -> np.ndarray:
        """(4, 4); a lever arm in metres means nothing beside a path in another unit."""
        result = np.eye(4)
        result[:3, :3] = self.rotation
        result[:3, 3] = self.path + self.lever if metric else self.path
        return result


class RobotPose:
    """Turns the camera's estimates into the robot's: odom is base_link at the first frame, x ahead, y left, z up.

    The robot is at T_odom_origin T_origin_camera T_base_camera^-1, origin being where the camera's path began. A camera
    that moves on the robot (`Mounting.carries_on`) changes the last factor alone. Where the mounting becomes another in
    any other way (TF is heard late, the camera is calibrated again, the images are those of another camera), the robot
    has not moved by that: its pose goes on from where it was at the last estimate, and so it does where it is lost,
    which sees nothing of what the camera did meanwhile.
    """

    def __init__(self) -> None:
        """The robot is at the origin, where the camera was first."""
        self._metric = False
        self._origin: _Placed | None = None
        self._mounting: Mounting | None = None
        self._camera = np.eye(4)
        self._stamp_ns = 0

    def use_scale(self, metres_per_unit: float | None) -> None:
        """Follow `PoseIntegrator.use_scale`, which multiplies the path so far by the first scale.

        Args:
            metres_per_unit: of the networks' unit, of every frame before its estimate; None where it is not known.
        """
        if self._metric or metres_per_unit is None:
            return
        self._metric = True
        self._camera = scaled(self._camera, metres_per_unit)
        if self._origin is not None:
            self._origin = replace(self._origin, path=self._origin.path * metres_per_unit)

    def update(self, estimate: OdometryEstimate, mounting: Mounting, stamp_ns: int) -> OdometryEstimate:
        """The robot's estimate: pose in the odometry frame (base_link at the first frame), twist in base_link.

        Lever arms count only where the estimate is in metres; then they count from the beginning.

        Args:
            estimate: pose and twist of the optical frame, of `PoseIntegrator`.
            mounting: of the camera at that time.
            stamp_ns: that time.
        """
        before, now = self._mounting, mounting.T_base_camera
        moved_itself = before is not None and not estimate.lost and mounting.carries_on(before)
        if before is None:
            self._origin = _Placed(np.eye(3), np.zeros(3), np.zeros(3)).across(now)
        elif not moved_itself:
            self._keep_robot(before.T_base_camera, now)
        to_base = adjoint(now if estimate.metric else rotation_only(now))
        to_odom = adjoint(self._origin.matrix(estimate.metric))
        twist = to_base @ estimate.twist
        if moved_itself and stamp_ns > self._stamp_ns:
            twist = _twist_between(before, mounting, estimate, seconds(stamp_ns - self._stamp_ns))
        self._mounting, self._camera, self._stamp_ns = mounting, estimate.pose, stamp_ns
        return replace(
            estimate,
            pose=self._origin.after(estimate.pose).across(inverse(now)).matrix(estimate.metric),
            twist=twist,
            pose_uncertainty=to_odom @ estimate.pose_uncertainty @ to_odom.T,
            twist_uncertainty=to_base @ estimate.twist_uncertainty @ to_base.T,
        )

    def _keep_robot(self, before: np.ndarray, now: np.ndarray) -> None:
        """Move the origin so that the robot stays where it was, though its camera is mounted otherwise."""
        if not np.array_equal(before, now):
            robot = self._origin.after(self._camera).across(inverse(before))
            self._origin = robot.across(now).after(inverse(self._camera))


def _twist_between(before: Mounting, now: Mounting, estimate: OdometryEstimate, interval_s: float) -> np.ndarray:
    """(6,) of the robot, under a camera that has moved on it by itself as well."""
    first, last = before.T_base_camera, now.T_base_camera
    if not estimate.metric:
        first, last = rotation_only(first), rotation_only(last)
    return logarithm(first @ exponential(interval_s * estimate.twist) @ inverse(last)) / interval_s
