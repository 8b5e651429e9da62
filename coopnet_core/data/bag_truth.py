"""What a recording knows of its own scene: depth, poses, flow and masks on the /ground_truth topics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from coopnet_core.data.bag import (
    IMAGE_TYPE,
    Bag,
    BrokenMessageError,
    deserialize,
    find_camera,
    header_stamp,
    open_bag,
)
from coopnet_core.data.encodings import MalformedImageError, UnsupportedEncodingError, decode_array
from coopnet_core.data.frames import FrameTruth
from coopnet_core.errors import CoopnetError

ODOMETRY_TYPE, TF_TYPE = "nav_msgs/msg/Odometry", "tf2_msgs/msg/TFMessage"
_STATIC_TF = "/tf_static"


@dataclass(frozen=True)
class TruthTopics:
    """Where the truth is recorded.

    Attributes:
        depth: Image 32FC1 (metres) or 16UC1 (millimetres).
        odometry: nav_msgs/Odometry of the frame that carries the camera.
        flow: Image 32FC2, pixels, towards the previous frame.
        moving: Image mono8, 255 on moving objects.
        occluded: Image mono8, 255 where not visible in the previous frame.
    """

    depth: str = "/ground_truth/depth"
    odometry: str = "/ground_truth/odometry"
    flow: str = "/ground_truth/flow"
    moving: str = "/ground_truth/motion_mask"
    occluded: str = "/ground_truth/occlusion"

    @property
    def images(self) -> dict[str, str]:
        """The field of FrameTruth that each topic of images fills."""
        return {self.depth: "depth", self.flow: "flow", self.moving: "moving", self.occluded: "occluded"}


class BagTruth(Mapping[int, FrameTruth]):
    """The truth of a recording by header stamp (ns), read from the bag when asked for.

    Only stamps and poses are held in memory. Asking in the order of the stamps goes through the bag once; asking for
    an earlier stamp than the last starts again from its beginning. Use as a context manager.

    Attributes:
        fields: which of depth, pose, flow, moving, occluded are recorded at all.
        notes: why something recorded cannot be used, one sentence each.
    """

    def __init__(self, bag: Bag, topics: TruthTopics, camera_frame: str | None) -> None:
        self._bag = bag
        self._images = {name: kind for name, kind in topics.images.items() if name in bag.topics}
        self.notes: list[str] = []
        self._kinds: dict[int, set[str]] = {}
        for message in bag.messages(self._images):
            try:
                self._kinds.setdefault(header_stamp(message.data), set()).add(self._images[message.topic])
            except BrokenMessageError as error:
                self._note(f"{message.topic}: {error}")
        self._poses = _poses(bag, topics.odometry, camera_frame, self.notes)
        self._stamps = sorted(self._kinds.keys() | self._poses.keys())
        present = set().union(*self._kinds.values())
        self.fields = frozenset(present | ({"pose"} if self._poses else set()))
        self._rewind()

    def __enter__(self) -> BagTruth:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the bag."""
        self._bag.close()

    @property
    def poses(self) -> dict[int, np.ndarray]:
        """T_world_camera, (4, 4) float64 metres, camera optical frame, by stamp (ns)."""
        return dict(self._poses)

    def __len__(self) -> int:
        return len(self._stamps)

    def __iter__(self) -> Iterator[int]:
        return iter(self._stamps)

    def __contains__(self, stamp_ns: object) -> bool:
        return stamp_ns in self._poses or stamp_ns in self._kinds

    def __getitem__(self, stamp_ns: int) -> FrameTruth:
        if stamp_ns not in self:
            raise KeyError(stamp_ns)
        if stamp_ns < self._floor:
            self._rewind()
        self._floor = stamp_ns
        for passed in [known for known in self._window if known < stamp_ns]:
            del self._window[passed]
        self._read_until_complete(stamp_ns)
        arrays = {kind: self._decode(kind, data) for kind, data in self._window.get(stamp_ns, {}).items()}
        return FrameTruth(pose=self._poses.get(stamp_ns), **arrays)

    def _rewind(self) -> None:
        """Start again from the beginning of the bag."""
        self._floor = -1
        self._window: dict[int, dict[str, bytes]] = {}
        self._stream = self._bag.messages(self._images)

    def _read_until_complete(self, stamp_ns: int) -> None:
        """Read on until every image of this stamp is in the window; what is older is passed over."""
        needed = self._kinds.get(stamp_ns, set())
        while needed - self._window.get(stamp_ns, {}).keys():
            message = next(self._stream, None)
            if message is None:
                return
            try:
                found_ns = header_stamp(message.data)
            except BrokenMessageError:
                continue
            if found_ns >= stamp_ns:
                self._window.setdefault(found_ns, {})[self._images[message.topic]] = message.data

    def _decode(self, kind: str, data: bytes) -> np.ndarray | None:
        """The array of a truth image; None (noted) when it is broken or of an unexpected encoding."""
        try:
            return _truth_array(kind, deserialize(IMAGE_TYPE, data))
        except (BrokenMessageError, MalformedImageError, UnsupportedEncodingError) as error:
            self._note(f"true {kind}: {error}")
            return None

    def _note(self, text: str) -> None:
        """Remember a problem once."""
        if text not in self.notes:
            self.notes.append(text)


