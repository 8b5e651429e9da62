"""What is broken is dropped, counted and said once with what to do about it; the next good image is processed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.node import Node
from ros.rig import CAMERA, SECOND, StubPredictor, shift, true_depth
from ros.test_node_events import adds_up
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest

from coopnet_core.inference.prediction import Prediction
from coopnet_ros.messages import header_at, to_nanoseconds

WIDTH, HEIGHT = CAMERA.width, CAMERA.height
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8), (WIDTH, HEIGHT))
JPEG = cv2.imencode(".jpg", PICTURE)[1].tobytes()
PNG = cv2.imencode(".png", PICTURE)[1].tobytes()
NAN = float("nan")
K = [50.0, 0.0, 31.5, 0.0, 50.0, 15.5, 0.0, 0.0, 1.0]


@dataclass(frozen=True)
class Case:
    """Something broken.

    Attributes:
        name: of the test.
        changes: fields of the message that differ from the good one's.
        reason: that it is counted under.
        words: that the one warning contains: what was seen, what was expected, what to do.
    """

    name: str
    changes: dict
    reason: str
    words: tuple[str, ...]


@dataclass
class BadPredictor(StubPredictor):
    """Spoils what the stub returns while `spoil` is set."""

    spoil: Callable[[Prediction], Prediction | None] | None = None

    def predict(self, frame, outputs):
        prediction = super().predict(frame, outputs)
        return prediction if self.spoil is None else self.spoil(prediction)


def named(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check_refused_twice_said_once(rig, warnings: list[str], case: Case, good: Callable[[], object]) -> None:
    """After two bad ones: the counter, the one warning, and a good image that is processed."""
    rig.wait(lambda: rig.counts.rejected[case.reason] == 2, f"two of {case.reason}")
    assert rig.counts.processed == 0
    assert len(warnings) == 1
    missing = [word for word in case.words if word not in warnings[0]]
    assert not missing, f"{missing} not in: {warnings[0]}"
    good()
    rig.wait(lambda: rig.counts.pending == 0)
    assert rig.counts.processed == 1
    assert sum(rig.counts.rejected.values()) == 2
    assert len(warnings) == 1
    assert adds_up(rig)


def image(encoding: str, width: int, height: int, step: int, size: int) -> dict:
    return {"encoding": encoding, "width": width, "height": height, "step": step, "data": bytes(size)}


IMAGES = [
    Case("short data", {"data": b"123"}, "malformed", ("needs 6144 bytes", "holds 3", "driver")),
    Case("no data", {"data": b""}, "malformed", ("needs 6144 bytes", "holds 0", "driver")),
    Case("short step", {"step": 10}, "malformed", ("step is 10", "takes 192 bytes", "driver")),
    Case("no width", {"width": 0}, "malformed", ("0x32", "must be positive", "driver")),
    Case("no height", {"height": 0}, "malformed", ("64x0", "must be positive", "driver")),
    Case("huge", {"height": 2**31, "width": 2**31}, "malformed", ("step is 192", "takes 6442450944", "driver")),
    Case("bayer 2x2", image("bayer_rggb8", 2, 2, 2, 4), "malformed", ("2x2", "at least 3x3", "driver")),
    Case("odd yuyv", image("yuyv", 63, 32, 126, 4032), "malformed", ("63x32", "width is odd", "driver")),
    Case("odd uyvy", image("yuv422", 63, 32, 126, 4032), "malformed", ("63x32", "width is odd", "driver")),
    Case("odd nv12 width", image("nv12", 63, 32, 63, 4000), "malformed", ("63x32", "even width and height", "driver")),
    Case("odd nv21 height", image("nv21", 64, 31, 64, 4000), "malformed", ("64x31", "even width", "driver")),
    Case("nv12 second plane", image("nv12", 64, 32, 64, 2050), "malformed", ("3072 bytes", "holds 2050", "driver")),
    Case("nv24 second plane", image("nv24", 64, 32, 64, 2050), "malformed", ("6144 bytes", "holds 2050", "driver")),
    Case("unknown encoding", {"encoding": "x264"}, "unknown_encoding", ("'x264'", "bgr8", "Set the driver")),
    Case("no encoding", {"encoding": ""}, "unknown_encoding", ("''", "bgr8", "Set the driver")),
    Case("unordered channels", {"encoding": "8UC3"}, "unknown_encoding", ("'8UC3'", "use the name", "bgr8")),
    Case("depth", {"encoding": "32FC1"}, "unknown_encoding", ("'32FC1'", "holds depth", "Choose the topic")),
    Case("other size", image("rgb8", 32, 16, 96, 1536), "size_mismatch", ("32x16", "64x32", "Publish the camera_info")),
]


@named(IMAGES)
def test_a_broken_image(make_rig, warnings, case):
    rig = make_rig()
    rig.send(1.0, **case.changes)
    rig.send(1.1, **case.changes)
    check_refused_twice_said_once(rig, warnings, case, lambda: rig.send(1.2))


def huge_png() -> bytes:
    """The header of 2 000 000 000 x 2 000 000 000 pixels, and little behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2_000_000_000, 2_000_000_000, 8, 2, 0, 0, 0)
    return PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def broken_inside(content: bytes) -> bytes:
    """Both ends are there; what is between them is noise."""
    return content[:40] + bytes(len(content) - 80) + content[-40:]


