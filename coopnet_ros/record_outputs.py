"""The command `record_outputs`: an independent subscriber that saves what the node publishes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rich.console import Console
from sensor_msgs.msg import CameraInfo, TimeReference

from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_ros.command import INTERRUPTED, run_guarded
from coopnet_ros.interface import topic_type
from coopnet_ros.interrupts import interrupted_once
from coopnet_ros.messages import array_of, to_nanoseconds
from coopnet_ros.odometry import transform

_KEYS = {
    "depth/image": "depth",
    "depth/camera_info": "camera_matrix",
    "depth_relative/image": "depth_relative",
    "depth_relative/camera_info": "camera_matrix",
    "depth/color": "depth_color",
    "odom": "odometry",
    "flow/image": "flow",
    "flow/time_reference": "previous_stamp_ns",
    "flow/color": "flow_color",
    "motion/mask": "mask",
    "motion/probability": "probability",
    "confidence": "confidence",
}
"""The array that each topic becomes in the files."""
_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
_OPEN_FRAMES = 20
_SETTLED_S = 0.5
"""Figures of the node that come so long after the last message that counts are those of the end."""
_LONGEST_END_S = 10.0
"""So long they are waited for; /diagnostics come once a second, on a busy computer later."""


@dataclass
class TopicSummary:
    """What arrived on one topic.

    Attributes:
        type: of the messages.
        encoding: of images, empty for the rest.
        count: number of messages.
        frame_id: of the last header.
        child_frame_id: of odometry, empty for the rest.
        width: of images and camera_info, pixels; 0 for the rest.
        height: of images and camera_info, pixels; 0 for the rest.
        first_stamp_ns: stamp of the first message.
        last_stamp_ns: stamp of the last message.
        rate_hz: messages per second of arrival.
        first_arrival_s: steady clock.
        last_arrival_s: steady clock.
    """

    type: str
    encoding: str = ""
    count: int = 0
    frame_id: str = ""
    child_frame_id: str = ""
    width: int = 0
    height: int = 0
    first_stamp_ns: int | None = None
    last_stamp_ns: int | None = None
    rate_hz: float = 0.0
    first_arrival_s: float = 0.0
    last_arrival_s: float = 0.0

    def add(self, message: object) -> None:
        """Take note of one message."""
        now, stamp_ns = time.monotonic(), to_nanoseconds(message.header.stamp)
        if self.count == 0:
            self.first_stamp_ns, self.first_arrival_s = stamp_ns, now
        self.count += 1
        self.last_stamp_ns, self.last_arrival_s = stamp_ns, now
        self.frame_id = message.header.frame_id
        self.encoding = getattr(message, "encoding", "")
        self.child_frame_id = getattr(message, "child_frame_id", "")
        self.width, self.height = getattr(message, "width", 0), getattr(message, "height", 0)
        if now > self.first_arrival_s:
            self.rate_hz = (self.count - 1) / (now - self.first_arrival_s)


class Recorder:
    """Collects messages by stamp and writes each stamp's arrays once newer ones have come."""

    def __init__(self, node: Node, node_name: str, output: Path) -> None:
        """Subscribe to every output of the node but the points, which are its depth again.

        Args:
            node: who subscribes.
            node_name: name of the observed node, with its namespace where it has one.
            output: folder; `frames/` is made in it.
        """
        self.folder = output
        self.topics = {name: TopicSummary(_type_name(topic_type(f"~/{name}"))) for name in _KEYS}
        self.diagnostics: dict[str, str] = {}
        self.last_arrival = self.last_figures = time.monotonic()
        self._node_name = node_name.strip("/")
        self._frames: dict[int, dict[str, np.ndarray]] = {}
        self._stamps: set[int] = set()
        (output / "frames").mkdir(parents=True, exist_ok=True)
        for name, key in _KEYS.items():
            node.create_subscription(
                topic_type(f"~/{name}"), f"/{self._node_name}/{name}", self._callback(name, key), _QOS
            )
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    @property
    def frames(self) -> int:
        """Number of stamps seen."""
        return len(self._stamps)

    def is_connected(self, node: Node) -> bool:
        """Whether every output of the observed node has been discovered."""
        return all(node.count_publishers(f"/{self._node_name}/{name}") for name in _KEYS)

    def write(self) -> Path:
        """Write the frames that are still open, and summary.json; gives its path."""
        for stamp_ns in sorted(self._frames):
            self._write_frame(stamp_ns)
        summary = {
            "node": f"/{self._node_name}",
            "frames": self.frames,
            "topics": {f"/{self._node_name}/{name}": asdict(topic) for name, topic in self.topics.items()},
            "diagnostics": self.diagnostics,
        }
        path = self.folder / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        return path

    def _callback(self, name: str, key: str) -> Callable[[object], None]:
        def receive(message: object) -> None:
            self.topics[name].add(message)
            self.last_arrival = time.monotonic()
            stamp_ns = to_nanoseconds(message.header.stamp)
            self._stamps.add(stamp_ns)
            self._frames.setdefault(stamp_ns, {}).update(_arrays(key, message))
            if len(self._frames) > _OPEN_FRAMES:
                self._write_frame(min(self._frames))

        return receive

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._node_name:
                self.last_figures = time.monotonic()
                self.diagnostics = {item.key: item.value for item in status.values}
                self.diagnostics["level"] = str(status.level[0])
                self.diagnostics["message"] = status.message

    def _write_frame(self, stamp_ns: int) -> None:
        path = self.folder / "frames" / f"{stamp_ns}.npz"
        arrays = self._frames.pop(stamp_ns)
        if path.exists():  # the same stamp again (a bag that loops, a late message): what was written is kept
            with np.load(path) as before:
                arrays = {**before, **arrays}
        np.savez_compressed(path, **arrays)


