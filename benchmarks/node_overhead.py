"""What the node itself takes per image, from its arrival to the last message published, without the networks.

A peer in a process of its own sends images at a steady rate and listens to the results. In place of the networks stands
a predictor that takes no time, but undistorts, cuts and resizes the image to their size as the real one does ("fit").

python benchmarks/node_overhead.py --output out/node_overhead [--sizes 640x480 1241x376] [--frames 150] [--rate 30]
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import os
import platform
import struct
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import choose_size, fit_frame
from coopnet_core.errors import NoUsableDataError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Prediction
from coopnet_ros.command import image_size
from coopnet_ros.coopnet_node import CoopnetNode
from coopnet_ros.diagnostics import Statistics, percentiles
from coopnet_ros.interface import COMPUTED_TOPICS, topic_type
from coopnet_ros.messages import camera_info_message, image_message
from coopnet_ros.sequence import NANOSECONDS

ALL_TOPICS = tuple(spec.name for spec in COMPUTED_TOPICS if "_relative" not in spec.name)
LISTENERS = {"odom": ("~/odom",), "depth": ("~/depth/image",), "all": ALL_TOPICS}
ENCODINGS = ("rgb8", "bgr8", "mono8", "jpeg")
STAGES = ("decode", "fit", "publish", "rest", "overhead", "transport")
_RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_STAMP = struct.Struct("<iI")
_STAMP_OFFSET = 4
"""Where the stamp lies in a serialised message that begins with a header: behind the four bytes that name the form."""
_PATIENCE_S = 15.0
_TABLE_WIDTH = 132


@dataclass(frozen=True)
class Case:
    """What is sent, and what is listened to.

    Attributes:
        width, height: of the images.
        encoding: of `ENCODINGS`.
        listeners: of `LISTENERS`.
        frames: images that count.
        rate: images per second.
    """

    width: int
    height: int
    encoding: str
    listeners: str
    frames: int
    rate: float

    @property
    def topics(self) -> tuple[str, ...]:
        """The results that have a subscriber, names as in `COMPUTED_TOPICS`."""
        return LISTENERS[self.listeners]

    @property
    def answer(self) -> str:
        """The last of them that the node publishes for an image."""
        return "~/odom" if "~/odom" in self.topics else self.topics[-1]


class FittingPredictor:
    """The real way from image to network input, and results that are there already."""

    device = "none"

    def __init__(self) -> None:
        """Nothing has been seen."""
        self.fit_ms: list[tuple[int, float]] = []
        self._previous_ns: int | None = None

    def reset(self) -> None:
        """Forget the previous frame."""
        self._previous_ns = None

    def warm_up(self, camera: Camera) -> None:
        """Make the results of this camera."""
        _results(*choose_size(camera))

    def predict(self, frame: Frame, outputs: frozenset[str]) -> Prediction:
        """Fit the frame and note how long that took; everything else takes no time."""
        start = time.perf_counter()
        fitted = fit_frame(frame, *choose_size(frame.camera))
        self.fit_ms.append((frame.stamp_ns, 1e3 * (time.perf_counter() - start)))
        previous, self._previous_ns = self._previous_ns, frame.stamp_ns
        depth, flow, probability = _results(fitted.camera.width, fitted.camera.height)
        motion = np.eye(4)
        motion[2, 3] = 0.1
        paired = previous is not None
        return Prediction(
            stamp_ns=frame.stamp_ns,
            previous_stamp_ns=previous,
            camera=fitted.camera,
            image=fitted.image,
            depth=depth,
            metric=True,
            T_previous_current=motion if paired else None,
            flow=flow if paired else None,
            motion_probability=probability if paired else None,
            confidence=probability if paired else None,
            infer_ms=0.0,
        )


@functools.lru_cache(maxsize=8)
def _results(width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth from 2 to 150 m, flow with a tenth missing, a probability."""
    random = np.random.default_rng(0)
    flow = random.normal(0, 5, (height, width, 2)).astype(np.float32)
    flow[:, : width // 10] = np.nan
    return (
        random.uniform(2, 150, (height, width)).astype(np.float32),
        flow,
        random.uniform(0, 1, (height, width)).astype(np.float32),
    )


class RecordingStatistics(Statistics):
    """Keeps the times of every image, in the order in which they were processed."""

    def __init__(self) -> None:
        """Nothing has been processed."""
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def process(self, **milliseconds: float) -> None:
        """Keep them and count."""
        self.rows.append(milliseconds)
        super().process(**milliseconds)


# ---------------------------------------------------------------------- the peer, in a process of its own


def run_peer(connection: Connection, domain: int) -> None:
    """Serve cases until None comes: answer each with {stamp of an image sent: ms until its result came, or None}."""
    rclpy.init(domain_id=domain)
    node, executor = Node("overhead_peer"), SingleThreadedExecutor()
    executor.add_node(node)
    while (case := connection.recv()) is not None:
        connection.send(_send_and_listen(node, executor, case))
    node.destroy_node()
    rclpy.try_shutdown()


def _send_and_listen(node: Node, executor: SingleThreadedExecutor, case: Case) -> dict[int, float | None] | str:
    """Send images until all topics answer, then those that count; text where some never do."""
    heard: dict[str, dict[int, int]] = {topic: {} for topic in case.topics}

    def hear(topic: str, data: bytes) -> None:
        heard[topic][_stamp_of(data)] = time.perf_counter_ns()

    subscriptions = [
        node.create_subscription(
            topic_type(topic), topic.replace("~", "/coopnet"), functools.partial(hear, topic), _RELIABLE, raw=True
        )
        for topic in case.topics
    ]
    kind, topic = (CompressedImage, "image/compressed") if case.encoding == "jpeg" else (Image, "image")
    publishers = node.create_publisher(kind, topic, _RELIABLE), node.create_publisher(CameraInfo, "camera_info", 10)
    messages = [bytearray(serialize_message(message)) for message in _messages(case)]
    try:
        end = time.monotonic() + _PATIENCE_S
        while not all(heard.values()):
            if time.monotonic() > end:
                silent = ", ".join(topic for topic, stamps in heard.items() if not stamps)
                return f"The node does not answer on {silent}."
            _publish(publishers, messages)
            _spin_for(executor, 1 / case.rate)
        sent = {}
        for _ in range(case.frames):
            due = time.monotonic() + 1 / case.rate
            stamp_ns, began = _publish(publishers, messages)
            sent[stamp_ns] = began
            _spin_for(executor, due - time.monotonic())
        end = time.monotonic() + 1
        while max(sent) not in heard[case.answer] and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        answers = heard[case.answer]
        return {stamp: 1e-6 * (answers[stamp] - began) if stamp in answers else None for stamp, began in sent.items()}
    finally:
        for subscription in subscriptions:
            node.destroy_subscription(subscription)
        for publisher in publishers:
            node.destroy_publisher(publisher)


def _messages(case: Case) -> tuple[Image | CompressedImage, CameraInfo]:
    """An image with structure of all sizes, so that a JPEG of it is of ordinary length, and its calibration."""
    random, size = np.random.default_rng(0), (case.width, case.height)
    layers = [random.uniform(0, 255, (max(2, case.height // n), max(2, case.width // n), 3)) for n in (64, 16, 4)]
    picture = np.mean([cv2.resize(layer, size, interpolation=cv2.INTER_CUBIC) for layer in layers], axis=0)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    header = Header(frame_id="camera_optical_frame")
    info = camera_info_message(Camera.from_field_of_view(case.width, case.height, 80.0), header)
    if case.encoding == "jpeg":
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        return CompressedImage(header=header, format="bgr8; jpeg compressed bgr8", data=data), info
    image = image_message(*((picture[..., 0], "mono8") if case.encoding == "mono8" else (picture, "rgb8")), header)
    image.encoding = case.encoding
    return image, info


def _publish(publishers: tuple[Publisher, Publisher], messages: list[bytearray]) -> tuple[int, int]:
    """Send image and camera_info with the stamp of now; gives it, and the nanoseconds of time.perf_counter_ns."""
    stamp_ns = time.time_ns()
    began = time.perf_counter_ns()
    for publisher, message in zip(publishers, messages, strict=True):
        _STAMP.pack_into(message, _STAMP_OFFSET, *divmod(stamp_ns, NANOSECONDS))
        publisher.publish(bytes(message))
    return stamp_ns, began


def _stamp_of(data: bytes) -> int:
    seconds, nanoseconds = _STAMP.unpack_from(data, _STAMP_OFFSET)
    return seconds * NANOSECONDS + nanoseconds


def _spin_for(executor: SingleThreadedExecutor, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=remaining)


# ---------------------------------------------------------------------- the node, in this process


def case_figures(case: Case, connection: Connection) -> dict[str, object]:
    """Median and 95th percentile of every stage, milliseconds.

    Returns:
        For each of `STAGES` {p50_ms, p95_ms}: decode, fit, publish, what is left of the node's time (`rest`: waiting
        for the worker, the pose, counting), all of it (`overhead`), and what is left of the time from the peer's
        `publish` to its hearing of the result (`transport`: twice through DDS, and rclpy on both sides). Then how many
        images were sent and processed, and the size of the results.

    Raises:
        NoUsableDataError: the node does not start, or does not answer.
    """
    predictor = FittingPredictor()
    overrides = {
        "base_to_camera.source": "parameters",
        "image_transport": "compressed" if case.encoding == "jpeg" else "raw",
    }
    node = CoopnetNode([Parameter(name, value=value) for name, value in overrides.items()], lambda _: predictor)
    node.get_logger().set_level(LoggingSeverity.WARN)
    node.statistics = statistics = RecordingStatistics()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if not node.start():
            raise NoUsableDataError(f"{case}: the node does not start; it says above why.")
        connection.send(case)
        while not connection.poll():
            executor.spin_once(timeout_sec=0.1)
        answers = connection.recv()
    finally:
        executor.shutdown()
        node.destroy_node()
        del node, executor
        gc.collect()
    if isinstance(answers, str):
        raise NoUsableDataError(f"{case}: {answers}")
    rows = []
    for (stamp_ns, fit_ms), times in zip(predictor.fit_ms, statistics.rows, strict=True):
        if answers.get(stamp_ns) is not None:
            known = {"decode": times["decode"], "fit": fit_ms, "publish": times["publish"]}
            overhead = times["total"]
            rest, transport = overhead - sum(known.values()), answers[stamp_ns] - overhead
            rows.append(known | {"rest": rest, "overhead": overhead, "transport": transport})
    figures: dict[str, object] = {stage: _percentiles([row[stage] for row in rows]) for stage in STAGES}
    network = choose_size(Camera.from_field_of_view(case.width, case.height, 80.0))
    return figures | {"sent": len(answers), "answered": len(rows), "network_size": list(network)}


def _percentiles(milliseconds: list[float]) -> dict[str, float]:
    median, high = percentiles(milliseconds)
    return {"p50_ms": median, "p95_ms": high}


def measure(cases: list[Case]) -> list[dict[str, object]]:
    """The figures of all cases, each with what it is of."""
    domain = 101 + os.getpid() % 100
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    peer = processes.Process(target=run_peer, args=(theirs, domain), daemon=True)
    peer.start()
    rclpy.init(domain_id=domain)
    try:
        results = []
        for case in track(cases, "measuring", console=Console(stderr=True)):
            what = {"size": [case.width, case.height], "encoding": case.encoding, "listeners": case.listeners}
            results.append(what | {"rate_hz": case.rate} | case_figures(case, ours))
        return results
    finally:
        ours.send(None)
        peer.join(timeout=_PATIENCE_S)
        rclpy.try_shutdown()


def results_table(results: list[dict[str, object]]) -> Table:
    """One row per case."""
    table = Table("image", "encoding", "listeners", *STAGES, "answered", title="ms per image, median/95th percentile")
    for result in results:
        stages = [f"{result[stage]['p50_ms']:.2f}/{result[stage]['p95_ms']:.2f}" for stage in STAGES]
        size, answered = "x".join(map(str, result["size"])), f"{result['answered']} of {result['sent']}"
        table.add_row(size, result["encoding"], result["listeners"], *stages, answered)
    return table


def main() -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/node_overhead"))
    parser.add_argument(
        "--sizes", nargs="+", type=image_size, default=[(640, 480), (1241, 376)], metavar="WIDTHxHEIGHT"
    )
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--listeners", nargs="+", choices=list(LISTENERS), default=list(LISTENERS))
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--rate", type=float, default=30.0)
    arguments = parser.parse_args()
    cases = [
        Case(*size, encoding, listeners, arguments.frames, arguments.rate)
        for size in arguments.sizes
        for encoding in arguments.encodings
        for listeners in arguments.listeners
    ]
    results = measure(cases)
    Console(width=_TABLE_WIDTH).print(results_table(results))
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "middleware": rclpy.get_rmw_implementation_identifier(),
    }
    (arguments.output / "node_overhead.json").write_text(json.dumps(facts | {"cases": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
