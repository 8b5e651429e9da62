"""The robot's pose from the camera's: against closed forms, with mountings that change on the way."""

from __future__ import annotations

import numpy as np
import pytest

from coopnet_ros.odometry import (
    OdometryEstimate,
    PoseIntegrator,
    adjoint,
    exponential,
    in_robot_frame,
    inverse,
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
    """A robot, the networks' view of it, and the integrator between."""

    def __init__(self, T_base_camera: np.ndarray, scale: float | None = 1.0):
        self.T_base_camera = T_base_camera
        self.believed = T_base_camera
        self.scale = scale
        self.integrator = PoseIntegrator(metric=False)
        self.robot = RobotPose()
        self.seconds = 0
        self.camera = self.integrator.start(0)

    def go(self, steps: int = 1, step: np.ndarray = STEP, seen: bool = True) -> OdometryEstimate | None:
        """Steps of the robot; `seen`: whether anybody asks for its pose."""
        estimate = None
        for _ in range(steps):
            self.seconds += 1
            motion = scaled(inverse(self.T_base_camera) @ step @ self.T_base_camera, 1 / UNIT)
            self.integrator.use_scale(self.scale)
            self.robot.use_scale(self.scale)
            self.camera = self.integrator.advance(self.seconds * SECOND, (self.seconds - 1) * SECOND, motion)
            estimate = self.robot.update(self.camera, self.believed) if seen else None
        return estimate

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
        expected = in_robot_frame(drive.camera, TILTED)
        same(estimate.pose, expected.pose)
        same(estimate.twist, expected.twist)
        assert estimate.position_variance == expected.position_variance
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
    same(drive.robot.update(drive.camera, AHEAD).pose, reached)
    same(drive.go(2).pose, reached @ after(2))
    drive.believed = TILTED
    same(drive.robot.update(drive.camera, TILTED).pose, reached @ after(2))


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
    lost = drive.robot.update(drive.integrator.interrupt(drive.seconds * SECOND), BEHIND)
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
