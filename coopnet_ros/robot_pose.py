"""The robot's path from the camera's, with a mounting that may become another on the way. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coopnet_ros.odometry import OdometryEstimate, in_robot_frame, inverse, scaled


@dataclass(frozen=True)
class _Base:
    """Pose of the robot in the odometry frame.

    Its translation is the sum of two parts, because they have different units until the scale is known.

    Attributes:
        rotation: (3, 3).
        path: (3,) what the camera's path makes of it, in the estimate's unit.
        lever: (3,) what the distance between camera and robot adds in turns, metres.
    """

    rotation: np.ndarray
    path: np.ndarray
    lever: np.ndarray

    def moved(self, motion: np.ndarray, T_base_camera: np.ndarray) -> _Base:
        """After a motion (4, 4) of a camera that is mounted so."""
        mount, arm = T_base_camera[:3, :3], T_base_camera[:3, 3]
        turn = mount @ motion[:3, :3] @ mount.T
        return _Base(
            rotation=self.rotation @ turn,
            path=self.path + self.rotation @ mount @ motion[:3, 3],
            lever=self.lever + self.rotation @ (arm - turn @ arm),
        )


class RobotPose:
    """Turns the camera's estimates into the robot's, like `in_robot_frame` as long as the mounting stays the same.

    Where the mounting becomes another (TF is heard late, the camera is calibrated again, the images are those of
    another camera), the robot has not moved by that: the pose goes on from where it was at the last estimate, and the
    camera's motion from there on is taken through the new mounting.
    """

    def __init__(self) -> None:
        """The robot is at the origin, where the camera was first."""
        self._T_base_camera: np.ndarray | None = None
        self._metric = False
        # robot and camera where the present mounting began to count
        self._base = _Base(np.eye(3), np.zeros(3), np.zeros(3))
        self._camera = np.eye(4)
        self._last_camera = np.eye(4)

    def use_scale(self, metres_per_unit: float | None) -> None:
        """Follow `PoseIntegrator.use_scale`, which multiplies the path so far by the first scale.

        Args:
            metres_per_unit: of the networks' unit, of every frame before its estimate; None where it is not known.
        """
        if self._metric or metres_per_unit is None:
            return
        self._metric = True
        self._base = replace(self._base, path=self._base.path * metres_per_unit)
        self._camera = scaled(self._camera, metres_per_unit)
        self._last_camera = scaled(self._last_camera, metres_per_unit)

    def update(self, estimate: OdometryEstimate, T_base_camera: np.ndarray) -> OdometryEstimate:
        """The robot's estimate: pose in the odometry frame (base_link at the first frame), twist in base_link.

        As in `in_robot_frame`, lever arms count only where the estimate is in metres; then they count from the
        beginning.

        Args:
            estimate: pose and twist of the optical frame, of `PoseIntegrator`.
            T_base_camera: (4, 4) pose of the optical frame in base_link.
        """
        if self._T_base_camera is not None and not np.array_equal(T_base_camera, self._T_base_camera):
            self._base = self._base_at(self._last_camera)
            self._camera = self._last_camera
        self._T_base_camera = T_base_camera
        self._last_camera = estimate.pose
        base = self._base_at(estimate.pose)
        pose = np.eye(4)
        pose[:3, :3] = base.rotation
        pose[:3, 3] = base.path + base.lever if estimate.metric else base.path
        return replace(in_robot_frame(estimate, T_base_camera), pose=pose)

    def _base_at(self, camera: np.ndarray) -> _Base:
        return self._base.moved(inverse(self._camera) @ camera, self._T_base_camera)
