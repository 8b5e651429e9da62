"""From CameraInfo to Camera."""

from __future__ import annotations

import pytest

from coopnet_core.data.camera_info import camera_from_info
from coopnet_core.errors import UsageError

K = (500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0)


def test_plain():
    camera = camera_from_info(640, 480, K, (0.0,) * 5, "plumb_bob")
    assert (camera.width, camera.height) == (640, 480)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (500, 510, 320, 240)
    assert not camera.is_distorted


def test_zero_focal_length_means_uncalibrated():
    assert camera_from_info(640, 480, (0.0,) * 9) is None


def test_region_of_interest_moves_the_principal_point():
    camera = camera_from_info(640, 480, K, roi=(100, 50, 320, 200))
    assert (camera.width, camera.height, camera.cx, camera.cy, camera.fx) == (320, 200, 220, 190, 500)


def test_binning_keeps_rays():
    """The centre of a 2x2 bin looks where the four pixels look on average."""
    camera = camera_from_info(640, 480, K, binning=(2, 2))
    assert (camera.width, camera.height) == (320, 240)
    ray_of_bin = (10 - camera.cx) / camera.fx
    rays = [(column - 320) / 500 for column in (20, 21)]
    assert ray_of_bin == pytest.approx(sum(rays) / 2, abs=1e-12)


def test_region_is_cut_before_binning_and_odd_rests_are_lost():
    camera = camera_from_info(640, 480, K, binning=(2, 2), roi=(100, 50, 321, 201))
    assert (camera.width, camera.height) == (160, 100)
    assert camera.fx == pytest.approx(250)
    assert camera.cx == pytest.approx((220 + 0.5) / 2 - 0.5)


@pytest.mark.parametrize(
    ("model", "count", "canonical"),
    [
        ("plumb_bob", 5, "plumb_bob"),
        ("plumb_bob", 4, "plumb_bob"),
        ("", 5, "plumb_bob"),
        ("radtan", 4, "plumb_bob"),
        ("rational_polynomial", 8, "rational_polynomial"),
        ("equidistant", 4, "equidistant"),
        ("fisheye", 4, "equidistant"),
    ],
)
def test_distortion_models(model: str, count: int, canonical: str):
    camera = camera_from_info(640, 480, K, (0.1,) * count, model)
    assert camera.distortion_model == canonical
    assert camera.distortion == (0.1,) * count


def test_unknown_model_without_distortion_is_no_problem():
    assert not camera_from_info(640, 480, K, (0.0, 0.0), "double_sphere").is_distorted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d": (0.1,) * 5, "distortion_model": "double_sphere"}, "plumb_bob"),
        ({"d": (0.1,) * 3, "distortion_model": "plumb_bob"}, "3 coefficients"),
        ({"d": (float("nan"),) * 5, "distortion_model": "plumb_bob"}, "finite"),
        ({"k": K[:4]}, "holds 4 numbers"),
        ({"k": (float("nan"), *K[1:])}, "finite"),
        ({"k": (-500.0, *K[1:])}, "positive"),
        ({"roi": (600, 0, 100, 100)}, "leaves the image"),
        ({"width": 0}, "must be positive"),
    ],
)
def test_what_no_camera_has_is_refused(changes: dict, words: str):
    with pytest.raises(UsageError, match=words):
        camera_from_info(**({"width": 640, "height": 480, "k": K} | changes))
