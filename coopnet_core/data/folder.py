"""A folder of images, with the truth files beside it, as frames in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coopnet_core.data.calibration import meta_calibration, read_json
from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.data.image_files import IMAGE_SUFFIXES, files_with, find_image_folder, named_times, natural_order
from coopnet_core.data.truth_files import read_depth, read_flow, read_image, read_poses
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

_CUT_SECONDS = 5.0
_START_NS = 1_000_000_000
_DEFAULT_FPS = 10.0
_KITTI_DEPTH_UNITS = 256.0


@dataclass(frozen=True)
class FolderOptions:
    """What to read.

    Attributes:
        folder: the images, or the recording that holds their folder.
        camera: meta.json; None looks for one beside the images.
        poses: KITTI or TUM poses.
        depth, flow: folders of files with the stems of the images.
        fps: images per second; None takes it from meta.json.
        depth_scale: units of the depth files per metre; None takes `depth_scale` of meta.json, or 256 (KITTI).
        flow_towards: "previous", or "next": then the images are put in reverse order, so that next is previous.
        frames: read only the first ones.
    """

    folder: Path
    camera: Path | None = None
    poses: Path | None = None
    depth: Path | None = None
    flow: Path | None = None
    fps: float | None = None
    depth_scale: float | None = None
    flow_towards: str = "previous"
    frames: int | None = None


class FolderFrame(NamedTuple):
    """A frame of a folder, what is known of it, and its file's format and bytes.

    Attributes:
        frame: the image is (H, W, 3), or (H, W) where the file is grey.
        truth: what the files beside it say.
        encoded: ("jpeg" or "png", the bytes).
    """

    frame: Frame
    truth: FrameTruth
    encoded: tuple[str, bytes]


@dataclass(frozen=True)
class FolderRecording:
    """Images in order and what belongs to each.

    Attributes:
        images: files.
        stamps_ns: (N,) int64.
        camera: None when not calibrated.
        fps: images per second.
        poses: T_world_camera or None, per image.
        depth, flow: file or None, per image.
        depth_scale: units per metre.
        notes: what was found, chosen and left out, for people.
    """

    images: tuple[Path, ...]
    stamps_ns: np.ndarray
    camera: Camera | None
    fps: float
    poses: tuple[np.ndarray | None, ...]
    depth: tuple[Path | None, ...]
    flow: tuple[Path | None, ...]
    depth_scale: float
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[FolderFrame]:
        """Read frame after frame.

        Raises:
            UsageError: a file cannot be read or has another size than the first image.
        """
        size = None
        for index, path in enumerate(self.images):
            image = read_image(path)
            size = size or image.shape[:2]
            _check_size(path, image.shape[:2], size, "the first image")
            depth, flow = self.depth[index], self.flow[index]
            truth = FrameTruth(
                depth=None if depth is None else _sized(depth, read_depth(depth, self.depth_scale), size),
                pose=self.poses[index],
                flow=None if flow is None else _sized(flow, read_flow(flow), size),
            )
            frame = Frame(image, int(self.stamps_ns[index]), self.camera, "camera_optical_frame")
            kind = "png" if path.suffix.lower() == ".png" else "jpeg"
            yield FolderFrame(frame, truth, (kind, path.read_bytes()))


def open_folder(options: FolderOptions) -> FolderRecording:
    """Find the images and match the other files to them; only the first image is decoded.

    Raises:
        UsageError: a path does not exist, or files do not fit together.
        NoUsableDataError: there are no images.
    """
    folder = _image_folder(options)
    images = sorted(files_with(folder, IMAGE_SUFFIXES), key=natural_order)
    if options.frames is not None:
        images = images[: options.frames]
    meta_path = _meta_path(options, folder)
    meta = {} if meta_path is None else read_json(meta_path)
    notes = [f"{len(images)} images in {folder}"]
    height, width = read_image(images[0]).shape[:2]
    camera = _camera(meta, meta_path, width, height)
    notes.append(_describe_camera(camera, meta_path, width, height))
    fps = _rate(options.fps, meta)
    stems = [path.stem for path in images]
    times = named_times(stems)
    poses = _match_poses(options, stems, times, fps, notes)
    depth = _match_files("depth", _beside(options.depth, options), (".png",), images, times, fps, notes)
    flow = _match_files("flow", _beside(options.flow, options), (".flo", ".png"), images, times, fps, notes)
    scale = float(options.depth_scale or meta.get("depth_scale") or _KITTI_DEPTH_UNITS)
    if options.depth is not None:
        notes.append(f"depth files hold {scale:g} units per metre (change with --depth-scale)")
    stamps = _stamps(len(images), fps, times, _cuts(meta, len(images), notes))
    columns = (images, poses, depth, flow)
    if options.flow is not None and options.flow_towards == "previous":
        notes.append("the flow files are taken to lead to the previous image (if to the next: --flow-towards next)")
    if options.flow_towards == "next":
        notes.append("the flow files lead to the next image: the images are put in reverse order")
        columns = tuple(column[::-1] for column in columns)
        stamps = stamps[0] + stamps[-1] - stamps[::-1]
    return FolderRecording(
        tuple(columns[0]), stamps, camera, fps, *(tuple(column) for column in columns[1:]), scale, tuple(notes)
    )


def _image_folder(options: FolderOptions) -> Path:
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is no folder. Pass the folder of the images, or the one that holds it.")
    truth = [path for path in (_beside(options.depth, options), _beside(options.flow, options)) if path]
    return find_image_folder(options.folder, truth, IMAGE_SUFFIXES)


def _beside(path: Path | None, options: FolderOptions) -> Path | None:
    """A path as given, or inside the recording's folder.

    Raises:
        UsageError: neither exists.
    """
    if path is None or path.exists():
        return path
    inside = options.folder / path
    if path.is_absolute() or not inside.exists():
        raise UsageError(f"{path} does not exist, neither here nor in {options.folder}. Check the path.")
    return inside


def _meta_path(options: FolderOptions, folder: Path) -> Path | None:
    if options.camera is not None:
        return _beside(options.camera, options)
    for place in (options.folder, folder.parent):
        if (place / "meta.json").is_file():
            return place / "meta.json"
    return None


def _camera(meta: dict[str, Any], path: Path | None, width: int, height: int) -> Camera | None:
    calibration = meta_calibration(path, meta)
    stated = (int(meta.get("width") or width), int(meta.get("height") or height))
    if stated != (width, height):
        raise UsageError(
            f"{path} describes images of {stated[0]}x{stated[1]}, the first image has {width}x{height}. The intrinsics "
            "must be those of the stored size: scale fx, cx with the width and fy, cy with the height."
        )
    if calibration is None:
        return None
    intrinsics = (calibration.fx, calibration.fy, calibration.cx, calibration.cy)
    return Camera(width, height, *intrinsics, calibration.distortion_model, calibration.distortion)


def _describe_camera(camera: Camera | None, path: Path | None, width: int, height: int) -> str:
    if camera is None:
        reason = f"{path} has no intrinsics" if path else "no meta.json found (pass --camera)"
        return f"{width}x{height}, not calibrated: {reason}; CameraInfo will have K = 0"
    lens = f", {camera.distortion_model} distortion" if camera.is_distorted else ""
    return (
        f"{width}x{height}, fx {camera.fx:.1f} fy {camera.fy:.1f} cx {camera.cx:.1f} cy {camera.cy:.1f}{lens} ({path})"
    )


def _rate(fps: float | None, meta: dict[str, Any]) -> float:
    value = fps if fps is not None else meta.get("fps") or _DEFAULT_FPS
    if not isinstance(value, int | float) or not 0 < value < 1e4:
        raise UsageError(
            f"A rate of {value!r} images per second: a positive number was expected (--fps, or meta.json)."
        )
    return float(value)


def _cuts(meta: dict[str, Any], count: int, notes: list[str]) -> list[int]:
    cuts = meta.get("cuts") or []
    if not isinstance(cuts, list) or not all(isinstance(cut, int) for cut in cuts):
        raise UsageError(f"meta.json: cuts = {cuts!r}; a list of frame numbers that start a new clip was expected.")
    used = sorted({cut for cut in cuts if 0 < cut < count})
    if used:
        notes.append(f"cuts before frames {', '.join(map(str, used))}: a gap of {_CUT_SECONDS:g} s in the stamps")
    return used


def _stamps(count: int, fps: float, times: np.ndarray | None, cuts: list[int]) -> np.ndarray:
    """Stamps (N,) int64 ns: the times in the file names, or a steady rate, plus a gap at each cut."""
    if times is None:
        stamps = _START_NS + np.round(np.arange(count) * 1e9 / fps).astype(np.int64)
    else:
        stamps = np.round(times * 1e6).astype(np.int64) * 1000
    for cut in cuts:
        stamps[cut:] += round(_CUT_SECONDS * 1e9)
    return stamps


def _match_poses(
    options: FolderOptions, stems: list[str], times: np.ndarray | None, fps: float, notes: list[str]
) -> list[np.ndarray | None]:
    if options.poses is None:
        return [None] * len(stems)
    path = _beside(options.poses, options)
    pose_times, poses = read_poses(path)
    if pose_times is not None:
        return _poses_by_time(path, pose_times, poses, times, fps, notes)
    if len(poses) == len(stems):
        notes.append(f"{len(poses)} poses in {path}, one per image")
        return list(poses)
    numbers = [int(stem) if stem.isdigit() else -1 for stem in stems]
    if min(numbers) >= 0 and max(numbers) < len(poses):
        notes.append(f"{len(poses)} poses in {path}, taken by the number in the images' names")
        return [poses[number] for number in numbers]
    if options.frames is not None and len(poses) > len(stems):
        notes.append(f"the first {len(stems)} of {len(poses)} poses in {path}")
        return list(poses[: len(stems)])
    raise UsageError(
        f"{path} has {len(poses)} poses, there are {len(stems)} images ({stems[0]} .. {stems[-1]}). Expected one row "
        "per image, or images named by the number of their row."
    )


def _poses_by_time(
    path: Path, pose_times: np.ndarray, poses: np.ndarray, times: np.ndarray | None, fps: float, notes: list[str]
) -> list[np.ndarray | None]:
    if times is None:
        raise UsageError(
            f"{path} gives poses by time, but the images are not named by their time in seconds (1305031102.175304). "
            "Rename the images, or pass KITTI rows, one per image."
        )
    order = np.argsort(pose_times)
    nearest = order[_nearest(pose_times[order], times)]
    close = np.abs(pose_times[nearest] - times) < 0.25 / fps
    if not close.any():
        raise UsageError(f"{path}: no pose within {0.25 / fps:.3f} s of any image. Are the clocks the same?")
    notes.append(f"{int(close.sum())} of {len(times)} images have a pose in {path} within {0.25 / fps:.3f} s")
    return [poses[row] if good else None for row, good in zip(nearest, close, strict=True)]


def _nearest(sorted_times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the nearest entry of sorted_times for each wanted time."""
    right = np.clip(np.searchsorted(sorted_times, wanted), 1, max(len(sorted_times) - 1, 1))
    right = np.minimum(right, len(sorted_times) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(sorted_times[left] - wanted) <= np.abs(sorted_times[right] - wanted), left, right)


