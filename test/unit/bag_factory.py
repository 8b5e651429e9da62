"""Small bags with known content, written message by message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE, COMPRESSED, INFO = (f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage", "CameraInfo"))
WIDTH, HEIGHT, FOCAL = 96, 64, 80.0
START_NS, PERIOD_NS = 1_700_000_000_000_000_000, 100_000_000
IMAGE_TOPIC, INFO_TOPIC = "/camera/image_raw", "/camera/camera_info"

Message = tuple[str, str, int, Any]
"""Topic, type, recording time (ns), message object or raw CDR bytes."""


def make(msgtype: str, **fields: Any) -> Any:
    """A message object."""
    return STORE.types[msgtype](**fields)


def header(stamp_ns: int, frame_id: str = "camera_optical_frame") -> Any:
    stamp = make("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


@lru_cache(maxsize=8)
def _texture(width: int, height: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (height, 4 * width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 240).astype(np.uint8)


@lru_cache(maxsize=512)
def picture(index: int, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: a smooth texture that moves 3 pixels to the left with each index, and fresh noise."""
    fresh = np.random.default_rng([seed, index]).integers(0, 16, (height, width, 3), dtype=np.uint8)
    result = np.roll(_texture(width, height, seed), -3 * index, axis=1)[:, :width] + fresh
    result.flags.writeable = False
    return result


def image(pixels: np.ndarray, stamp_ns: int, encoding: str = "rgb8", step: int | None = None, **changes: Any) -> Any:
    """An Image of any array (H, W[, C]); `changes` replace fields afterwards."""
    data = np.ascontiguousarray(pixels)
    fields = {
        "header": header(stamp_ns),
        "height": data.shape[0],
        "width": data.shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": step or data[0].nbytes,
        "data": data.reshape(-1).view(np.uint8),
    }
    return make(IMAGE, **(fields | changes))


def compressed(pixels: np.ndarray, stamp_ns: int, extension: str = "png") -> Any:
    """A CompressedImage of (H, W, 3) RGB."""
    packed = cv2.imencode(f".{extension}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    return make(
        COMPRESSED, header=header(stamp_ns), format=f"rgb8; {extension} compressed bgr8", data=packed.reshape(-1)
    )


def camera_info(stamp_ns: int, width: int = WIDTH, height: int = HEIGHT, focal: float = FOCAL, **changes: Any) -> Any:
    k = np.array([focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1.0])
    roi = make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    fields = {
        "header": header(stamp_ns),
        "height": height,
        "width": width,
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": k,
        "r": np.eye(3).reshape(-1),
        "p": np.array([*k[:3], 0, *k[3:6], 0, *k[6:], 0.0]),
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    }
    return make(INFO, **(fields | changes))


def stamp(index: int) -> int:
    return START_NS + index * PERIOD_NS


def recording(
    frames: int = 10,
    image_topic: str = IMAGE_TOPIC,
    info_topic: str | None = INFO_TOPIC,
    width: int = WIDTH,
    height: int = HEIGHT,
    seed: int = 0,
) -> list[Message]:
    """A camera that moves, with its calibration."""
    messages: list[Message] = []
    for index in range(frames):
        now = stamp(index)
        if info_topic:
            messages.append((info_topic, INFO, now, camera_info(now, width, height)))
        messages.append((image_topic, IMAGE, now + 1000, image(picture(index, width, height, seed), now)))
    return messages


def write_bag(path: Path, messages: Sequence[Message], storage: str = "mcap", compression: str | None = None) -> Path:
    """Write a bag folder; `compression`: None, "message", "file" or "storage"."""
    writer = Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()])
    if compression:
        writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, msgtype, bag_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, msgtype, typestore=STORE)
            data = message if isinstance(message, bytes) else bytes(STORE.serialize_cdr(message, msgtype))
            writer.write(connections[topic], bag_ns, data)
    return path


def storage_file(bag: Path) -> Path:
    """The one .mcap or .db3 file of a bag folder."""
    (found,) = [path for path in bag.iterdir() if path.name != "metadata.yaml"]
    return found
