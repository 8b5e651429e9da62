"""What the node makes of camera_info: rectified topics, distortion, what is kept and for how long."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.rig import CAMERA
from ros.test_node_events import adds_up
from sensor_msgs.msg import Image, RegionOfInterest

from coopnet_core.data import prepare
from coopnet_core.data.prepare import fit_frame
from coopnet_core.geometry.camera import Camera

K = [50.0, 0.0, 31.5, 0.0, 50.0, 15.5, 0.0, 0.0, 1.0]
P = [45.0, 0.0, 33.0, -4.5, 0.0, 46.0, 14.0, 0.0, 0.0, 0.0, 1.0, 0.0]
"""With the baseline of a stereo pair (Tx), which is not part of the camera."""
DISTORTED = {"distortion_model": "plumb_bob", "d": [0.1, -0.05, 0.001, 0.002, 0.01]}
HOPELESS = {"distortion_model": "plumb_bob", "d": [40.0, 0.0, 0.0, 0.0, 0.0]}


def seen(rig) -> Camera:
    """The camera of the last frame that reached the networks."""
    return rig.stub.calls[-1][2].camera


def on_topic(make_rig, monkeypatch, topic: str, **parameters):
    """A rig whose `image` is remapped to a topic."""
    from coopnet_ros.coopnet_node import CoopnetNode

    resolve = CoopnetNode.resolve_topic_name
    monkeypatch.setattr(
        CoopnetNode,
        "resolve_topic_name",
        lambda self, name, **options: topic if name == "image" else resolve(self, name, **options),
    )
    rig = make_rig(start=False, **parameters)
    rig.images = rig.peer.create_publisher(Image, topic, QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE))
    assert rig.node.start()
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    return rig


@pytest.mark.parametrize(
    ("topic", "rectified", "expected"),
    [
        ("/left/image_rect_color", "auto", True),
        ("/left/image_raw", "auto", False),
        ("/left/image_rect_color", "never", False),
        ("/left/image_raw", "always", True),
    ],
)
def test_rectified_images_are_not_undistorted_again(make_rig, monkeypatch, topic, rectified, expected):
    said = []
    rig = on_topic(make_rig, monkeypatch, topic, rectified=rectified)
    monkeypatch.setattr(rig.node.get_logger(), "info", said.append)
    rig.send_info(CAMERA, k=K, p=P, **DISTORTED)
    rig.send(1.0)
    if expected:
        assert seen(rig) == Camera(64, 32, 45.0, 46.0, 33.0, 14.0)
    else:
        assert seen(rig) == Camera(64, 32, 50.0, 50.0, 31.5, 15.5, "plumb_bob", tuple(DISTORTED["d"]))
    words = "taken for rectified, with P" if expected else "undistorted (plumb_bob)"
    assert [words in text for text in said] == [True]


def test_region_and_binning_apply_to_p(make_rig):
    rig = make_rig(info=False, rectified="always")
    roi = RegionOfInterest(x_offset=10, y_offset=4, width=128, height=64)
    rig.send_info(Camera(200, 80, 150.0, 150.0, 99.5, 39.5), p=P, roi=roi, binning_x=2, binning_y=2, **DISTORTED)
    rig.send(1.0)
    expected = Camera(200, 80, 45.0, 46.0, 33.0, 14.0).cropped(10, 4, 128, 64).scaled(64, 32)
    assert seen(rig) == expected


def test_rectified_images_without_p_are_refused_with_the_reason(make_rig, warnings):
    rig = make_rig(info=False, rectified="always")
    rig.send_info(CAMERA, p=[0.0] * 12, **DISTORTED)
    rig.send(1.0)
    rig.send(1.1)
    assert rig.counts.rejected["bad_camera_info"] == 2
    assert len([text for text in warnings if "p is all zeros" in text and "set the parameter rectified" in text]) == 1
    rig.send_info(CAMERA, p=P, **DISTORTED)
    rig.send(1.2)
    assert rig.counts.processed == 1
    assert adds_up(rig)


def test_a_distortion_that_cannot_be_undone_is_refused_as_the_calibration_it_is(make_rig, warnings, monkeypatch):
    searches = []
    seek = prepare._distortion_maps
    monkeypatch.setattr(prepare, "_distortion_maps", lambda *a: (searches.append(1), seek(*a))[1])
    rig = make_rig(info=False)
    rig.send_info(CAMERA, **HOPELESS)
    after_arrival = len(searches)
    for index in range(3):
        rig.send(1.0 + 0.1 * index)
    assert rig.counts.rejected["bad_camera_info"] == 3
    assert rig.counts.rejected["inference_error"] == 0
    assert rig.stub.calls == []
    assert len(searches) == after_arrival <= 60
    assert len([text for text in warnings if "cannot be undone" in text and "calibrate again" in text]) == 1
    rig.send_info(CAMERA)
    rig.send(1.3)
    assert rig.counts.processed == 1


MODELS = {
    "plumb_bob": [0.1, -0.05, 0.001, 0.002, 0.01],
    "rational_polynomial": [0.1, -0.05, 0.001, 0.002, 0.01, 0.02, 0.01, 0.0],
    "equidistant": [-0.02, 0.01, -0.003, 0.001],
}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_distorted_camera_reaches_the_networks_with_its_coefficients(make_rig, model):
    """And what the networks make of it shows straight lines: a ray's pixel holds what the distorted image has there."""
    import cv2

    camera = Camera(64, 32, 50.0, 50.0, 31.5, 15.5, model, tuple(MODELS[model]))
    rig = make_rig(info=False)
    rig.send_info(CAMERA, distortion_model=model, d=MODELS[model])
    ramp = np.dstack([np.tile(np.arange(64) * 3, (32, 1)), np.tile(np.arange(32)[:, None] * 6, (1, 64))])
    image = np.dstack([ramp, np.zeros((32, 64))]).astype(np.uint8)
    rig.send(1.0, image)
    assert seen(rig) == camera
    frame = rig.stub.calls[-1][2]
    np.testing.assert_array_equal(frame.image, image)
    fitted = fit_frame(frame, 64, 32)
    point = np.array([[[0.2, -0.1, 1.0]]])
    coefficients = np.array(MODELS[model])
    if model == "equidistant":
        pixel = cv2.fisheye.projectPoints(point, np.zeros(3), np.zeros(3), camera.matrix, coefficients)[0]
    else:
        pixel = cv2.projectPoints(point, np.zeros(3), np.zeros(3), camera.matrix, coefficients)[0]
    u = fitted.camera.fx * 0.2 + fitted.camera.cx
    v = fitted.camera.fy * -0.1 + fitted.camera.cy
    found = cv2.getRectSubPix(fitted.image.astype(np.float32), (1, 1), (u, v))[0, 0]
    assert found[:2] / (3, 6) == pytest.approx(pixel.reshape(2), abs=0.35)


