"""Where the camera sits on the robot: from TF where that is installed, else from parameters."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from geometry_msgs.msg import Transform, TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.time import Time

from coopnet_core.errors import UsageError
from coopnet_ros.messages import to_nanoseconds
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import quaternion_from_matrix, transform
from coopnet_ros.sequence import seconds

TF, PARAMETERS, WAITING = "tf", "parameters", "waiting"
"""Where a mounting comes from; waiting: TF may still deliver it."""
LOOK_EVERY_S = 1.0
"""TF is looked at again after this time, for what appears late or changes."""
LOOK_FIRST_EVERY_S = 0.1
"""The same while the mounting is not known."""
_MOST_FRAMES = 32
"""Camera frames remembered: more are not cameras, but frame_ids that change with every image."""
_SAME_WITHIN = 1e-3
"""Metres and sines of angles: mountings that differ by less are not worth a word."""
_LATE_S = 0.1
"""Where TF has nothing for the time of the images, and its newest is farther away than this, the user is told."""
_LATE_FOR_S = 1.0
"""And for so long: where a recording begins again the last images of the turn before come after its joints."""
_NEW_START_S = 1.0
"""A stamp of TF that lies back by more is a new start."""


def import_tf2_ros() -> Any | None:
    """The module tf2_ros, None where it is not installed."""
    try:
        return importlib.import_module("tf2_ros")
    except ImportError:
        return None


@dataclass
class _Known:
    """What is known of one camera frame.

    Attributes:
        first_asked: when, seconds of the clock.
        mounting: None while it is not known.
        source: TF, PARAMETERS or WAITING.
        next_look: when TF is looked at again.
        late_since: since when TF has had nothing near the times of the images; None where it has.
        said: what the user has been told of it.
    """

    first_asked: float
    mounting: Mounting | None = None
    source: str = WAITING
    next_look: float = 0.0
    late_since: float | None = None
    said: set[str] = field(default_factory=set)


class CameraMount:
    """Gives the mounting of each camera frame; says once what is amiss with it.

    TF is heard in the node's executor, and looked at by whoever asks: about once per second, so that what appears late
    or changes is honoured, and for every image of a camera that moves on the robot. `at` is for one thread.
    """

    def __init__(
        self,
        node: Node,
        source: str,
        base_frame: str,
        fallback: np.ndarray,
        timeout_s: float,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen to TF where it is wanted and installed.

        Args:
            node: its callbacks fill the TF buffer.
            source: auto, tf or parameters.
            base_frame: the robot's frame.
            fallback: (4, 4) T_base_camera of the parameters.
            timeout_s: how long TF is waited for before the parameters are used (auto).
            warn: writes one warning.
            clock: seconds, monotonic.

        Raises:
            UsageError: the source is tf, and tf2_ros is not installed.
        """
        self._source = source
        self._base_frame = base_frame
        self._fallback = fallback
        self._timeout_s = timeout_s
        self._warn = warn
        self._clock = clock
        self._cameras: dict[str, _Known] = {}
        self._buffer = self._heard = self._listener = None
        self._tf2_ros = import_tf2_ros() if source != PARAMETERS else None
        if self._tf2_ros is not None:
            self._buffer = self._tf2_ros.Buffer()
            self._heard = _Heard(self._buffer)
            self._listener = self._tf2_ros.TransformListener(self._heard, node)
        elif source == TF:
            raise UsageError(
                "base_to_camera.source is tf, but tf2_ros is not installed: without it TF cannot be heard. Install "
                f"{_package('tf2-ros')}, or set base_to_camera.source to parameters or auto."
            )
        elif source != PARAMETERS:
            self._warn(f"tf2_ros is not installed: {self._taken_from_parameters()}.")
        self._state = PARAMETERS if self._buffer is None else WAITING

    @property
    def state(self) -> str:
        """Where the mounting of the camera asked for last comes from: TF, PARAMETERS or WAITING; for any thread."""
        return self._state

    def close(self) -> None:
        """Stop listening to TF; may be called again. What is known is kept."""
        if self._listener is not None:
            self._listener.unregister()
        self._listener = None

    def at(self, camera_frame: str, stamp_ns: int, aloud: bool = True) -> Mounting | None:
        """The mounting at the time of an image, None while TF may still deliver it.

        The same object as long as the camera does not move on the robot, and nothing new is known. Where TF has not the
        time of the image, it is the newest that it has.

        Args:
            camera_frame: frame_id of the images.
            stamp_ns: time of the image.
            aloud: whether anybody needs it, and is to be told what is amiss.
        """
        known = self._cameras.get(camera_frame) or self._first_of(camera_frame)
        if self._buffer is not None and self._clock() >= known.next_look:
            self._look(camera_frame, known, aloud)
        if known.mounting is not None and known.mounting.moves:
            self._look_at(stamp_ns, camera_frame, known, aloud)
        self._state = known.source
        return known.mounting

    def _first_of(self, camera_frame: str) -> _Known:
        """A camera that was never asked for."""
        if len(self._cameras) >= _MOST_FRAMES:
            self._cameras.pop(next(iter(self._cameras)))
        now = self._clock()
        known = _Known(now, next_look=now)
        if self._buffer is None:
            known = _Known(now, Mounting(self._fallback, camera_frame), PARAMETERS)
        self._cameras[camera_frame] = known
        return known

    def _look(self, camera_frame: str, known: _Known, aloud: bool) -> None:
        """Take what TF has; where it has nothing for too long, the parameters (auto) or nothing yet (tf)."""
        now = self._clock()
        link = f"{self._base_frame} -> {camera_frame or '(the images have no frame_id)'}"
        try:
            stamped = self._lookup(camera_frame, Time())
        except self._tf2_ros.TransformException as error:
            found, problem = None, f"TF has no {link} ({str(error).strip(' .')})"
        else:
            found, problem = self._mounting(stamped, camera_frame), f"TF has no usable {link}"
            if found is None and aloud:  # quaternions that are none tf2 refuses itself, and says so
                self._say_once(known, "unusable", _unusable_text(link, stamped.transform, known.mounting is None))
        if found is not None:
            self._take(found, link, known, aloud)
            if aloud and camera_frame.removeprefix("/") == self._base_frame:
                self._say_once(known, "one frame", _one_frame_text(self._base_frame))
        elif known.source != TF and now - known.first_asked > self._timeout_s:
            self._do_without(problem, camera_frame, known, aloud)
        known.next_look = now + (LOOK_FIRST_EVERY_S if known.mounting is None else LOOK_EVERY_S)

    def _look_at(self, stamp_ns: int, camera_frame: str, known: _Known, aloud: bool) -> None:
        """Take what TF has for the time of an image, else its newest."""
        late_since, known.late_since = known.late_since, None
        try:
            stamped = self._lookup(camera_frame, Time(nanoseconds=stamp_ns))
        except self._tf2_ros.TransformException:
            try:
                stamped = self._lookup(camera_frame, Time())
            except self._tf2_ros.TransformException:
                return
            late_s = seconds(stamp_ns - to_nanoseconds(stamped.header.stamp))
            if abs(late_s) > _LATE_S:
                known.late_since = self._clock() if late_since is None else late_since
                if aloud and self._clock() - known.late_since >= _LATE_FOR_S:
                    self._say_once(known, "late", _late_text(camera_frame, late_s))
        known.mounting = self._mounting(stamped, camera_frame) or known.mounting

    def _lookup(self, camera_frame: str, time: Time) -> TransformStamped:
        """What TF has. It knows no frame with a leading slash, as recordings of ROS 1 have them."""
        return self._buffer.lookup_transform(self._base_frame, camera_frame.removeprefix("/"), time)

    def _mounting(self, stamped: TransformStamped, camera_frame: str) -> Mounting | None:
        """What TF says of a camera; None where it is no transform. Of what never moves TF tells no time."""
        T = _rigid(stamped.transform)
        moves = to_nanoseconds(stamped.header.stamp) != 0
        return None if T is None else Mounting(T, camera_frame, moves, self._heard.turns)

    def _take(self, found: Mounting, link: str, known: _Known, aloud: bool) -> None:
        """Use what TF has from now on."""
        before, source = known.mounting, known.source
        T, T_before = found.T_base_camera, None if before is None else before.T_base_camera
        if source == TF and found.moves == before.moves and np.array_equal(T, T_before):
            return
        known.mounting, known.source = found, TF
        if before is None or np.allclose(T, T_before, rtol=0, atol=_SAME_WITHIN):
            return
        if source == PARAMETERS and "missing" in known.said:
            self._warn(
                f"TF has {link} now, {_in_words(T)}, and takes over from the parameters base_to_camera, "
                f"{_in_words(T_before)}, which differ. ~/odom goes on from its present pose. For a path that is right "
                "from the beginning raise base_to_camera.timeout, or correct the parameters."
            )
        elif source == TF and not found.moves and aloud:
            self._say_once(
                known,
                "changed",
                f"TF has changed {link} from {_in_words(T_before)} to {_in_words(T)}, without a time: ~/odom goes on "
                "from its present pose with the new mounting, as if the old one had been wrong. Of a camera that is "
                "turned on the robot TF must tell when (/tf with stamps, not /tf_static). Later changes are followed "
                "without a word.",
            )

    def _say_once(self, known: _Known, key: str, text: str) -> None:
        """Warn of something about a camera, the first time."""
        if key not in known.said:
            known.said.add(key)
            self._warn(text)

    def _do_without(self, problem: str, camera_frame: str, known: _Known, aloud: bool) -> None:
        """TF has had its time: use the parameters (auto) or keep waiting (tf)."""
        if self._source != TF:
            known.mounting, known.source = Mounting(self._fallback, camera_frame), PARAMETERS
        if not aloud:
            return
        what = f"{self._taken_from_parameters()}, until TF has it."
        if self._source == TF:
            what = (
                "~/odom waits for it. Publish it (robot_state_publisher, static_transform_publisher), or set "
                "base_to_camera.source to parameters."
            )
        self._say_once(known, "missing", f"{problem}: {what}")

    def _taken_from_parameters(self) -> str:
        return (
            f"the camera's mounting on {self._base_frame} is taken from the parameters base_to_camera.translation and "
            f"base_to_camera.rotation, {_in_words(self._fallback)}"
        )


