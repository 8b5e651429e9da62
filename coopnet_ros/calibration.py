"""From CameraInfo to the camera of an image, or why there is none."""

from __future__ import annotations

from collections.abc import Callable

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from coopnet_core.data.prepare import undistortion
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_ros.messages import camera_of
from coopnet_ros.processor import CameraState

NO_CAMERA_INFO = CameraState(None, "no_camera_info", "Images arrive, but no camera_info yet.")


def calibration_of(message: CameraInfo) -> tuple:
    """Everything of a CameraInfo but its stamp, to compare."""
    roi = message.roi
    return (
        message.width,
        message.height,
        message.distortion_model,
        *(bytes(values) for values in (message.k, message.d, message.p)),  # as bytes NaN equals itself
        (message.binning_x, message.binning_y),
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
    )


def derive_camera(message: CameraInfo, rectified: bool, topic: str, say: Callable[[str], None]) -> CameraState:
    """The camera, or why there is none; what cannot be undistorted is found here, not on every frame.

    Args:
        message: the calibration.
        rectified: whether the images are.
        topic: that it came on.
        say: is told once what is made of it.
    """
    try:
        camera = camera_of(message, rectified)
        focal = undistortion(camera)[0].fx if camera is not None and camera.is_distorted else 0.0
    except UsageError as error:
        return CameraState(None, "bad_camera_info", f"{topic} cannot be used, images are dropped. {error}")
    if camera is None:
        text = f"{topic} says K[0] = 0: an uncalibrated camera, images are dropped. Calibrate it."
        return CameraState(None, "uncalibrated", text)
    say(_camera_text(camera, focal, message, rectified))
    return CameraState(camera)


def fits(message: Image | CompressedImage, state: CameraState | None) -> bool:
    """Whether an image can be one of this camera, as far as it says its size."""
    if state is None or state.camera is None:
        return False
    return isinstance(message, CompressedImage) or (message.width, message.height) == (
        state.camera.width,
        state.camera.height,
    )


def _camera_text(camera: Camera, undistorted_fx: float, message: CameraInfo, rectified: bool) -> str:
    """What is made of a CameraInfo."""
    text = f"Camera {camera.width}x{camera.height}, fx {camera.fx:.1f}: "
    if rectified:
        chosen = "P" if any(message.p) else "K, P being empty"
        return text + f"the images are taken for rectified, with {chosen} of camera_info; D is ignored."
    if camera.is_distorted:
        return text + f"the images are undistorted ({camera.distortion_model}), to fx {undistorted_fx:.1f}."
    return text + "the images are used as they are (D is zero)."