def _arrays(key: str, message: object) -> dict[str, np.ndarray]:
    """What is saved of one message."""
    if isinstance(message, Odometry):
        p, q = message.pose.pose.position, message.pose.pose.orientation
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        return {
            "pose": transform((p.x, p.y, p.z), (q.x, q.y, q.z, q.w)),
            "twist": np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]),
            "pose_covariance": np.array(message.pose.covariance).reshape(6, 6),
            "twist_covariance": np.array(message.twist.covariance).reshape(6, 6),
        }
    if isinstance(message, TimeReference):
        return {key: np.array(to_nanoseconds(message.time_ref), dtype=np.int64)}
    if isinstance(message, CameraInfo):
        return {key: np.array(message.k).reshape(3, 3)}
    return {key: array_of(message)}


def _type_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        options = _parser().parse_args(remove_ros_args(["record_outputs", *arguments])[1:])
        with interrupted_once():
            return _run(options, arguments, Console())

    try:
        return run_guarded(work, "Interrupted.")
    finally:
        rclpy.try_shutdown()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="record_outputs",
        description="Subscribe to every output of a running coopnet_node (but its points, which are the depth again) "
        "and save what arrives: "
        "frames/<stamp_ns>.npz (depth or depth_relative, flow, mask, probability, confidence, pose, twist, ...) and "
        "summary.json (per topic: type, encoding, count, frame, size, stamps, rate; the node's last diagnostics).",
        epilog="exit codes: 0 done, 2 wrong usage, 3 nothing arrived, 130 interrupted (what arrived is saved)",
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write to; must be empty or new")
    add("--node-name", default="coopnet", metavar="NAME", help="the node, with its namespace (default: %(default)s)")
    add("--expect-frames", type=int, default=0, metavar="N", help="end after N stamps (default: only by the times)")
    add("--timeout", type=float, default=60.0, metavar="S", help="end after S seconds at most (default: %(default)s)")
    add("--idle", type=float, default=5.0, metavar="S", help="end S seconds after the last message (default: 5)")
    return parser


def _run(options: argparse.Namespace, arguments: list[str], console: Console) -> int:
    if options.output.exists() and any(options.output.iterdir()):
        raise UsageError(f"{options.output} is not empty: name a new folder for the recording.")
    rclpy.init(args=["record_outputs", *arguments], signal_handler_options=SignalHandlerOptions.NO)
    node = Node("record_outputs")
    recorder = Recorder(node, options.node_name, options.output)
    code = 0
    try:
        _spin(node, recorder, options, lambda text: console.print(text, soft_wrap=True))
    except KeyboardInterrupt:
        code = INTERRUPTED
    path = recorder.write()
    node.destroy_node()
    if recorder.frames == 0:
        raise NoUsableDataError(
            f"Nothing arrived from /{options.node_name.strip('/')} within {options.timeout:g} s. Is it running, active "
            "and fed with images, in this ROS_DOMAIN_ID?"
        )
    counts = ", ".join(f"{name} {topic.count}" for name, topic in recorder.topics.items() if topic.count)
    console.print(f"{recorder.frames} frames saved in {path.parent}: {counts}", soft_wrap=True)
    return code


def _spin(node: Node, recorder: Recorder, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Receive until there is enough, or nothing more comes, and the node's last figures are in."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    end = time.monotonic() + options.timeout
    connected = False
    ended: float | None = None
    try:
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
            if not connected and recorder.is_connected(node):
                connected = True
                say(f"Connected to all outputs of /{options.node_name.strip('/')}.")
            idle = bool(recorder.frames) and time.monotonic() - recorder.last_arrival > options.idle
            if ended is None and (idle or 0 < options.expect_frames <= recorder.frames):
                ended = recorder.last_arrival
                end = min(end, time.monotonic() + _LONGEST_END_S)
            if ended is not None and recorder.last_figures > ended + _SETTLED_S:
                return
    except ExternalShutdownException:
        return
    finally:
        executor.shutdown()


if __name__ == "__main__":
    sys.exit(main())
