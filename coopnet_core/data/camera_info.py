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
) -> Camera | None:
    """The camera of the images that a CameraInfo goes with.

    K and D describe the full sensor; the region of interest is cut out first, then binned, as the message defines.

    Args:
        width: full resolution, pixels.
        height: full resolution, pixels.
        k: 9 numbers, row by row.
        d: distortion coefficients in the order of the message.
        distortion_model: "plumb_bob", "rational_polynomial", "equidistant" or an alias ("radtan", "fisheye").
        binning: pixels joined horizontally and vertically; 0 means 1.
        roi: (x_offset, y_offset, width, height), full resolution pixels; width or height 0 means the whole image.

    Returns:
        The camera, or None when K[0] is 0, which by definition means uncalibrated.

    Raises:
        UsageError: an impossible size, K or region, or a distortion model that is not known.
    """
    if len(k) != 9:
        raise UsageError(f"CameraInfo.k holds {len(k)} numbers, 9 were expected.")
    if k[0] == 0:
        return None
    model, coefficients = _distortion(distortion_model, d)
    camera = Camera(int(width), int(height), float(k[0]), float(k[4]), float(k[2]), float(k[5]), model, coefficients)
    x, y, roi_width, roi_height = (int(value) for value in roi)
    if roi_width and roi_height:
        camera = camera.cropped(x, y, roi_width, roi_height)
    bin_x, bin_y = (max(1, int(value)) for value in binning)
    if (bin_x, bin_y) == (1, 1):
        return camera
    # Columns and rows that do not fill a bin are lost: cut them first, so that the scale is exactly 1 / binning.
    binned_width, binned_height = camera.width // bin_x, camera.height // bin_y
    camera = camera.cropped(0, 0, binned_width * bin_x, binned_height * bin_y)
    return camera.scaled(binned_width, binned_height)


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
        raise UsageError(f"CameraInfo.d holds {len(coefficients)} coefficients, {expected} were expected for '{name}'.")
    return model, coefficients
