"""What moved between two images: a still camera with noise, a creeping one, one object, nothing to see."""

import cv2
import numpy as np
import pytest

from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.standstill import Change, compare, small_view

CAMERA = Camera.from_field_of_view(416, 128, 80.0)


@pytest.fixture(scope="module")
def street():
    return render_clip(SceneConfig(5, 3, CAMERA, camera_moves=True)).clip.images


def _noisy(image, grey_levels, seed):
    noise = np.random.default_rng(seed).normal(0, grey_levels, image.shape)
    return (image + noise).clip(0, 255).round().astype(np.uint8)


def _zoomed(image, border_shift):
    """As a camera sees it that drives ahead until the left and right borders have moved by so many pixels."""
    height, width = image.shape[:2]
    factor = 1 + border_shift / (width / 2)
    matrix = np.array([[factor, 0, (1 - factor) * width / 2], [0, factor, (1 - factor) * height / 2]])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _changed(before, now, noise=0.0):
    return compare(small_view(_noisy(before, noise, 1)), small_view(_noisy(now, noise, 2)))


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_noise_is_no_motion(street, noise):
    assert _changed(street[0], street[0], noise) is Change.NOTHING


@pytest.mark.parametrize("gain", [0.9, 1.0, 1.06])
def test_a_change_of_exposure_is_no_motion(street, gain):
    darker = (0.9 * street[0]).round().astype(np.uint8)  # leaves room above
    assert _changed(darker, (gain * darker).round().astype(np.uint8), 1.0) is Change.NOTHING


def test_driving_is_motion(street):
    assert _changed(street[0], street[1], 1.0) is Change.CAMERA


def test_creeping_adds_up_to_motion(street):
    changes = [_changed(street[0], _zoomed(street[0], shift), 1.0) for shift in (0.1, 0.5, 1.0, 1.5, 2.0)]
    assert changes[0] is Change.NOTHING
    assert changes[-2:] == [Change.CAMERA, Change.CAMERA]


def test_a_person_is_seen_while_the_camera_stands(street):
    """6 by 16 pixels, three pixels further."""
    before, now = street[0].copy(), street[0].copy()
    before[60:76, 200:206] = 220
    now[60:76, 203:209] = 220
    assert _changed(before, now, 1.0) is Change.OBJECTS


def test_a_bus_is_not_the_camera(street):
    before, now = street[0].copy(), street[0].copy()
    before[30:110, 100:250] = street[2][30:110, 200:350]
    now[30:110, 110:260] = street[2][30:110, 200:350]
    assert _changed(before, now, 1.0) is Change.OBJECTS


@pytest.mark.parametrize("grey", [0, 90, 255])
def test_nothing_can_be_said_of_an_image_without_texture(street, grey):
    covered = np.full_like(street[0], grey)
    assert _changed(covered, covered, 1.0) is Change.UNKNOWN
    assert _changed(street[0], covered) is Change.UNKNOWN
    assert _changed(covered, street[0]) is Change.UNKNOWN
