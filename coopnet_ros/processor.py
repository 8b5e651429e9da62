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
from coopnet_ros.notifier import Notifier
from coopnet_ros.odometry import MotionNoise, OdometryEstimate, in_robot_frame
from coopnet_ros.outputs import Outputs, OutputSettings
from coopnet_ros.parameters import ParameterValue
from coopnet_ros.pipeline import FrameRejectedError, Pipeline, PipelineSettings
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
    """

    message: Image | CompressedImage
    arrived: float
    epoch: int = 0


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
        camera_state: Callable[[], CameraState],
    ) -> None:
        """Join the parts; `apply` must be called before the first image.

        Args:
            pipeline: the networks and the pose.
            outputs: the publishers.
            statistics: where every image is counted.
            notifier: where the user is told.
            mount: where the camera sits.
            transforms: the broadcaster of /tf.
            camera_state: gives what is known of the camera.
        """
        self._pipeline = pipeline
        self._outputs = outputs
        self._statistics = statistics
        self._notifier = notifier
        self._mount = mount
        self._transforms = transforms
        self._camera_state = camera_state
        self._output_settings: OutputSettings | None = None
        self._always_integrate = True
        self._scale_was_known = False
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
        frame = self._frame_of(item.message)
        decoded = time.perf_counter()
        needs_mount = self._pipeline.settings.scale.is_measured
        T_base_camera = self._mount.transform_to(frame.frame_id) if needs_mount else None
        result = self._pipeline.step(frame, wanted, T_base_camera, item.epoch)
        for key, text in result.notices:
            self._notifier.notify(key, text)
        predicted = time.perf_counter()
        self._publish(result.prediction, result.odometry, frame.frame_id)
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

    def _frame_of(self, message: Image | CompressedImage) -> Frame:
        """The image decoded, with its camera.

        Raises:
            FrameRejectedError: no usable camera, or the image cannot be read or does not fit the camera.
        """
        state = self._camera_state()
        if state.camera is None:
            raise FrameRejectedError(state.reason, state.text)
        try:
            image = pixels_of(message)
        except UnsupportedEncodingError as error:
            raise FrameRejectedError("unknown_encoding", str(error)) from error
        except MalformedImageError as error:
            raise FrameRejectedError("malformed", f"A malformed image is dropped. {error} {_LOOK_AT}") from error
        height, width = image.shape[:2]
        if (width, height) != (state.camera.width, state.camera.height):
            raise FrameRejectedError(
                "size_mismatch",
                f"The image has {width}x{height} pixels, camera_info says {state.camera.width}x{state.camera.height} "
                "(after ROI and binning). Publish the camera_info of exactly this image.",
            )
        return Frame(image, to_nanoseconds(message.header.stamp), state.camera, message.header.frame_id)

    def _publish(self, prediction: Prediction, odometry: OdometryEstimate | None, frame_id: str) -> None:
        settings = self._output_settings
        self._outputs.publish(prediction, frame_id, settings)
        if odometry is None or not (self._outputs.is_wanted("~/odom") or self._transforms.is_open):
            return
        T_base_camera = self._mount.transform_to(frame_id)
        if T_base_camera is None:
            return
        message = self._outputs.publish_odometry(in_robot_frame(odometry, T_base_camera), prediction.stamp_ns, settings)
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
