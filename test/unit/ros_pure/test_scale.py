"""The scale: samples to a value, the ground, and a robot whose wheels are simulated. The networks' unit is 0.5 m."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from ros.rig_truth import ground_depth, shift, turn

from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import ALL_OUTPUTS, DEPTH, FLOW, MASK, MOTION, Prediction
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import inverse, quaternion_from_matrix, transform
from coopnet_ros.parameters import spec_of
from coopnet_ros.scale import SCALE_SOURCES, CameraHeightScale, OdometryScale, ScaleSettings, make_estimator
from coopnet_ros.scale_tracker import FEWEST_SAMPLES, NoSampleError, ScaleTracker
from coopnet_ros.wheel_odometry import WheelPoses

SECOND = 1_000_000_000
UNIT = 0.5
CAMERA = Camera(208, 64, 123.0, 123.0, 102.0, 29.5)
MOUNT = transform((1.2, 0.0, 1.5), (-0.5, 0.5, -0.5, 0.5))
AT_ORIGIN = transform((0.0, 0.0, 0.0), (-0.5, 0.5, -0.5, 0.5))


def predicted(seconds: float, depth=None, motion=None, since: float | None = None, probability=None) -> Prediction:
    """What the networks would say, in their unit."""
    return Prediction(
        stamp_ns=round(seconds * SECOND),
        previous_stamp_ns=None if since is None else round(since * SECOND),
        camera=CAMERA,
        image=np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8),
        depth=depth,
        metric=False,
        T_previous_current=motion,
        flow=None,
        motion_probability=probability,
        confidence=None,
        infer_ms=1.0,
    )


# ---------------------------------------------------------------------- samples to a value


def tracker_of(values, window_s=10.0, max_age_s=30.0, period_s=0.1) -> ScaleTracker:
    tracker = ScaleTracker(window_s, max_age_s)
    for index, value in enumerate(values):
        tracker.tick(round(index * period_s * SECOND))
        tracker.add(value)
    return tracker


def test_it_is_unknown_until_there_are_enough_samples():
    with pytest.raises(NoSampleError, match="4 of 5"):
        tracker_of([2.0] * (FEWEST_SAMPLES - 1)).estimate()
    assert tracker_of([2.0] * FEWEST_SAMPLES).estimate() == (pytest.approx(2.0), 0.0)


def test_the_median_and_the_spread_are_those_of_a_normal_distribution():
    logarithms = math.log(0.5) + 0.08 * np.random.default_rng(0).normal(size=400)
    value, spread = tracker_of(np.exp(logarithms), window_s=100.0).estimate()
    assert value == pytest.approx(0.5, rel=0.01)
    assert spread == pytest.approx(np.std(logarithms), rel=0.1)


@pytest.mark.parametrize("wrong", [1e-6, 0.1, 7.0, 1e9])
def test_single_wrong_samples_do_nothing(wrong):
    rng = np.random.default_rng(1)
    right = 0.5 * np.exp(0.01 * rng.normal(size=40))
    value, spread = tracker_of(np.insert(right, range(0, 40, 4), wrong)).estimate()
    assert value == pytest.approx(0.5, rel=0.01)
    assert spread < 0.02


def test_samples_older_than_the_window_are_forgotten():
    tracker = tracker_of([1.0] * 50 + [2.0] * 15, window_s=1.0)
    assert tracker.samples == 11
    assert tracker.estimate()[0] == pytest.approx(2.0)


def test_it_ages_to_unknown_and_one_new_sample_does_not_bring_it_back():
    tracker = tracker_of([2.0] * 10, max_age_s=3.0)
    tracker.tick(round(3.8 * SECOND))
    assert tracker.age_s == pytest.approx(2.9)
    assert tracker.estimate()[0] == pytest.approx(2.0)
    tracker.tick(4 * SECOND)
    with pytest.raises(NoSampleError):
        tracker.estimate()
    tracker.add(2.0)
    with pytest.raises(NoSampleError, match="1 of 5"):
        tracker.estimate()


def test_time_that_goes_back_does_not_pass_and_forgets_nothing():
    tracker = tracker_of([2.0] * 10, max_age_s=3.0, period_s=100.0 / SECOND)
    tracker.tick(-50 * SECOND)
    assert tracker.age_s == 0.0
    tracker.tick(-48 * SECOND)
    assert tracker.age_s == pytest.approx(2.0)
    assert tracker.estimate()[0] == pytest.approx(2.0)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_what_is_no_scale_is_refused(value):
    tracker = tracker_of([2.0] * 5)
    with pytest.raises(NoSampleError, match="positive"):
        tracker.add(value)
    assert tracker.samples == 5


def test_samples_that_have_no_scale_in_common_give_none():
    with pytest.raises(NoSampleError, match="scatter"):
        tracker_of(np.exp(np.random.default_rng(0).uniform(-3, 3, 50))).estimate()


# ---------------------------------------------------------------------- stated


def test_none_is_as_the_checkpoint_states_it():
    estimator = make_estimator(ScaleSettings(), WheelPoses())
    assert estimator.update(predicted(1.0), None).value is None
    assert "scale_source is none" in estimator.update(predicted(1.0), None).reason
    assert estimator.update(replace(predicted(1.0), metric=True), None).value == 1.0
    assert estimator.needs(ALL_OUTPUTS) == frozenset()


def test_fixed_is_what_the_parameter_says():
    estimator = make_estimator(ScaleSettings("fixed", fixed=3.0), WheelPoses())
    state = estimator.update(predicted(1.0), None)
    assert (state.value, state.spread, state.samples, state.age_s, state.is_missing) == (3.0, 0.0, 0, None, False)


def test_the_sources_are_those_of_the_parameter_and_their_defaults_too():
    assert spec_of("scale_source").choices == SCALE_SOURCES
    settings = ScaleSettings()
    for name, value in (
        ("scale_source", settings.source),
        ("scale", settings.fixed),
        ("camera_height", settings.camera_height_m),
        ("scale_window", settings.window_s),
        ("scale_max_age", settings.max_age_s),
        ("scale_min_motion", settings.min_motion_m),
        ("motion_threshold", settings.motion_threshold),
    ):
        assert spec_of(name).default == value


# ---------------------------------------------------------------------- height of the camera


def seen(height: float = 1.5, mount: np.ndarray = MOUNT) -> np.ndarray:
    """(h, w) depth of level ground, in the networks' unit."""
    return ground_depth(CAMERA, mount, height) / np.float32(UNIT)


