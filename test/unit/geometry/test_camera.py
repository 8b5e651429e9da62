import numpy as np
import pytest

from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

CAMERA = Camera(640, 480, 500.0, 510.0, 319.5, 239.5)


def test_scaling_keeps_the_image_corners_on_the_same_rays():
    scaled = CAMERA.scaled(320, 240)
    # The left edge of the image (x = -0.5) is the same ray before and after.
    assert (-0.5 - CAMERA.cx) / CAMERA.fx == pytest.approx((-0.5 - scaled.cx) / scaled.fx)
    assert (479.5 - CAMERA.cy) / CAMERA.fy == pytest.approx((239.5 - scaled.cy) / scaled.fy)


def test_flip_mirrors_the_principal_point():
    assert Camera(640, 480, 500, 500, 300, 240).flipped().cx == 339
    assert CAMERA.flipped().flipped() == CAMERA


def test_crop_moves_the_principal_point_and_refuses_to_leave_the_image():
    assert CAMERA.cropped(10, 20, 100, 50).cx == CAMERA.cx - 10
    with pytest.raises(UsageError, match="leaves the image"):
        CAMERA.cropped(600, 0, 100, 50)


@pytest.mark.parametrize("focal", [0.0, -1.0, float("nan")])
def test_an_uncalibrated_camera_is_refused(focal):
    with pytest.raises(UsageError, match=r"[Cc]alibrate"):
        Camera(640, 480, focal, 500.0, 320.0, 240.0)


def test_field_of_view():
    camera = Camera.from_field_of_view(200, 100, 90.0)
    assert camera.fx == pytest.approx(100.0)
    assert np.allclose(camera.matrix[:2, 2], [99.5, 49.5])
