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

from coopnet_ros.odometry import quaternion_from_matrix


class TransformException(Exception):
    """What every error of tf2 is."""


class LookupException(TransformException):
    """A frame that nobody has published."""


class Buffer:
    """The transforms heard so far."""

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self.links: dict[tuple[str, str], TransformStamped] = {}
        self.lookups: list[str] = []

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        self.links[transform.header.frame_id, transform.child_frame_id] = transform

    set_transform_static = set_transform

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration | None = None
    ) -> TransformStamped:
        self.lookups.append(source_frame)
        if (target_frame, source_frame) not in self.links:
            raise LookupException(f'"{source_frame}" passed to lookupTransform argument source_frame does not exist. ')
        return self.links[target_frame, source_frame]


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
            TransformStamped, "/tf_static", self.callback, static_qos or latched(), callback_group=self.group
        )

    def __del__(self) -> None:
        self.unregister()

    def unregister(self) -> None:
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)

    def callback(self, data: TransformStamped) -> None:
        self.buffer.set_transform(data, "default_authority")


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


def stamped(T: np.ndarray, child: str = "camera_optical_frame", parent: str = "base_link") -> TransformStamped:
    """A (4, 4) transform as a message."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = T[:3, 3].tolist()
    q.x, q.y, q.z, q.w = quaternion_from_matrix(T[:3, :3]).tolist()
    return message
