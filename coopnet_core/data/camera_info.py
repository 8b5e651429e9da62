"""From the numbers of a sensor_msgs/CameraInfo to a Camera."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
_ALIASES = {"radtan": "plumb_bob", "fisheye": "equidistant", "kannala_brandt": "equidistant"}


def camera_from_info(
    width: int,
    height: int,
    k: Sequence[float],
    d: Sequence[float] = (),
    distortion_model: str = "",
    binning: tuple[int, int] = (1, 1),
    roi: tuple[int, int, int, int] = (0, 0, 0, 0),
    p: Sequence[float] | None = None,
) -> Camera | None:
    """The camera of the images that a CameraInfo goes with.

    K, D and P describe the full sensor; the region of interest is cut out first, then binned, as the message defines.

    Args:
        width: full resolution, pixels.
        height: full resolution, pixels.
        k: 9 numbers, row by row.
        d: distortion coefficients in the order of the message.
        distortion_model: "plumb_bob", "rational_polynomial", "equidistant" or an alias ("radtan", "fisheye").
        binning: pixels joined horizontally and vertically; 0 means 1.
        roi: (x_offset, y_offset, width, height), full resolution pixels; width or height 0 means the whole image.
        p: 12 numbers, row by row, where the images are rectified: their K is the left 3x3 of P, and D is ignored. The
            fourth column, the baseline of a stereo pair, moves the camera and not its pixels.

    Returns:
        The camera, or None when K[0] is 0, which by definition means uncalibrated.

    Raises:
        UsageError: an impossible size, K, P or region, or a distortion model that is not known.
    """
    if len(k) != 9:
        raise UsageError(f"CameraInfo.k holds {len(k)} numbers, 9 were expected.")
    if k[0] == 0:
        return None
    if p is not None:
        k, d = _rectified(k, d, p), ()
    model, coefficients = _distortion(distortion_model, d)
    camera = Camera(int(width), int(height), float(k[0]), float(k[4]), float(k[2]), float(k[5]), model, coefficients)
    x, y, roi_width, roi_height = (int(value) for value in roi)
    has_region = bool(roi_width and roi_height)
    if has_region and (x + roi_width > camera.width or y + roi_height > camera.height):
        raise UsageError(
            f"CameraInfo.roi is {roi_width}x{roi_height} at ({x}, {y}), which leaves the image of {camera.width}x"
            f"{camera.height}. width and height of CameraInfo were expected to be those of the full sensor, roi in it."
        )
    if has_region:
        camera = camera.cropped(x, y, roi_width, roi_height)
    bin_x, bin_y = (max(1, int(value)) for value in binning)
    if (bin_x, bin_y) == (1, 1):
        return camera
    if bin_x > camera.width or bin_y > camera.height:
        raise UsageError(
            f"CameraInfo.binning is {bin_x}x{bin_y}, larger than the image of {camera.width}x{camera.height}: the "
            "number of pixels joined into one was expected, 0 or 1 for none."
        )
    # Columns and rows that do not fill a bin are lost: cut them first, so that the scale is exactly 1 / binning.
    binned_width, binned_height = camera.width // bin_x, camera.height // bin_y
    camera = camera.cropped(0, 0, binned_width * bin_x, binned_height * bin_y)
    return camera.scaled(binned_width, binned_height)


def is_rectified_topic(image_topic: str) -> bool:
    """Whether the name says that the distortion is already undone: `image_rect` and `image_rect_*`, as image_proc does.

    Examples:
        >>> is_rectified_topic("/camera/image_rect_color/compressed"), is_rectified_topic("/image_rect/image_raw")
        (True, False)
    """
    return image_topic.removesuffix("/compressed").rsplit("/", 1)[-1].startswith("image_rect")


def _rectified(k: Sequence[float], d: Sequence[float], p: Sequence[float]) -> Sequence[float]:
    """K of the rectified image.

    Raises:
        UsageError: P is not filled.
    """
    if len(p) != 12:
        raise UsageError(f"CameraInfo.p holds {len(p)} numbers, 12 were expected.")
    if any(p):
        return (*p[0:3], *p[4:7], *p[8:11])
    if any(d):
        raise UsageError(
            "CameraInfo.p is all zeros, so the camera of the rectified images is not known: P was expected to be "
            "filled by the calibration. Calibrate with camera_calibration, or set the parameter rectified to never if "
            "the images are not rectified."
        )
    return k  # nothing was distorted: the image is the rectified one


def _distortion(name: str, d: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """The model's canonical name and its coefficients; ("", ()) when all are zero.

    Raises:
        UsageError: an unknown model or a wrong number of coefficients.
    """
    coefficients = tuple(float(value) for value in d)
    if not np.all(np.isfinite(coefficients)):
        raise UsageError(f"CameraInfo.d = {coefficients}: finite numbers were expected. Calibrate the camera again.")
    if not any(coefficients):
        return "", ()
    model = _ALIASES.get(name.lower(), name.lower()) or "plumb_bob"
    if model not in _COEFFICIENTS:
        raise UsageError(
            f"CameraInfo.distortion_model '{name}' is not known; known: {', '.join((*_COEFFICIENTS, *_ALIASES))}. "
            "Rectify the images first (image_proc) and use the rectified topic."
        )
    counts = _COEFFICIENTS[model]
    if len(coefficients) not in counts:
        expected = " or ".join(str(count) for count in counts)
        raise UsageError(
            f"CameraInfo.d holds {len(coefficients)} coefficients, {expected} were expected for '{name}'. "
            "Calibrate the camera again, or state the distortion_model that has so many."
        )
    return model, coefficients
