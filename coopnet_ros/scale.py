"""How many metres the networks' unit is: stated, given, or measured at the ground or by wheel odometry. Pure numpy.

A measured scale is the median over the samples of some seconds, so that single wrong frames do nothing. It is unknown
until there are enough of them, and again when no sample came for too long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from coopnet_core.inference.prediction import DEPTH, FLOW, MASK, MOTION, Prediction
from coopnet_ros.ground_plane import find_ground
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import inverse, is_rigid, rotation_vector
from coopnet_ros.scale_tracker import FEWEST_SAMPLES, NoSampleError, ScaleTracker
from coopnet_ros.sequence import seconds
from coopnet_ros.wheel_odometry import LONGEST_GAP_S, WheelPoses

NONE, FIXED, CAMERA_HEIGHT, ODOMETRY = "none", "fixed", "camera_height", "odometry"
SCALE_SOURCES = (NONE, FIXED, CAMERA_HEIGHT, ODOMETRY)

_LATEST_S = 2.0
"""So long a motion waits for the wheel odometry of its time."""
_LONGEST_BASELINE_S = 2.0
_LARGEST_TURN = np.radians(5.0)
"""On the way between two compared poses; a turn is taken for sideways motion where the networks see it wrongly."""
_LARGEST_ANGLE = np.radians(30.0)
"""Between the two directions of one motion."""


@dataclass(frozen=True)
class ScaleSettings:
    """Where the metre comes from.

    Attributes:
        source: one of `SCALE_SOURCES`.
        fixed: metres per unit of the networks (fixed).
        camera_height_m: of the camera above the ground; 0: its z in base_frame (camera_height).
        window_s: time over which the median is taken.
        max_age_s: so long after the newest sample the scale counts as unknown.
        min_motion_m: length from which the motions of wheels and camera are compared (odometry).
        motion_threshold: probability from which a pixel moves, and is no ground (camera_height).
    """

    source: str = NONE
    fixed: float = 1.0
    camera_height_m: float = 0.0
    window_s: float = 10.0
    max_age_s: float = 30.0
    min_motion_m: float = 0.1
    motion_threshold: float = 0.5

    @property
    def is_measured(self) -> bool:
        """Whether the scale comes from samples, which need the mounting of the camera."""
        return self.source in (CAMERA_HEIGHT, ODOMETRY)

    def keeps_samples_of(self, other: ScaleSettings) -> bool:
        """Whether samples taken with the other settings mean the same with these."""
        return (self.source, self.camera_height_m) == (other.source, other.camera_height_m)


@dataclass(frozen=True)
class ScaleState:
    """What is known of the scale at one frame.

    Attributes:
        source: one of `SCALE_SOURCES`.
        value: metres per unit of the networks, None where unknown.
        spread: relative standard deviation of a single frame's scale; 0 where it is not measured.
        age_s: since the newest sample, or since the start where there was none; None where nothing is measured.
        samples: how many the value rests on.
        reason: why there is no value; empty where there is one.
    """

    source: str
    value: float | None
    spread: float = 0.0
    age_s: float | None = None
    samples: int = 0
    reason: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether somebody asked for a measured scale and there is none."""
        return self.value is None and self.source in (CAMERA_HEIGHT, ODOMETRY)


class ScaleEstimator(Protocol):
    """One source of the scale. Used by one thread only."""

    def follow(self, settings: ScaleSettings) -> None:
        """Use other settings of the same source from now on."""

    def needs(self, outputs: frozenset[str]) -> frozenset[str]:
        """What the predictor must compute for it beside these outputs, of `prediction.ALL_OUTPUTS`."""

    def update(self, prediction: Prediction, mounting: Mounting | None) -> ScaleState:
        """The scale of this frame.

        Args:
            prediction: in the networks' unit.
            mounting: of the camera at that time, None where it is not known (yet).
        """


def make_estimator(settings: ScaleSettings, wheels: WheelPoses) -> ScaleEstimator:
    """The estimator of the source; `wheels` is where the poses of wheel_odom are found."""
    if settings.source == CAMERA_HEIGHT:
        return CameraHeightScale(settings)
    if settings.source == ODOMETRY:
        return OdometryScale(settings, wheels)
    return StatedScale(settings)


