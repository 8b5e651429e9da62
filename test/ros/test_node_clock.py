"""Time that is simulated, goes back or never comes; camera_info that belongs to an image by its stamp."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros.rig import CAMERA, SECOND, StubPredictor
from ros.test_node_events import adds_up
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from coopnet_core.geometry.camera import Camera
from coopnet_ros.messages import camera_info_message, header_at, to_nanoseconds, to_time
from coopnet_ros.sequence import Companions

BIG = CAMERA.scaled(2 * CAMERA.width, 2 * CAMERA.height)


class Time:
    """Publishes /clock to a rig's node."""

    def __init__(self, rig) -> None:
        self.rig = rig
        self.clock = rig.peer.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        rig.wait(self.clock.get_subscription_count, "the subscription of /clock")

    def is_now(self, seconds: float) -> None:
        """Set the time, and wait until the node has it."""
        stamp_ns = round(seconds * SECOND)
        self.clock.publish(Clock(clock=to_time(stamp_ns)))
        self.rig.wait(lambda: self.rig.node.get_clock().now().nanoseconds == stamp_ns, "the time")


def paired(rig) -> list[int]:
    """Stamps of the images that were the second of a pair, in tenths of a second."""
    return [round(to_nanoseconds(message.header.stamp) / 1e8) for message in rig.received["flow/image"]]


def test_a_clock_that_goes_back_is_a_new_start_counted_and_said_once(make_rig, warnings):
    """Also where the stamp of the next image hides it."""
    rig = make_rig(topics=["flow/image", "odom"], use_sim_time=True)
    clock = Time(rig)
    clock.is_now(100.0)
    rig.send(100.0)
    rig.get("flow/image", rig.send(100.1))
    before = rig.get("odom", 100_100_000_000).pose.pose.position.x
    clock.is_now(50.0)
    after = rig.get("odom", rig.send(100.2))
    assert after.pose.pose.position.x == pytest.approx(before)
    assert after.pose.covariance[0] == 9999.0
    assert rig.counts.events["jumps"] == 1
    rig.get("flow/image", rig.send(100.3))
    assert paired(rig) == [1001, 1003]
    clock.is_now(100.0)
    rig.send(100.4)
    clock.is_now(50.0)
    rig.send(100.5)
    rig.get("flow/image", rig.send(100.6))
    assert paired(rig) == [1001, 1003, 1004, 1006]
    assert rig.counts.events["jumps"] == 2
    assert rig.status()["jumps"] == "2"
    assert len([text for text in warnings if "Time went back" in text]) == 1
    assert adds_up(rig)


@pytest.mark.parametrize("clock_first", [True, False])
def test_images_and_clock_that_go_back_together_are_one_jump(make_rig, clock_first):
    rig = make_rig(topics=["flow/image"], use_sim_time=True)
    clock = Time(rig)
    clock.is_now(100.0)
    rig.send(100.0)
    rig.get("flow/image", rig.send(100.1))
    if clock_first:
        clock.is_now(50.0)
        rig.send(50.0)
    else:
        rig.send(50.0)
        clock.is_now(50.0)
    rig.get("flow/image", rig.send(50.1))
    assert paired(rig) == [1001, 501]
    assert rig.counts.events["jumps"] == 1


def test_a_clock_that_goes_back_a_little_is_not_a_new_start(make_rig):
    rig = make_rig(topics=["flow/image"], use_sim_time=True)
    clock = Time(rig)
    clock.is_now(100.0)
    rig.send(100.0)
    clock.is_now(99.9)
    rig.get("flow/image", rig.send(100.1))
    assert rig.counts.events["jumps"] == 0


def test_following_another_clock_is_a_new_start(make_rig):
    rig = make_rig(topics=["flow/image"])
    rig.send(100.0)
    rig.get("flow/image", rig.send(100.1))
    assert rig.node.set_parameters([Parameter("use_sim_time", value=True)])[0].successful
    rig.send(100.2)
    rig.get("flow/image", rig.send(100.3))
    assert paired(rig) == [1001, 1003]
    assert rig.counts.events["jumps"] == 1


