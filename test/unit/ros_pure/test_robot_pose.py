"""The robot's pose from the camera's: against closed forms, with mountings that move or change on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import (
    OdometryEstimate,
    PoseIntegrator,
    adjoint,
    exponential,
    inverse,
    logarithm,
    rotation_only,
    scaled,
    transform,
)
from coopnet_ros.robot_pose import RobotPose

SECOND = 1_000_000_000
AHEAD = transform((1.2, 0.3, 1.5), (-0.5, 0.5, -0.5, 0.5))
"""A camera that looks ahead, with a lever arm."""
BEHIND = transform((-0.8, 0.1, 1.0), (-0.5, -0.5, 0.5, 0.5))
"""One that looks behind."""
TILTED = AHEAD @ transform((0.1, 0.2, 0.3), (0.1, 0.2, -0.1, 0.9))
STEP = transform((0.4, 0.1, 0.0), (0.0, 0.0, 0.1, 1.0))
"""Of the robot, in its own frame."""
UNIT = 0.5
"""Metres per unit of the networks."""


class Drive:
    """A robot, the networks' view of it, and the integrator between. A step takes a second.

    Attributes:
        T_base_camera: where the camera sits.
        believed: where it is said to sit.
        moves: whether TF tells the mounting with a time.
    """

    def __init__(self, T_base_camera: np.ndarray, scale: float | None = 1.0, moves: bool = False):
        self.T_base_camera = T_base_camera
        self.believed = T_base_camera
        self.scale = scale
        self.moves = moves
        self.integrator = PoseIntegrator(metric=False)
        self.robot = RobotPose()
        self.seconds = 0
        self.camera = self.integrator.start(0)

    def go(
        self, steps: int = 1, step: np.ndarray = STEP, seen: bool = True, onto: np.ndarray | None = None
    ) -> OdometryEstimate | None:
        """Steps of the robot.

        Args:
            seen: whether anybody asks for its pose.
            onto: where the camera sits after each of them; None: it stays.
        """
        estimate = None
        for _ in range(steps):
            self.seconds += 1
            end = self.T_base_camera if onto is None else onto
            motion = scaled(inverse(self.T_base_camera) @ step @ end, 1 / UNIT)
            if onto is not None:
                self.T_base_camera = self.believed = onto
            self.integrator.use_scale(self.scale)
            self.robot.use_scale(self.scale)
            self.camera = self.integrator.advance(self.seconds * SECOND, (self.seconds - 1) * SECOND, motion)
            estimate = self.ask(self.camera) if seen else None
        return estimate

    def ask(self, camera: OdometryEstimate) -> OdometryEstimate:
        """The robot's estimate of the camera's."""
        mounting = Mounting(self.believed, "camera", self.moves)
        return self.robot.update(camera, mounting, self.seconds * SECOND)

    def mount(self, T_base_camera: np.ndarray) -> None:
        """Images of another camera, whose mounting is known."""
        self.T_base_camera = self.believed = T_base_camera


def after(steps: int, step: np.ndarray = STEP) -> np.ndarray:
    return np.linalg.matrix_power(step, steps)


def same(pose: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(pose, expected, atol=1e-9)


@pytest.mark.parametrize("scale", [None, UNIT])
def test_with_one_mounting_it_is_the_conjugation(scale):
    drive = Drive(TILTED, scale)
    for _ in range(5):
        estimate = drive.go()
        mounted = TILTED if scale else rotation_only(TILTED)
        same(estimate.pose, mounted @ drive.camera.pose @ inverse(mounted))
        same(estimate.twist, adjoint(mounted) @ drive.camera.twist)
        assert estimate.position_variance == drive.camera.position_variance
        assert (estimate.metric, estimate.lost) == (scale is not None, False)


def test_a_lever_arm_gives_the_path_of_the_robot_not_of_the_camera():
    turn = transform((0.0, 0.0, 0.0), (0.0, 0.0, 0.1, 1.0))
    drive = Drive(TILTED, UNIT)
    same(drive.go(4, turn).pose, after(4, turn))
    assert np.linalg.norm(drive.camera.pose[:3, 3]) > 0.5


@pytest.mark.parametrize("before", [TILTED, BEHIND])
def test_a_mounting_that_is_corrected_on_the_way_does_not_move_the_robot(before):
    drive = Drive(AHEAD, UNIT)
    drive.believed = before
    reached = drive.go(3).pose
    same(reached, before @ inverse(AHEAD) @ after(3) @ AHEAD @ inverse(before))
    drive.believed = AHEAD
    same(drive.ask(drive.camera).pose, reached)
    same(drive.go(2).pose, reached @ after(2))
    drive.believed = TILTED
    same(drive.ask(drive.camera).pose, reached @ after(2))


def test_another_camera_goes_on_with_its_own_mounting():
    drive = Drive(AHEAD, UNIT)
    drive.go(3)
    drive.mount(BEHIND)
    same(drive.go(2).pose, after(5))
    drive.mount(AHEAD)
    estimate = drive.go(1)
    same(estimate.pose, after(6))
    same(estimate.twist, adjoint(AHEAD) @ drive.camera.twist)


def test_what_happened_before_anybody_asked_is_taken_through_the_first_mounting_known():
    drive = Drive(TILTED, UNIT)
    drive.go(3, seen=False)
    same(drive.go(1).pose, after(4))


def test_a_camera_change_before_the_scale_is_known_is_right_when_metres_come():
    """Path and anchors are multiplied, and the lever arms count from the beginning."""
    drive = Drive(AHEAD, None)
    drive.go(3)
    drive.mount(BEHIND)
    relative = drive.go(2)
    assert not relative.metric
    drive.scale = UNIT
    metric = drive.go(1)
    assert metric.metric
    same(metric.pose, after(6))
    drive.scale = 2 * UNIT  # a later scale is of later motions only
    assert np.allclose(drive.go(1, np.eye(4)).pose, after(6))


def test_without_a_scale_only_the_rotations_of_the_mountings_count():
    drive, bare = Drive(AHEAD, None), Drive(AHEAD, None)
    for one, first, second in ((drive, AHEAD, TILTED), (bare, rotation_only(AHEAD), rotation_only(TILTED))):
        one.believed = first
        one.go(2)
        one.believed = second
    given, expected = drive.go(2), bare.go(2)
    assert not given.metric
    same(given.pose, expected.pose)
    same(given.twist, expected.twist)


def test_metres_that_come_together_with_another_mounting():
    drive = Drive(AHEAD, None)
    drive.go(3)
    drive.mount(BEHIND)
    drive.scale = UNIT
    same(drive.go(2).pose, after(5))


def test_metres_that_come_while_nobody_asks():
    drive = Drive(AHEAD, None)
    drive.go(2)
    drive.mount(BEHIND)
    drive.go(1)
    drive.scale = UNIT
    drive.go(1, seen=False)
    drive.scale = 3 * UNIT
    same(drive.go(1, np.eye(4)).pose, after(4))


def test_lost_keeps_the_pose_also_where_the_mounting_changes_meanwhile():
    drive = Drive(AHEAD, UNIT)
    reached = drive.go(3).pose
    drive.mount(BEHIND)
    drive.seconds += 5
    lost = drive.ask(drive.integrator.interrupt(drive.seconds * SECOND))
    assert lost.lost
    same(lost.pose, reached)
    same(drive.go(1).pose, reached @ STEP)


def test_a_thousand_changes_leave_a_rigid_pose():
    drive = Drive(AHEAD, UNIT)
    small = 0.001 * np.array([1.0, 2.0, 3.0, 1.0, -2.0, 0.5])
    for index in range(1000):
        drive.mount(AHEAD @ exponential(index * small))
        estimate = drive.go(1)
    np.testing.assert_allclose(estimate.pose, after(1000), atol=1e-8)


# ---------------------------------------------------------------------- a camera on joints


def panned(step: int) -> np.ndarray:
    """A camera ahead that turns about an axis beside itself: by 7 degrees a step, up to 63 and back."""
    angle = np.radians(7.0 * (9 - abs(9 - step % 18)))
    joint = transform((0.5, 0.0, 1.0), (0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)))
    return joint @ transform((0.3, 0.1, 0.2), (-0.5, 0.5, -0.5, 0.5))


def on_joints(scale: float | None = UNIT) -> Drive:
    """Such a camera, whose first image has been seen."""
    drive = Drive(panned(0), scale, moves=True)
    drive.ask(drive.camera)
    return drive


@pytest.mark.parametrize("step", [STEP, np.eye(4)], ids=["drives", "stands"])
def test_a_camera_that_turns_on_the_robot_does_not_turn_the_robot(step):
    drive = on_joints()
    for index in range(1, 30):
        estimate = drive.go(1, step, onto=panned(index))
        same(estimate.pose, after(index, step))
        same(estimate.twist, logarithm(step))


def test_the_same_without_a_time_would_be_corrections_of_a_wrong_mounting():
    drive = Drive(panned(0), UNIT)
    for index in range(1, 10):
        pose = drive.go(1, np.eye(4), onto=panned(index)).pose
    assert abs(np.degrees(np.arctan2(pose[1, 0], pose[0, 0]))) > 20


def test_a_camera_that_turns_before_the_scale_is_known_is_right_when_metres_come():
    drive = on_joints(None)
    for index in range(1, 6):
        relative = drive.go(1, onto=panned(index))
        same(relative.pose[:3, :3], after(index)[:3, :3])
    assert not relative.metric
    drive.scale = UNIT
    for index in range(6, 10):
        metric = drive.go(1, onto=panned(index))
        assert metric.metric
        same(metric.pose, after(index))


def test_what_the_camera_turned_while_it_was_lost_is_not_the_robots():
    drive = on_joints()
    for index in range(1, 4):
        reached = drive.go(1, onto=panned(index)).pose
    drive.seconds += 5
    drive.mount(panned(8))
    lost = drive.ask(drive.integrator.interrupt(drive.seconds * SECOND))
    same(lost.pose, reached)
    same(lost.twist, np.zeros(6))
    same(drive.go(1, onto=panned(9)).pose, reached @ STEP)


def test_another_camera_on_joints_goes_on_with_its_own_mounting():
    drive = Drive(panned(3), UNIT, moves=True)
    drive.go(1)
    reached = drive.go(1, onto=panned(4)).pose
    drive.seconds += 1
    other = Mounting(BEHIND, "rear", moves=True)
    lost = replace(drive.camera, lost=True)
    same(drive.robot.update(lost, other, drive.seconds * SECOND).pose, reached)
    found = replace(drive.camera, pose=drive.camera.pose @ inverse(BEHIND) @ STEP @ BEHIND)
    same(drive.robot.update(found, other, (drive.seconds + 1) * SECOND).pose, reached @ STEP)


def test_an_error_of_the_path_is_carried_from_where_the_camera_began():
    drive = on_joints()
    for index in range(1, 6):
        drive.go(1, onto=panned(index))
    error = 1e-3 * np.array([1.0, -2.0, 0.5, 3.0, 1.0, -1.0])
    given = replace(drive.camera, pose_uncertainty=np.outer(error, error))
    said = drive.ask(given)
    true = drive.ask(replace(given, pose=exponential(error) @ given.pose)).pose
    found = logarithm(true @ inverse(said.pose))
    np.testing.assert_allclose(said.pose_uncertainty, np.outer(found, found), atol=1e-10)