def by_height(**settings) -> CameraHeightScale:
    return CameraHeightScale(ScaleSettings("camera_height", **settings))


@pytest.mark.parametrize(("parameter", "height"), [(0.0, 1.5), (1.9, 1.9)])
def test_the_height_is_the_parameter_or_the_z_of_the_mounting(parameter, height):
    estimator = by_height(camera_height_m=parameter)
    for index in range(FEWEST_SAMPLES):
        state = estimator.update(predicted(0.1 * index, seen(height)), Mounting(MOUNT))
    assert state.value == pytest.approx(UNIT, rel=1e-4)
    assert (state.samples, state.reason, state.source) == (FEWEST_SAMPLES, "", "camera_height")


def test_frames_without_ground_are_no_samples_and_the_scale_ages_out():
    estimator = by_height(max_age_s=2.0)
    for index in range(10):
        estimator.update(predicted(0.1 * index, seen()), Mounting(MOUNT))
    wall = np.full((CAMERA.height, CAMERA.width), 9.0, np.float32)
    state = estimator.update(predicted(2.5, wall), Mounting(MOUNT))
    assert (state.value, state.samples) == (pytest.approx(UNIT, rel=1e-4), 10)
    state = estimator.update(predicted(3.0, wall), Mounting(MOUNT))
    assert (state.value, state.samples) == (None, 0)
    assert "no ground is seen" in state.reason
    assert state.age_s == pytest.approx(2.1)
    assert state.is_missing


def test_single_frames_with_another_ground_do_nothing():
    estimator = by_height()
    for index in range(30):
        state = estimator.update(predicted(0.1 * index, seen(3.0 if index % 7 == 6 else 1.5)), Mounting(MOUNT))
    assert state.value == pytest.approx(UNIT, rel=1e-4)


