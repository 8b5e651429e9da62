"""Writing frames and their truth as a rosbag2 recording, without ROS."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

STORAGES = ("mcap", "sqlite3")
ODOM_FRAME, BASE_FRAME = "odom", "base_link"
# Axes of the camera's optical frame (x right, y down, z forward) in base_link (x forward, y left, z up), REP 103.
_R_BASE_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_TRUTH_VARIANCE = 1e-8
_GAP_FACTOR = 2.5
_TYPESTORE = get_typestore(Stores.ROS2_JAZZY)
_TOPIC_TYPES = {
    "camera_info": ("/camera/camera_info", "sensor_msgs/msg/CameraInfo"),
    "tf_static": ("/tf_static", "tf2_msgs/msg/TFMessage"),
    "depth": ("/ground_truth/depth", "sensor_msgs/msg/Image"),
    "odometry": ("/ground_truth/odometry", "nav_msgs/msg/Odometry"),
    "flow": ("/ground_truth/flow", "sensor_msgs/msg/Image"),
    "moving": ("/ground_truth/motion_mask", "sensor_msgs/msg/Image"),
    "occluded": ("/ground_truth/occlusion", "sensor_msgs/msg/Image"),
}
_RAW = ("/camera/image_raw", "sensor_msgs/msg/Image")
_COMPRESSED = ("/camera/image_raw/compressed", "sensor_msgs/msg/CompressedImage")


def mount(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """T_base_camera (4, 4) of a camera that looks ahead from (x, y, z) metres in base_link."""
    pose = np.eye(4)
    pose[:3, :3] = _R_BASE_OPTICAL
    pose[:3, 3] = (x, y, z)
    return pose


@dataclass(frozen=True)
class BagOptions:
    """How a bag is written.

    Attributes:
        storage: "mcap" or "sqlite3".
        compressed: record CompressedImage instead of Image.
        jpeg_quality: of images that are not already compressed, 1-100.
        overwrite: replace a bag of the same name.
        T_base_camera: (4, 4) where the camera sits on the robot.
        frame_id: the camera's optical frame.
        period_ns: nominal time between frames; longer gaps start the velocity anew.
    """

    storage: str = "mcap"
    compressed: bool = False
    jpeg_quality: int = 95
    overwrite: bool = False
    T_base_camera: np.ndarray = field(default_factory=mount)
    frame_id: str = "camera_optical_frame"
    period_ns: int = 100_000_000


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, or whose replacement would delete something that is no bag.

    Raises:
        UsageError: with what to do.
    """
    if not path.exists():
        return
    if not overwrite:
        raise UsageError(f"The output {path} already exists. Choose another --output, or pass --overwrite.")
    if not (path / "metadata.yaml").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(
            f"The output {path} exists and is no bag folder (no metadata.yaml in it): it will not be deleted. "
            "Choose another --output."
        )


