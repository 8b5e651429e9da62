"""Where the camera sits on the robot: from TF where that is installed, else from parameters."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.time import Time

from coopnet_core.errors import UsageError
from coopnet_ros.odometry import quaternion_from_matrix, transform


def import_tf2_ros() -> Any | None:
    """The module tf2_ros, None where it is not installed."""
    try:
        return importlib.import_module("tf2_ros")
    except ImportError:
        return None


class CameraMount:
    """Gives T_base_camera; says once why TF is not used when it is not."""

    def __init__(
        self,
        node: Node,
        source: str,
        base_frame: str,
        fallback: np.ndarray,
        timeout_s: float,
        warn: Callable[[str], None],
    ) -> None:
        """Listen to TF where it is wanted and installed.

        Args:
            node: its callbacks fill the TF buffer.
            source: auto, tf or parameters.
            base_frame: the robot's frame.
            fallback: (4, 4) T_base_camera of the parameters.
            timeout_s: how long TF is waited for (auto).
            warn: writes one warning.
        """
        self._source = source
        self._base_frame = base_frame
        self._fallback = fallback
        self._timeout_s = timeout_s
        self._warn = warn
        self._found: np.ndarray | None = fallback if source == "parameters" else None
        self._asked_at: float | None = None
        self._warned = self._said_unusable = False
        self._buffer = None
        self._tf2_ros = import_tf2_ros() if source != "parameters" else None
        if source != "parameters" and self._tf2_ros is None:
            self._give_up("tf2_ros is not installed")
        elif self._tf2_ros is not None:
            self._buffer = self._tf2_ros.Buffer()
            self._listener = self._tf2_ros.TransformListener(self._buffer, node)

    def transform_to(self, camera_frame: str) -> np.ndarray | None:
        """T_base_camera, (4, 4), or None while TF may still deliver it."""
        if self._found is not None:
            return self._found
        now = time.monotonic()
        self._asked_at = self._asked_at or now
        try:
            stamped = self._buffer.lookup_transform(self._base_frame, camera_frame, Time())
        except self._tf2_ros.TransformException as error:
            if now - self._asked_at > self._timeout_s:
                self._missing(camera_frame, str(error))
            return self._found
        t, r = stamped.transform.translation, stamped.transform.rotation
        translation, rotation = (t.x, t.y, t.z), (r.x, r.y, r.z, r.w)
        try:
            T_base_camera = transform(translation, rotation)
        except UsageError:
            T_base_camera = np.full((4, 4), np.nan)
        if np.isfinite(T_base_camera).all():
            self._found = T_base_camera
        else:
            self._unusable(camera_frame, translation, rotation)
            if self._source == "auto" and now - self._asked_at > self._timeout_s:
                self._give_up(f"TF has no usable {self._base_frame} -> {camera_frame}")
        return self._found

    def _unusable(self, camera_frame: str, translation: tuple[float, ...], rotation: tuple[float, ...]) -> None:
        """TF has a transform that is none: said once, the mounting is unknown until a better one comes."""
        if self._said_unusable:
            return
        self._said_unusable = True
        self._warn(
            f"TF says {self._base_frame} -> {camera_frame} is translation {translation}, rotation {rotation} (x y z "
            "w): finite numbers and a quaternion that is not zero were expected. ~/odom waits for them. Mend its "
            "publisher (an empty rotation needs w = 1), or set base_to_camera.source to parameters."
        )

    def _missing(self, camera_frame: str, detail: str) -> None:
        """TF has had its time: use the parameters (auto) or keep waiting (tf)."""
        if self._source == "auto":
            self._give_up(f"TF has no {self._base_frame} -> {camera_frame} ({detail})")
        elif not self._warned:
            self._warned = True
            self._warn(
                f"TF has no {self._base_frame} -> {camera_frame} ({detail}): ~/odom waits for it. Publish it "
                "(robot_state_publisher, static_transform_publisher), or set base_to_camera.source to parameters."
            )

    def _give_up(self, reason: str) -> None:
        self._found = self._fallback
        x, y, z = self._fallback[:3, 3]
        rotation = ", ".join(f"{value:.3f}" for value in quaternion_from_matrix(self._fallback[:3, :3]))
        self._warn(
            f"{reason}: the camera's mounting on {self._base_frame} is taken from the parameters "
            f"base_to_camera.translation ({x:g}, {y:g}, {z:g}) and base_to_camera.rotation ({rotation})."
        )


class TransformPublisher:
    """Broadcasts odom -> base_link on /tf where tf2_ros is installed."""

    def __init__(self, node: Node, wanted: bool, warn: Callable[[str], None]) -> None:
        """Open the broadcaster; a warning says why not, where it was wanted."""
        self._broadcaster = None
        if not wanted:
            return
        tf2_ros = import_tf2_ros()
        if tf2_ros is None:
            warn("publish_tf is true, but tf2_ros is not installed: /tf stays silent; ~/odom has the same pose.")
            return
        self._broadcaster = tf2_ros.TransformBroadcaster(node)

    @property
    def is_open(self) -> bool:
        """Whether anything is broadcast."""
        return self._broadcaster is not None

    def publish(self, odometry: Odometry) -> None:
        """Broadcast the pose of a nav_msgs/Odometry."""
        if self._broadcaster is None:
            return
        stamped = TransformStamped()
        stamped.header = odometry.header
        stamped.child_frame_id = odometry.child_frame_id
        pose = odometry.pose.pose
        target = stamped.transform.translation
        target.x, target.y, target.z = pose.position.x, pose.position.y, pose.position.z
        stamped.transform.rotation = pose.orientation
        self._broadcaster.sendTransform(stamped)