def test_time_that_never_comes_is_said_once_and_diagnostics_go_on(make_rig, warnings):
    rig = make_rig(use_sim_time=True, no_data_timeout=1.0)
    rig.send(100.0)
    assert rig.counts.processed == 1
    rig.wait(lambda: any("use_sim_time" in text for text in warnings), "the warning")
    text = next(text for text in warnings if "use_sim_time" in text)
    missing = [word for word in ("/clock for 1 s", "no publisher", "--clock", "to false") if word not in text]
    assert not missing, f"{missing} not in: {text}"
    for _ in range(3):
        status = rig.status()
        stamp_s = to_nanoseconds(rig.diagnostics[-1].header.stamp) / SECOND
        assert abs(stamp_s - time.time()) < 60  # of the wall
        assert status["stamp_age_s"] == ""
    assert len([text for text in warnings if "use_sim_time" in text]) == 1
    clock = Time(rig)
    clock.is_now(101.0)
    rig.wait(lambda: rig.diagnostics[-1].header.stamp.sec == 101, "diagnostics in simulated time")
    assert rig.status()["stamp_age_s"] == "1.000"


def test_a_publisher_of_clock_that_says_nothing_is_named(make_rig, warnings):
    rig = make_rig(use_sim_time=True, no_data_timeout=1.0)
    Time(rig)
    rig.wait(lambda: any("use_sim_time" in text for text in warnings), "the warning")
    assert "/peer publishes it, but nothing arrives" in next(text for text in warnings if "use_sim_time" in text)


def test_a_clock_that_comes_in_time_is_not_missed(make_rig, warnings):
    rig = make_rig(use_sim_time=True, no_data_timeout=1.0)
    Time(rig).is_now(5.0)
    for _ in range(3):
        rig.status()
    assert not any("use_sim_time" in text for text in warnings)


# ---------------------------------------------------------------------- camera_info by stamp


def camera_number(number: int) -> Camera:
    """Of one of two sizes, and known by its focal length."""
    base = BIG if number % 2 else CAMERA
    return Camera(base.width, base.height, 50.0 + number, 50.0, base.cx, base.cy)


def send_info(rig, number: int, stamp_ns: int) -> None:
    header = Header(stamp=to_time(stamp_ns), frame_id="camera_optical_frame")
    rig.infos.publish(camera_info_message(camera_number(number), header))


def image_of(number: int) -> dict:
    camera = camera_number(number)
    return {"image": np.zeros((camera.height, camera.width, 3), np.uint8)}


def seen(rig) -> dict[int, float]:
    """Focal length by the number of the image, as the networks saw it."""
    return {round(stamp / 1e8): frame.camera.fx for stamp, _, frame in rig.stub.calls}


@pytest.fixture
def patient(monkeypatch):
    """A slow computer must not decide the tests."""
    monkeypatch.setattr(Companions, "PATIENCE_S", 10.0)


@pytest.mark.parametrize("info_first", [True, False])
def test_every_image_is_judged_with_the_camera_info_of_its_stamp(make_rig, patient, info_first):
    """Sizes and focal lengths alternate."""
    rig = make_rig(info=False, max_pair_gap=30.0)
    for number in range(1, 9):
        stamp_ns = number * SECOND // 10
        if info_first:
            send_info(rig, number, stamp_ns)
            rig.wait(lambda wanted=stamp_ns: rig.node._cameras.at(wanted) is not None, "camera_info")
        rig.send(number / 10, **image_of(number), settle=False)
        if not info_first:
            send_info(rig, number, stamp_ns)
        rig.wait(lambda: rig.counts.pending == 0, "the end of processing")
    assert seen(rig) == {number: 50.0 + number for number in range(1, 9)}
    assert rig.counts.processed == 8
    assert sum(rig.counts.rejected.values()) == 0