class _Heard:
    """What a TransformListener fills: a Buffer in which time may go back, as in a recording that loops.

    By itself a Buffer ignores, and complains of, all that is 10 s older than its newest. Its own way out, a jump of
    /clock, needs a /clock.

    Attributes:
        turns: how often time has gone back.
    """

    def __init__(self, buffer: Any) -> None:
        """Before anything is heard.

        Args:
            buffer: a tf2_ros.Buffer.
        """
        self._buffer = buffer
        self._newest_ns: dict[str, int] = {}
        self.turns = 0

    def set_transform(self, stamped: TransformStamped, authority: str) -> None:
        """Take in one with a time; those before a new start are forgotten, static ones stay."""
        child, stamp_ns = stamped.child_frame_id, to_nanoseconds(stamped.header.stamp)
        newest_ns = self._newest_ns.get(child, stamp_ns)
        if stamp_ns > 0 and seconds(newest_ns - stamp_ns) > _NEW_START_S:
            self._buffer.clear()
            self._newest_ns.clear()
            self.turns += 1
            newest_ns = stamp_ns
        self._newest_ns[child] = max(newest_ns, stamp_ns)
        self._buffer.set_transform(stamped, authority)

    def set_transform_static(self, stamped: TransformStamped, authority: str) -> None:
        """Take in one that holds for all times."""
        self._buffer.set_transform_static(stamped, authority)