def test_a_camera_that_was_known_is_known_after_deactivate_and_activate(make_rig):
    """A camera_info that is published once would never come again."""
    rig = make_rig()
    rig.send(1.0)
    assert rig.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert rig.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.send(1.1)
    assert rig.counts.processed == 2
    rig.send_info(Camera(64, 32, 60.0, 60.0, 31.5, 15.5))
    rig.send(1.2)
    assert seen(rig).fx == 60
    assert adds_up(rig)


def test_cleanup_forgets_the_camera(make_rig):
    rig = make_rig()
    rig.send(1.0)
    for transition in (rig.node.trigger_deactivate, rig.node.trigger_cleanup):
        assert transition() == TransitionCallbackReturn.SUCCESS
    assert rig.node._camera_state.camera is None
    assert rig.node._camera_state.reason == "no_camera_info"


def test_an_image_that_waited_too_long_for_camera_info_is_dropped(make_rig, warnings):
    rig = make_rig(info=False, max_pair_gap=0.05)
    rig.send(1.0, settle=False)
    time.sleep(0.1)
    rig.send_info(CAMERA)
    rig.wait(lambda: rig.counts.pending == 0)
    assert rig.stub.calls == []
    assert rig.counts.rejected["no_camera_info"] == 1
    assert len([text for text in warnings if "waited" in text and "max_pair_gap=0.05" in text]) == 1
    rig.send(2.0)
    assert rig.counts.processed == 1
    assert adds_up(rig)
