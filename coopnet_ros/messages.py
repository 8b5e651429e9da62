"""Arrays and cameras to messages, and back. The only module that knows how they are laid out."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Iterable

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField, TimeReference
from std_msgs.msg import Header

from coopnet_core.data.camera_info import camera_from_info
from coopnet_core.data.encodings import (
    MalformedImageError,
    UnsupportedEncodingError,
    decode_compressed,
    decode_image,
)
from coopnet_core.geometry.camera import Camera
from coopnet_ros.odometry import OdometryEstimate, quaternion_from_matrix
from coopnet_ros.sequence import NANOSECONDS

_LAYOUTS = {"mono8": (np.uint8, 1), "rgb8": (np.uint8, 3), "32FC1": (np.float32, 1), "32FC2": (np.float32, 2)}


def to_nanoseconds(stamp: Time) -> int:
    """A ROS time as nanoseconds."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def to_time(nanoseconds: int) -> Time:
    """Nanoseconds as a ROS time."""
    return Time(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def header_at(nanoseconds: int, frame_id: str) -> Header:
    """A header."""
    return Header(stamp=to_time(nanoseconds), frame_id=frame_id)


def pixels_of(message: Image | CompressedImage) -> np.ndarray:
    """The picture of an image message.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UnsupportedEncodingError: neither this package nor cv_bridge (where installed) reads the encoding.
        MalformedImageError: the data contradicts the sizes stated.
    """
    if isinstance(message, CompressedImage):
        return decode_compressed(message.format, message.data)
    try:
        return decode_image(
            message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data
        )
    except UnsupportedEncodingError:
        converted = _through_cv_bridge(message)
        if converted is None:
            raise
        return converted


def _through_cv_bridge(message: Image) -> np.ndarray | None:
    """The picture converted by cv_bridge, None where that is not installed or does not know the encoding either.

    Raises:
        MalformedImageError: cv_bridge knows the encoding, but the data is not as long as the sizes say.
    """
    try:
        cv_bridge = importlib.import_module("cv_bridge")
    except ImportError:
        return None
    try:
        return np.asarray(cv_bridge.CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8"))
    except cv_bridge.CvBridgeError:
        return None
    except (TypeError, ValueError) as error:  # numpy's, from laying the sizes over the data
        raise MalformedImageError(
            f"cv_bridge cannot make a {message.width}x{message.height} image of {len(message.data)} bytes in "
            f"'{message.encoding}' ({error})."
        ) from None


def camera_of(message: CameraInfo, rectified: bool = False) -> Camera | None:
    """The camera of the images that this message goes with; None when it is uncalibrated (K[0] = 0).

    Args:
        message: the calibration.
        rectified: the images are rectified already: P holds, not K and D.

    Raises:
        UsageError: an impossible size, K, P, region or distortion.
    """
    roi = message.roi
    return camera_from_info(
        message.width,
        message.height,
        [float(value) for value in message.k],
        [float(value) for value in message.d],
        message.distortion_model,
        (message.binning_x, message.binning_y),
        (roi.x_offset, roi.y_offset, roi.width, roi.height),
        [float(value) for value in message.p] if rectified else None,
    )


def image_message(values: np.ndarray, encoding: str, header: Header) -> Image:
    """An image message of an array.

    Args:
        values: (H, W) or (H, W, C), of the encoding's type.
        encoding: mono8, rgb8, 32FC1 or 32FC2.
        header: stamp and frame.
    """
    dtype, channels = _LAYOUTS[encoding]
    pixels = np.ascontiguousarray(values, dtype=dtype)
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=0)
    message.step = width * channels * pixels.itemsize
    _fill(message.data, pixels)
    return message


def _fill(data: array, values: np.ndarray) -> None:
    """Copy the bytes into the array('B') of a new message (assigned, an ndarray would be copied element by element)."""
    data.frombytes(memoryview(values).cast("B"))


def array_of(message: Image) -> np.ndarray:
    """(H, W) or (H, W, C) values of an image message written by `image_message`, a read-only view of its data."""
    dtype, channels = _LAYOUTS[message.encoding]
    values = np.frombuffer(message.data, dtype=dtype)
    shape = (message.height, message.width) if channels == 1 else (message.height, message.width, channels)
    return values.reshape(shape)


def camera_info_message(camera: Camera, header: Header) -> CameraInfo:
    """The CameraInfo of an undistorted image taken with this camera."""
    message = CameraInfo(header=header, width=camera.width, height=camera.height, distortion_model="plumb_bob")
    message.d = [0.0] * 5
    projection = np.eye(3, 4)
    projection[:, :3] = camera.matrix
    message.k, message.r, message.p = camera.matrix.ravel(), np.eye(3).ravel(), projection.ravel()
    return message


def point_cloud_message(points: np.ndarray, header: Header) -> PointCloud2:
    """An organised cloud.

    Args:
        points: (H, W) of a structured type whose fields are all little-endian float32 (`point_cloud.POINT_XYZRGB`).
        header: stamp, and the frame of x y z.
    """
    points = np.ascontiguousarray(points)
    height, width = points.shape
    fields = [
        PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1)
        for name, (_, offset) in points.dtype.fields.items()
    ]
    message = PointCloud2(header=header, height=height, width=width, fields=fields, is_bigendian=False, is_dense=False)
    message.point_step = points.itemsize
    message.row_step = width * points.itemsize
    _fill(message.data, points)
    return message


def time_reference_message(previous_ns: int, header: Header) -> TimeReference:
    """The time of the image that the flow of `header.stamp` points to."""
    return TimeReference(header=header, time_ref=to_time(previous_ns), source="previous image")


def odometry_message(estimate: OdometryEstimate, stamp_ns: int, odom_frame: str, base_frame: str) -> Odometry:
    """The robot's odometry.

    Args:
        estimate: already in the robot's frame.
        stamp_ns: stamp of the image.
        odom_frame: frame of the pose.
        base_frame: the robot, frame of the twist.
    """
    message = Odometry(header=header_at(stamp_ns, odom_frame), child_frame_id=base_frame)
    position, turn = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, position.z = estimate.pose[:3, 3].tolist()
    turn.x, turn.y, turn.z, turn.w = quaternion_from_matrix(estimate.pose[:3, :3]).tolist()
    message.pose.covariance = estimate.pose_covariance()
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = estimate.twist.tolist()
    message.twist.covariance = estimate.twist_covariance()
    return message


def diagnostics_message(
    name: str, hardware_id: str, level: int, text: str, rows: Iterable[tuple[str, str]], stamp: Time
) -> DiagnosticArray:
    """One status as a DiagnosticArray.

    Args:
        name: of the status, normally the node's full name.
        hardware_id: what is monitored.
        level: 0 ok, 1 warning, 2 error, 3 stale.
        text: the summary.
        rows: key and value pairs.
        stamp: now.
    """
    status = DiagnosticStatus(level=bytes([level]), name=name, message=text, hardware_id=hardware_id)
    status.values = [KeyValue(key=key, value=value) for key, value in rows]
    return DiagnosticArray(header=Header(stamp=stamp), status=[status])
