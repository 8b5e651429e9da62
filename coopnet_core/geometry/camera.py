"""The pinhole camera as a value: intrinsics that travel with the image they belong to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from coopnet_core.errors import UsageError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Pixel (0, 0) is the centre of the top-left pixel.

    Attributes:
        width, height: image size, pixels.
        fx, fy, cx, cy: focal lengths and principal point, pixels.
        distortion_model: "" (none), "plumb_bob", "rational_polynomial" or "equidistant".
        distortion: the coefficients, in the order of sensor_msgs/CameraInfo.
        assumed: the intrinsics are a guess, because no calibration was there.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = ""
    distortion: tuple[float, ...] = ()
    assumed: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and focal lengths that no camera has."""
        if self.width <= 0 or self.height <= 0:
            raise UsageError(f"Camera size {self.width}x{self.height}: both must be positive.")
        values = (self.fx, self.fy, self.cx, self.cy)
        if not all(np.isfinite(values)) or self.fx <= 0 or self.fy <= 0:
            raise UsageError(
                f"Camera intrinsics fx={self.fx} fy={self.fy} cx={self.cx} cy={self.cy}: finite values with positive "
                "focal lengths were expected. Calibrate the camera (K[0] = 0 means uncalibrated)."
            )

    @classmethod
    def from_field_of_view(cls, width: int, height: int, horizontal_degrees: float) -> Camera:
        """A centred camera with square pixels and the given horizontal field of view."""
        focal = 0.5 * width / np.tan(np.radians(horizontal_degrees) / 2)
        return cls(width, height, float(focal), float(focal), (width - 1) / 2, (height - 1) / 2)

    @property
    def matrix(self) -> np.ndarray:
        """K, (3, 3) float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def is_distorted(self) -> bool:
        """Whether any distortion coefficient is non-zero."""
        return any(value != 0.0 for value in self.distortion)

    def scaled(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to width x height: c' = (c + 0.5) s - 0.5 (pixel centres)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,
            cy=(self.cy + 0.5) * sy - 0.5,
        )

    def cropped(self, x: int, y: int, width: int, height: int) -> Camera:
        """The camera of the rectangle whose top-left pixel is (x, y).

        Raises:
            UsageError: the rectangle leaves the image.
        """
        if x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise UsageError(f"Crop {width}x{height} at ({x}, {y}) leaves the image of {self.width}x{self.height}.")
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def flipped(self) -> Camera:
        """The camera of the horizontally mirrored image: cx' = W - 1 - cx."""
        return replace(self, cx=self.width - 1 - self.cx)

    def undistorted(self) -> Camera:
        """The same intrinsics without distortion (the camera of the rectified image)."""
        return replace(self, distortion_model="", distortion=())
