"""A node with a stub in place of the networks, a peer that talks to it, and an executor in the background."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.rig_truth import CAMERA, StubPredictor, shift, true_depth, true_flow, true_probability, turn
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, TimeReference
from std_msgs.msg import Header

from coopnet_core.geometry.camera import Camera
from coopnet_ros.coopnet_node import CoopnetNode
from coopnet_ros.messages import camera_info_message, header_at, image_message, to_nanoseconds
from coopnet_ros.odometry import quaternion_from_matrix

__all__ = ["CAMERA", "StubPredictor", "shift", "true_depth", "true_flow", "true_probability", "turn"]
WAIT_S = 10.0
SECOND = 1_000_000_000
TYPES = {
    "depth/image": Image,
    "depth/camera_info": CameraInfo,
    "depth/color": Image,
    "depth_relative/image": Image,
    "depth_relative/camera_info": CameraInfo,
    "points": PointCloud2,
    "points_relative": PointCloud2,
    "odom": Odometry,
    "flow/image": Image,
    "flow/time_reference": TimeReference,
    "flow/color": Image,
    "motion/mask": Image,
    "motion/probability": Image,
    "confidence": Image,
}


class Rig:
    """One node under test and one peer."""

    def __init__(self, stub: StubPredictor | None = None, topics=(), load=None, start=True, info=True, **parameters):
        self.stub = stub or StubPredictor()
        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
        self.node = CoopnetNode(overrides, load or (lambda request: self.stub))
        self.peer = Node("peer")
        self.compressed = parameters.get("image_transport") == "compressed"
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        kind, topic = (CompressedImage, "image/compressed") if self.compressed else (Image, "image")
        self.images = self.peer.create_publisher(kind, topic, qos)
        self.infos = self.peer.create_publisher(CameraInfo, "camera_info", qos)
        self.wheels = self.peer.create_publisher(Odometry, "wheel_odom", qos)
        self.received: dict[str, list] = {}
        self.diagnostics: list[DiagnosticArray] = []
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.subscriptions = {}
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self._running = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        if start:
            assert self.node.start()
        for name in topics:
            self.listen(name)
        self._thread.start()
        if start:
            self.wait(lambda: self.images.get_subscription_count() and self.infos.get_subscription_count())
            self.wait(lambda: all(self.node._outputs.is_wanted(f"~/{name}") for name in topics))
            if info:
                self.send_info(CAMERA)

    def _spin(self) -> None:
        while self._running:
            self.executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._running = False
        self._thread.join()
        self.executor.shutdown()
        self.node.destroy_node()
        self.peer.destroy_node()

    def listen(self, name: str) -> None:
        messages = self.received.setdefault(name, [])
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self.subscriptions[name] = self.peer.create_subscription(TYPES[name], f"/coopnet/{name}", messages.append, qos)

    def wait(self, condition, what: str = "the expected state", timeout_s: float = WAIT_S) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
            time.sleep(0.01)

    @property
    def counts(self):
        return self.node.statistics.snapshot()

    def send_info(self, camera: Camera | None, **changes) -> None:
        message = camera_info_message(camera or CAMERA, Header(frame_id="camera_optical_frame"))
        for name, value in changes.items():
            setattr(message, name, value)
        before = self.node._camera_source
        self.infos.publish(message)
        self.wait(lambda: self.node._camera_source != before, "camera_info")

    def send(self, seconds: float, image: np.ndarray | None = None, settle: bool = True, **changes) -> int:
        """Publish an image at a stamp, and wait until its fate is decided."""
        stamp_ns = round(seconds * SECOND)
        pixels = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8) if image is None else image
        message = image_message(pixels, "rgb8", header_at(stamp_ns, "camera_optical_frame"))
        for name, value in changes.items():
            setattr(message, name, value)
        return self.send_message(message, settle)

    def send_message(self, message, settle: bool = True) -> int:
        before = self.counts.received
        self.images.publish(message)
        self.wait(lambda: self.counts.received > before, "the image")
        if settle:
            self.wait(lambda: self.counts.pending == 0, "the end of processing")
        return to_nanoseconds(message.header.stamp)

    def send_wheels(self, seconds: float, pose: np.ndarray) -> None:
        """Publish a pose of the wheel odometry, (4, 4), and wait until the node has it."""
        message = Odometry(header=header_at(round(seconds * SECOND), "odom"), child_frame_id="base_link")
        p, q = message.pose.pose.position, message.pose.pose.orientation
        p.x, p.y, p.z = pose[:3, 3].tolist()
        q.x, q.y, q.z, q.w = quaternion_from_matrix(pose[:3, :3]).tolist()
        self.wait(self.wheels.get_subscription_count, "the subscription of wheel_odom")
        self.wheels.publish(message)
        self.wait(lambda: self.node._wheels.newest_ns == round(seconds * SECOND), "the pose")

    def get(self, name: str, stamp_ns: int):
        """The message of this topic and stamp."""
        found = []

        def look() -> bool:
            found[:] = [m for m in self.received[name] if to_nanoseconds(m.header.stamp) == stamp_ns]
            return bool(found)

        self.wait(look, f"{name} of {stamp_ns}")
        assert len(found) == 1
        return found[0]

    def call(self, kind, name: str, request=None):
        client = self.peer.create_client(kind, f"/coopnet/{name}")
        assert client.wait_for_service(WAIT_S)
        future = client.call_async(request or kind.Request())
        self.wait(future.done, f"the answer of {name}")
        self.peer.destroy_client(client)
        return future.result()

    def status(self) -> dict[str, str]:
        """The next diagnostics' values, with `level` and `message`."""
        seen = len(self.diagnostics)
        self.wait(lambda: len(self.diagnostics) > seen, "diagnostics")
        status = self.diagnostics[-1].status[0]
        values = {item.key: item.value for item in status.values}
        return {**values, "level": status.level[0], "message": status.message}


def open_context(domain: int) -> None:
    """Start ROS in a domain of its own."""
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    rclpy.init(domain_id=domain)
