"""A stand-in for tf2_ros, which is not on PyPI: what the node uses of it, with the signatures of Jazzy.

tf2_msgs is not there either: one TransformStamped stands for a TFMessage, and only direct links are known.
"""

from __future__ import annotations

import types

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp

from coopnet_ros.messages import header_at, to_nanoseconds
from coopnet_ros.odometry import quaternion_from_matrix

_CACHE_NS = 10_000_000_000


class TransformException(Exception):
    """What every error of tf2 is."""


class LookupException(TransformException):
    """A frame that nobody has published."""


class InvalidArgumentException(TransformException):
    """A name that no frame can have."""


class ExtrapolationException(TransformException):
    """A time that lies outside of what was heard."""


class Buffer:
    """The transforms heard so far: of each link the newest, and all those with a time."""

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self.links: dict[tuple[str, str], TransformStamped] = {}
        self.timed: dict[tuple[str, str], dict[int, TransformStamped]] = {}
        self.lookups: list[str] = []
        self.ignored = 0

    def clear(self) -> None:
        """Forget what has a time; what has none stays."""
        for timed in self.timed.values():
            timed.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        if is_refused(transform):
            return
        link, stamp_ns = (transform.header.frame_id, transform.child_frame_id), to_nanoseconds(transform.header.stamp)
        timed = self.timed.setdefault(link, {})
        if timed and stamp_ns < max(timed) - _CACHE_NS:
            self.ignored += 1  # tf2 says TF_OLD_DATA
            return
        self.links[link] = timed[stamp_ns] = transform

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        if is_refused(transform):
            return
        link = transform.header.frame_id, transform.child_frame_id
        self.timed.pop(link, None)
        self.links[link] = transform

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> TransformStamped:
        self.lookups.append(source_frame)
        if not source_frame or source_frame.startswith("/"):
            raise InvalidArgumentException(f'Invalid argument "{source_frame}" passed to lookupTransform')
        link = target_frame, source_frame
        if target_frame == source_frame:
            return stamped(np.eye(4), source_frame, target_frame)
        if link not in self.links:
            raise LookupException(f'"{source_frame}" passed to lookupTransform argument source_frame does not exist. ')
        timed = self.timed.get(link)
        if timed is None:  # static: of any time
            return at_time(self.links[link], time.nanoseconds)
        if not timed:
            raise LookupException("No common time. ")
        if time.nanoseconds == 0:
            return timed[max(timed)]
        after = min((stamp for stamp in timed if stamp >= time.nanoseconds), default=None)
        before = max((stamp for stamp in timed if stamp <= time.nanoseconds), default=None)
        if before is None or after is None:
            raise ExtrapolationException(f"Lookup would require extrapolation: {time.nanoseconds} of {sorted(timed)}")
        return between(timed[before], timed[after], time.nanoseconds)


def is_refused(transform: TransformStamped) -> bool:
    """Whether tf2 takes no notice of it but for an error in its log: a quaternion that is none, or NaN."""
    t, q = transform.transform.translation, transform.transform.rotation
    norm = np.linalg.norm([q.x, q.y, q.z, q.w])
    return bool(norm == 0 or np.isnan([norm, t.x, t.y, t.z]).any())


def at_time(message: TransformStamped, stamp_ns: int) -> TransformStamped:
    """The same transform of another time."""
    header = header_at(stamp_ns, message.header.frame_id)
    return TransformStamped(header=header, child_frame_id=message.child_frame_id, transform=message.transform)


def between(start: TransformStamped, end: TransformStamped, stamp_ns: int) -> TransformStamped:
    """Linear in the translation, spherically linear in the rotation, as tf2 does it."""
    stamps = [to_nanoseconds(one.header.stamp) for one in (start, end)]
    if stamps[0] == stamps[1]:
        return start
    share = (stamp_ns - stamps[0]) / (stamps[1] - stamps[0])
    parts = [(one.transform.translation, one.transform.rotation) for one in (start, end)]
    positions = [np.array([t.x, t.y, t.z]) for t, _ in parts]
    rotations = Rotation.from_quat([[q.x, q.y, q.z, q.w] for _, q in parts])
    T = np.eye(4)
    T[:3, :3] = Slerp([0.0, 1.0], rotations)(share).as_matrix()
    T[:3, 3] = (1 - share) * positions[0] + share * positions[1]
    return stamped(T, end.child_frame_id, end.header.frame_id, stamp_ns)


class TransformListener:
    """Fills a buffer from /tf and /tf_static."""

    def __init__(
        self,
        buffer: Buffer,
        node: Node,
        *,
        spin_thread: bool = False,
        qos: QoSProfile | None = None,
        static_qos: QoSProfile | None = None,
    ) -> None:
        assert not spin_thread
        self.buffer, self.node = buffer, node
        self.group = ReentrantCallbackGroup()
        self.tf_sub = node.create_subscription(
            TransformStamped, "/tf", self.callback, qos or QoSProfile(depth=100), callback_group=self.group
        )
        self.tf_static_sub = node.create_subscription(
            TransformStamped, "/tf_static", self.static_callback, static_qos or latched(), callback_group=self.group
        )

    def __del__(self) -> None:
        self.unregister()

    def unregister(self) -> None:
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)

    def callback(self, data: TransformStamped) -> None:
        self.buffer.set_transform(data, "default_authority")

    def static_callback(self, data: TransformStamped) -> None:
        self.buffer.set_transform_static(data, "default_authority")


class TransformBroadcaster:
    """Publishes on /tf."""

    def __init__(self, node: Node, qos: QoSProfile | None = None) -> None:
        self.pub_tf = node.create_publisher(TransformStamped, "/tf", qos or QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped) -> None:
        self.pub_tf.publish(transform)


def latched() -> QoSProfile:
    """The QoS of /tf_static."""
    return QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL, history=HistoryPolicy.KEEP_LAST)


def install(monkeypatch) -> types.SimpleNamespace:
    """Let the node find the stand-in where it looks for tf2_ros; `sent` is what it broadcasts."""
    from coopnet_ros import mount

    module = types.SimpleNamespace(
        Buffer=Buffer,
        TransformListener=TransformListener,
        TransformBroadcaster=TransformBroadcaster,
        TransformException=TransformException,
        sent=[],
    )
    send = TransformBroadcaster.sendTransform
    monkeypatch.setattr(
        TransformBroadcaster, "sendTransform", lambda self, one: (module.sent.append(one), send(self, one))[1]
    )
    monkeypatch.setattr(mount, "import_tf2_ros", lambda: module)
    return module


def stamped(
    T: np.ndarray, child: str = "camera_optical_frame", parent: str = "base_link", stamp_ns: int = 0
) -> TransformStamped:
    """A (4, 4) transform as a message."""
    message = TransformStamped(header=header_at(stamp_ns, parent), child_frame_id=child)
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = T[:3, 3].tolist()
    q.x, q.y, q.z, q.w = quaternion_from_matrix(T[:3, :3]).tolist()
    return message
