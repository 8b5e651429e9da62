"""Calibration files of several kinds: the intrinsics they state, and the camera these give to an image."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from coopnet_core.data.camera_info import camera_from_info
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

CALIBRATION_NAMES = (
    "meta.json",
    "camera.json",
    "camera_info.yaml",
    "camera.yaml",
    "ost.yaml",
    "calibration.yaml",
    "calib_cam_to_cam.txt",
)
"""Files looked for beside images and videos."""
_YAML_SUFFIXES = (".yaml", ".yml")
_DISTORTION_MODELS = {4: "plumb_bob", 5: "plumb_bob", 8: "rational_polynomial"}
_EXPECTED = (
    "Understood are meta.json (width, height, fx, fy, cx, cy), the YAML of camera_calibration, KITTI's "
    "calib_cam_to_cam.txt and calib.txt, and the camera JSON of Cityscapes."
)


@dataclass(frozen=True)
class Calibration:
    """Intrinsics as a file states them.

    Attributes:
        origin: the file, and the key in it.
        fx, fy, cx, cy: pixels of the images it was made for.
        size: (width, height) of those images; None where the file does not say.
        distortion_model, distortion: as in `Camera`.
    """

    origin: str
    fx: float
    fy: float
    cx: float
    cy: float
    size: tuple[int, int] | None = None
    distortion_model: str = ""
    distortion: tuple[float, ...] = ()

    def camera(self, width: int, height: int) -> Camera:
        """The camera of images of this size; scaled where they only differ in size from those calibrated.

        Raises:
            UsageError: the images cannot be of this camera.
        """
        stated = self.size or (width, height)
        camera = Camera(*stated, self.fx, self.fy, self.cx, self.cy, self.distortion_model, self.distortion)
        if abs(stated[0] * height / width - stated[1]) >= 1.0:
            raise UsageError(
                f"{self.origin}: width and height are {stated[0]}x{stated[1]}, the images have {width}x{height}. "
                "Intrinsics for the stored size, or for one of the same aspect, were expected."
            )
        if not (0 < self.cx < stated[0] and 0 < self.cy < stated[1]):
            raise UsageError(
                f"{self.origin}: the principal point cx, cy = {self.cx:g}, {self.cy:g} lies outside the images of "
                f"{stated[0]}x{stated[1]}. Intrinsics in pixels of the stored size were expected: if the images were "
                "resized, resize the intrinsics with them."
            )
        return camera if stated == (width, height) else camera.scaled(width, height)


def calibration_beside(folders: Sequence[Path], stem: str | None = None) -> Path | None:
    """The first calibration file in these folders: one named like the recording, then one of the usual names."""
    for folder in folders:
        own = () if stem is None else tuple(f"{stem}{suffix}" for suffix in (".json", *_YAML_SUFFIXES))
        for name in (*own, *CALIBRATION_NAMES):
            if (folder / name).is_file():
                return folder / name
    return None


def read_calibration(path: Path) -> Calibration | None:
    """The intrinsics in a file of any kind understood; None where it says that they are not known (nulls, K = 0).

    Raises:
        UsageError: unreadable, of no known kind, or with numbers that no camera has; names file and key.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = read_json(path)
        return cityscapes_calibration(path, content) if "intrinsic" in content else meta_calibration(path, content)
    if suffix in _YAML_SUFFIXES:
        return _ros_calibration(path)
    if suffix == ".txt":
        keys = kitti_rows(path)
        key = next((key for key in ("P_rect_02", "P2", "P_rect_00", "P0") if key in keys), None)
        if key is not None:
            return kitti_calibration(path, key, keys)
    raise UsageError(f"{path}: a calibration file of no known kind. {_EXPECTED}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UsageError: unreadable, or something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable as JSON ({error}). Expected width, height, fx, fy, cx, cy, fps."
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a JSON object with width, height, fx, fy, cx, cy, fps was expected.")
    return content


def meta_calibration(path: Path | None, meta: dict[str, Any]) -> Calibration | None:
    """The intrinsics of a meta.json: fx, fy, cx, cy, and where stated width, height, distortion, distortion_model.

    Raises:
        UsageError: values that are no numbers, or only some of the four.
    """
    try:
        width, height = (None if meta.get(name) is None else int(meta[name]) for name in ("width", "height"))
        intrinsics = [None if meta.get(name) is None else float(meta[name]) for name in ("fx", "fy", "cx", "cy")]
        distortion = tuple(float(value) for value in meta.get("distortion") or ())
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: width, height, fx, fy, cx, cy, distortion must be numbers or null ({error})."
        ) from None
    if all(value is None for value in intrinsics):
        return None
    if any(value is None for value in intrinsics):
        raise UsageError(f"{path}: fx, fy, cx, cy = {intrinsics}; all four numbers, or four nulls, were expected.")
    model = meta.get("distortion_model") or _DISTORTION_MODELS.get(len(distortion), "")
    if distortion and not model:
        raise UsageError(
            f"{path}: {len(distortion)} distortion coefficients without distortion_model; 4, 5 (plumb_bob) or 8 "
            "(rational_polynomial) are understood without it."
        )
    size = None if width is None or height is None else (width, height)
    fx, fy, cx, cy = intrinsics
    return _checked(Calibration(str(path), fx, fy, cx, cy, size, model if distortion else "", distortion))