class TransformPublisher:
    """Broadcasts odom -> base_link on /tf where tf2_ros is installed, while the node is active."""

    def __init__(self, node: Node, wanted: bool, is_active: Callable[[], bool], warn: Callable[[str], None]) -> None:
        """Open the broadcaster; a warning says why not, where it was wanted.

        Args:
            node: what publishes.
            wanted: whether anything is to be broadcast.
            is_active: whether the node is active: the broadcaster's publisher knows nothing of lifecycles.
            warn: writes one warning.
        """
        self._node = node
        self._is_active = is_active
        self._broadcaster = None
        if not wanted:
            return
        tf2_ros = import_tf2_ros()
        if tf2_ros is None:
            warn(
                "publish_tf is true, but tf2_ros is not installed: /tf stays silent; ~/odom has the same pose. Install "
                f"{_package('tf2-ros')}."
            )
            return
        self._broadcaster = tf2_ros.TransformBroadcaster(node)

    @property
    def is_open(self) -> bool:
        """Whether anything is broadcast."""
        return self._broadcaster is not None

    def close(self) -> None:
        """Destroy the broadcaster's publisher; may be called again."""
        if self._broadcaster is not None:
            self._node.destroy_publisher(self._broadcaster.pub_tf)
        self._broadcaster = None

    def publish(self, odometry: Odometry) -> None:
        """Broadcast the pose of a nav_msgs/Odometry."""
        broadcaster = self._broadcaster
        if broadcaster is None or not self._is_active():
            return
        stamped = TransformStamped()
        stamped.header = odometry.header
        stamped.child_frame_id = odometry.child_frame_id
        pose = odometry.pose.pose
        target = stamped.transform.translation
        target.x, target.y, target.z = pose.position.x, pose.position.y, pose.position.z
        stamped.transform.rotation = pose.orientation
        broadcaster.sendTransform(stamped)


