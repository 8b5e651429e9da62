"""Bring a prediction, made on a cropped and resized image, and the truth of the recorded image onto one grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from coopnet_core.evaluation.flow import resize_flow
from coopnet_core.geometry.camera import Camera


@dataclass(frozen=True)
class TruthGrid:
    """How the pixels of a truth array and those of a prediction belong together.

    The truth is cut to the rectangle that the networks saw, never resampled (it may be sparse); the prediction is
    resized to that rectangle. Only where the recorded camera is distorted is the truth looked up by nearest pixel, on
    the rectified grid.

    Attributes:
        rows, columns: the rectangle in the truth array, or on the rectified grid.
        map_x, map_y: (H, W) float32, where each pixel of the rectified grid lies in the truth array; None without
            distortion.
    """

    rows: slice
    columns: slice
    map_x: np.ndarray | None = None
    map_y: np.ndarray | None = None

    @property
    def height(self) -> int:
        """Rows of the common grid."""
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        """Columns of the common grid."""
        return self.columns.stop - self.columns.start

    @property
    def is_rectified(self) -> bool:
        """Whether the truth had to be rectified (then a true flow cannot be used: its vectors are distorted too)."""
        return self.map_x is not None

    def truth(self, array: np.ndarray) -> np.ndarray:
        """The part of a truth array (H, W) or (H, W, C) that the prediction covers."""
        if self.map_x is None or self.map_y is None:
            return array[self.rows, self.columns]
        plain = array.astype(np.uint8) if array.dtype == bool else array
        missing = np.nan if plain.dtype.kind == "f" else 0
        border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": missing}
        looked_up = cv2.remap(plain, self.map_x, self.map_y, cv2.INTER_NEAREST, **border)
        return looked_up.astype(array.dtype)

    def values(self, array: np.ndarray) -> np.ndarray:
        """A predicted map (h, w) on the common grid, bilinear."""
        if array.shape == (self.height, self.width):
            return array.astype(np.float32)
        return cv2.resize(array.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def flow(self, flow: np.ndarray) -> np.ndarray:
        """A predicted flow (h, w, 2) on the common grid, in its pixels."""
        return resize_flow(flow, self.width, self.height)


def truth_grid(recorded: Camera, output: Camera, width: int, height: int) -> TruthGrid:
    """The common grid of a truth array and a prediction.

    Args:
        recorded: the camera of the recorded image.
        output: the camera of the prediction: a rectangle of the recorded (rectified) image, resized.
        width, height: size of the truth array; another size than the recorded image's means the same view, resized.
    """
    recorded = recorded if (recorded.width, recorded.height) == (width, height) else recorded.scaled(width, height)
    if recorded.is_distorted:
        return _rectified_grid(recorded, output)
    columns = _rectangle_side(recorded.fx, recorded.cx, output.fx, output.cx, output.width, width)
    rows = _rectangle_side(recorded.fy, recorded.cy, output.fy, output.cy, output.height, height)
    return TruthGrid(rows, columns)


def _rectangle_side(
    focal: float, centre: float, focal_out: float, centre_out: float, size_out: int, size: int
) -> slice:
    """Undo c' = (c - start + 0.5) s - 0.5 and size' = s size, along one axis, in whole pixels."""
    zoom = focal_out / focal
    start = round(centre + 0.5 - (centre_out + 0.5) / zoom)
    return slice(max(0, start), min(size, start + round(size_out / zoom)))


@lru_cache(maxsize=4)
def _rectified_grid(recorded: Camera, output: Camera) -> TruthGrid:
    width, height = (max(1, round(side * recorded.fx / output.fx)) for side in (output.width, output.height))
    target = output.scaled(width, height).matrix
    coefficients = np.array(recorded.distortion, np.float64)
    maps = cv2.fisheye if recorded.distortion_model == "equidistant" else cv2
    map_x, map_y = maps.initUndistortRectifyMap(
        recorded.matrix, coefficients, np.eye(3), target, (width, height), cv2.CV_32FC1
    )
    return TruthGrid(slice(0, height), slice(0, width), map_x, map_y)
