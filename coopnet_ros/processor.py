"""What the worker thread does with one image: check, decode, predict, publish, count."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sensor_msgs.msg import CompressedImage, Image

from coopnet_core.data.encodings import MalformedImageError, UnsupportedEncodingError
from coopnet_core.data.frames import Frame
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import MOTION, Prediction
from coopnet_ros.diagnostics import REJECT_REASONS, Statistics
from coopnet_ros.messages import pixels_of, to_nanoseconds
from coopnet_ros.mount import CameraMount, TransformPublisher
from coopnet_ros.mounting import Mounting
from coopnet_ros.notifier import Notifier
from coopnet_ros.odometry import MotionNoise, OdometryEstimate
from coopnet_ros.outputs import Outputs, OutputSettings
from coopnet_ros.parameters import ParameterValue
from coopnet_ros.pipeline import FrameRejectedError, Pipeline, PipelineSettings
from coopnet_ros.robot_pose import RobotPose
from coopnet_ros.scale import ScaleSettings, ScaleState

_LOOK_AT = "Look at the driver or bridge that publishes it."
_ENDED_BY_A_GOOD_FRAME = tuple(reason for reason in REJECT_REASONS if reason != "out_of_order")
"""An image that is out of order says nothing of the one before it, and may come now and then for ever."""


@dataclass(frozen=True)
class ImageItem:
    """An image as it arrived.

    Attributes:
        message: the image.
        arrived: time of arrival, seconds of time.perf_counter.
        epoch: number of new starts before it (`sequence.ArrivalOrder`).
        camera: what was known of the camera then; None where nothing was.
    """

    message: Image | CompressedImage
    arrived: float
    epoch: int = 0
    camera: CameraState | None = None


@dataclass(frozen=True)
class CameraState:
    """What is known of the camera: `camera`, or why there is none.

    Attributes:
        camera: usable intrinsics.
        reason: one of `diagnostics.REJECT_REASONS` where there is no camera.
        text: the reason for the user.
    """

    camera: Camera | None
    reason: str = ""
    text: str = ""


class Processor:
    """Joins the pipeline with messages. Used by the worker thread, except for `apply` and the `last_` attributes."""

    def __init__(
        self,
        pipeline: Pipeline,
        outputs: Outputs,
        statistics: Statistics,
        notifier: Notifier,
        mount: CameraMount,
        transforms: TransformPublisher,
        camera_of: Callable[[ImageItem], CameraState],
    ) -> None:
        """Join the parts; `apply` must be called before the first image.

        Args:
            pipeline: the networks and the pose.
            outputs: the publishers.
            statistics: where every image is counted.
            notifier: where the user is told.
            mount: where the camera sits.
            transforms: the broadcaster of /tf.
            camera_of: gives what is known of the camera of an image.
        """
        self._pipeline = pipeline
        self._outputs = outputs
        self._statistics = statistics
        self._notifier = notifier
        self._mount = mount
        self._transforms = transforms
        self._camera_of = camera_of
        self._robot = RobotPose()
        self._frame_id: str | None = None
        self._output_settings: OutputSettings | None = None
        self._always_integrate = True
        self._scale_was_known = False
        self.last_frame: Frame | None = None
        self.last_prediction: Prediction | None = None
        self.last_scale: ScaleState | None = None

    def apply(self, values: Mapping[str, ParameterValue]) -> None:
        """Use these parameter values from the next image on."""
        settings = pipeline_settings(values)
        if settings.scale != self._pipeline.settings.scale:
            self._scale_was_known = False
            for key in ("scale_unknown", "tf_without_scale"):
                self._notifier.forget(key)
        self._pipeline.settings = settings
        self._output_settings = output_settings(values)
        self._always_integrate = bool(values["always_integrate"])

    def handle(self, item: ImageItem) -> None:
        """Process one image; whatever happens to it is counted."""
        wanted = self._outputs.wanted(self._output_settings)
        if self._always_integrate or self._transforms.is_open:
            wanted |= {MOTION}
        if not wanted:
            self._statistics.drop("not_wanted")
            return
        try:
            self._process(item, wanted)
        except FrameRejectedError as error:
            self._statistics.reject(error.reason)
            self._notifier.notify(error.reason, str(error))
        else:
            self._notifier.recover(*_ENDED_BY_A_GOOD_FRAME)

    def fail(self, error: Exception) -> None:
        """An image met an error nobody foresaw: count and tell, so that the node lives on."""
        self._statistics.reject("internal_error")
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        self._notifier.notify(
            "internal_error",
            f"Internal error, an image is dropped. {type(error).__name__}: {error}{where}. No image should cause this: "
            "please report it with this line.",
        )

    def _process(self, item: ImageItem, wanted: frozenset[str]) -> None:
        started = time.perf_counter()
        frame = self.last_frame = self._frame_of(item)
        decoded = time.perf_counter()
        self._follow_camera(frame.frame_id)
        result = self._pipeline.step(frame, wanted, lambda: self._mounting_of(frame, wanted), item.epoch)
        for key, text in result.notices:
            self._notifier.notify(key, text)
        self._robot.use_scale(result.scale.value)
        predicted = time.perf_counter()
        self._outputs.publish(result.prediction, frame.frame_id, self._output_settings)
        if result.odometry is not None and result.mounting is not None:
            robot = self._robot.update(result.odometry, result.mounting, frame.stamp_ns)
            self._publish_odometry(result.prediction, robot)
        if result.scale.value is not None:
            self._scale_was_known = True
        elif not self._scale_was_known:  # otherwise the pipeline's notice says what changed
            self._explain_scale(result.scale)
        published = time.perf_counter()
        self.last_prediction, self.last_scale = result.prediction, result.scale
        self._statistics.process(
            decode=1e3 * (decoded - started),
            infer=result.prediction.infer_ms,
            publish=1e3 * (published - predicted),
            total=1e3 * (published - item.arrived),
        )

    def _frame_of(self, item: ImageItem) -> Frame:
        """The image decoded, with its camera.

        Raises:
            FrameRejectedError: no usable camera, or the image cannot be read or does not fit the camera.
        """
        message = item.message
        try:
            image = pixels_of(message)
        except UnsupportedEncodingError as error:
            raise FrameRejectedError("unknown_encoding", str(error)) from error
        except MalformedImageError as error:
            raise FrameRejectedError("malformed", f"A malformed image is dropped. {error} {_LOOK_AT}") from error
        state = self._camera_of(item)  # after decoding: the camera_info of this image may come meanwhile
        if state.camera is None:
            raise FrameRejectedError(state.reason, state.text)
        height, width = image.shape[:2]
        if (width, height) != (state.camera.width, state.camera.height):
            raise FrameRejectedError(
                "size_mismatch",
                f"The image has {width}x{height} pixels, camera_info says {state.camera.width}x{state.camera.height} "
                "(after ROI and binning). Publish the camera_info of exactly this image.",
            )
        return Frame(image, to_nanoseconds(message.header.stamp), state.camera, message.header.frame_id)

    def _follow_camera(self, frame_id: str) -> None:
        """Images of two frames are those of two cameras, and no pair."""
        before, self._frame_id = self._frame_id, frame_id
        if before is None or before == frame_id:
            return
        self._pipeline.reset()
        self._notifier.notify(
            "frame_id_changed",
            f"The frame_id of the images changed from {before!r} to {frame_id!r}: they are taken for those of another "
            "camera. The pair is dropped, ~/odom goes on with the mounting of the new frame. Give each camera its own "
            "node.",
        )

    def _mounting_of(self, frame: Frame, wanted: frozenset[str]) -> Mounting | None:
        """Of the camera at the time of a frame; None where it is not known yet, or nobody needs it."""
        measured = self._pipeline.settings.scale.is_measured
        if not measured and MOTION not in wanted:
            return None
        return self._mount.at(frame.frame_id, frame.stamp_ns, aloud=measured or self._is_pose_wanted())

    def _is_pose_wanted(self) -> bool:
        return self._outputs.is_wanted("~/odom") or self._transforms.is_open

    def _publish_odometry(self, prediction: Prediction, robot: OdometryEstimate) -> None:
        if not self._is_pose_wanted():
            return
        message = self._outputs.publish_odometry(robot, prediction.stamp_ns, self._output_settings)
        # who listens to /tf sees no covariance, and would take the networks' unit for metres
        if prediction.metric:
            self._transforms.publish(message)

    def _explain_scale(self, scale: ScaleState) -> None:
        """Said once, when somebody waits for metres that nobody knows."""
        if self._transforms.is_open:
            self._notifier.once(
                "tf_without_scale",
                f"publish_tf is true, but the scale is not known: {scale.reason}. A pose that is not in metres is not "
                "broadcast on /tf; ~/odom has it, with a variance of 9999.",
            )
        if scale.is_missing and scale.age_s <= self._pipeline.settings.scale.window_s:
            return  # it may come any moment
        if any(self._outputs.is_wanted(topic) for topic in ("~/depth/image", "~/points", "~/odom")):
            self._notifier.once(
                "scale_unknown",
                f"The scale is not known: {scale.reason}. Depth is published on ~/depth_relative/image, not on "
                "~/depth/image, points on ~/points_relative, not on ~/points, and the translation of ~/odom is in the "
                "networks' unit (its covariance says 9999). Metres come with scale_source camera_height or odometry, "
                "or with fixed and the metres per unit as scale.",
            )


def pipeline_settings(values: Mapping[str, ParameterValue]) -> PipelineSettings:
    """The pipeline's part of the parameters."""
    return PipelineSettings(
        max_pair_gap_s=values["max_pair_gap"],
        scale=ScaleSettings(
            source=values["scale_source"],
            fixed=values["scale"],
            camera_height_m=values["camera_height"],
            window_s=values["scale_window"],
            max_age_s=values["scale_max_age"],
            min_motion_m=values["scale_min_motion"],
            motion_threshold=values["motion_threshold"],
        ),
        max_depth_m=values["max_depth"],
        far_value=float(values["far_value"]),
        noise=MotionNoise(
            values["covariance.translation_fraction"],
            values["covariance.translation_floor"],
            values["covariance.rotation"],
        ),
        max_speed_mps=values["max_speed"],
        max_turn_rate_radps=values["max_turn_rate"],
        networks_covariance=values["covariance.source"] == "networks",
    )


def output_settings(values: Mapping[str, ParameterValue]) -> OutputSettings:
    """The publishers' part of the parameters."""
    return OutputSettings(
        motion_threshold=values["motion_threshold"],
        depth_near=values["color.depth_near"],
        depth_far=values["color.depth_far"],
        flow_max=values["color.flow_max"],
        odom_frame=values["odom_frame"],
        base_frame=values["base_frame"],
        points_color=values["points.color"],
        points_remove_moving=values["points.remove_moving"],
        points_stride=values["points.stride"],
    )
