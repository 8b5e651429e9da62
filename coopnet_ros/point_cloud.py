"""An organised point cloud of a depth image: one point per pixel, in the camera's optical frame. Pure NumPy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from coopnet_core.geometry.camera import Camera

POINT_XYZ = np.dtype([(name, "<f4") for name in ("x", "y", "z")])
POINT_XYZRGB = np.dtype([(name, "<f4") for name in ("x", "y", "z", "rgb")])
"""The layout of a point. Little endian on every machine, as the message says; rgb holds the bits 0x00RRGGBB."""


def organised_cloud(
    depth: np.ndarray,
    camera: Camera,
    image: np.ndarray | None = None,
    removed: np.ndarray | None = None,
    stride: int = 1,
) -> np.ndarray:
    """Back-project a depth image: X = Z K^-1 p at every stride-th row and column, from the first ones on.

    Args:
        depth: (h, w) float32 along the optical axis, in any unit.
        camera: the camera of this grid, of h x w pixels and free of distortion.
        image: (h, w, 3) uint8 RGB, the colours of the points; None for points without colour.
        removed: (h, w) bool, the pixels to be left out; None for none.
        stride: pixels from one point to the next.

    Returns:
        (ceil(h / stride), ceil(w / stride)) of POINT_XYZRGB, or of POINT_XYZ without an image. x (right), y (down) and
        z (ahead) are in the unit of the depth; all three are NaN where the depth is not finite, not positive or
        removed. The colour of such a point stays.
    """
    z = _usable_depth(_every(depth, stride), None if removed is None else _every(removed, stride))
    slope_x, slope_y = ray_slopes(camera, stride)
    points = np.empty(z.shape, POINT_XYZ if image is None else POINT_XYZRGB)
    np.multiply(z, slope_x, out=points["x"])
    np.multiply(z, slope_y, out=points["y"])
    points["z"] = z
    if image is not None:
        # the bits of an integer, not its value: the field is declared as a float for the sake of PCL
        points["rgb"].view("<u4")[...] = packed_rgb(_every(image, stride))
    return points


@lru_cache(maxsize=8)
def ray_slopes(camera: Camera, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The rays K^-1 p with z = 1 of every stride-th pixel: computed once per camera, read-only.

    Without skew x depends on the column alone and y on the row alone, so that two vectors hold all of them.

    Returns:
        x / z of the columns, (1, w), and y / z of the rows, (h, 1), float32.
    """
    x = (np.arange(0, camera.width, stride) - camera.cx) / camera.fx
    y = (np.arange(0, camera.height, stride) - camera.cy) / camera.fy
    slopes = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
    for values in slopes:
        values.setflags(write=False)
    return slopes


def packed_rgb(image: np.ndarray) -> np.ndarray:
    """The colours of (h, w, 3) uint8 RGB as (h, w) uint32 of the form 0x00RRGGBB."""
    packed = image[..., 0].astype(np.uint32)
    for channel in (1, 2):  # in place: arrays in between cost more than the points themselves
        packed <<= 8
        packed |= image[..., channel]
    return packed


def _usable_depth(depth: np.ndarray, removed: np.ndarray | None) -> np.ndarray:
    """The depth with NaN in place of what is no point (infinity would be NaN in one coordinate, infinite in others)."""
    usable = np.isfinite(depth) & (depth > 0)
    if removed is not None:
        usable &= ~removed
    return np.where(usable, depth, np.float32(np.nan))


def _every(values: np.ndarray, stride: int) -> np.ndarray:
    """A view of every stride-th row and column."""
    return values[::stride, ::stride]