def _match_files(
    what: str,
    folder: Path | None,
    suffixes: tuple[str, ...],
    images: list[Path],
    times: np.ndarray | None,
    fps: float,
    notes: list[str],
) -> list[Path | None]:
    """The file of each image: same stem; else nearest time; else same number at the end of the name."""
    if folder is None:
        return [None] * len(images)
    if not folder.is_dir():
        raise UsageError(f"--{what} {folder} is no folder.")
    # A folder may hold both the images and their .flo files: the first suffix that occurs is meant.
    files = next((found for suffix in suffixes if (found := files_with(folder, (suffix,)))), [])
    files = sorted((path for path in files if path not in images), key=natural_order)
    if not files:
        raise UsageError(f"--{what} {folder} holds no {' or '.join(suffixes)} file besides the images.")
    matched, how = _match_names(files, images, times, fps)
    if not any(matched):
        raise UsageError(
            f"--{what} {folder}: none of its {len(files)} files ({files[0].name} ..) has the name of an image "
            f"({images[0].name} ..). Files are matched by their name without the ending."
        )
    notes.append(f"{what}: {sum(path is not None for path in matched)} of {len(images)} images, matched by {how}")
    _note_leftovers(what, files, images, matched, notes)
    return matched


def _match_names(
    files: list[Path], images: list[Path], times: np.ndarray | None, fps: float
) -> tuple[list[Path | None], str]:
    by_stem = {path.stem: path for path in files}
    matched = [by_stem.get(path.stem) for path in images]
    if any(matched):
        return matched, "name"
    file_times = named_times([path.stem for path in files])
    if times is not None and file_times is not None:
        nearest = _nearest(file_times, times)
        close = np.abs(file_times[nearest] - times) < 0.25 / fps
        return [files[row] if good else None for row, good in zip(nearest, close, strict=True)], "nearest time"
    numbers = [_last_number(path) for path in files]
    if None in numbers or len(set(numbers)) < len(numbers):
        return matched, "name"
    by_number = dict(zip(numbers, files, strict=True))
    return [by_number.get(_last_number(path)) for path in images], "the number in the name"


def _last_number(path: Path) -> int | None:
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits.group(1)) if digits else None


def _note_leftovers(
    what: str, files: list[Path], images: list[Path], matched: list[Path | None], notes: list[str]
) -> None:
    """Say which files have no partner."""
    used = set(matched)
    spare = [path.name for path in files if path not in used]
    bare = [image.name for image, path in zip(images, matched, strict=True) if path is None]
    for names, text in ((spare, f"{what} files without an image, left out"), (bare, f"images without {what}")):
        if names:
            some = ", ".join(names[:3]) + (" .." if len(names) > 3 else "")
            notes.append(f"{len(names)} {text}: {some}")


def _sized(path: Path, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    _check_size(path, array.shape[:2], size, "its image")
    return array


def _check_size(path: Path, found: tuple[int, ...], expected: tuple[int, int], whose: str) -> None:
    if tuple(found) != tuple(expected):
        raise UsageError(
            f"{path} is {found[1]}x{found[0]}, {whose} is {expected[1]}x{expected[0]}. All images of a recording, and "
            "their depth and flow, must have one size."
        )