def test_what_moves_is_no_ground():
    """A level surface at half the camera's height over most of the image, which moves."""
    depth, probability = seen(), np.zeros((CAMERA.height, CAMERA.width), np.float32)
    depth[:, :150] = seen(0.75)[:, :150]
    probability[:, :150] = 0.8
    values = []
    for threshold in (0.5, 0.9):
        estimator = by_height(motion_threshold=threshold)
        for index in range(5):
            state = estimator.update(predicted(0.1 * index, depth, probability=probability), Mounting(MOUNT))
        values.append(state.value)
    assert values == [pytest.approx(UNIT, rel=1e-4), pytest.approx(2 * UNIT, rel=1e-4)]


@pytest.mark.parametrize(
    ("mount", "says"),
    [(None, "mounting of the camera is not known"), (Mounting(AT_ORIGIN), "Set camera_height")],
)
def test_without_a_height_it_says_what_to_do(mount, says):
    state = by_height().update(predicted(0.0, seen()), mount)
    assert state.value is None
    assert says in state.reason


@pytest.mark.parametrize(
    ("outputs", "needs"),
    [
        ({DEPTH}, {DEPTH}),
        ({MOTION}, {DEPTH, MASK}),
        ({DEPTH, FLOW}, {DEPTH, MASK}),
        ({FLOW}, set()),
        ({MASK}, set()),
    ],
)
def test_depth_and_mask_are_asked_for_where_something_is_in_metres(outputs, needs):
    assert by_height().needs(frozenset(outputs)) == needs


# ---------------------------------------------------------------------- wheels


class Drive:
    """A robot with wheels and a camera. `speed` and `rate` are functions of time, m/s and rad/s."""

    def __init__(self, speed=lambda t: 2.0, rate=lambda t: 0.0, mount=MOUNT, believed=None, pan=None, **settings):
        """pan: the angle of a joint under the camera, degrees; a function of time."""
        self.mount = mount
        self.believed = mount if believed is None else believed
        self.pan = pan
        step = 0.001
        self.poses = [np.eye(4)]
        for index in range(20_000):
            angle = np.degrees(rate(index * step) * step)
            self.poses.append(self.poses[-1] @ shift(speed(index * step) * step, 0, 0) @ turn("z", angle))
        self.wheels = WheelPoses()
        self.estimator = OdometryScale(ScaleSettings("odometry", **settings), self.wheels)
        self.told = 0.0
        self.shown: float | None = None

    def pose(self, seconds: float) -> np.ndarray:
        """T_world_base."""
        return self.poses[round(seconds * 1000)]

    def mount_at(self, seconds: float) -> np.ndarray:
        return self.mount if self.pan is None else turn("z", self.pan(seconds)) @ self.mount

    def roll(self, until: float, rate_hz: float = 50.0, delay: float = 0.0, spoil=lambda t, pose: pose) -> None:
        """Deliver the wheels' poses up to a time; their clock is late by `delay`."""
        while self.told <= until + 1e-9:
            pose = spoil(self.told, self.pose(max(0.0, self.told - delay)))
            self.wheels.add(round(self.told * SECOND), pose[:3, 3], quaternion_from_matrix(np.nan_to_num(pose[:3, :3])))
            self.told += 1 / rate_hz

    def see(self, seconds: float, spoil=lambda motion: motion):
        """The networks on an image of this time."""
        motion = None
        if self.shown is not None:
            start, end = (self.pose(time) @ self.mount_at(time) for time in (self.shown, seconds))
            motion = inverse(start) @ end
            motion[:3, 3] /= UNIT
            motion = spoil(motion)
        moves = self.pan is not None
        mounting = Mounting(self.mount_at(seconds) if moves else self.believed, "camera", moves)
        state = self.estimator.update(predicted(seconds, motion=motion, since=self.shown), mounting)
        self.shown = seconds
        return state


def drive(robot: Drive, start: float, end: float, period: float = 0.1, **wheels):
    """Images and wheels side by side; the state after the last image."""
    state = None
    for seconds in np.arange(start, end, period):
        robot.roll(seconds + 0.03, **wheels)
        state = robot.see(seconds)
    return state


def drive_blind(robot: Drive, start: float, end: float):
    """Images without wheels."""
    for seconds in np.arange(start, end, 0.1):
        state = robot.see(seconds)
    return state


