"""From CameraInfo to Camera."""

from __future__ import annotations

import pytest

from coopnet_core.data.camera_info import camera_from_info, is_rectified_topic
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
        ("rational_polynomial", 12, "rational_polynomial"),
        ("rational_polynomial", 14, "rational_polynomial"),
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
        ({"roi": (600, 0, 100, 100)}, "roi is 100x100 at .600, 0., which leaves the image"),
        ({"roi": (2**31, 0, 8, 8)}, "leaves the image"),
        ({"binning": (1000, 1)}, "binning is 1000x1, larger than the image of 640x480"),
        ({"width": 0}, "must be positive"),
    ],
)
def test_what_no_camera_has_is_refused(changes: dict, words: str):
    with pytest.raises(UsageError, match=words):
        camera_from_info(**({"width": 640, "height": 480, "k": K} | changes))


P = (450.0, 0.0, 330.0, -45.0, 0.0, 460.0, 250.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def test_rectified_images_have_the_k_of_p_and_no_distortion():
    """P of a right camera of a stereo pair: Tx = -45 is the baseline, not part of K."""
    camera = camera_from_info(640, 480, K, (0.1,) * 5, "plumb_bob", p=P)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (450, 460, 330, 250)
    assert not camera.is_distorted


def test_rectified_images_need_no_distortion_model_that_is_known():
    assert camera_from_info(640, 480, K, (0.1,) * 3, "double_sphere", p=P).fx == 450


def test_region_and_binning_apply_to_p_as_to_k():
    camera = camera_from_info(640, 480, K, (0.1,) * 5, "plumb_bob", (2, 2), (100, 50, 320, 200), P)
    assert (camera.width, camera.height, camera.fx) == (160, 100, 225)
    assert camera.cx == pytest.approx((230 + 0.5) / 2 - 0.5)


def test_an_uncalibrated_camera_is_uncalibrated_whatever_p_is():
    assert camera_from_info(640, 480, (0.0,) * 9, p=P) is None
    assert camera_from_info(640, 480, (0.0,) * 9, p=(0.0,) * 12) is None


def test_an_empty_p_is_no_loss_where_there_is_no_distortion():
    assert camera_from_info(640, 480, K, (0.0,) * 5, "plumb_bob", p=(0.0,) * 12).fx == 500


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ((0.0,) * 12, "p is all zeros.*rectified to never"),
        (P[:9], "holds 9 numbers, 12"),
        ((float("nan"), *P[1:]), "finite"),
        ((-450.0, *P[1:]), "positive"),
        ((0.0, *P[1:]), "positive"),
    ],
)
def test_a_p_that_cannot_be_used_is_refused(p: tuple, words: str):
    with pytest.raises(UsageError, match=words):
        camera_from_info(640, 480, K, (0.1,) * 5, "plumb_bob", p=p)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("/image_rect", True),
        ("/camera/image_rect_color", True),
        ("/camera/infra1/image_rect_raw/compressed", True),
        ("/camera/image_raw", False),
        ("/image_rect/image", False),
        ("/image_direct", False),
    ],
)
def test_the_name_of_the_topic_says_whether_the_images_are_rectified(topic: str, expected: bool):
    assert is_rectified_topic(topic) is expected