COMPRESSED = [
    Case("empty", {"data": b""}, "malformed", ("'jpeg'", "0 bytes", "driver")),
    Case("not a picture", {"data": b"junk" * 9}, "malformed", ("6a756e6b", "neither JPEG nor PNG", "driver")),
    Case("cut jpeg", {"data": JPEG[: len(JPEG) // 2]}, "malformed", ("'jpeg'", "cut off", "driver")),
    Case("jpeg header only", {"data": JPEG[:30]}, "malformed", ("30 bytes", "cut off", "driver")),
    Case("cut png", {"data": PNG[: len(PNG) // 2], "format": "png"}, "malformed", ("'png'", "cut off", "driver")),
    Case("huge png", {"data": huge_png(), "format": "png"}, "malformed", ("cannot be decoded", "driver")),
    Case("broken png", {"data": broken_inside(PNG), "format": "png"}, "malformed", ("cannot be decoded", "driver")),
    Case(
        "depth",
        {"data": bytes(12) + PNG, "format": "16UC1; compressedDepth png"},
        "unknown_encoding",
        ("compressedDepth", "holds depth", "Choose the topic"),
    ),
    Case(
        "video",
        {"data": b"\x00\x00\x00\x01" + bytes(50), "format": "h264"},
        "unknown_encoding",
        ("'h264'", "JPEG and PNG are", "Republish"),
    ),
]


@named(COMPRESSED)
def test_a_broken_compressed_image(make_rig, warnings, case):
    rig = make_rig(image_transport="compressed")

    def send(seconds: float, **changes) -> None:
        header = header_at(round(seconds * SECOND), "camera")
        rig.send_message(CompressedImage(header=header, **{"format": "jpeg", "data": JPEG} | changes))

    send(1.0, **case.changes)
    send(1.1, **case.changes)
    check_refused_twice_said_once(rig, warnings, case, lambda: send(1.2))


def roi(x: int, y: int, width: int, height: int) -> dict:
    return {"roi": RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)}


def distortion(model: str, *d: float) -> dict:
    return {"distortion_model": model, "d": list(d)}


BAD = "bad_camera_info"
CAMERA_INFOS = [
    Case("nan in k", {"k": [NAN, *K[1:]]}, BAD, ("fx=nan", "finite", "Calibrate")),
    Case("nan centre", {"k": [*K[:2], NAN, *K[3:]]}, BAD, ("cx=nan", "finite", "Calibrate")),
    Case("infinite k", {"k": [*K[:4], float("inf"), *K[5:]]}, BAD, ("fy=inf", "finite", "Calibrate")),
    Case("negative k", {"k": [-50.0, *K[1:]]}, BAD, ("fx=-50", "positive", "Calibrate")),
    Case("no fy", {"k": [*K[:4], 0.0, *K[5:]]}, BAD, ("fy=0", "positive", "Calibrate")),
    Case("uncalibrated", {"k": [0.0] * 9}, "uncalibrated", ("K[0] = 0", "uncalibrated", "Calibrate")),
    Case("nan in d", distortion("plumb_bob", NAN, 0, 0, 0, 0), BAD, ("nan", "finite", "Calibrate")),
    Case("three of d", distortion("plumb_bob", 0.1, 0, 0), BAD, ("3 coefficients", "4 or 5", "alibrat")),
    Case("six of d", distortion("rational_polynomial", *[0.1] * 6), BAD, ("6 coefficients", "8 or 12", "alibrat")),
    Case("unknown model", distortion("magic", 0.1, 0), BAD, ("'magic'", "plumb_bob", "Rectify the images first")),
    Case("undoable", distortion("plumb_bob", 40.0, 0, 0, 0, 0), BAD, ("40", "cannot be undone", "calibrate again")),
    Case("region outside", roi(10, 0, 64, 32), BAD, ("64x32 at (10, 0)", "leaves the image", "roi")),
    Case("region far outside", roi(2**31, 0, 8, 8), BAD, ("2147483648", "leaves the image", "roi")),
    Case("large binning", {"binning_x": 100}, BAD, ("binning", "100", "64x32")),
    Case("no width", {"width": 0}, BAD, ("0x32", "must be positive", "camera_info")),
    Case("no height", {"height": 0}, BAD, ("64x0", "must be positive", "camera_info")),
]


@named(CAMERA_INFOS)
def test_a_broken_camera_info(make_rig, warnings, case):
    rig = make_rig(info=False)
    rig.send_info(None, **case.changes)
    rig.send(1.0)
    rig.send(1.1)
    check_refused_twice_said_once(rig, warnings, case, lambda: (rig.send_info(CAMERA), rig.send(1.2)))


def test_camera_infos_that_are_good_and_bad_in_turn(make_rig, warnings):
    rig = make_rig(info=False)
    for index in range(10):
        rig.send_info(None, **({} if index % 2 else distortion("plumb_bob", 0.1, 0, 0)))
        rig.send(1.0 + 0.1 * index)
    assert rig.counts.processed == rig.counts.rejected[BAD] == 5
    assert len(warnings) == 1
    assert adds_up(rig)


def test_a_second_kind_of_malformation_is_said_too(make_rig, warnings):
    rig = make_rig()
    rig.send(1.0, data=b"123")
    rig.send(1.1, step=10)
    rig.send(1.2, data=b"1")
    rig.send(1.3, encoding="x264")
    assert [("holds 3" in a, "step is 10" in b, "x264" in c) for a, b, c in [warnings]] == [(True, True, True)]
    assert rig.counts.rejected["malformed"] == 3


STAMPS = [
    Case("zero", {"sec": 0, "nanosec": 0}, "out_of_order", ("without a stamp", "made by stamp", "driver")),
    Case("negative", {"sec": -5, "nanosec": 1}, "out_of_order", ("before 0", "made by stamp", "driver")),
]


@named(STAMPS)
def test_an_image_without_a_stamp(make_rig, warnings, case):
    rig = make_rig()
    header = header_at(0, "camera_optical_frame")
    header.stamp.sec, header.stamp.nanosec = case.changes["sec"], case.changes["nanosec"]
    rig.send(1.0, header=header)
    rig.send(1.0, header=header)
    check_refused_twice_said_once(rig, warnings, case, lambda: rig.send(1.2))


def test_an_image_without_a_stamp_among_others_does_not_end_the_pair(make_rig):
    rig = make_rig(topics=["odom"])
    for seconds in (10.0, 0.0, 10.1, 0.0):
        rig.send(seconds)
    assert rig.counts.events["jumps"] == 0
    assert rig.counts.rejected["out_of_order"] == 2
    assert rig.get("odom", rig.send(10.2)).pose.pose.position.x == pytest.approx(2.0)
    assert adds_up(rig)


def test_the_same_stamp_again(make_rig, warnings):
    rig = make_rig()
    for seconds in (1.0, 1.0, 1.0, 1.1):
        rig.send(seconds)
    assert rig.counts.rejected["out_of_order"] == 2
    assert rig.counts.processed == 2
    assert len([text for text in warnings if "not after the newest" in text]) == 1
    assert adds_up(rig)


def test_nanoseconds_of_more_than_a_second_are_carried_over(make_rig):
    rig = make_rig(topics=["depth/image"])
    header = header_at(SECOND, "camera_optical_frame")
    header.stamp.nanosec = 2**32 - 1
    rig.send(1.0, header=header)
    stamp = rig.get("depth/image", SECOND + 2**32 - 1).header.stamp
    assert (stamp.sec, stamp.nanosec) == (5, 294_967_295)
    rig.send(5.3)
    assert rig.counts.processed == 2


def test_one_stamp_far_in_the_future(make_rig, warnings):
    rig = make_rig(topics=["odom"])
    for seconds in (1.0, 1.1, 2_000_000_000.0, 1.2, 1.3):
        stamp = rig.send(seconds)
    assert rig.counts.processed == 5
    assert (rig.counts.events["gaps"], rig.counts.events["jumps"]) == (1, 1)
    assert rig.get("odom", stamp).pose.covariance[0] < 9999.0
    assert to_nanoseconds(rig.received["odom"][2].header.stamp) == 2_000_000_000 * SECOND
    assert len(warnings) == 2
    assert adds_up(rig)


PREDICTIONS = [
    ("none", lambda p: None, ("NoneType", "a Prediction was expected", "Load other networks")),
    (
        "no finite depth",
        lambda p: replace(p, depth=np.full_like(p.depth, NAN)),
        ("No pixel of their depth is finite", "Load other networks"),
    ),
    (
        "other depth",
        lambda p: replace(p, depth=p.depth[:-1]),
        ("depth has the shape (15, 32)", "(16, 32) was expected", "Load other networks"),
    ),
    (
        "depth with a channel",
        lambda p: replace(p, depth=p.depth[..., None]),
        ("depth has the shape (16, 32, 1)", "(16, 32) was expected", "Load other networks"),
    ),
    (
        "motion without a row",
        lambda p: replace(p, T_previous_current=np.eye(4)[:3]),
        ("T_previous_current has the shape (3, 4)", "(4, 4) was expected", "Load other networks"),
    ),
    (
        "flow without v",
        lambda p: replace(p, flow=np.zeros((16, 32))),
        ("flow has the shape (16, 32)", "(16, 32, 2) was expected", "Load other networks"),
    ),
]


@pytest.mark.parametrize(("spoil", "words"), [row[1:] for row in PREDICTIONS], ids=[row[0] for row in PREDICTIONS])
def test_networks_that_return_nonsense(make_rig, warnings, spoil, words):
    stub = BadPredictor(spoil=spoil)
    rig = make_rig(stub, topics=["depth/image", "odom", "flow/image"])
    rig.send(1.0)
    rig.send(1.1)
    case = Case("", {}, "inference_error", ("The networks failed", *words))
    assert rig.received["depth/image"] == []

    def good() -> None:
        stub.spoil = None
        rig.get("depth/image", rig.send(1.2))

    check_refused_twice_said_once(rig, warnings, case, good)


@pytest.mark.parametrize(
    "motion",
    [np.diag([1.0, 1.0, -1.0, 1.0]), 2 * np.eye(4), np.full((4, 4), NAN), shift(float("inf"), 0.0, 0.0)],
    ids=["mirrored", "stretched", "nan", "infinite"],
)
def test_a_motion_that_is_not_rigid_is_lost_and_said_once(make_rig, warnings, motion):
    rig = make_rig(StubPredictor(), topics=["odom", "depth/image"])
    rig.send(1.0)
    rig.stub.motion = motion
    for seconds in (1.1, 1.2):
        stamp = rig.send(seconds)
        assert rig.get("odom", stamp).pose.covariance[0] == 9999.0
        assert rig.get("depth/image", stamp).width == 32
    assert len([text for text in warnings if "not rigid" in text and "Load other networks" in text]) == 1
    rig.stub.motion = shift(0.0, 0.0, 1.0)
    good = rig.get("odom", rig.send(1.3))
    assert good.pose.pose.position.x == pytest.approx(1.0)
    assert good.pose.covariance[0] < 9999.0
    assert rig.counts.processed == 4
    assert adds_up(rig)


def test_some_pixels_without_depth_are_published_as_they_are(make_rig):
    def holed(camera):
        depth = true_depth(camera)
        depth[:4] = NAN
        return depth

    rig = make_rig(StubPredictor(depth=holed), topics=["depth/image", "points", "depth/color"])
    stamp = rig.send(1.0)
    for name in ("depth/image", "points", "depth/color"):
        rig.get(name, stamp)
    assert isinstance(rig.received["depth/image"][0], Image)


def test_an_error_that_nobody_foresaw_says_where(make_rig, warnings, monkeypatch):
    rig = make_rig()

    def break_down(*_):
        raise ZeroDivisionError("by nought")

    with monkeypatch.context() as broken:
        broken.setattr(rig.node._outputs, "publish", break_down)
        rig.send(1.0)
        rig.send(1.1)
    words = ("ZeroDivisionError: by nought", "test_node_bad_input.py, line", "report it")
    check_refused_twice_said_once(rig, warnings, Case("", {}, "internal_error", words), lambda: rig.send(1.2))


def test_a_frame_id_that_is_empty_or_changes(make_rig):
    rig = make_rig(topics=["depth/image", "odom"], base_to_camera__source="parameters")
    for index, frame_id in enumerate(("", "left", "right")):
        stamp_ns = round((1.0 + 0.1 * index) * SECOND)
        rig.send(1.0, header=header_at(stamp_ns, frame_id))
        assert rig.get("depth/image", stamp_ns).header.frame_id == frame_id
        assert rig.get("odom", stamp_ns).child_frame_id == "base_link"
    assert adds_up(rig)


def types_of(rig, topic: str) -> list[str]:
    return [info.topic_type for info in rig.node.get_publishers_info_by_topic(topic)]


def test_raw_images_on_the_compressed_topic_are_explained(make_rig, warnings, ros):
    """The driver has a context of its own, as one participant cannot have a topic of two types."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros)
    driver = Node("driver", context=context)
    driver.create_publisher(Image, "image/compressed", 1)
    try:
        rig = make_rig(image_transport="compressed", no_data_timeout=0.5, start=False)
        rig.peer.destroy_publisher(rig.images)
        rig.wait(lambda: types_of(rig, "/image/compressed") == ["sensor_msgs/msg/Image"], "the driver alone")
        assert rig.node.start()
        rig.wait(lambda: warnings, "the warning")
    finally:
        driver.destroy_node()
        rclpy.try_shutdown(context=context)
    seen = [text for text in warnings if "/image/compressed" in text]
    assert len(seen) == 1
    assert "sensor_msgs/msg/Image, sensor_msgs/msg/CompressedImage was expected" in seen[0]