class BagWriter:
    """Writes one bag; a context manager.

    The bag grows inside `<output>.partial` and gets its name when all is written. After an error or Ctrl-C it stays
    there, closed and readable.
    """

    def __init__(self, output: Path, options: BagOptions = BagOptions()) -> None:
        """Check the output; nothing is written yet.

        Raises:
            UsageError: the output exists, or the storage is unknown.
        """
        if options.storage not in STORAGES:
            raise UsageError(f"Unknown storage {options.storage!r}: choose one of {', '.join(STORAGES)}.")
        check_output(output, options.overwrite)
        self._output, self._options = output, options
        self._partial = output.with_name(output.name + ".partial")
        self._connections: dict[str, object] = {}
        self._T_odom_world: np.ndarray | None = None
        self._last_pose: tuple[int, np.ndarray] | None = None
        self._writer: Writer | None = None

    @property
    def unfinished(self) -> Path:
        """Where the bag is while it is being written, and stays after an error."""
        return self._partial / self._output.name

    def __enter__(self) -> BagWriter:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"The folder {self._partial} cannot be made ({error.strerror}). Choose another."
            ) from error
        plugin = StoragePlugin.MCAP if self._options.storage == "mcap" else StoragePlugin.SQLITE3
        self._writer = Writer(self.unfinished, version=9, storage_plugin=plugin)
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if kind is not None:
            return
        if self._output.exists():
            shutil.rmtree(self._output)
        self.unfinished.rename(self._output)
        self._partial.rmdir()

    def write(self, frame: Frame, truth: FrameTruth = FrameTruth(), encoded: tuple[str, bytes] | None = None) -> None:  # noqa: B008
        """Append a frame, its camera and what is known of it, all with the frame's stamp.

        Args:
            frame: the image; (H, W) is recorded as mono8, (H, W, 3) as rgb8. Without a camera, CameraInfo has K = 0.
            truth: what is known; fields that are None are not recorded.
            encoded: the format ("jpeg", "png") and bytes of the image file, recorded as they are if compressed.
        """
        stamp = frame.stamp_ns
        if not self._connections:
            self._put("tf_static", stamp, self._static_transform(stamp))
        header = self._header(stamp, self._options.frame_id)
        if self._options.compressed:
            kind, data = encoded or ("jpeg", _jpeg(frame.image, self._options.jpeg_quality))
            message = _type("sensor_msgs/msg/CompressedImage")(header, kind, np.frombuffer(data, np.uint8))
        else:
            message = _image(header, frame.image, "mono8" if frame.image.ndim == 2 else "rgb8")
        self._put("image", stamp, message)
        self._put("camera_info", stamp, _camera_info(header, frame.camera, frame.image.shape[:2]))
        self._write_truth(stamp, header, truth)

    def _write_truth(self, stamp: int, header: object, truth: FrameTruth) -> None:
        if truth.depth is not None:
            self._put("depth", stamp, _image(header, truth.depth.astype("<f4", copy=False), "32FC1"))
        if truth.pose is not None:
            self._put("odometry", stamp, self._odometry(stamp, truth.pose))
        if truth.flow is not None:
            self._put("flow", stamp, _image(header, truth.flow.astype("<f4", copy=False), "32FC2"))
        for name in ("moving", "occluded"):
            mask = getattr(truth, name)
            if mask is not None:
                self._put(name, stamp, _image(header, mask.astype(np.uint8) * np.uint8(255), "mono8"))

    def _put(self, name: str, stamp: int, message: object) -> None:
        if name == "image":
            topic, msgtype = _COMPRESSED if self._options.compressed else _RAW
        else:
            topic, msgtype = _TOPIC_TYPES[name]
        if name not in self._connections:
            qos = (_latched_qos(),) if name == "tf_static" else ()
            self._connections[name] = self._writer.add_connection(
                topic, msgtype, typestore=_TYPESTORE, offered_qos_profiles=qos
            )
        self._writer.write(self._connections[name], stamp, _TYPESTORE.serialize_cdr(message, msgtype))

    def _header(self, stamp: int, frame_id: str) -> object:
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        return _type("std_msgs/msg/Header")(_type("builtin_interfaces/msg/Time")(seconds, nanoseconds), frame_id)

    def _static_transform(self, stamp: int) -> object:
        pose = self._options.T_base_camera
        transform = _type("geometry_msgs/msg/Transform")(
            _type("geometry_msgs/msg/Vector3")(*map(float, pose[:3, 3])), _quaternion_message(pose)
        )
        stamped = _type("geometry_msgs/msg/TransformStamped")(
            self._header(stamp, BASE_FRAME), self._options.frame_id, transform
        )
        return _type("tf2_msgs/msg/TFMessage")([stamped])

    def _odometry(self, stamp: int, T_world_camera: np.ndarray) -> object:
        """T_odom_base and the velocity in base_link; odom is base_link at the first pose."""
        T_base_camera = self._options.T_base_camera
        T_world_base = T_world_camera @ np.linalg.inv(T_base_camera)
        if self._T_odom_world is None:
            self._T_odom_world = np.linalg.inv(T_world_base)
        T_odom_base = self._T_odom_world @ T_world_base
        linear, angular = self._velocity(stamp, T_odom_base)
        self._last_pose = (stamp, T_odom_base)
        vector = _type("geometry_msgs/msg/Vector3")
        point = _type("geometry_msgs/msg/Point")(*map(float, T_odom_base[:3, 3]))
        pose = _type("geometry_msgs/msg/Pose")(point, _quaternion_message(T_odom_base))
        twist = _type("geometry_msgs/msg/Twist")(vector(*linear), vector(*angular))
        covariance = (_TRUTH_VARIANCE * np.eye(6)).ravel()
        return _type("nav_msgs/msg/Odometry")(
            self._header(stamp, ODOM_FRAME),
            BASE_FRAME,
            _type("geometry_msgs/msg/PoseWithCovariance")(pose, covariance),
            _type("geometry_msgs/msg/TwistWithCovariance")(twist, covariance),
        )

    def _velocity(self, stamp: int, T_odom_base: np.ndarray) -> tuple[list[float], list[float]]:
        """Mean linear and angular velocity since the last pose, in base_link; zero after a gap."""
        if self._last_pose is None or not 0 < stamp - self._last_pose[0] <= _GAP_FACTOR * self._options.period_ns:
            return [0.0] * 3, [0.0] * 3
        seconds = (stamp - self._last_pose[0]) / 1e9
        step = np.linalg.inv(self._last_pose[1]) @ T_odom_base
        turn = cv2.Rodrigues(step[:3, :3])[0].ravel()
        # The displacement is expressed in the last base_link; base_link of now is turned by the step.
        return (step[:3, :3].T @ step[:3, 3] / seconds).tolist(), (turn / seconds).tolist()