def _late_text(camera_frame: str, late_s: float) -> str:
    """The time of the images is none that TF knows."""
    return (
        f"{camera_frame} moves on the robot, and TF has nothing for the time of its images: the newest is "
        f"{abs(late_s):.2f} s {'older' if late_s > 0 else 'newer'}, and is used. While the camera turns, ~/odom is "
        "wrong by what it turned in between. Publish the joints more often, or compare the clocks of camera and joints."
    )


def _unusable_text(link: str, values: Transform, waiting: bool) -> str:
    """TF has a transform that is none."""
    t = values.translation
    return (
        f"TF says {link} has the translation {(t.x, t.y, t.z)}: finite numbers were expected. "
        f"{'~/odom waits for them' if waiting else 'What was known before is kept'}. Mend its publisher, or set "
        "base_to_camera.source to parameters."
    )


def _one_frame_text(base_frame: str) -> str:
    """The camera's frame is the robot's."""
    return (
        f"The frame_id of the images is {base_frame}, which is base_frame too: ~/odom is the path of a frame that "
        "looks along its z axis, as optical frames do. For the robot's path give the images the frame_id of the "
        "camera's optical frame, or set base_to_camera.source to parameters."
    )


def _rigid(values: Transform) -> np.ndarray | None:
    """(4, 4) matrix of a transform; None where it is none (a zero quaternion, NaN)."""
    t, r = values.translation, values.rotation
    try:
        result = transform((t.x, t.y, t.z), (r.x, r.y, r.z, r.w))
    except UsageError:
        return None
    return result if np.isfinite(result).all() else None


def _in_words(T: np.ndarray) -> str:
    """Translation and quaternion of a mounting."""
    translation, rotation = (
        ", ".join(f"{round(value, 3) + 0.0:g}" for value in values.tolist())  # + 0.0: no "-0"
        for values in (T[:3, 3], quaternion_from_matrix(T[:3, :3]))
    )
    return f"translation ({translation}), rotation ({rotation})"


def _package(name: str) -> str:
    """The Debian package of a ROS package."""
    return f"ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-{name}"
