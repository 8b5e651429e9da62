"""Every topic and service of the node, declared once: the node is built from these tables, README.md written."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from coopnet_core.inference.prediction import DEPTH, FLOW, MASK, MOTION


@dataclass(frozen=True)
class TopicSpec:
    """One topic.

    Attributes:
        direction: `in` is subscribed, `out` is published.
        name: relative, private (`~/`) or absolute, before remapping.
        type_name: e.g. `sensor_msgs/msg/Image`.
        description: what it carries, with its unit; shown in the README.
        encoding: of the images published, empty for the rest.
        computed: what of `prediction.ALL_OUTPUTS` it needs; empty where nothing is computed for it.
        condition: the parameter that it depends on, empty where it is always there.
    """

    direction: Literal["in", "out"]
    name: str
    type_name: str
    description: str
    encoding: str = ""
    computed: str = ""
    condition: str = ""


@dataclass(frozen=True)
class ServiceSpec:
    """One service.

    Attributes:
        name: private (`~/`), before remapping.
        type_name: e.g. `std_srvs/srv/Trigger`.
        description: what it does; shown in the README.
    """

    name: str
    type_name: str
    description: str


_IMAGE = "sensor_msgs/msg/Image"
_CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_POINTS = "sensor_msgs/msg/PointCloud2"
_ODOMETRY = "nav_msgs/msg/Odometry"
_TRANSFORMS = "tf2_msgs/msg/TFMessage"

TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec("in", "image", _IMAGE, "The camera.", condition="image_transport: raw"),
    TopicSpec(
        "in",
        "image/compressed",
        "sensor_msgs/msg/CompressedImage",
        "The camera, as JPEG or PNG; `image` is what is remapped.",
        condition="image_transport: compressed",
    ),
    TopicSpec(
        "in",
        "camera_info",
        _CAMERA_INFO,
        "Its calibration. K and D (P, where the images are `rectified`), binning and ROI are honoured; K[0] = 0 is "
        '"uncalibrated" and refused.',
    ),
    TopicSpec(
        "in",
        "wheel_odom",
        _ODOMETRY,
        "The robot's own odometry, from which the scale is taken.",
        condition="scale_source: odometry",
    ),
    TopicSpec(
        "in",
        "/tf_static",
        _TRANSFORMS,
        "The mounting of the camera on the robot (and `/tf`, where it hangs on joints: then as it was at the time of "
        "each image).",
        condition="base_to_camera.source: tf or auto",
    ),
    TopicSpec(
        "out",
        "~/depth/image",
        _IMAGE,
        "Depth along the optical axis, metres, where the scale is known; NaN where there is none.",
        encoding="32FC1",
        computed=DEPTH,
    ),
    TopicSpec("out", "~/depth/camera_info", _CAMERA_INFO, "The camera of that depth image.", computed=DEPTH),
    TopicSpec(
        "out",
        "~/depth_relative/image",
        _IMAGE,
        "Depth where the scale is **not** known: right up to one factor.",
        encoding="32FC1",
        computed=DEPTH,
    ),
    TopicSpec("out", "~/depth_relative/camera_info", _CAMERA_INFO, "The camera of that depth image.", computed=DEPTH),
    TopicSpec(
        "out",
        "~/depth/color",
        _IMAGE,
        "The depth in colours, for people.",
        encoding="rgb8",
        computed=DEPTH,
    ),
    TopicSpec(
        "out",
        "~/points",
        _POINTS,
        "x y z (rgb) in the camera's optical frame, metres, where the scale is known; organised: one point per pixel "
        "of the depth, NaN where there is none.",
        computed=DEPTH,
    ),
    TopicSpec(
        "out",
        "~/points_relative",
        _POINTS,
        "The same points where the scale is **not** known.",
        computed=DEPTH,
    ),
    TopicSpec(
        "out",
        "~/odom",
        _ODOMETRY,
        "Pose of base_link in odom; metres, where the scale is known, else the unit of the depth and a variance of "
        "9999 (the mounting then turns the motion but adds no lever arm).",
        computed=MOTION,
    ),
    TopicSpec(
        "out",
        "/tf",
        _TRANSFORMS,
        "odom -> base_link, in metres only.",
        condition="publish_tf: true",
    ),
    TopicSpec(
        "out",
        "~/flow/image",
        _IMAGE,
        "Optical flow (u, v), pixels, on the grid of the newest frame, towards the previous one; NaN invalid.",
        encoding="32FC2",
        computed=FLOW,
    ),
    TopicSpec(
        "out",
        "~/flow/time_reference",
        "sensor_msgs/msg/TimeReference",
        "Stamp of the newest and of the previous frame of that flow.",
        computed=FLOW,
    ),
    TopicSpec(
        "out",
        "~/flow/color",
        _IMAGE,
        "The flow in colours, for people.",
        encoding="rgb8",
        computed=FLOW,
    ),
    TopicSpec(
        "out",
        "~/motion/mask",
        _IMAGE,
        "255 where something moves on its own, else 0.",
        encoding="mono8",
        computed=MASK,
    ),
    TopicSpec(
        "out",
        "~/motion/probability",
        _IMAGE,
        "Probability that the pixel moves on its own.",
        encoding="32FC1",
        computed=MASK,
    ),
    TopicSpec(
        "out",
        "~/confidence",
        _IMAGE,
        "How well the pixel is explained, 0 to 1.",
        encoding="32FC1",
        computed=MASK,
    ),
    TopicSpec(
        "out",
        "/diagnostics",
        "diagnostic_msgs/msg/DiagnosticArray",
        "Once a second: state, rates, received/processed/dropped/lost, latencies, device, checkpoint, metric, "
        "mounting, scale (value, spread, age, samples, source).",
    ),
)

SERVICES: tuple[ServiceSpec, ...] = (
    ServiceSpec("~/reset", "std_srvs/srv/Trigger", "Forget the last frame; the pose is kept."),
    ServiceSpec(
        "~/load_checkpoint",
        "std_srvs/srv/Trigger",
        "Load the file of the parameter `checkpoint`; it is loaded and tried while the old networks go on.",
    ),
    ServiceSpec(
        "~/enable",
        "std_srvs/srv/SetBool",
        "Pause (false) and go on (true) while active; a pause ends at deactivate.",
    ),
)

_TOPIC_BY_NAME = {spec.name: spec for spec in TOPICS}

COMPUTED_TOPICS: tuple[TopicSpec, ...] = tuple(spec for spec in TOPICS if spec.computed)
"""The outputs that a result of the networks becomes."""


def load_type(type_name: str) -> type:
    """The class of a message or service type; imports its package.

    Raises:
        ImportError: the package is not installed.
    """
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def topic_type(name: str) -> type:
    """The message class of a topic of the table."""
    return load_type(_TOPIC_BY_NAME[name].type_name)