class StatedScale:
    """none: as the checkpoint states it. fixed: as the parameter gives it."""

    def __init__(self, settings: ScaleSettings) -> None:
        """Take the settings' source and value."""
        self._settings = settings

    def follow(self, settings: ScaleSettings) -> None:
        """Another value."""
        self._settings = settings

    def needs(self, outputs: frozenset[str]) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def update(self, prediction: Prediction, mounting: Mounting | None) -> ScaleState:
        """The same at every frame."""
        if self._settings.source == FIXED:
            return ScaleState(FIXED, self._settings.fixed)
        if prediction.metric:
            return ScaleState(NONE, 1.0)
        return ScaleState(NONE, None, reason="the checkpoint does not state it, and scale_source is none")


class _MeasuredScale(ABC):
    """What both measured sources have in common: samples over time, and the reason why there are none."""

    def __init__(self, settings: ScaleSettings) -> None:
        """Start without a sample."""
        self._settings = settings
        self._tracker = ScaleTracker(settings.window_s, settings.max_age_s)
        self._no_sample = ""

    def follow(self, settings: ScaleSettings) -> None:
        """Other times and thresholds; the samples are kept."""
        self._settings = settings
        self._tracker.window_s, self._tracker.max_age_s = settings.window_s, settings.max_age_s

    def update(self, prediction: Prediction, mounting: Mounting | None) -> ScaleState:
        """Take what this frame gives, and the median of all."""
        self._tracker.tick(prediction.stamp_ns)
        if mounting is None:
            self._no_sample = "the mounting of the camera is not known yet (TF)"
        else:
            self._measure(prediction, mounting)
        value, spread, reason = None, 0.0, ""
        try:
            value, spread = self._tracker.estimate()
        except NoSampleError as error:
            scattered = self._tracker.samples >= FEWEST_SAMPLES
            reason = str(error) if scattered else self._no_sample or str(error)
        return ScaleState(self._settings.source, value, spread, self._tracker.age_s, self._tracker.samples, reason)

    @abstractmethod
    def _measure(self, prediction: Prediction, mounting: Mounting) -> None:
        """Call `_sample` for each sample, `_decline` where there is none."""

    def _sample(self, metres_per_unit: float) -> None:
        self._tracker.add(metres_per_unit)
        self._no_sample = ""

    def _decline(self, error: NoSampleError) -> None:
        self._no_sample = str(error)


class CameraHeightScale(_MeasuredScale):
    """The known height of the camera above the ground, over its height in the depth image."""

    def needs(self, outputs: frozenset[str]) -> frozenset[str]:
        """Depth, and the mask where a pair is worked on anyway."""
        if not outputs & {DEPTH, MOTION}:
            return frozenset()
        return frozenset({DEPTH, MASK}) if outputs & {MOTION, FLOW, MASK} else frozenset({DEPTH})

    def _measure(self, prediction: Prediction, mounting: Mounting) -> None:
        if prediction.depth is None:
            return
        probability = prediction.motion_probability
        T_base_camera = mounting.T_base_camera
        moving = None if probability is None else probability >= self._settings.motion_threshold
        try:
            height = self._height(T_base_camera)
            # row of the rotation: the robot's z axis in the optical frame
            ground = find_ground(prediction.depth, prediction.camera, T_base_camera[2, :3], moving)
            self._sample(height / ground.distance)
        except NoSampleError as error:
            self._decline(error)

    def _height(self, T_base_camera: np.ndarray) -> float:
        height = self._settings.camera_height_m or float(T_base_camera[2, 3])
        if height <= 0:
            raise NoSampleError(
                f"the height of the camera above the ground is not known: camera_height is 0, and z of the camera in "
                f"base_frame is {height:g} m. Set camera_height, metres"
            )
        return height


class _Motion(NamedTuple):
    """The camera's motion between two stamps, in the networks' unit, and its mounting at both."""

    start_ns: int
    end_ns: int
    T_start_end: np.ndarray
    start: Mounting
    end: Mounting


