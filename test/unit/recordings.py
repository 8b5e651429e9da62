"""Small recordings in every layout that can be trained on, with known pictures, stamps and cameras."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from unit import bag_factory as make

from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.geometry.camera import Camera

FRAMES = 8
PERIOD_NS = 100_000_000
CAMERA = Camera(96, 64, 80.0, 82.0, 45.5, 33.5)


@dataclass(frozen=True)
class Written:
    """A recording on the disk.

    Attributes:
        path: to name it by.
        kind: as it is to be recognised.
        sequences: per sequence its stamps (ns) and its pictures (H, W, 3).
        camera: of every image; None: not calibrated.
    """

    path: Path | str
    kind: str
    sequences: list[tuple[list[int], list[np.ndarray]]]
    camera: Camera | None = CAMERA

    @property
    def stamps(self) -> list[int]:
        return [stamp for stamps, _ in self.sequences for stamp in stamps]

    @property
    def pictures(self) -> list[np.ndarray]:
        return [picture for _, pictures in self.sequences for picture in pictures]


def pictures(count: int = FRAMES, seed: int = 0, width: int = 96, height: int = 64) -> list[np.ndarray]:
    return [make.picture(index, width, height, seed) for index in range(count)]


def write_images(folder: Path, names: Sequence[str], images: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=True):
        cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def steady(count: int, start: int = 0) -> list[int]:
    return [start + k * PERIOD_NS for k in range(count)]


def matrix_row(camera: Camera, columns: int = 4) -> str:
    k = np.zeros((3, columns))
    k[:, :3] = camera.matrix
    if columns == 4:
        k[:, 3] = (44.8, 0.2, 0.003)
    return " ".join(f"{value:.6e}" for value in k.ravel())


OTHER = Camera(96, 64, 55.0, 55.0, 40.0, 30.0)
"""A camera beside the one that is to be used."""


def kitti_raw(root: Path) -> Written:
    day = root / "2011_09_26"
    sequences = []
    for number in (1, 2):
        camera = day / f"2011_09_26_drive_000{number}_sync" / "image_02"
        write_images(camera / "data", [f"{k:010d}.png" for k in range(FRAMES)], pictures(seed=number))
        write_images(camera.parent / "image_00" / "data", ["0000000000.png"], pictures(1))
        rows = [f"2011-09-26 13:0{number}:25.{100000000 + k * 99_000_001:09d}" for k in range(FRAMES)]
        (camera / "timestamps.txt").write_text("\n".join(rows) + "\n")
        # 2011-09-26 13:00:00 UTC
        start = (1_317_042_000 + 60 * number + 25) * 10**9 + 100_000_000
        sequences.append(([start + k * 99_000_001 for k in range(FRAMES)], pictures(seed=number)))
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\n"
        f"S_02: 139 51\nK_02: {matrix_row(OTHER, 3)}\nD_02: -0.3 0.1 0.001 0.001 -0.05\n"
        f"S_rect_00: 96 64\nP_rect_00: {matrix_row(OTHER)}\n"
        f"S_rect_02: 9.600000e+01 6.400000e+01\nP_rect_02: {matrix_row(CAMERA)}\n"
    )
    return Written(day, "KITTI raw", sequences)


def kitti_odometry(root: Path) -> Written:
    sequences = []
    for name in ("03", "10"):
        folder = root / "dataset" / "sequences" / name
        write_images(folder / "image_2", [f"{k:06d}.png" for k in range(FRAMES)], pictures(seed=int(name)))
        (folder / "calib.txt").write_text(f"P0: {matrix_row(OTHER)}\nP2: {matrix_row(CAMERA)}\n")
        (folder / "times.txt").write_text("".join(f"{k * 0.1036224:e}\n" for k in range(FRAMES)))
        sequences.append(([round(k * 103_622_400) for k in range(FRAMES)], pictures(seed=int(name))))
    return Written(root / "dataset", "KITTI odometry", sequences)


def cityscapes(root: Path) -> Written:
    sequences = []
    for city, sequence, first in (("aachen", 0, 0), ("aachen", 1, 0), ("bochum", 0, 1234), ("bochum", 0, 5000)):
        stem = f"{city}_{sequence:06d}"
        folder = root / "leftImg8bit_sequence" / "train" / city
        shown = pictures(seed=first + sequence)
        write_images(folder, [f"{stem}_{first + k:06d}_leftImg8bit.png" for k in range(FRAMES)], shown)
        camera = root / "camera" / "train" / city / f"{stem}_{first + 5:06d}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        intrinsic = {"fx": CAMERA.fx, "fy": CAMERA.fy, "u0": CAMERA.cx, "v0": CAMERA.cy}
        camera.write_text(json.dumps({"extrinsic": {"baseline": 0.2}, "intrinsic": intrinsic}))
        sequences.append(([round(k * 1e9 / 17) for k in range(FRAMES)], shown))
    return Written(root, "Cityscapes", sequences)


def tum(root: Path) -> Written:
    folder = root / "rgbd_dataset_freiburg3_walking_xyz"
    shown = pictures(width=96, height=72)
    times = [f"13050311{k // 10:02d}.{175304 + k * 33000:06d}" for k in range(FRAMES)]
    write_images(folder / "rgb", [f"{time}.png" for time in times], shown)
    write_images(folder / "depth", ["1305031100.1.png"], [shown[0]])
    rows = [f"{time} rgb/{time}.png" for time in times]
    (folder / "rgb.txt").write_text("# color images\n# file: 'x.bag'\n# timestamp filename\n" + "\n".join(rows) + "\n")
    stamps = [int(time.replace(".", "")) * 1000 for time in times]
    # The published camera of 640x480, at 0.15 of its size: c' = (c + 0.5) 0.15 - 0.5.
    camera = Camera(96, 72, 535.4 * 0.15, 539.2 * 0.15, 320.6 * 0.15 - 0.5, 248.1 * 0.15 - 0.5)
    return Written(folder, "TUM RGB-D", [(stamps, shown)], camera)


def folder_with_calibration(root: Path) -> Written:
    folder = root / "drive"
    shown = pictures()
    write_images(folder / "images", [f"frame{k}.png" for k in range(FRAMES)], shown)
    (folder / "camera.yaml").write_text(
        "image_width: 192\nimage_height: 128\ncamera_name: front\n"
        f"camera_matrix: {{rows: 3, cols: 3, data: [{2 * CAMERA.fx}, 0, {2 * CAMERA.cx + 0.5}, 0, {2 * CAMERA.fy}, "
        f"{2 * CAMERA.cy + 0.5}, 0, 0, 1]}}\n"
        "distortion_model: plumb_bob\ndistortion_coefficients: {rows: 1, cols: 5, data: [0, 0, 0, 0, 0]}\n"
    )
    stamps = [1_700_000_000_000_000_000 + 7 + k * PERIOD_NS for k in range(FRAMES)]
    (folder / "timestamps.txt").write_text("# ns\n" + "\n".join(map(str, stamps)))
    return Written(folder, "folder of images", [(stamps, shown)])


def folder_without_calibration(root: Path) -> Written:
    folder = root / "bare"
    shown = pictures()
    write_images(folder, [f"img_{k}.png" for k in range(FRAMES)], shown)
    return Written(folder, "folder of images", [(steady(FRAMES), shown)], None)


def write_video(
    path: Path, shown: Sequence[np.ndarray], stamps_ms: Sequence[int], key_every: int = 4, faststart: bool = False
) -> None:
    """A video without loss (H.264, RGB); needs PyAV."""
    import av

    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264rgb", rate=10)
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "rgb24"
        stream.options = {"qp": "0", "preset": "ultrafast", "g": str(key_every)}
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, stamp in zip(shown, stamps_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_meta(path: Path, camera: Camera = CAMERA, **more: object) -> None:
    intrinsics = {name: getattr(camera, name) for name in ("width", "height", "fx", "fy", "cx", "cy")}
    path.write_text(json.dumps(intrinsics | more))


def video(root: Path) -> Written:
    shown = pictures(16)
    stamps_ms = [100 * k + 3 * (k % 2) for k in range(16)]  # not steady, as of a telephone
    write_video(root / "drive.mp4", shown, stamps_ms)
    write_meta(root / "drive.json")
    return Written(root / "drive.mp4", "video", [([stamp * 10**6 for stamp in stamps_ms], shown)])


def cut_off_video(root: Path) -> Written:
    """A copy that broke off; its index lies at the beginning."""
    whole = root / "whole.mp4"
    shown = pictures(40)
    write_video(whole, shown, range(0, 4000, 100), faststart=True)
    content = whole.read_bytes()
    whole.unlink()
    (root / "cut.mp4").write_bytes(content[: int(0.6 * len(content))])
    write_meta(root / "meta.json")
    # How many pictures are left is asserted by the tests: at least the first half.
    return Written(root / "cut.mp4", "video", [(steady(40), shown)])


@lru_cache(maxsize=1)
def _street() -> list[Frame]:
    config = SceneConfig(3, 4, Camera.from_field_of_view(416, 128, 80.0), camera_moves=True)
    return [frame for frame, _ in iter_rendered(config)]


def rendered(root: Path) -> Written:
    frames = _street()
    shown = [frame.image for frame in frames]
    return Written("render:3:4", "rendered street", [([f.stamp_ns for f in frames], shown)], frames[0].camera)


def bag(root: Path) -> Written:
    make.write_bag(root / "bag", make.recording(FRAMES))
    stamps = [make.stamp(k) for k in range(FRAMES)]
    return Written(root / "bag", "rosbag2", [(stamps, pictures())], Camera(96, 64, 80.0, 80.0, 47.5, 31.5))


FORMATS: dict[str, Callable[[Path], Written]] = {
    writer.__name__: writer
    for writer in (
        bag,
        kitti_raw,
        kitti_odometry,
        cityscapes,
        tum,
        folder_with_calibration,
        folder_without_calibration,
        video,
        cut_off_video,
        rendered,
    )
}
