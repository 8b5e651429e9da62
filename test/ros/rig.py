"""A node with a stub in place of the networks, a peer that talks to it, and an executor in the background."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, TimeReference
from std_msgs.msg import Header

from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import DEPTH, FLOW, MASK, MOTION, Prediction
from coopnet_ros.coopnet_node import CoopnetNode
from coopnet_ros.messages import camera_info_message, header_at, image_message, to_nanoseconds

WAIT_S = 10.0
CAMERA = Camera(64, 32, 50.0, 50.0, 31.5, 15.5)
SECOND = 1_000_000_000
TYPES = {
    "depth/image": Image,
    "depth/camera_info": CameraInfo,
    "depth/color": Image,
    "depth_relative/image": Image,
    "depth_relative/camera_info": CameraInfo,
    "odom": Odometry,
    "flow/image": Image,
    "flow/time_reference": TimeReference,
    "flow/color": Image,
    "motion/mask": Image,
    "motion/probability": Image,
    "confidence": Image,
}


def turn(axis: str, degrees: float) -> np.ndarray:
    """(4, 4) rotation about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    result = np.eye(4)
    result[i, i] = result[j, j] = c
    result[i, j], result[j, i] = -s, s
    return result


def shift(x: float, y: float, z: float) -> np.ndarray:
    """(4, 4) translation."""
    result = np.eye(4)
    result[:3, 3] = (x, y, z)
    return result


@dataclass
class StubPredictor:
    """Returns a known truth on a grid of half the image's size; records what it was asked."""

    motion: np.ndarray = field(default_factory=lambda: shift(0.0, 0.0, 1.0))
    metric: bool = True
    fails: bool = False
    delay_s: float = 0.0
    calls: list = field(default_factory=list)
    resets: int = 0
    warmed: list = field(default_factory=list)
    _previous_ns: int | None = None

    def warm_up(self, camera: Camera) -> None:
        self.warmed.append(camera)

    def reset(self) -> None:
        self.resets += 1
        self._previous_ns = None

    def predict(self, frame, outputs) -> Prediction:
        self.calls.append((frame.stamp_ns, outputs, frame))
        if self.fails:
            raise RuntimeError("CUDA out of memory")
        time.sleep(self.delay_s)
        previous, self._previous_ns = self._previous_ns, frame.stamp_ns
        camera = frame.camera.scaled(frame.camera.width // 2, frame.camera.height // 2).undistorted()
        paired = previous is not None
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=previous,
            camera=camera,
            image=frame.image[::2, ::2],
            depth=true_depth(camera) if DEPTH in outputs else None,
            metric=self.metric,
            T_previous_current=self.motion.copy() if paired and MOTION in outputs else None,
            flow=true_flow(camera) if paired and FLOW in outputs else None,
            motion_probability=true_probability(camera) if paired and MASK in outputs else None,
            confidence=1 - true_probability(camera) if paired and MASK in outputs else None,
            infer_ms=1.5,
        )


def _grid(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.arange(camera.width, dtype=np.float32), np.arange(camera.height, dtype=np.float32))


def true_depth(camera: Camera) -> np.ndarray:
    """(h, w) a different value in every pixel, from 2 to about 200."""
    x, y = _grid(camera)
    return 2 + x + 12 * y


def true_flow(camera: Camera) -> np.ndarray:
    """(h, w, 2) differs in u and v; the first column has left the image."""
    x, y = _grid(camera)
    flow = np.stack([0.5 * x - 3, -0.25 * y], axis=-1)
    flow[:, 0] = np.nan
    return flow


def true_probability(camera: Camera) -> np.ndarray:
    """(h, w) 0.9 in the left third, 0.1 elsewhere."""
    x, _ = _grid(camera)
    return np.where(x < camera.width / 3, np.float32(0.9), np.float32(0.1))


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