class OdometryScale(_MeasuredScale):
    """The length of the camera's way by wheel odometry, over its length by the networks.

    Motions are chained until they are long enough to be compared, and wait for wheel odometry that comes later than the
    images.
    """

    def __init__(self, settings: ScaleSettings, wheels: WheelPoses) -> None:
        """Start without a sample; `wheels` is filled by another thread."""
        super().__init__(settings)
        self._wheels = wheels
        self._waiting: deque[_Motion] = deque()
        self._chain: _Motion | None = None
        self._mounting: Mounting | None = None

    def needs(self, outputs: frozenset[str]) -> frozenset[str]:
        """The motion."""
        return frozenset({MOTION}) if outputs & {DEPTH, MOTION} else frozenset()

    def _measure(self, prediction: Prediction, mounting: Mounting) -> None:
        T, previous_ns = prediction.T_previous_current, prediction.previous_stamp_ns
        if T is not None and previous_ns is not None and is_rigid(T):
            start = self._mounting or mounting
            self._waiting.append(_Motion(previous_ns, prediction.stamp_ns, T, start, mounting))
        self._mounting = mounting
        newest = self._wheels.newest_ns
        while self._waiting and newest is not None and self._waiting[0].end_ns <= newest:
            self._use(self._waiting.popleft(), mounting)
        # what lies ahead of the image is left from before a jump of time
        while self._waiting and not 0 <= self._waits(prediction.stamp_ns) <= _LATEST_S:
            self._use(self._waiting.popleft(), mounting)
        if self._waiting and (newest is None or self._waits(prediction.stamp_ns) > LONGEST_GAP_S):
            self._say_what_is_waited_for()

    def _waits(self, stamp_ns: int) -> float:
        """Since when the oldest motion waits, seconds."""
        return seconds(stamp_ns - self._waiting[0].end_ns)

    def _say_what_is_waited_for(self) -> None:
        try:
            self._wheels.pose_at(self._waiting[0].end_ns)
        except NoSampleError as error:
            self._decline(error)

    def _use(self, motion: _Motion, present: Mounting) -> None:
        """Add a motion to the chain, and take a sample where that is long enough."""
        chain = self._chain
        if chain is not None and chain.end_ns == motion.start_ns:
            whole = chain.T_start_end @ motion.T_start_end
            motion = _Motion(chain.start_ns, motion.end_ns, whole, chain.start, motion.end)
        try:
            T_wheels = self._by_wheels(motion, present)
            if self._is_short(motion, T_wheels):
                self._chain = motion
                return
            self._sample(_ratio_of_lengths(T_wheels[:3, 3], motion.T_start_end[:3, 3]))
        except NoSampleError as error:
            self._decline(error)
        self._chain = None

    def _by_wheels(self, motion: _Motion, present: Mounting) -> np.ndarray:
        """(4, 4) the same motion of the camera, metres: the robot's, seen from where the camera sits."""
        T_base = inverse(self._wheels.pose_at(motion.start_ns)) @ self._wheels.pose_at(motion.end_ns)
        start = end = present
        if motion.end.carries_on(motion.start):
            start, end = motion.start, motion.end
        return inverse(start.T_base_camera) @ T_base @ end.T_base_camera

    def _is_short(self, motion: _Motion, T_wheels: np.ndarray) -> bool:
        """Whether the chain must become longer before it says something."""
        turn = float(np.linalg.norm(rotation_vector(T_wheels[:3, :3])))
        if turn > _LARGEST_TURN:
            raise NoSampleError(
                f"the robot turned by {np.degrees(turn):.0f} degrees, at most {np.degrees(_LARGEST_TURN):.0f} were "
                "expected on the way of a sample"
            )
        length = float(np.linalg.norm(T_wheels[:3, 3]))
        if length >= self._settings.min_motion_m:
            return False
        duration = seconds(motion.end_ns - motion.start_ns)
        if duration > _LONGEST_BASELINE_S:
            raise NoSampleError(
                f"wheel_odom moved by {length:.3g} m in {duration:.1f} s, at least scale_min_motion="
                f"{self._settings.min_motion_m:g} m were expected: the robot stands, or wheel_odom does not follow it"
            )
        return True


def _ratio_of_lengths(by_wheels: np.ndarray, by_networks: np.ndarray) -> float:
    """Metres per unit, of two translations (3,) in the same frame.

    Raises:
        NoSampleError: one is no motion, or their directions contradict each other.
    """
    metres, units = float(np.linalg.norm(by_wheels)), float(np.linalg.norm(by_networks))
    if units < 1e-9 * metres or metres == 0:
        raise NoSampleError(f"wheel_odom moved by {metres:.3g} m, the images did not: do the wheels slip?")
    angle = float(np.arccos(np.clip(by_wheels @ by_networks / (metres * units), -1.0, 1.0)))
    if angle > _LARGEST_ANGLE:
        raise NoSampleError(
            f"the motions by wheel_odom and by the images point {np.degrees(angle):.0f} degrees apart, at most "
            f"{np.degrees(_LARGEST_ANGLE):.0f} were expected: slip, or not the base_to_camera.rotation of this camera"
        )
    return metres / units
