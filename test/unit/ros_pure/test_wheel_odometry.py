"""The poses of the wheels: between two of them, and what is no pose."""

from __future__ import annotations

import numpy as np
import pytest
from ros.rig_truth import shift, turn

from coopnet_ros.odometry import quaternion_from_matrix
from coopnet_ros.scale_tracker import NoSampleError
from coopnet_ros.wheel_odometry import WheelPoses

SECOND = 1_000_000_000


def add(wheels: WheelPoses, seconds: float, pose: np.ndarray) -> str:
    return wheels.add(round(seconds * SECOND), pose[:3, 3], quaternion_from_matrix(pose[:3, :3]))


def on_a_circle(seconds: float, radius: float = 5.0, rate: float = 0.4) -> np.ndarray:
    """(4, 4) pose of a robot that drives to the left on a circle."""
    return shift(0, radius, 0) @ turn("z", np.degrees(rate * seconds)) @ shift(0, -radius, 0)


@pytest.mark.parametrize("seconds", [1.0, 1.013, 1.25, 1.4999, 1.5])
def test_a_pose_between_two_lies_on_the_arc(seconds):
    wheels = WheelPoses()
    for index in range(4):
        assert add(wheels, 1.0 + 0.25 * index, on_a_circle(1.0 + 0.25 * index)) == ""
    np.testing.assert_allclose(wheels.pose_at(round(seconds * SECOND)), on_a_circle(seconds), atol=1e-9)


@pytest.mark.parametrize(
    ("stamps", "asked", "says"),
    [
        ([], 1.0, "no wheel_odom has arrived"),
        ([1.0, 1.1], 1.3, "0.2 s older than the image"),
        ([1.0, 1.1], 0.7, "begins 0.3 s after"),
        ([1.0, 1.6], 1.1, "gap of 0.6 s"),
    ],
)
def test_where_there_are_no_two_poses_it_says_why(stamps, asked, says):
    wheels = WheelPoses()
    for seconds in stamps:
        add(wheels, seconds, np.eye(4))
    with pytest.raises(NoSampleError, match=says):
        wheels.pose_at(round(asked * SECOND))


@pytest.mark.parametrize(
    ("position", "orientation", "says"),
    [
        ((np.nan, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), "not finite"),
        ((0.0, np.inf, 0.0), (0.0, 0.0, 0.0, 1.0), "not finite"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), "Quaternion"),
        ((0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0), "Quaternion"),
    ],
)
def test_what_is_no_pose_is_ignored_and_said(position, orientation, says):
    wheels = WheelPoses()
    add(wheels, 1.0, np.eye(4))
    assert says in wheels.add(2 * SECOND, position, orientation)
    assert wheels.newest_ns == SECOND


@pytest.mark.parametrize("seconds", [2.0, 1.7])
def test_a_stamp_that_does_not_increase_is_ignored_and_said(seconds):
    wheels = WheelPoses()
    add(wheels, 2.0, np.eye(4))
    assert "stamp" in add(wheels, seconds, shift(1, 0, 0))
    np.testing.assert_array_equal(wheels.pose_at(2 * SECOND), np.eye(4))


def test_a_bag_that_loops_starts_anew():
    wheels = WheelPoses()
    for seconds in (50.0, 50.1):
        add(wheels, seconds, np.eye(4))
    assert "went back by 49.1 s" in add(wheels, 1.0, np.eye(4))
    add(wheels, 1.1, shift(0.2, 0, 0))
    np.testing.assert_allclose(wheels.pose_at(round(1.05 * SECOND)), shift(0.1, 0, 0), atol=1e-12)
    with pytest.raises(NoSampleError):
        wheels.pose_at(50 * SECOND)


def test_a_pose_that_was_set_is_never_joined_with_those_before_it():
    wheels = WheelPoses()
    add(wheels, 1.0, shift(30, 0, 0))
    assert "jumped by 30.0 m" in add(wheels, 1.1, np.eye(4))
    with pytest.raises(NoSampleError, match="begins"):
        wheels.pose_at(round(1.05 * SECOND))


def test_old_poses_are_forgotten():
    wheels = WheelPoses()
    for index in range(3000):
        add(wheels, 0.02 * index, shift(0.01 * index, 0, 0))
    assert len(wheels._poses) == len(wheels._stamps) < 510
    wheels.clear()
    assert wheels.newest_ns is None
