"""Fitting frames: the camera follows the image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from coopnet_core.data import prepare
from coopnet_core.data.frames import Frame
from coopnet_core.data.prepare import choose_size, fit_frame
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

PLAIN = Camera(640, 480, 500.0, 510.0, 322.0, 238.0)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ((1242, 375), (416, 128)),
        ((828, 250), (416, 128)),
        ((640, 192), (416, 128)),
        ((640, 480), (256, 192)),
        ((480, 640), (192, 256)),
        ((96, 64), (96, 64)),
        ((40, 30), (64, 64)),
    ],
)
def test_size_suits_the_camera(recorded: tuple[int, int], expected: tuple[int, int]):
    assert choose_size(Camera(*recorded, 500.0, 500.0, 1.0, 1.0)) == expected


@pytest.mark.parametrize("recorded", [(1920, 1080), (1280, 720), (1000, 1000), (2000, 300), (33, 40)])
@pytest.mark.parametrize("multiple", [32, 64])
def test_size_keeps_its_promises(recorded: tuple[int, int], multiple: int):
    width, height = choose_size(Camera(*recorded, 500.0, 500.0, 1.0, 1.0), 40_000, multiple)
    assert width % multiple == height % multiple == 0
    assert min(width, height) >= 64
    assert width * height <= 2 * 40_000


def spots(camera: Camera, points: np.ndarray) -> np.ndarray:
    """An image with a soft white spot where each 3D point (N, 3) is seen through the lens."""
    if camera.distortion_model == "equidistant":
        pixels = cv2.fisheye.projectPoints(
            points[:, None], np.zeros(3), np.zeros(3), camera.matrix, np.array(camera.distortion)
        )[0]
    else:
        distortion = np.array(camera.distortion or (0.0,) * 5)
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, distortion)[0]
    y, x = np.mgrid[0 : camera.height, 0 : camera.width]
    image = np.zeros((camera.height, camera.width))
    for u, v in pixels.reshape(-1, 2):
        image += 255 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2))
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def centre_near(image: np.ndarray, u: float, v: float, radius: int = 14) -> tuple[float, float]:
    """Centre of mass of the light within `radius` of a pixel."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    light = image[..., 0].astype(float) * (np.hypot(x - u, y - v) < radius)
    return float((x * light).sum() / light.sum()), float((y * light).sum() / light.sum())


POINTS = np.array([[0.0, 0.0, 2.0], [0.7, 0.2, 2.0], [-0.7, -0.4, 2.0], [0.5, -0.5, 2.0], [-0.6, 0.5, 2.0]])


@pytest.mark.parametrize("size", [(320, 240), (256, 192), (416, 128), (128, 128), (640, 480), (960, 480)])
@pytest.mark.parametrize(
    ("model", "distortion"),
    [
        ("", ()),
        ("plumb_bob", (-0.25, 0.08, 0.001, -0.001, 0.0)),
        ("plumb_bob", (0.26, -0.95, -0.005, 0.003, 1.16)),
        ("rational_polynomial", (0.1, -0.05, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0)),
        ("equidistant", (0.05, -0.01, 0.0, 0.0)),
    ],
)
def test_points_are_seen_where_the_fitted_camera_projects_them(size: tuple, model: str, distortion: tuple):
    camera = Camera(640, 480, 500.0, 510.0, 322.0, 238.0, model, distortion)
    fitted = fit_frame(Frame(spots(camera, POINTS), 7, camera, "optical"), *size)
    assert fitted.image.shape == (size[1], size[0], 3)
    assert (fitted.camera.width, fitted.camera.height) == size
    assert not fitted.camera.is_distorted
    assert (fitted.stamp_ns, fitted.frame_id) == (7, "optical")
    seen = 0
    for x, y, z in POINTS:
        u, v = fitted.camera.fx * x / z + fitted.camera.cx, fitted.camera.fy * y / z + fitted.camera.cy
        if 20 < u < size[0] - 20 and 20 < v < size[1] - 20:
            seen += 1
            assert centre_near(fitted.image, u, v) == pytest.approx((u, v), abs=0.35)
    assert seen >= 1


def test_no_invented_border_after_undistortion():
    camera = Camera(640, 480, 500.0, 510.0, 322.0, 238.0, "plumb_bob", (0.26, -0.95, -0.005, 0.003, 1.16))
    x = np.tile(np.arange(640) % 256, (480, 1)).astype(np.uint8)
    image = np.repeat(x[..., None], 3, axis=2)
    fitted = fit_frame(Frame(image, 0, camera), 640, 480).image
    for edge in (fitted[:, :4, 0], fitted[:, -4:, 0]):
        assert (np.diff(edge.astype(int), axis=1) != 0).any(axis=1).mean() > 0.95  # the ramp goes on to the border


def test_nothing_to_do_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    fitted = fit_frame(Frame(image, 0, PLAIN), 640, 480)
    np.testing.assert_array_equal(fitted.image, image)
    assert fitted.camera == PLAIN


def test_shrinking_averages():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200  # lines of one pixel
    fitted = fit_frame(Frame(image, 0, Camera(64, 64, 50.0, 50.0, 31.5, 31.5)), 32, 32)
    assert (fitted.image == 100).all()


def test_crop_is_centred():
    image = np.zeros((100, 100, 3), np.uint8)
    image[25:75] = 255
    fitted = fit_frame(Frame(image, 0, Camera(100, 100, 80.0, 80.0, 49.5, 49.5)), 64, 32)
    assert (fitted.image == 255).all()
    assert (fitted.camera.cx, fitted.camera.cy) == pytest.approx((31.5, 15.5))


def test_uncalibrated_frames_are_fitted_too():
    fitted = fit_frame(Frame(np.zeros((48, 64, 3), np.uint8), 0, None), 32, 32)
    assert fitted.image.shape == (32, 32, 3)
    assert fitted.camera is None


def test_camera_of_another_size_is_refused():
    with pytest.raises(UsageError, match="image is 64x48, its camera 640x480"):
        fit_frame(Frame(np.zeros((48, 64, 3), np.uint8), 0, PLAIN), 32, 32)


def test_impossible_distortion_is_refused():
    camera = Camera(640, 480, 500.0, 510.0, 322.0, 238.0, "plumb_bob", (90.0, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="cannot be undone"):
        fit_frame(Frame(np.zeros((480, 640, 3), np.uint8), 0, camera), 320, 240)


def test_a_distortion_that_cannot_be_undone_is_sought_once(monkeypatch):
    tried = []
    maps = prepare._distortion_maps
    monkeypatch.setattr(prepare, "_distortion_maps", lambda *a: (tried.append(1), maps(*a))[1])
    camera = Camera(64, 48, 50.0, 50.0, 31.5, 23.5, "plumb_bob", (40.0, 0.0, 0.0, 0.0, 0.0))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"plumb_bob \(40, 0, 0, 0, 0\) of the 64x48.*Check CameraInfo.d"):
            prepare.undistortion(camera)
    assert len(tried) < 60  # one search tries 56 focal lengths