def _type(name: str) -> type:
    return _TYPESTORE.types[name]


def _latched_qos() -> Qos:
    """Transient local, as /tf_static is published: a late subscriber gets the last message."""
    none = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL,
        none,
        none,
        QosLiveliness.AUTOMATIC,
        none,
        False,
    )


def _image(header: object, array: np.ndarray, encoding: str) -> object:
    height, width = array.shape[:2]
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _type("sensor_msgs/msg/Image")(header, height, width, encoding, 0, len(data) // height, data)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    stored = image if image.ndim == 2 else image[..., ::-1]
    return cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _camera_info(header: object, camera: Camera | None, size: tuple[int, int]) -> object:
    """CameraInfo; K = 0 says that the camera is not calibrated."""
    k, p, r = np.zeros(9), np.zeros(12), np.zeros(9)
    model, distortion = "plumb_bob", np.zeros(0)
    if camera is not None:
        k, r = camera.matrix.ravel(), np.eye(3).ravel()
        p = np.hstack([camera.matrix, np.zeros((3, 1))]).ravel()
        model = camera.distortion_model or "plumb_bob"
        distortion = np.array(camera.distortion or (0.0,) * 5, float)
    region = _type("sensor_msgs/msg/RegionOfInterest")(0, 0, 0, 0, False)
    height, width = size
    return _type("sensor_msgs/msg/CameraInfo")(header, height, width, model, distortion, k, r, p, 0, 0, region)


def _quaternion_message(pose: np.ndarray) -> object:
    return _type("geometry_msgs/msg/Quaternion")(*map(float, quaternion_from_rotation(pose[:3, :3])))


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """The unit quaternion (x, y, z, w) with w >= 0 of a rotation matrix (3, 3).

    It is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000): well conditioned for
    every rotation, and the nearest one for matrices that are rotations only to a few digits.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion = np.linalg.eigh(matrix)[1][:, -1]
    return quaternion if quaternion[3] >= 0 else -quaternion
