"""Metres through the node: from the ground and from wheels; lost and found again; what is broadcast meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from ros import rig_tf
from ros.rig import CAMERA, SECOND, StubPredictor, shift, turn
from ros.rig_truth import ground_depth
from ros.test_node_life import STUBBED, run_node
from ros.test_node_values import pose_of

from coopnet_ros.messages import array_of, header_at
from coopnet_ros.odometry import transform

UNIT = 0.5
MOUNT = transform((0.6, 0.3, 1.2), (-0.5, 0.5, -0.5, 0.5))
MOUNTED = {"base_to_camera__source": "parameters", "base_to_camera__translation": [0.6, 0.3, 1.2]}
GRID = CAMERA.scaled(32, 16)
GROUND = ground_depth(GRID, MOUNT, 1.2)
STEP = shift(0.2, 0.01, 0.0) @ turn("z", 1.5)
"""Motion of the robot from image to image, 0.1 s apart."""


def in_half_metres(**changes) -> StubPredictor:
    """A robot that drives STEP per image, over ground, as networks see it whose unit is half a metre."""
    motion = np.linalg.inv(MOUNT) @ STEP @ MOUNT
    motion[:3, 3] /= UNIT
    depth = lambda camera: ground_depth(camera, MOUNT, 1.2) / np.float32(UNIT)  # noqa: E731
    return StubPredictor(**{"metric": False, "motion": motion, "depth": depth, **changes})


def wall(camera) -> np.ndarray:
    return np.full((camera.height, camera.width), 9.0, np.float32)


def drive(rig, start: int, images: int, wheels: bool = False) -> int:
    """Images number `start` and following, every 0.1 s from 1 s on, and poses of the wheels around each; last stamp."""
    for index in range(start, start + images):
        if wheels:
            for share in (0.0, 0.5) if index > 0 else (0.5,):
                rig.send_wheels(0.93 + 0.1 * index + 0.1 * share, pose_after(index - 0.7 + share))
        stamp = rig.send(1.0 + 0.1 * index)
    return stamp


def pose_after(steps: float) -> np.ndarray:
    """T_odom_base of the robot; between two images on the arc."""
    from coopnet_ros.odometry import exponential, logarithm

    return exponential(steps * logarithm(STEP))


def relative_error(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.abs(found / true - 1).max())


def test_the_height_of_the_camera_gives_metres(make_rig):
    rig = make_rig(in_half_metres(), topics=["depth/image", "odom"], scale_source="camera_height", **MOUNTED)
    stamp = drive(rig, 0, 8)
    assert relative_error(array_of(rig.get("depth/image", stamp)), GROUND) < 0.02
    odometry = rig.get("odom", stamp)
    np.testing.assert_allclose(pose_of(odometry)[:3, 3], pose_after(7)[:3, 3], rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(pose_of(odometry)[:3, :3], pose_after(7)[:3, :3], atol=1e-6)
    assert 0 < odometry.pose.covariance[0] < 1
    # unknown until five images have shown the ground
    assert [m.header.stamp.nanosec for m in rig.received["depth/image"]] == [400_000_000 + 10**8 * i for i in range(4)]
    assert {outputs for _, outputs, _ in rig.stub.calls} == {frozenset({"depth", "motion", "mask"})}
    status = rig.status()
    assert float(status["scale"]) == pytest.approx(UNIT, rel=0.02)
    assert (status["scale_source"], status["metric"], status["scale_samples"]) == ("camera_height", "true", "8")
    assert (status["scale_age_s"], status["scale_spread"], status["message"]) == ("0.0", "0.000", "running")


def test_ground_that_is_lost_moves_depth_to_the_relative_topic_and_back(make_rig, warnings):
    stub = in_half_metres()
    topics = ["depth/image", "depth_relative/image", "points", "points_relative", "odom"]
    rig = make_rig(stub, topics=topics, scale_source="camera_height", scale_max_age=1.0, **MOUNTED)
    known = drive(rig, 0, 6)
    rig.get("depth/image", known)
    rig.get("points", known)
    truth, stub.depth = stub.depth, wall
    unknown = drive(rig, 6, 12)
    np.testing.assert_array_equal(array_of(rig.get("depth_relative/image", unknown)), wall(GRID))
    rig.get("points_relative", unknown)
    held = rig.get("odom", unknown)
    np.testing.assert_allclose(pose_of(held)[:3, 3], pose_after(17)[:3, 3], rtol=0.02, atol=2e-3)
    assert held.pose.covariance[0] == held.twist.covariance[0] == 9999.0
    assert held.pose.covariance[35] < 1
    status = rig.status()
    assert (status["metric"], status["scale"], status["scale_samples"], status["level"]) == ("false", "", "0", 1)
    assert "running without a scale: no ground is seen" in status["message"]
    assert float(status["scale_age_s"]) == pytest.approx(1.2)
    lost = [text for text in warnings if "not known any more" in text]
    assert len(lost) == 1
    assert "no ground is seen" in lost[0]
    stub.depth = truth
    found = drive(rig, 18, 6)
    assert relative_error(array_of(rig.get("depth/image", found)), GROUND) < 0.02
    assert rig.get("odom", found).pose.covariance[0] < 1
    assert {m.header.stamp.sec * SECOND + m.header.stamp.nanosec for m in rig.received["depth/image"]}.isdisjoint(
        m.header.stamp.sec * SECOND + m.header.stamp.nanosec for m in rig.received["depth_relative/image"]
    )


def test_wheels_give_metres_around_a_curve_and_their_loss_is_said(make_rig, warnings):
    stub = in_half_metres()
    topics = ["depth/image", "depth_relative/image", "odom"]
    rig = make_rig(stub, topics=topics, scale_source="odometry", scale_max_age=1.0, **MOUNTED)
    stamp = drive(rig, 0, 10, wheels=True)
    assert relative_error(array_of(rig.get("depth/image", stamp)), GROUND) < 0.02
    np.testing.assert_allclose(pose_of(rig.get("odom", stamp))[:3, 3], pose_after(9)[:3, 3], rtol=0.02, atol=1e-3)
    assert {outputs for _, outputs, _ in stub.calls} == {frozenset({"depth", "motion"})}
    status = rig.status()
    assert float(status["scale"]) == pytest.approx(UNIT, rel=0.02)
    assert (status["scale_source"], status["metric"]) == ("odometry", "true")
    stamp = drive(rig, 10, 13)
    rig.get("depth_relative/image", stamp)
    held = rig.get("odom", stamp)
    np.testing.assert_allclose(pose_of(held)[:3, 3], pose_after(22)[:3, 3], rtol=0.02, atol=2e-3)
    assert held.pose.covariance[0] == 9999.0
    lost = [text for text in warnings if "not known any more" in text]
    assert len(lost) == 1
    assert "older than the image" in lost[0]
    stamp = drive(rig, 23, 10, wheels=True)
    assert relative_error(array_of(rig.get("depth/image", stamp)), GROUND) < 0.02


def test_wheels_that_are_broken_never_stop_the_node(make_rig, warnings):
    rig = make_rig(in_half_metres(), topics=["depth/image"], scale_source="odometry", **MOUNTED)
    rig.wait(rig.wheels.get_subscription_count)

    def publish(seconds: float, x: float = 0.0, w: float = 1.0, frame: str = "base_link") -> None:
        message = Odometry(header=header_at(round(seconds * SECOND), "odom"), child_frame_id=frame)
        message.pose.pose.position.x, message.pose.pose.orientation.w = x, w
        rig.wheels.publish(message)

    publish(0.5, x=float("nan"))
    rig.wait(lambda: any("not finite" in text for text in warnings), "the warning")
    for _ in range(3):
        publish(0.5, w=0.0)
    publish(0.6, frame="base_footprint")
    rig.wait(lambda: rig.node._wheels.newest_ns is not None)
    publish(0.4)  # out of order
    publish(0.7, x=1000.0)  # set to another place
    stamp = drive(rig, 0, 8, wheels=True)
    assert relative_error(array_of(rig.get("depth/image", stamp)), GROUND) < 0.02
    for words in ("not finite", "Quaternion"):  # two conditions, each said once
        assert len([text for text in warnings if words in text]) == 1
    assert len([text for text in warnings if "base_footprint" in text]) == 1
    assert rig.counts.processed == 8


def test_wheels_that_never_come_are_said_once(make_rig, warnings):
    options = {"scale_source": "odometry", "scale_window": 0.5, "no_data_timeout": 0.5, **MOUNTED}
    rig = make_rig(in_half_metres(), topics=["depth/image", "depth_relative/image"], **options)
    rig.get("depth_relative/image", drive(rig, 0, 12))
    said = [text for text in warnings if "no wheel_odom has arrived" in text]
    assert len(said) == 1
    assert "~/depth_relative/image" in said[0]
    rig.wait(lambda: any("/wheel_odom: " in text for text in warnings), "the explanation")
    rig.status()
    rig.status()
    assert len([text for text in warnings if "/wheel_odom: " in text]) == 1


def test_the_source_may_change_while_running(make_rig):
    rig = make_rig(in_half_metres(), topics=["depth/image", "depth_relative/image", "odom"], **MOUNTED)
    rig.get("depth_relative/image", drive(rig, 0, 3))
    assert rig.wheels.get_subscription_count() == 0
    rig.node.set_parameters([Parameter("scale_source", value="odometry")])
    stamp = drive(rig, 3, 9, wheels=True)
    assert relative_error(array_of(rig.get("depth/image", stamp)), GROUND) < 0.02
    np.testing.assert_allclose(pose_of(rig.get("odom", stamp))[:3, 3], pose_after(11)[:3, 3], rtol=0.02, atol=2e-3)
    rig.node.set_parameters([Parameter("scale_source", value="camera_height")])
    rig.wait(lambda: rig.wheels.get_subscription_count() == 0, "the end of the subscription")
    assert rig.node._wheels.newest_ns is None
    rig.get("depth_relative/image", drive(rig, 12, 1))
    assert relative_error(array_of(rig.get("depth/image", drive(rig, 13, 5))), GROUND) < 0.02
    result = rig.node.set_parameters([Parameter("base_to_camera.source", value="tf")])[0]
    assert not result.successful


def test_a_height_that_nobody_can_know_is_refused_with_the_reason(make_rig):
    rig = make_rig(base_to_camera__source="parameters")
    result = rig.node.set_parameters([Parameter("scale_source", value="camera_height")])[0]
    assert not result.successful
    assert "set camera_height" in result.reason
    rig.node.set_parameters([Parameter("camera_height", value=1.1)])
    assert rig.node.set_parameters([Parameter("scale_source", value="camera_height")])[0].successful


def test_depth_alone_does_not_ask_for_the_mask(make_rig):
    options = {"scale_source": "camera_height", "always_integrate": False, **MOUNTED}
    rig = make_rig(in_half_metres(), topics=["depth/image"], **options)
    assert relative_error(array_of(rig.get("depth/image", drive(rig, 0, 5))), GROUND) < 0.02
    assert {outputs for _, outputs, _ in rig.stub.calls} == {frozenset({"depth"})}


def test_its_own_odometry_is_no_source_of_scale(ros):
    arguments = ["-r", "wheel_odom:=/coopnet/odom", "-p", "scale_source:=odometry"]
    process = run_node(ros, STUBBED, "--ros-args", *arguments)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "publishes itself" in errors
    assert "Traceback" not in errors


def test_a_pose_in_an_unknown_unit_is_not_broadcast_and_it_is_said_once(make_rig, monkeypatch, warnings):
    sent = rig_tf.install(monkeypatch).sent
    rig = make_rig(in_half_metres(), topics=["odom"], publish_tf=True, **MOUNTED)
    drive(rig, 0, 4)
    assert sent == []
    said = [text for text in warnings if "publish_tf" in text]
    assert len(said) == 1
    assert "scale is not known" in said[0]
    rig.node.set_parameters([Parameter("scale", value=UNIT), Parameter("scale_source", value="fixed")])
    stamp = drive(rig, 4, 2)
    odometry = rig.get("odom", stamp)
    assert len(sent) == 2
    assert (sent[-1].header.stamp, sent[-1].header.frame_id) == (odometry.header.stamp, "odom")
    assert sent[-1].child_frame_id == "base_link"
    t, q = sent[-1].transform.translation, sent[-1].transform.rotation
    np.testing.assert_allclose(transform((t.x, t.y, t.z), (q.x, q.y, q.z, q.w)), pose_of(odometry), atol=1e-9)
    np.testing.assert_allclose(pose_of(odometry), pose_after(5), atol=1e-6)
    rig.node.set_parameters([Parameter("scale_source", value="none")])
    drive(rig, 6, 2)
    assert len(sent) == 2
    assert len([text for text in warnings if "publish_tf" in text]) == 2
