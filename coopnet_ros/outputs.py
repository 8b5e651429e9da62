"""The node's publishers: what somebody wants, and how a result becomes messages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from std_msgs.msg import Header

from coopnet_core.errors import UsageError
from coopnet_core.inference.prediction import MASK, Prediction
from coopnet_core.visualization import depth_range, depth_to_color, flow_to_color
from coopnet_ros.interface import COMPUTED_TOPICS, load_type
from coopnet_ros.messages import (
    camera_info_message,
    header_at,
    image_message,
    odometry_message,
    point_cloud_message,
    time_reference_message,
)
from coopnet_ros.odometry import OdometryEstimate
from coopnet_ros.point_cloud import organised_cloud
from coopnet_ros.qos import output_qos, overridable, refusals_in_words

_ENCODINGS = {spec.name: spec.encoding for spec in COMPUTED_TOPICS}
_POINT_TOPICS = ("~/points", "~/points_relative")


@dataclass(frozen=True)
class OutputSettings:
    """How values become pictures, masks and points.

    Attributes:
        motion_threshold: probability from which a pixel is moving.
        depth_near, depth_far: colour range of the depth, in its unit.
        flow_max: length of flow with full saturation, pixels.
        odom_frame, base_frame: frames of the odometry.
        points_color: the points have the colours of the image.
        points_remove_moving: moving pixels give no points.
        points_stride: pixels from one point to the next, along rows and columns.
    """

    motion_threshold: float
    depth_near: float
    depth_far: float
    flow_max: float
    odom_frame: str
    base_frame: str
    points_color: bool
    points_remove_moving: bool
    points_stride: int


class Outputs:
    """All publishers of the node; each works only for subscribers."""

    def __init__(self, node: LifecycleNode) -> None:
        """Create the publishers (silent until the node is active).

        Raises:
            UsageError: a QoS that a parameter asks for is refused; no publisher is left behind.
        """
        self._node = node
        self._publishers: dict[str, Publisher] = {}
        self._relative_range: tuple[float, float] | None = None
        try:
            for spec in COMPUTED_TOPICS:
                self._publishers[spec.name] = self._create(load_type(spec.type_name), spec.name)
        except UsageError:
            self.close()
            raise

    def _create(self, kind: type, topic: str) -> Publisher:
        with refusals_in_words(self._node.resolve_topic_name(topic)):
            return self._node.create_lifecycle_publisher(
                kind, topic, output_qos(), qos_overriding_options=overridable()
            )

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def is_wanted(self, topic: str) -> bool:
        """Whether the topic has a subscriber."""
        publisher = self._publishers.get(topic)
        return publisher is not None and publisher.get_subscription_count() > 0

    def resolved(self, topic: str) -> str:
        """The topic's full name."""
        return self._publishers[topic].topic_name

    def wanted(self, settings: OutputSettings) -> frozenset[str]:
        """What the predictor must compute, of `prediction.ALL_OUTPUTS`."""
        wanted = {spec.computed for spec in COMPUTED_TOPICS if self.is_wanted(spec.name)}
        if settings.points_remove_moving and any(self.is_wanted(topic) for topic in _POINT_TOPICS):
            wanted.add(MASK)
        return frozenset(wanted)

    def publish(self, prediction: Prediction, frame_id: str, settings: OutputSettings) -> None:
        """Publish everything of a prediction except odometry that has a subscriber."""
        header = header_at(prediction.stamp_ns, frame_id)
        group = "~/depth" if prediction.metric else "~/depth_relative"
        self._publish_image(f"{group}/image", prediction.depth, header)
        if self.is_wanted(f"{group}/camera_info"):
            self._publishers[f"{group}/camera_info"].publish(camera_info_message(prediction.camera, header))
        if self.is_wanted("~/depth/color") and prediction.depth is not None:
            color = depth_to_color(prediction.depth, *self._depth_range(prediction, settings))
            self._publish_image("~/depth/color", color, header)
        self._publish_points(prediction, header, settings)
        self._publish_flow(prediction, header, settings)
        self._publish_motion(prediction, header, settings)

    def _depth_range(self, prediction: Prediction, settings: OutputSettings) -> tuple[float, float]:
        """The colour range: of the parameters in metres; without a known unit, what the first image needs, kept."""
        if prediction.metric:
            return settings.depth_near, settings.depth_far
        if self._relative_range is None:
            self._relative_range = depth_range(prediction.depth)
        return self._relative_range

    def publish_odometry(self, estimate: OdometryEstimate, stamp_ns: int, settings: OutputSettings) -> Odometry:
        """Publish an estimate in the robot's frame, where it is wanted; gives the message."""
        message = odometry_message(estimate, stamp_ns, settings.odom_frame, settings.base_frame)
        if self.is_wanted("~/odom"):
            self._publishers["~/odom"].publish(message)
        return message

    def _publish_points(self, prediction: Prediction, header: Header, settings: OutputSettings) -> None:
        topic = "~/points" if prediction.metric else "~/points_relative"
        if prediction.depth is None or not self.is_wanted(topic):
            return
        points = organised_cloud(
            prediction.depth,
            prediction.camera,
            prediction.image if settings.points_color else None,
            _moving(prediction, settings) if settings.points_remove_moving else None,
            settings.points_stride,
        )
        self._publishers[topic].publish(point_cloud_message(points, header))

    def _publish_flow(self, prediction: Prediction, header: Header, settings: OutputSettings) -> None:
        if prediction.flow is None or prediction.pair_stamp_ns is None:
            return
        self._publish_image("~/flow/image", prediction.flow, header)
        if self.is_wanted("~/flow/time_reference"):
            message = time_reference_message(prediction.pair_stamp_ns, header)
            self._publishers["~/flow/time_reference"].publish(message)
        if self.is_wanted("~/flow/color"):
            self._publish_image("~/flow/color", flow_to_color(prediction.flow, settings.flow_max), header)

    def _publish_motion(self, prediction: Prediction, header: Header, settings: OutputSettings) -> None:
        moving = _moving(prediction, settings) if self.is_wanted("~/motion/mask") else None
        if moving is not None:
            self._publish_image("~/motion/mask", moving.view(np.uint8) * np.uint8(255), header)
        self._publish_image("~/motion/probability", prediction.motion_probability, header)
        self._publish_image("~/confidence", prediction.confidence, header)

    def _publish_image(self, topic: str, values: np.ndarray | None, header: Header) -> None:
        if values is not None and self.is_wanted(topic):
            self._publishers[topic].publish(image_message(values, _ENCODINGS[topic], header))


def _moving(prediction: Prediction, settings: OutputSettings) -> np.ndarray | None:
    """(h, w) bool, the pixels that count as moving; None where there is no pair to tell them by."""
    if prediction.motion_probability is None:
        return None
    return prediction.motion_probability >= settings.motion_threshold