def cityscapes_calibration(path: Path, content: dict[str, Any]) -> Calibration:
    """The intrinsics of a Cityscapes camera file, for images of 2048x1024.

    Raises:
        UsageError: a value is missing or no number.
    """
    values = []
    intrinsic = content.get("intrinsic")
    for key in ("fx", "fy", "u0", "v0"):
        value = intrinsic.get(key) if isinstance(intrinsic, dict) else None
        if not isinstance(value, int | float):
            raise UsageError(
                f"{path}: intrinsic.{key} is {value!r}; a number of pixels was expected, as in the camera files of "
                "Cityscapes (fx, fy, u0, v0)."
            )
        values.append(float(value))
    return _checked(Calibration(f"{path}, intrinsic", *values))


def kitti_rows(path: Path) -> dict[str, str]:
    """The rows `KEY: values` of a KITTI calibration file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the calibration cannot be read ({error}).") from None
    return {key.strip(): values for key, colon, values in (line.partition(":") for line in lines) if colon}


def kitti_calibration(path: Path, key: str, rows: dict[str, str] | None = None) -> Calibration:
    """The intrinsics of one camera of KITTI.

    Args:
        path: calib.txt (odometry) or calib_cam_to_cam.txt (raw data).
        key: "P2", "P_rect_02" (rectified images), or "K_02" (unrectified ones, with D_02).
        rows: of `kitti_rows`, where they are read already.

    Raises:
        UsageError: the row is missing or holds something else.
    """
    rows = kitti_rows(path) if rows is None else rows
    kind, _, number = key.rpartition("_")
    if kind == "K":
        k = _kitti_numbers(path, rows, key, 9, "the 3x3 matrix K, row by row")
        fx, cx, fy, cy = k[0], k[2], k[4], k[5]
        d = tuple(_kitti_numbers(path, rows, f"D_{number}", 5, "the distortion k1 k2 p1 p2 k3"))
    else:
        p = _kitti_numbers(path, rows, key, 12, "the 3x4 projection matrix P, row by row")
        fx, cx, fy, cy, d = p[0], p[2], p[5], p[6], ()
    size_key = f"S_rect_{number}" if kind == "P_rect" else f"S_{number}" if kind == "K" else None
    size = None
    if size_key is not None:
        width, height = _kitti_numbers(path, rows, size_key, 2, "width and height in pixels")
        size = (round(width), round(height))
    return _checked(Calibration(f"{path}, {key}", fx, fy, cx, cy, size, "plumb_bob" if d else "", d))


def _kitti_numbers(path: Path, rows: dict[str, str], key: str, count: int, meaning: str) -> list[float]:
    """The numbers of a row.

    Raises:
        UsageError: the row is missing or holds something else.
    """
    if key not in rows:
        found = ", ".join(rows) or "no row at all"
        raise UsageError(f"{path}: no row '{key}:' ({meaning}) in it; found {found}. Is it the file of this recording?")
    try:
        numbers = [float(word) for word in rows[key].split()]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(f"{path}, {key}: found '{rows[key].strip()[:60]}'; {count} numbers were expected: {meaning}.")
    return numbers


def _ros_calibration(path: Path) -> Calibration | None:
    """The intrinsics of a YAML file as camera_calibration writes it; None where camera_matrix is zero.

    Raises:
        UsageError: unreadable, or a value is missing or of another kind.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML ({error}). {_EXPECTED}") from None
    content = content if isinstance(content, dict) else {}
    k = _ros_numbers(path, content, "camera_matrix", (9,))
    distortion = _ros_numbers(path, content, "distortion_coefficients", None) if _has_distortion(content) else []
    size = []
    for key in ("image_width", "image_height"):
        value = content.get(key)
        if not isinstance(value, int) or value <= 0:
            raise UsageError(
                f"{path}: {key} is {value!r}; a number of pixels was expected, as camera_calibration says."
            )
        size.append(value)
    if k[0] == 0:
        return None
    model = str(content.get("distortion_model") or "")
    return _checked(Calibration(str(path), k[0], k[4], k[2], k[5], (size[0], size[1]), model, tuple(distortion)))


def _has_distortion(content: dict[str, Any]) -> bool:
    return content.get("distortion_coefficients") is not None


def _ros_numbers(path: Path, content: dict[str, Any], key: str, counts: tuple[int, ...] | None) -> list[float]:
    """The numbers of a matrix {rows, cols, data}.

    Raises:
        UsageError: it is missing or holds something else.
    """
    entry = content.get(key)
    data = entry.get("data") if isinstance(entry, dict) else None
    good = isinstance(data, list) and all(isinstance(value, int | float) for value in data)
    if not good or (counts is not None and len(data) not in counts):
        wanted = "numbers" if counts is None else f"{counts[0]} numbers"
        raise UsageError(
            f"{path}: {key}.data is {data!r}; a list of {wanted} was expected, as camera_calibration writes."
        )
    return [float(value) for value in data]


def _checked(calibration: Calibration) -> Calibration:
    """The calibration with the canonical name of its distortion.

    Raises:
        UsageError: no camera has such intrinsics; names the file.
    """
    values = (calibration.fx, calibration.fy, calibration.cx, calibration.cy)
    if not all(map(math.isfinite, values)) or min(values) <= 0:
        raise UsageError(
            f"{calibration.origin}: fx, fy, cx, cy = {', '.join(f'{value:g}' for value in values)}; positive numbers "
            "of pixels were expected."
        )
    k = (calibration.fx, 0.0, calibration.cx, 0.0, calibration.fy, calibration.cy, 0.0, 0.0, 1.0)
    try:
        camera = camera_from_info(
            *(calibration.size or (1, 1)), k, calibration.distortion, calibration.distortion_model
        )
    except UsageError as error:
        raise UsageError(f"{calibration.origin}: {error}") from None
    return replace(calibration, distortion_model=camera.distortion_model, distortion=camera.distortion)