def read_truth(path: Path | str, topics: TruthTopics | None = None, camera_frame: str | None = None) -> BagTruth:
    """The truth in a recording; a mapping from header stamp (ns) to FrameTruth, empty where there is none.

    Args:
        path: bag folder or file.
        topics: where it is recorded; the names that `make_demo_bag` writes by default.
        camera_frame: optical frame of the camera; the frame id of the images by default.

    Raises:
        UsageError: no such bag.
        NoUsableDataError: nothing can be read from it.
    """
    bag = open_bag(path)
    try:
        return BagTruth(bag, topics or TruthTopics(), camera_frame or _camera_frame(bag))
    except BaseException:
        bag.close()
        raise


def static_transform(bag: Bag, parent: str, child: str) -> np.ndarray | None:
    """T_parent_child (4, 4) from the recorded /tf_static, or None where the two are not connected."""
    return _chain(_static_transforms(bag), parent, child)


def _truth_array(kind: str, message: Any) -> np.ndarray:
    """One truth image as FrameTruth wants it.

    Raises:
        UnsupportedEncodingError: the encoding is not one for this kind.
        MalformedImageError: from `decode_array`.
    """
    expected = {"depth": ("32FC1", "16UC1"), "flow": ("32FC2",)}.get(kind, ("mono8", "8UC1"))
    if message.encoding not in expected:
        raise UnsupportedEncodingError(f"encoding {message.encoding}, {' or '.join(expected)} was expected")
    values = decode_array(
        message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data
    )
    if kind in ("moving", "occluded"):
        return values >= 128
    if kind == "flow":
        return values
    depth = values.astype(np.float32) / 1000 if values.dtype == np.uint16 else values
    # REP 118: 0 (16UC1), inf and NaN are no measurement.
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def _camera_frame(bag: Bag) -> str | None:
    """The frame id of the first readable image of the camera."""
    try:
        topics = find_camera(bag)
    except CoopnetError:
        return None
    for message in bag.messages({topics.image}):
        try:
            return str(deserialize(topics.msgtype, message.data).header.frame_id) or None
        except BrokenMessageError:
            continue
    return None


def _poses(bag: Bag, topic: str, camera_frame: str | None, notes: list[str]) -> dict[int, np.ndarray]:
    """T_world_camera by stamp; empty (noted) where the mounting of the camera is not recorded."""
    if topic not in bag.topics or bag.topics[topic].msgtype != ODOMETRY_TYPE:
        return {}
    edges = _static_transforms(bag)
    mounts: dict[str, np.ndarray | None] = {}
    poses: dict[int, np.ndarray] = {}
    for message in bag.messages({topic}):
        try:
            odometry = deserialize(ODOMETRY_TYPE, message.data)
        except BrokenMessageError as error:
            notes.append(f"{topic}: {error}")
            continue
        carrier = str(odometry.child_frame_id)
        if carrier not in mounts:
            mounts[carrier] = _chain(edges, carrier, camera_frame or carrier)
        T_carrier_camera = mounts[carrier]
        if T_carrier_camera is None:
            notes.append(
                f"{topic} moves '{carrier}', but {_STATIC_TF} does not connect it with the camera's frame "
                f"'{camera_frame}': the poses of the camera are unknown"
            )
            return {}
        pose = odometry.pose.pose
        poses[header_stamp(message.data)] = _matrix(pose.position, pose.orientation) @ T_carrier_camera
    return poses


def _static_transforms(bag: Bag) -> dict[str, dict[str, np.ndarray]]:
    """T_a_b for every recorded static transform, both ways: edges[a][b]."""
    edges: dict[str, dict[str, np.ndarray]] = {}
    for message in bag.messages({_STATIC_TF}):
        try:
            transforms = deserialize(TF_TYPE, message.data).transforms
        except BrokenMessageError:
            continue
        for transform in transforms:
            parent, child = str(transform.header.frame_id).lstrip("/"), str(transform.child_frame_id).lstrip("/")
            T_parent_child = _matrix(transform.transform.translation, transform.transform.rotation)
            edges.setdefault(parent, {})[child] = T_parent_child
            edges.setdefault(child, {})[parent] = np.linalg.inv(T_parent_child)
    return edges


def _chain(edges: dict[str, dict[str, np.ndarray]], start: str, goal: str) -> np.ndarray | None:
    """T_start_goal (4, 4) through the recorded transforms, or None when they are not connected."""
    start, goal = start.lstrip("/"), goal.lstrip("/")
    reached = {start: np.eye(4)}
    queue = deque([start])
    while queue and goal not in reached:
        frame = queue.popleft()
        for neighbour, T_frame_neighbour in edges.get(frame, {}).items():
            if neighbour not in reached:
                reached[neighbour] = reached[frame] @ T_frame_neighbour
                queue.append(neighbour)
    return reached.get(goal)


def _matrix(position: Any, orientation: Any) -> np.ndarray:
    """(4, 4) float64 from a message's position and quaternion (normalised here)."""
    x, y, z, w = np.array([orientation.x, orientation.y, orientation.z, orientation.w], np.float64) / max(
        1e-12, float(np.linalg.norm([orientation.x, orientation.y, orientation.z, orientation.w]))
    )
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = [position.x, position.y, position.z]
    return matrix
