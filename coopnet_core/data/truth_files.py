"""Depth, flow and pose files of public data sets, read into the truth of a frame."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from coopnet_core.errors import UsageError

_FLO_MAGIC = 202021.25
# Middlebury marks unknown flow by components beyond this.
_FLO_UNKNOWN = 1e9


def read_image(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) RGB or (H, W) grey, uint8.

    Raises:
        UsageError: it cannot be decoded.
    """
    image = _decode(path, cv2.IMREAD_ANYCOLOR)
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])


def read_depth(path: Path, units_per_metre: float) -> np.ndarray:
    """A 16-bit depth PNG as (H, W) float32 metres; 0 means unknown and becomes NaN.

    Raises:
        UsageError: not a readable single-channel 16-bit image.
    """
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 2 or stored.dtype != np.uint16:
        raise UsageError(
            f"{path}: found an image of type {stored.dtype} and shape {stored.shape}; a depth file is a single-channel "
            "16-bit PNG. Is this the folder of the images?"
        )
    depth = stored.astype(np.float32) / np.float32(units_per_metre)
    depth[stored == 0] = np.nan
    return depth


def read_flow(path: Path) -> np.ndarray:
    """A KITTI flow PNG or a Middlebury .flo file as (H, W, 2) float32 pixels, NaN where unknown.

    Raises:
        UsageError: another format, or a file that is cut off.
    """
    return _read_flo(path) if path.suffix.lower() == ".flo" else _read_flow_png(path)


def _read_flow_png(path: Path) -> np.ndarray:
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint16:
        raise UsageError(
            f"{path}: found an image of type {stored.dtype} and shape {stored.shape}; a KITTI flow file is a 16-bit "
            "PNG with three channels (u, v, valid)."
        )
    # OpenCV delivers B, G, R: the file's R, G, B are u, v, valid.
    flow = (stored[..., 2:0:-1].astype(np.float32) - 32768.0) / 64.0
    flow[stored[..., 0] == 0] = np.nan
    return flow


def _read_flo(path: Path) -> np.ndarray:
    data = _bytes(path)
    header = np.frombuffer(data[:12].ljust(12, b"\0"), "<i4")
    width, height = int(header[1]), int(header[2])
    if np.frombuffer(data[:4].ljust(4, b"\0"), "<f4")[0] != np.float32(_FLO_MAGIC) or width < 1 or height < 1:
        raise UsageError(
            f"{path}: this is no Middlebury .flo file (its first four bytes are not the number 202021.25)."
        )
    expected = 12 + 8 * width * height
    if len(data) < expected:
        raise UsageError(f"{path}: {len(data)} bytes found, {expected} expected for {width}x{height}. Copy it again.")
    flow = np.frombuffer(data, "<f4", 2 * width * height, 12).reshape(height, width, 2).copy()
    flow[~(np.abs(flow) < _FLO_UNKNOWN).all(-1)] = np.nan
    return flow


def read_poses(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """A file of camera poses: KITTI rows (12 numbers) or TUM rows (time tx ty tz qx qy qz qw).

    Returns:
        times (N,) float64 seconds, None for KITTI rows; T_world_camera (N, 4, 4) float64, metres.

    Raises:
        UsageError: unreadable, empty, or rows of another length.
    """
    rows = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the poses cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            rows.append([float(word) for word in line.replace(",", " ").split()])
        except ValueError:
            raise UsageError(f"{path}, line {number}: found {line.strip()[:60]!r}, numbers were expected.") from None
        if len(rows[-1]) not in (8, 12) or len(rows[-1]) != len(rows[0]) or not np.isfinite(rows[-1]).all():
            raise UsageError(
                f"{path}, line {number}: {len(rows[-1])} numbers found; 12 finite ones (KITTI, rows of a 3x4 "
                "camera-to-world matrix) or 8 (TUM: time tx ty tz qx qy qz qw) were expected on every line."
            )
    if not rows:
        raise UsageError(f"{path}: no pose in it. Expected one row per image.")
    values = np.array(rows)
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    if values.shape[1] == 12:
        poses[:, :3] = values.reshape(-1, 3, 4)
        return None, poses
    poses[:, :3, 3] = values[:, 1:4]
    poses[:, :3, :3] = [_rotation(quaternion) for quaternion in values[:, 4:]]
    return values[:, 0], poses


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of a quaternion x, y, z, w of any length but zero."""
    x, y, z, w = quaternion / max(float(np.linalg.norm(quaternion)), 1e-12)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _decode(path: Path, flags: int) -> np.ndarray:
    data = _bytes(path)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise UsageError(f"{path}: {len(data)} bytes that are no readable image. Copy it again or take it out.")
    return image
