"""From frames to results: pairs and gaps, the predictor, the scale, the pose. No ROS; one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from coopnet_core.data.frames import Frame
from coopnet_core.errors import CoopnetError
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import MOTION, Prediction, Predictor
from coopnet_ros.diagnostics import Statistics
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import (
    MotionNoise,
    OdometryEstimate,
    PoseIntegrator,
    is_rigid,
    rotation_vector,
    scaled,
    scaled_covariance,
)
from coopnet_ros.scale import ScaleSettings, ScaleState, make_estimator
from coopnet_ros.sequence import Link, classify_link, seconds
from coopnet_ros.wheel_odometry import WheelPoses

_LOAD_OTHERS = "Load other networks: the parameter checkpoint, then the service ~/load_checkpoint."
_NOT_RIGID = (
    "The motion that the networks return is not rigid, finite numbers and a rotation were expected: ~/odom is lost for "
    f"this image. {_LOAD_OTHERS}"
)
_NO_MOTION = (
    "The camera's motion cannot be told, ~/odom is lost: the images show too little texture. A covered lens, darkness, "
    "a blank wall? It goes on by itself when there is something to see."
)


class FrameRejectedError(CoopnetError):
    """A frame that cannot be used; `reason` is one of `diagnostics.REJECT_REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PipelineSettings:
    """What may change while running.

    Attributes:
        max_pair_gap_s: longest time between the frames of a pair.
        scale: where the metre comes from.
        max_depth_m: metric depth beyond this becomes `far_value`; 0: no limit.
        far_value: NaN or infinity.
        max_speed_mps, max_turn_rate_radps: a motion that is faster is none; 0: no limit. The speed is judged where the
            scale is known.
        noise: standard deviations of the motion.
        networks_covariance: add up what the networks say of their own motions, where they do.
    """

    max_pair_gap_s: float = 0.5
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    max_depth_m: float = 0.0
    far_value: float = float("nan")
    max_speed_mps: float = 0.0
    max_turn_rate_radps: float = 0.0
    noise: MotionNoise = field(default_factory=MotionNoise)
    networks_covariance: bool = True


@dataclass(frozen=True)
class StepResult:
    """What one frame gave.

    Attributes:
        prediction: scaled and limited to the range.
        scale: what was known of it.
        odometry: in the camera's optical frame; None when the motion was not wanted.
        link: how the frame stood to the one before it.
        camera_changed: the camera differs from that of the frame before.
        mounting: of the camera at that frame; None where it is not known, or nobody needs it.
        notices: (key, sentence) of what the user should be told.
    """

    prediction: Prediction
    scale: ScaleState
    odometry: OdometryEstimate | None
    mounting: Mounting | None
    link: Link
    camera_changed: bool
    notices: tuple[tuple[str, str], ...]


class Pipeline:
    """Runs the predictor over a stream of frames. Used by one thread only."""

    def __init__(
        self,
        predictor: Predictor,
        statistics: Statistics,
        settings: PipelineSettings,
        wheels: WheelPoses | None = None,
    ) -> None:
        """Start without a previous frame, at the origin.

        Args:
            predictor: the networks.
            statistics: where resets, jumps, gaps and changes of camera are counted.
            settings: what may be replaced later through `settings`.
            wheels: the poses of the wheel odometry, filled by whoever hears of them.
        """
        self.settings = settings
        self._predictor = predictor
        self._statistics = statistics
        self._integrator = PoseIntegrator(settings.noise, metric=False)
        self._wheels = wheels or WheelPoses()
        self._scale_settings = settings.scale
        self._estimator = make_estimator(settings.scale, self._wheels)
        self._scale_was_known: bool | None = None
        self._previous_ns: int | None = None
        self._epoch = 0
        self._camera: Camera | None = None
        self._started = False
        self._metres_per_unit: float | None = None

    def replace_predictor(self, predictor: Predictor) -> None:
        """Go on with other networks; the pose is kept. Their unit is another: the scale is estimated anew."""
        self._predictor = predictor
        self._camera = None
        self._integrator.change_networks()
        self._estimator = make_estimator(self._scale_settings, self._wheels)
        self.reset()

    def reset(self) -> None:
        """Forget the previous frame: the next one has no pair. The pose is kept."""
        self._predictor.reset()
        self._previous_ns = None
        self._statistics.count("resets")

    def step(
        self,
        frame: Frame,
        outputs: frozenset[str],
        mounting_of: Callable[[], Mounting | None] = lambda: None,
        epoch: int = 0,
    ) -> StepResult:
        """Process the next frame.

        Args:
            frame: a frame with a camera.
            outputs: what is wanted, of `prediction.ALL_OUTPUTS`; what the scale needs comes on top.
            mounting_of: gives the mounting of the camera at that frame, None where it is not known; asked after the
                networks, when what TF says of the time of the image has had time to arrive.
            epoch: frames of two epochs are no pair, though the later one may have the later stamp: time went back and
                on while this pipeline was busy.

        Raises:
            FrameRejectedError: the networks failed on it; the next frame starts a new pair.
        """
        self._follow_scale_settings()
        outputs |= self._estimator.needs(outputs)
        changed = self._camera is not None and frame.camera != self._camera
        link = classify_link(self._previous_ns, frame.stamp_ns, self.settings.max_pair_gap_s)
        if link is not Link.FIRST and epoch != self._epoch:
            link = Link.JUMP
        notices = self._prepare(frame, link, changed)
        prediction = self._predict(frame, outputs)
        notice = self._motion_notice(prediction, MOTION in outputs and link is Link.PAIR and not changed)
        if notice is not None:
            notices += (notice,)
            prediction = replace(prediction, T_previous_current=None, motion_covariance=None)
        self._previous_ns, self._epoch = frame.stamp_ns, epoch
        self._camera = frame.camera
        mounting = mounting_of()
        scale = self._estimator.update(prediction, mounting)
        notices += self._scale_notices(scale)
        self._metres_per_unit = scale.value
        self._integrator.use_scale(scale.value, scale.spread)
        odometry = self._integrate(prediction) if MOTION in outputs else None
        if odometry is not None:
            self._statistics.track(odometry.lost)
        prediction = limit_depth(apply_scale(prediction, scale.value), self.settings)
        return StepResult(prediction, scale, odometry, mounting, link, changed, notices)

    def _motion_notice(self, prediction: Prediction, is_expected: bool) -> tuple[str, str] | None:
        """Why there is no motion that can be used; None where there is one, or none is expected."""
        T, since_ns = prediction.T_previous_current, prediction.pair_stamp_ns
        if T is None or since_ns is None:
            return ("no_motion", _NO_MOTION) if is_expected else None
        if not is_rigid(T):
            return "motion_not_rigid", _NOT_RIGID
        interval = seconds(prediction.stamp_ns - since_ns)
        settings = self.settings
        turn_rate = float(np.linalg.norm(rotation_vector(T[:3, :3]))) / interval
        speed = float(np.linalg.norm(T[:3, 3])) * (self._metres_per_unit or 0.0) / interval
        for what, found, unit, name, limit in (
            ("turns at", turn_rate, "rad/s", "max_turn_rate", settings.max_turn_rate_radps),
            ("moves at", speed, "m/s", "max_speed", settings.max_speed_mps),
        ):
            if 0 < limit < found:
                return "too_fast", (
                    f"The networks say that the camera {what} {found:.3g} {unit}, more than {name}={limit:g} {unit}: "
                    f"~/odom is lost for this image. If the robot can be that fast, raise {name}; 0 is no limit."
                )
        return None

    def _follow_scale_settings(self) -> None:
        """Another source starts without a sample."""
        settings, before = self.settings.scale, self._scale_settings
        if settings.keeps_samples_of(before):
            self._estimator.follow(settings)
        else:
            self._estimator = make_estimator(settings, self._wheels)
        self._scale_settings = settings

    def _scale_notices(self, scale: ScaleState) -> tuple[tuple[str, str], ...]:
        """What changes for whoever listens, where the scale becomes known on the way, or unknown."""
        was_known, self._scale_was_known = self._scale_was_known, scale.value is not None
        if was_known and scale.value is None:
            return (("scale_lost", _scale_lost_text(scale, self._integrator.can_go_on)),)
        if was_known is False and scale.value is not None and self._integrator.has_moved:
            text = (
                f"The scale is known now, {scale.value:.3g} m per unit of the networks ({scale.source}): depth and "
                "~/odom are in metres, the path so far too."
            )
            return (("scale_found", text),)
        return ()

    def _prepare(self, frame: Frame, link: Link, changed: bool) -> tuple[tuple[str, str], ...]:
        """Drop the pair where there is none, warm up for a new camera, and say so."""
        notices = []
        if self._camera is None or changed:
            if changed:
                self._statistics.count("camera_changes")
                notices.append(("camera_changed", _camera_change_text(self._camera, frame.camera)))
            if self._camera is None or _size_of(self._camera) != _size_of(frame.camera):
                self._warm_up(frame.camera)  # other shapes are slow at first, other values are not
        if link is Link.GAP:
            self._statistics.count("gaps")
            gap = seconds(frame.stamp_ns - self._previous_ns)
            notices.append(
                (
                    "gap",
                    f"{gap:.2f} s between two images is more than max_pair_gap={self.settings.max_pair_gap_s:g} s: "
                    "depth only for this one. Raise max_pair_gap for a slower camera or computer, or look for lost "
                    "images.",
                )
            )
        if link is Link.JUMP:
            self._statistics.count("jumps")
            back = seconds(self._previous_ns - frame.stamp_ns)
            how_far = f" by {back:.2f} s" if back > 0 else ""
            notices.append(
                ("jump", f"Time went back{how_far} (a bag that loops?): the pair is dropped, the pose is kept.")
            )
        if changed or link in (Link.GAP, Link.JUMP):
            self._predictor.reset()
        return tuple(notices)

    def _warm_up(self, camera: Camera) -> None:
        try:
            self._predictor.warm_up(camera)
        except Exception as error:  # any failure of the networks is this frame's, never the node's
            self._camera = None
            raise _inference_failure(error) from error

    def _predict(self, frame: Frame, outputs: frozenset[str]) -> Prediction:
        try:
            prediction = self._predictor.predict(frame, outputs)
            check_prediction(prediction)
        except Exception as error:  # any failure of the networks is this frame's, never the node's
            self._predictor.reset()
            self._previous_ns = None
            raise _inference_failure(error) from error
        return prediction

    def _integrate(self, prediction: Prediction) -> OdometryEstimate:
        self._integrator.set_noise(self.settings.noise)
        if prediction.T_previous_current is not None and prediction.previous_stamp_ns is not None:
            self._started = True
            return self._integrator.advance(
                prediction.stamp_ns,
                prediction.previous_stamp_ns,
                prediction.T_previous_current,
                prediction.motion_covariance if self.settings.networks_covariance else None,
                prediction.reference_stamp_ns,
            )
        if self._started:
            return self._integrator.interrupt(prediction.stamp_ns)
        self._started = True
        return self._integrator.start(prediction.stamp_ns)


def check_prediction(prediction: Prediction) -> None:
    """Refuse what would be published as nonsense, or break what comes after.

    Raises:
        CoopnetError: no prediction, an array that does not have the shape of the output grid, or a depth without any
            finite value.
    """
    if not isinstance(prediction, Prediction):
        raise CoopnetError(f"They returned {type(prediction).__name__}, a Prediction was expected. {_LOAD_OTHERS}")
    grid = (prediction.camera.height, prediction.camera.width)
    shapes = {
        "depth": grid,
        "flow": (*grid, 2),
        "motion_probability": grid,
        "confidence": grid,
        "T_previous_current": (4, 4),
        "motion_covariance": (6, 6),
    }
    for name, expected in shapes.items():
        values = getattr(prediction, name)
        if values is not None and np.shape(values) != expected:
            shape = np.shape(values)
            raise CoopnetError(f"Their {name} has the shape {shape}, {expected} was expected. {_LOAD_OTHERS}")
    if prediction.depth is not None and not np.isfinite(prediction.depth).any():
        raise CoopnetError(f"No pixel of their depth is finite. {_LOAD_OTHERS}")


def apply_scale(prediction: Prediction, metres_per_unit: float | None) -> Prediction:
    """Depth and translation in metres; in the networks' unit, and said to be so, where the scale is not known."""
    if metres_per_unit is None:
        return replace(prediction, metric=False)
    T, depth, covariance = prediction.T_previous_current, prediction.depth, prediction.motion_covariance
    return replace(
        prediction,
        depth=None if depth is None else depth * np.float32(metres_per_unit),
        T_previous_current=None if T is None else scaled(T, metres_per_unit),
        motion_covariance=None if covariance is None else scaled_covariance(covariance, metres_per_unit),
        metric=True,
    )


def limit_depth(prediction: Prediction, settings: PipelineSettings) -> Prediction:
    """Metric depth beyond the range replaced by the far value; relative depth has no range."""
    if prediction.depth is None or not prediction.metric or settings.max_depth_m <= 0:
        return prediction
    far = prediction.depth > settings.max_depth_m
    if not far.any():
        return prediction
    depth = np.where(far, np.float32(settings.far_value), prediction.depth)
    return replace(prediction, depth=depth)


def _inference_failure(error: Exception) -> FrameRejectedError:
    """The failure in words, with what to do about it."""
    if isinstance(error, FrameRejectedError):
        return error
    text = str(error) if isinstance(error, CoopnetError) else f"{type(error).__name__}: {error}"
    if "out of memory" in str(error).lower():
        text += " Lower input_width and input_height, or use device:=cpu."
    return FrameRejectedError("inference_error", f"The networks failed on a frame, which is dropped. {text}")


def _size_of(camera: Camera) -> tuple[int, int]:
    return camera.width, camera.height


def _camera_change_text(old: Camera, new: Camera) -> str:
    return (
        f"The camera changed from {old.width}x{old.height} (fx {old.fx:.1f}) to {new.width}x{new.height} "
        f"(fx {new.fx:.1f}): the pair is dropped."
    )


def _scale_lost_text(scale: ScaleState, odometry_goes_on: bool) -> str:
    odometry = (
        "~/odom goes on with the last scale and says by a variance of 9999 that its lengths are not certain, /tf stops"
        if odometry_goes_on
        else "~/odom is in metres, and lost until the scale of these networks is known"
    )
    return (
        f"The scale is not known any more: {scale.reason}. Depth goes to ~/depth_relative/image, points to "
        f"~/points_relative; {odometry}."
    )
