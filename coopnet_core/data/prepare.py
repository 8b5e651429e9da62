"""From recorded frames to training clips at the networks' input size."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from coopnet_core.data.frames import Frame
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

DEFAULT_PIXELS = 416 * 128
STILL_THRESHOLD = 0.5
"""Mean difference of two thumbnails, grey levels, below which the camera and everything before it stands still."""
_THUMBNAIL_SIZE = (64, 32)
SMALLEST_SIDE = 64
_LARGEST_ZOOM = 3.0


def choose_size(camera: Camera, pixels: int = DEFAULT_PIXELS, multiple: int = 32) -> tuple[int, int]:
    """The network size (width, height) for a camera: near `pixels` in area, near the camera's aspect.

    Args:
        camera: at the recorded size.
        pixels: wished area; never more than the camera has.
        multiple: both sides are multiples of this (the networks halve the image five times).

    Returns:
        (width, height), pixels; neither below 64, which the networks need.
    """
    return _best_size(camera.width, camera.height, min(pixels, camera.width * camera.height), multiple)


@lru_cache(maxsize=64)
def _best_size(camera_width: int, camera_height: int, pixels: int, multiple: int) -> tuple[int, int]:
    """A search over some thousand sizes: once per camera, not per frame."""
    aspect = camera_width / camera_height

    def cost(size: tuple[int, int]) -> float:
        # A wrong aspect loses image content by cropping, a wrong area only costs or saves time: weigh it double.
        return abs(np.log(size[0] * size[1] / pixels)) + 2 * abs(np.log(size[0] / size[1] / aspect))

    sides = [side for side in range(multiple, 64 * multiple + 1, multiple) if side >= SMALLEST_SIDE]
    return min(((width, height) for width in sides for height in sides), key=cost)


def fit_frame(frame: Frame, width: int, height: int) -> Frame:
    """Undistort, cut the centre to the aspect of width x height, and resize; the camera follows.

    The one way from a recorded image to a network input, for training and for inference.

    Args:
        frame: as recorded; without a camera it is fitted as it is.
        width: wished width, pixels.
        height: wished height, pixels.

    Returns:
        A frame of exactly width x height whose camera is free of distortion. Its image may be the given one when
        nothing had to be done.

    Raises:
        UsageError: image and camera differ in size, or the distortion cannot be undone.
    """
    image, camera = frame.image, frame.camera
    if camera is not None:
        _check_same_size(image, camera)
        if camera.is_distorted:
            camera, map_x, map_y = undistortion(camera)
            image = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        else:
            camera = camera.undistorted()
    left, top, crop_width, crop_height = _centre_crop(image.shape[1], image.shape[0], width, height)
    if (crop_width, crop_height) != (image.shape[1], image.shape[0]):
        image = image[top : top + crop_height, left : left + crop_width]
        camera = camera and camera.cropped(left, top, crop_width, crop_height)
    if (crop_width, crop_height) != (width, height):
        # Area averaging is the only one free of aliasing when shrinking, and degenerates to steps when growing.
        shrinks = crop_width >= width and crop_height >= height
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        camera = camera and camera.scaled(width, height)
    return Frame(np.ascontiguousarray(image), frame.stamp_ns, camera, frame.frame_id)


def _check_same_size(image: np.ndarray, camera: Camera) -> None:
    """Refuse a camera of another size than its image.

    Raises:
        UsageError: they differ.
    """
    height, width = image.shape[:2]
    if (width, height) != (camera.width, camera.height):
        raise UsageError(
            f"The image is {width}x{height}, its camera {camera.width}x{camera.height}. CameraInfo must describe the "
            "images it is published with (width, height, binning, roi)."
        )


def _centre_crop(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """The largest centred rectangle (x, y, width, height) with the aspect of to_width x to_height."""
    if width * to_height > height * to_width:
        crop_width, crop_height = max(1, round(height * to_width / to_height)), height
    else:
        crop_width, crop_height = width, max(1, round(width * to_height / to_width))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def undistortion(camera: Camera) -> tuple[Camera, np.ndarray, np.ndarray]:
    """The undistorted camera and the maps (H, W) float32 that sample its image from the distorted one.

    The focal length grows until every pixel of the result lies in the recorded image, so that no border is invented.
    Sought once per camera: the result is kept, a refusal too.

    Raises:
        UsageError: no zoom up to 3 does that.
    """
    found = _seek_undistortion(camera)
    if found is None:
        numbers = ", ".join(f"{value:g}" for value in camera.distortion)
        raise UsageError(
            f"The distortion {camera.distortion_model} ({numbers}) of the {camera.width}x{camera.height} camera cannot "
            "be undone: the rectified image leaves the recorded one. Check CameraInfo.d, or calibrate again."
        )
    return found


@lru_cache(maxsize=8)
def _seek_undistortion(camera: Camera) -> tuple[Camera, np.ndarray, np.ndarray] | None:
    """See `undistortion`; None, not an exception, where there is none: an exception would not be cached."""
    zoom = 1.0
    while zoom <= _LARGEST_ZOOM:
        # The centre of the zoom is the principal point: it stays where it is.
        target = Camera(camera.width, camera.height, camera.fx * zoom, camera.fy * zoom, camera.cx, camera.cy)
        # The border leaves the image first, and costs a hundredth of the maps.
        if _is_inside(camera, *_border_in_image(camera, target)):
            map_x, map_y = _distortion_maps(camera, target)
            if _is_inside(camera, map_x, map_y):
                return target, map_x, map_y
        zoom *= 1.02
    return None


def _is_inside(camera: Camera, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether all these pixels lie in the image; NaN does not."""
    return bool(np.all((x >= -0.5) & (x <= camera.width - 0.5) & (y >= -0.5) & (y <= camera.height - 0.5)))


def _border_in_image(camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """As `_distortion_maps`, (N,) each, for the pixels at the border of `target`."""
    columns, rows = np.arange(target.width), np.arange(target.height)
    x = np.concatenate([columns, columns, np.zeros_like(rows), np.full_like(rows, target.width - 1)])
    y = np.concatenate([np.zeros_like(columns), np.full_like(columns, target.height - 1), rows, rows])
    rays = np.stack([(x - target.cx) / target.fx, (y - target.cy) / target.fy, np.ones(len(x))], axis=-1)
    project = cv2.fisheye.projectPoints if camera.distortion_model == "equidistant" else cv2.projectPoints
    coefficients = np.array(camera.distortion, np.float64)
    pixels = project(rays[:, None], np.zeros(3), np.zeros(3), camera.matrix, coefficients)[0].reshape(-1, 2)
    return pixels[:, 0], pixels[:, 1]


def _distortion_maps(camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of `target` (no distortion) lies in the image of `camera`: x and y, (H, W) float32."""
    coefficients = np.array(camera.distortion, np.float64)
    size = (camera.width, camera.height)
    if camera.distortion_model == "equidistant":
        return cv2.fisheye.initUndistortRectifyMap(
            camera.matrix, coefficients, np.eye(3), target.matrix, size, cv2.CV_32FC1
        )
    return cv2.initUndistortRectifyMap(camera.matrix, coefficients, np.eye(3), target.matrix, size, cv2.CV_32FC1)


def thumbnail(image: np.ndarray, size: tuple[int, int] = _THUMBNAIL_SIZE) -> np.ndarray:
    """A grey copy of an (H, W, 3) uint8 image, float32 in 0-255, of (width, height) `size`: shows what moved."""
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
