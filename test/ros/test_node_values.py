"""What the node publishes equals the truth that the predictor returns: values, grids, stamps, frames."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.parameter import Parameter
from ros.rig import CAMERA, SECOND, TYPES, StubPredictor, shift, true_depth, true_flow, true_probability, turn

from coopnet_core.visualization import depth_to_color, flow_to_color
from coopnet_ros.messages import array_of, to_nanoseconds
from coopnet_ros.odometry import matrix_from_quaternion, transform

GRID = CAMERA.scaled(32, 16)


def pose_of(message) -> np.ndarray:
    p, q = message.pose.pose.position, message.pose.pose.orientation
    return transform((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def test_every_output_has_the_stamp_frame_size_encoding_and_values_of_the_truth(make_rig):
    topics = [name for name in TYPES if "_relative" not in name]
    rig = make_rig(topics=topics, max_depth=100.0)
    first, second = rig.send(1.0), rig.send(1.1)
    messages = {name: rig.get(name, second) for name in topics}
    for name, message in messages.items():
        assert message.header.frame_id == ("odom" if name == "odom" else "camera_optical_frame"), name
        if hasattr(message, "width"):
            assert (message.width, message.height) == (32, 16), name
    encodings = {name: m.encoding for name, m in messages.items() if hasattr(m, "encoding")}
    assert encodings == {
        "depth/image": "32FC1",
        "depth/color": "rgb8",
        "flow/image": "32FC2",
        "flow/color": "rgb8",
        "motion/mask": "mono8",
        "motion/probability": "32FC1",
        "confidence": "32FC1",
    }
    truth = true_depth(GRID)
    assert (truth > 100).any()
    limited = np.where(truth > 100, np.nan, truth)
    np.testing.assert_allclose(array_of(messages["depth/image"]), limited, rtol=1e-6)
    np.testing.assert_allclose(array_of(messages["flow/image"]), true_flow(GRID), rtol=1e-6)
    assert np.isnan(array_of(messages["flow/image"])[:, 0]).all()
    assert to_nanoseconds(messages["flow/time_reference"].time_ref) == first
    np.testing.assert_array_equal(array_of(messages["motion/mask"]), np.where(true_probability(GRID) > 0.5, 255, 0))
    np.testing.assert_allclose(array_of(messages["motion/probability"]), true_probability(GRID))
    np.testing.assert_allclose(array_of(messages["confidence"]), 1 - true_probability(GRID))
    np.testing.assert_array_equal(array_of(messages["depth/color"]), depth_to_color(limited, 1.0, 80.0))
    np.testing.assert_array_equal(array_of(messages["flow/color"]), flow_to_color(true_flow(GRID), 20.0))
    info = messages["depth/camera_info"]
    np.testing.assert_allclose(info.k, [25.0, 0.0, 15.5, 0.0, 25.0, 7.5, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3].reshape(-1), info.k)


def test_the_first_frame_has_depth_but_no_flow(make_rig):
    rig = make_rig(topics=["depth/image", "flow/image", "motion/mask"])
    first = rig.send(1.0)
    rig.get("depth/image", first)
    rig.get("flow/image", rig.send(1.1))
    assert [to_nanoseconds(m.header.stamp) for m in rig.received["flow/image"]] == [round(1.1 * SECOND)]


def test_odometry_ahead_of_the_camera_is_x_of_the_robot(make_rig):
    rig = make_rig(StubPredictor(motion=shift(0.0, 0.0, 2.0)), topics=["odom"])
    rig.send(1.0)
    rig.send(1.1)
    message = rig.get("odom", rig.send(1.2))
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
    np.testing.assert_allclose(pose_of(message), shift(4.0, 0.0, 0.0), atol=1e-9)
    linear = message.twist.twist.linear
    np.testing.assert_allclose((linear.x, linear.y, linear.z), (20.0, 0.0, 0.0), atol=1e-6)
    for covariance in (message.pose.covariance, message.twist.covariance):
        diagonal = np.diag(np.reshape(covariance, (6, 6)))
        assert (diagonal > 0).all()
        assert (diagonal < 9999).all()


def test_odometry_of_a_camera_that_is_mounted_aside_and_turned(make_rig):
    """A robot driving a left-hand curve, seen by a camera 1.5 m ahead, 0.4 m left, looking 30 degrees to the right."""
    optical = transform((0, 0, 0), (-0.5, 0.5, -0.5, 0.5))
    T_base_camera = shift(1.5, 0.4, 1.2) @ turn("z", -30) @ turn("y", 10) @ optical
    robot_motion = shift(0.8, 0.05, 0.0) @ turn("z", 7)
    camera_motion = np.linalg.inv(T_base_camera) @ robot_motion @ T_base_camera
    from coopnet_ros.odometry import logarithm, quaternion_from_matrix

    rig = make_rig(
        StubPredictor(motion=camera_motion),
        topics=["odom"],
        base_to_camera__translation=T_base_camera[:3, 3].tolist(),
        base_to_camera__rotation=quaternion_from_matrix(T_base_camera[:3, :3]).tolist(),
    )
    expected = np.eye(4)
    rig.send(1.0)
    for index in range(1, 4):
        expected = expected @ robot_motion
        message = rig.get("odom", rig.send(1.0 + 0.1 * index))
        np.testing.assert_allclose(pose_of(message), expected, atol=1e-9)
    q = message.pose.pose.orientation
    np.testing.assert_allclose(matrix_from_quaternion((q.x, q.y, q.z, q.w)), expected[:3, :3], atol=1e-9)
    twist = message.twist.twist
    values = (twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z)
    np.testing.assert_allclose(values, logarithm(robot_motion) / 0.1, atol=1e-6)


def test_the_covariance_of_the_networks_reaches_the_robots_frame(make_rig):
    """Two motions of 2 m ahead, a heading uncertain by 0.01 rad each time, a camera 1.5 m ahead of the robot."""
    about_down = np.diag([0, 0, 0, 0, 1e-4, 0])
    rig = make_rig(
        StubPredictor(motion=shift(0.0, 0.0, 2.0), covariance=about_down),
        topics=["odom"],
        base_to_camera__translation=[1.5, 0.0, 1.2],
        base_to_camera__rotation=[-0.5, 0.5, -0.5, 0.5],
        covariance__translation_fraction=1e-6,
        covariance__translation_floor=1e-6,
        covariance__rotation=1e-6,
    )
    rig.send(1.0)
    rig.send(1.1)
    message = rig.get("odom", rig.send(1.2))
    covariance = np.reshape(message.pose.covariance, (6, 6))
    # the camera turns about where it stood: 1.5 m ahead of the robot's origin, then 3.5 m; the robot ends at 4 m
    arms = np.array([4.0 - 1.5, 4.0 - 3.5])
    np.testing.assert_allclose(covariance[1, 1], 1e-4 * (arms**2).sum(), rtol=1e-3)
    np.testing.assert_allclose(covariance[5, 5], 2e-4, rtol=1e-3)
    np.testing.assert_allclose(covariance[1, 5], 1e-4 * arms.sum(), rtol=1e-3)
    twist = np.reshape(message.twist.covariance, (6, 6))
    np.testing.assert_allclose(twist[5, 5], 1e-4 / 0.1**2, rtol=1e-3)
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    rig.node.set_parameters([Parameter("covariance.source", value="parameters")])
    later = np.reshape(rig.get("odom", rig.send(1.3)).twist.covariance, (6, 6))
    assert later[5, 5] < 1e-9


def test_a_creeping_robot_is_as_fast_as_it_is(make_rig):
    """Every third image shows a motion; flow and velocity are of the whole time since the last one."""
    rig = make_rig(StubPredictor(motion=shift(0.0, 0.0, 0.3), creeps=2), topics=["odom", "flow/time_reference"])
    rig.send(1.0)
    messages = [rig.get("odom", rig.send(1.0 + 0.1 * index)) for index in range(1, 7)]
    np.testing.assert_allclose([pose_of(message)[0, 3] for message in messages], [0, 0, 0.3, 0.3, 0.3, 0.6], atol=1e-9)
    speeds = [message.twist.twist.linear.x for message in messages]
    np.testing.assert_allclose(speeds, [0, 0, 1.0, 0, 0, 1.0], atol=1e-6)
    reference = rig.get("flow/time_reference", to_nanoseconds(messages[-1].header.stamp)).time_ref
    assert to_nanoseconds(reference) == round(1.3e9)


def test_unknown_scale_is_said_on_the_wire(make_rig):
    rig = make_rig(StubPredictor(metric=False), topics=["depth/image", "depth_relative/image", "odom"])
    rig.listen("depth_relative/camera_info")
    rig.wait(lambda: rig.node._outputs.is_wanted("~/depth_relative/camera_info"))
    rig.send(1.0)
    second = rig.send(1.1)
    np.testing.assert_allclose(array_of(rig.get("depth_relative/image", second)), true_depth(GRID), rtol=1e-6)
    assert rig.get("depth_relative/camera_info", second).width == 32
    assert rig.received["depth/image"] == []
    odometry = rig.get("odom", second)
    variances = np.diag(np.reshape(odometry.pose.covariance, (6, 6)))
    assert (variances[:3] == 9999).all()
    assert (variances[3:] < 1).all()
    assert rig.status()["metric"] == "false"


def test_a_fixed_scale_makes_depth_and_odometry_metric(make_rig):
    stub = StubPredictor(metric=False, motion=shift(0.0, 0.0, 0.1))
    rig = make_rig(stub, topics=["depth/image", "odom"], scale_source="fixed", scale=10.0, max_depth=0.0)
    rig.send(1.0)
    second = rig.send(1.1)
    np.testing.assert_allclose(array_of(rig.get("depth/image", second)), 10 * true_depth(GRID), rtol=1e-6)
    np.testing.assert_allclose(pose_of(rig.get("odom", second)), shift(1.0, 0.0, 0.0), atol=1e-9)
    status = rig.status()
    assert (status["metric"], status["scale"]) == ("true", "10")


def test_nothing_is_computed_that_nobody_wants(make_rig):
    rig = make_rig(always_integrate=False)
    rig.send(1.0)
    assert rig.stub.calls == []
    assert rig.counts.dropped["not_wanted"] == 1
    rig.listen("flow/image")
    rig.wait(lambda: rig.node._outputs.is_wanted("~/flow/image"))
    rig.send(1.1)
    assert [outputs for _, outputs, _ in rig.stub.calls] == [frozenset({"flow"})]


def test_odometry_goes_on_while_nobody_listens(make_rig):
    rig = make_rig()
    for index in range(4):
        rig.send(1.0 + 0.1 * index)
    assert {outputs for _, outputs, _ in rig.stub.calls} == {frozenset({"motion"})}
    rig.listen("odom")
    rig.wait(lambda: rig.node._outputs.is_wanted("~/odom"))
    np.testing.assert_allclose(pose_of(rig.get("odom", rig.send(1.4))), shift(4.0, 0.0, 0.0), atol=1e-9)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_compressed_images_reach_the_predictor(make_rig, extension):
    import cv2
    from sensor_msgs.msg import CompressedImage

    from coopnet_ros.messages import header_at

    image = np.full((CAMERA.height, CAMERA.width, 3), (200, 100, 50), np.uint8)
    data = cv2.imencode(extension, image[..., ::-1])[1].tobytes()
    rig = make_rig(topics=["depth/image"], image_transport="compressed")
    message = CompressedImage(header=header_at(SECOND, "camera_optical_frame"), format=extension[1:], data=data)
    rig.send_message(message)
    np.testing.assert_allclose(rig.stub.calls[0][2].image, image, atol=3)


def test_the_colours_of_bgr_images_reach_the_predictor_as_rgb(make_rig):
    rig = make_rig()
    image = np.full((CAMERA.height, CAMERA.width, 3), (1, 2, 3), np.uint8)
    rig.send(1.0, image, encoding="bgr8")
    assert rig.stub.calls[0][2].image[0, 0].tolist() == [3, 2, 1]