@pytest.mark.parametrize("period", [0.1, 0.033])
def test_straight_ahead(period):
    state = drive(Drive(), 0.017, 3.0, period)
    assert state.value == pytest.approx(UNIT, rel=1e-3)
    assert state.spread < 1e-3
    assert state.reason == ""


def test_a_curve_with_the_camera_far_from_the_axle():
    """The camera, on the inner side, goes 1.07 m/s where the axle goes 1.5 m/s."""
    curve = {"speed": lambda t: 1.5, "rate": lambda t: 0.45}
    mount = transform((0.5, 1.0, 1.5), (-0.5, 0.5, -0.5, 0.5))
    assert drive(Drive(**curve, mount=mount), 0.017, 4.0).value == pytest.approx(UNIT, rel=2e-3)
    at_axle = transform((0.0, 0.0, 1.5), (-0.5, 0.5, -0.5, 0.5))
    state = drive(Drive(**curve, mount=mount, believed=at_axle), 0.017, 4.0)
    assert state.value == pytest.approx(UNIT * 1.5 / math.hypot(1.05, 0.225), rel=2e-3)


@pytest.mark.parametrize("speed", [2.0, 0.5], ids=["single motions", "chained motions"])
def test_a_camera_that_turns_on_the_robot_is_compared_where_it_sat(speed):
    """The joint swings by 10 degrees, at up to 30 a second; the camera sits half a metre beside it."""
    mount = transform((0.5, 0.0, 1.5), (-0.5, 0.5, -0.5, 0.5))
    swinging = Drive(lambda t: speed, mount=mount, pan=lambda t: 10.0 * math.sin(3.0 * t))
    state = drive(swinging, 0.017, 4.0)
    assert state.value == pytest.approx(UNIT, rel=1e-3)
    assert state.spread < 1e-3


def test_turning_on_the_spot_says_nothing():
    robot = Drive(speed=lambda t: 0.0, rate=lambda t: 1.0)
    state = drive(robot, 0.017, 4.0)
    assert (state.value, state.samples) == (None, 0)
    assert "turned by" in state.reason


def test_a_slow_robot_is_measured_over_many_frames():
    """5 mm per image: chained until 0.1 m."""
    robot = Drive(speed=lambda t: 0.15)
    assert drive(robot, 0.017, 10.0, period=0.033).value == pytest.approx(UNIT, rel=1e-3)


def test_a_robot_that_stands_gives_no_sample():
    state = drive(Drive(speed=lambda t: 0.0), 0.0, 5.0)
    assert state.samples == 0
    assert "scale_min_motion" in state.reason


def test_wheels_that_slip_on_single_frames_do_nothing():
    slips = [0.55, 1.15, 1.2, 2.05]  # each adds 0.3 m that the robot did not drive
    state = drive(Drive(), 0.017, 3.0, spoil=lambda t, pose: pose @ shift(0.3 * sum(t > s for s in slips), 0, 0))
    assert state.value == pytest.approx(UNIT, rel=1e-3)
    assert state.samples > 20


@pytest.mark.parametrize("delay", [-0.05, 0.05])
def test_a_clock_that_is_off_averages_out(delay):
    """The speed swings between 1 and 3 m/s; single ratios are then off by up to 6 %."""
    robot = Drive(speed=lambda t: 2.0 + math.sin(2.0 * t))
    assert drive(robot, 0.117, 12.0, delay=delay).value == pytest.approx(UNIT, rel=0.02)


def test_wheels_that_arrive_a_second_late_are_waited_for():
    robot = Drive()
    for seconds in np.arange(0.0, 4.0, 0.1):
        if seconds >= 1.0:
            robot.roll(seconds - 1.0)
        state = robot.see(seconds)
    assert state.value == pytest.approx(UNIT, rel=1e-3)