class GatedPredictor(StubPredictor):
    """Works on an image until it is let go."""

    def predict(self, frame, outputs):
        prediction = super().predict(frame, outputs)
        assert self.gate.wait(30)
        return prediction


@pytest.mark.parametrize("stamped", [True, False])
def test_an_image_that_waits_keeps_the_camera_of_its_arrival(make_rig, stamped):
    """Where the camera_info that comes meanwhile is of another size; also where stamps say nothing."""
    stub = GatedPredictor()
    stub.gate = threading.Event()
    rig = make_rig(stub, info=False)
    try:
        for number in (1, 3):
            stamp_ns = number * SECOND // 10 if stamped else number
            send_info(rig, number, stamp_ns)
            rig.wait(lambda wanted=stamp_ns: rig.node._cameras.at(wanted) is not None, "camera_info")
            rig.send(number / 10, **image_of(number), settle=False)
            rig.wait(lambda: len(stub.calls) == 1, "the first image")
        send_info(rig, 4, 4 * SECOND // 10 if stamped else 4)
        rig.wait(lambda: rig.node._camera_state.camera == camera_number(4), "camera_info")
    finally:
        stub.gate.set()
    rig.wait(lambda: rig.counts.pending == 0, "the end of processing")
    assert seen(rig) == {1: 51.0, 3: 53.0}
    assert rig.counts.rejected["size_mismatch"] == 0


def test_an_image_that_waits_takes_its_own_camera_info_where_that_comes_later(make_rig):
    """Also where the one before it and the one after it are of the same size."""
    stub = GatedPredictor()
    stub.gate = threading.Event()
    rig = make_rig(stub, info=False)
    try:
        send_info(rig, 1, SECOND // 10)
        rig.wait(lambda: rig.node._camera_state.camera == camera_number(1), "camera_info")
        rig.send(0.1, **image_of(1), settle=False)
        rig.wait(lambda: len(stub.calls) == 1, "the first image")
        rig.send(0.3, **image_of(3), settle=False)
        for number in (3, 5):
            send_info(rig, number, number * SECOND // 10)
            rig.wait(lambda wanted=number: rig.node._camera_state.camera == camera_number(wanted), "camera_info")
    finally:
        stub.gate.set()
    rig.wait(lambda: rig.counts.pending == 0, "the end of processing")
    assert seen(rig) == {1: 51.0, 3: 53.0}


def test_camera_info_without_the_stamps_of_the_images_keeps_nobody_waiting(make_rig, patient):
    rig = make_rig()
    started = time.monotonic()
    for number in range(1, 4):
        rig.send(number / 10)
    assert time.monotonic() - started < Companions.PATIENCE_S
    assert rig.counts.processed == 3


def test_the_first_image_waits_for_its_own_camera_info(make_rig):
    rig = make_rig(info=False, max_pair_gap=30.0)
    rig.send(0.1, **image_of(1), settle=False)
    assert rig.counts.pending == 1
    send_info(rig, 1, SECOND // 10)
    rig.wait(lambda: rig.counts.processed == 1, "the image")
    assert seen(rig) == {1: 51.0}


def test_known_calibrations_are_derived_once(make_rig, monkeypatch):
    """Two cameras on one topic, or a zoom that goes to and fro: nothing is worked out twice, and nothing said twice."""
    rig = make_rig(info=False)
    said = []
    monkeypatch.setattr(rig.node.get_logger(), "info", said.append)
    for number in range(1, 7):
        header = header_at(number * SECOND // 10, "camera_optical_frame")
        rig.infos.publish(camera_info_message(BIG if number % 2 else CAMERA, header))
        rig.wait(lambda wanted=number: rig.node._cameras.at(wanted * SECOND // 10) is not None, "camera_info")
    assert len([text for text in said if text.startswith("Camera ")]) == 2