def test_wheels_that_never_arrive_are_said():
    robot = Drive()
    for seconds in np.arange(0.0, 4.0, 0.1):
        state = robot.see(seconds)
    assert state.value is None
    assert state.reason == "no wheel_odom has arrived"
    assert len(robot.estimator._waiting) <= 21


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("stops", "s older than the image"),
        ("freezes", "does not follow"),
        ("nan", "s older than the image"),
        ("runs in another clock", "after the image"),
    ],
)
def test_a_source_that_fails_ages_out_and_comes_back(failure, says):
    robot = Drive(max_age_s=3.0)
    assert drive(robot, 0.0, 3.0).value == pytest.approx(UNIT, rel=1e-3)
    frozen = robot.pose(3.0)
    if failure == "stops":
        state = drive_blind(robot, 3.0, 7.0)
    elif failure == "freezes":
        state = drive(robot, 3.0, 7.0, spoil=lambda t, pose: frozen)
    elif failure == "nan":
        state = drive(robot, 3.0, 7.0, spoil=lambda t, pose: np.full((4, 4), np.nan))
    else:
        robot.wheels.clear()
        for index in range(200):
            robot.wheels.add(round((1e6 + 0.02 * index) * SECOND), (0.04 * index, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        state = drive_blind(robot, 3.0, 7.0)
        robot.wheels.clear()
    assert state.value is None
    assert says in state.reason
    robot.told = 7.0
    assert drive(robot, 7.0, 10.0).value == pytest.approx(UNIT, rel=1e-3)


def test_wheels_whose_pose_is_set_to_another_place_do_nothing():
    state = drive(Drive(), 0.0, 5.0, spoil=lambda t, pose: shift(-500.0 * (t // 1), 3, 0) @ pose)
    assert state.value == pytest.approx(UNIT, rel=1e-3)


def test_a_mounting_turned_wrongly_is_said_and_gives_no_sample():
    state = drive(Drive(believed=turn("z", 90) @ MOUNT), 0.0, 3.0)
    assert (state.value, state.samples) == (None, 0)
    assert "90 degrees apart" in state.reason


def test_images_that_do_not_move_while_the_wheels_do_are_no_sample():
    robot = Drive()
    for seconds in np.arange(0.0, 3.0, 0.1):
        robot.roll(seconds + 0.03)
        state = robot.see(seconds, spoil=lambda motion: np.eye(4))
    assert state.samples == 0
    assert "do the wheels slip" in state.reason


@pytest.mark.parametrize("broken", [np.full((4, 4), np.nan), np.zeros((4, 4))])
def test_a_motion_that_is_none_breaks_the_chain_only(broken):
    robot = Drive(speed=lambda t: 0.6)
    for index, seconds in enumerate(np.arange(0.0, 6.0, 0.1)):
        robot.roll(seconds + 0.03)
        state = robot.see(seconds, spoil=lambda motion, index=index: broken if index % 5 == 0 else motion)
    assert state.value == pytest.approx(UNIT, rel=1e-3)


def test_images_that_jump_back_leave_nothing_that_waits():
    robot = Drive()
    drive(robot, 3.0, 5.0)
    drive_blind(robot, 5.0, 6.0)
    robot.shown, robot.told = None, 0.0
    assert "went back" in robot.wheels.add(0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    state = drive(robot, 0.0, 2.0)
    assert state.value == pytest.approx(UNIT, rel=1e-3)
    assert all(motion.end_ns <= 2 * SECOND for motion in robot.estimator._waiting)


def test_only_the_motion_is_asked_for():
    estimator = make_estimator(ScaleSettings("odometry"), WheelPoses())
    assert estimator.needs(frozenset({DEPTH})) == {MOTION}
    assert estimator.needs(frozenset({FLOW})) == frozenset()


def test_other_thresholds_keep_the_samples():
    robot = Drive()
    drive(robot, 0.0, 3.0)
    robot.estimator.follow(ScaleSettings("odometry", window_s=1.0, max_age_s=0.5))
    state = robot.see(3.4)
    assert state.value == pytest.approx(UNIT, rel=1e-3)
    assert robot.see(4.5).value is None


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (ScaleSettings("odometry"), ScaleSettings("odometry", min_motion_m=1.0), True),
        (ScaleSettings("camera_height"), ScaleSettings("odometry"), False),
        (ScaleSettings("camera_height"), ScaleSettings("camera_height", camera_height_m=2.0), False),
    ],
)
def test_samples_that_mean_something_else_are_not_kept(one, other, kept):
    assert other.keeps_samples_of(one) is kept
