"""Pose integration and frames: against closed forms and against the matrix exponential."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coopnet_core.errors import UsageError
from coopnet_ros.odometry import (
    UNKNOWN_VARIANCE,
    MotionNoise,
    PoseIntegrator,
    adjoint,
    in_robot_frame,
    inverse,
    is_rigid,
    logarithm,
    matrix_from_quaternion,
    orthonormal,
    quaternion_from_matrix,
    rotation_vector,
    transform,
)

OPTICAL = transform((0, 0, 0), (-0.5, 0.5, -0.5, 0.5))
SECOND = 1_000_000_000


def exponential(twist: np.ndarray) -> np.ndarray:
    """The rigid transform of a twist by its power series: independent of the closed form under test."""
    v, w = twist[:3], twist[3:]
    matrix = np.zeros((4, 4))
    matrix[:3, :3] = [[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]]
    matrix[:3, 3] = v
    result, term = np.eye(4), np.eye(4)
    for order in range(1, 60):
        term = term @ matrix / order
        result = result + term
    return result


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, 1e-3, 0.1, 1.0, 3.0])
def test_the_logarithm_undoes_the_exponential(scale):
    rng = np.random.default_rng(0)
    for _ in range(20):
        axis = rng.normal(size=3)
        twist = np.concatenate([rng.normal(size=3), scale * axis / np.linalg.norm(axis)])
        np.testing.assert_allclose(logarithm(exponential(twist)), twist, atol=1e-9)


def test_half_turns_keep_their_angle():
    for axis in np.eye(3):
        R = 2 * np.outer(axis, axis) - np.eye(3)
        assert np.linalg.norm(rotation_vector(R)) == pytest.approx(np.pi)
        np.testing.assert_allclose(matrix_from_quaternion(quaternion_from_matrix(R)), R, atol=1e-12)


def test_quaternions_go_round_trip_with_positive_w():
    rng = np.random.default_rng(1)
    for _ in range(200):
        q = rng.normal(size=4)
        R = matrix_from_quaternion(q)
        back = quaternion_from_matrix(R)
        assert back[3] >= 0
        assert np.linalg.norm(back) == pytest.approx(1.0)
        np.testing.assert_allclose(matrix_from_quaternion(back), R, atol=1e-12)


def test_a_quaternion_of_norm_zero_is_refused():
    with pytest.raises(UsageError, match="Quaternion"):
        matrix_from_quaternion((0.0, 0.0, 0.0, 0.0))


def test_the_default_mounting_looks_ahead():
    """Optical z is the robot's x, optical x its right hand, optical y is down (REP-103)."""
    np.testing.assert_allclose(OPTICAL[:3, :3] @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(OPTICAL[:3, :3] @ [1, 0, 0], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(OPTICAL[:3, :3] @ [0, 1, 0], [0, 0, -1], atol=1e-12)


def test_a_left_hand_curve_turns_about_positive_z_of_the_robot():
    """Turning left, the optical frame rotates about its -y."""
    integrator = PoseIntegrator()
    integrator.start(0)
    for index in range(1, 11):
        motion = exponential(np.array([0.0, 0.0, 1.0, 0.0, -np.pi / 20, 0.0]))
        estimate = integrator.advance(index * SECOND, (index - 1) * SECOND, motion)
    robot = in_robot_frame(estimate, OPTICAL, metric=True)
    np.testing.assert_allclose(robot.pose[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-9)
    radius = 10 / (np.pi / 2)
    np.testing.assert_allclose(robot.pose[:3, 3], [radius, radius, 0], atol=1e-9)
    np.testing.assert_allclose(robot.twist, [1, 0, 0, 0, 0, np.pi / 20], atol=1e-9)


def test_standstill_is_standstill():
    integrator = PoseIntegrator()
    integrator.start(0)
    estimate = integrator.advance(SECOND, 0, np.eye(4))
    np.testing.assert_array_equal(estimate.pose, np.eye(4))
    np.testing.assert_array_equal(estimate.twist, np.zeros(6))
    assert np.diag(estimate.twist_covariance().reshape(6, 6)).min() > 0


def test_thousands_of_turns_do_not_shear_the_axes():
    integrator = PoseIntegrator()
    integrator.start(0)
    motion = exponential(np.array([0.1, 0.0, 1.0, 0.01, -0.03, 0.002])).astype(np.float32).astype(np.float64)
    for index in range(1, 5001):
        integrator.advance(index * SECOND, (index - 1) * SECOND, motion)
    assert is_rigid(integrator.pose, tolerance=1e-12)


def test_a_pair_that_does_not_start_where_the_last_one_ended_is_lost():
    integrator = PoseIntegrator()
    integrator.start(0)
    integrator.advance(SECOND, 0, transform((0, 0, 2), (0, 0, 0, 1)))
    estimate = integrator.advance(3 * SECOND, 2 * SECOND, transform((0, 0, 2), (0, 0, 0, 1)))
    assert estimate.lost
    assert estimate.position_variance == estimate.linear_variance == UNKNOWN_VARIANCE
    np.testing.assert_allclose(estimate.pose[:3, 3], [0, 0, 2])
    found = integrator.advance(4 * SECOND, 3 * SECOND, transform((0, 0, 2), (0, 0, 0, 1)))
    assert not found.lost
    assert found.position_variance == pytest.approx(4.0**2, rel=0.01)


@pytest.mark.parametrize("broken", [np.full((4, 4), np.nan), np.diag([1.0, 1.0, -1.0, 1.0]), np.zeros((4, 4))])
def test_a_motion_that_is_no_motion_is_lost_and_not_integrated(broken):
    integrator = PoseIntegrator()
    integrator.start(0)
    assert integrator.advance(SECOND, 0, broken).lost
    np.testing.assert_array_equal(integrator.pose, np.eye(4))


def test_the_variance_grows_and_stays_below_unknown():
    integrator = PoseIntegrator(MotionNoise(1.0, 1.0, 1.0))
    integrator.start(0)
    before = 0.0
    for index in range(1, 2000):
        estimate = integrator.advance(index * SECOND, (index - 1) * SECOND, transform((0, 0, 3), (0, 0, 0, 1)))
        assert before <= estimate.position_variance <= UNKNOWN_VARIANCE
        before = estimate.position_variance
    assert before == UNKNOWN_VARIANCE


def test_without_a_scale_the_translation_is_said_to_be_unknown():
    integrator = PoseIntegrator()
    estimate = in_robot_frame(integrator.start(0), OPTICAL, metric=False)
    assert estimate.position_variance == UNKNOWN_VARIANCE
    assert estimate.orientation_variance < 1


def test_without_a_scale_the_lever_arm_is_left_away():
    mounted = OPTICAL.copy()
    mounted[:3, 3] = (1.5, 0.2, 1.2)
    turn = transform((0.1, 0.0, 0.4), (0.0, 0.1, 0.0, 1.0))
    estimate = replace(PoseIntegrator().start(0), pose=turn)
    np.testing.assert_allclose(
        in_robot_frame(estimate, mounted, metric=False).pose, OPTICAL @ turn @ inverse(OPTICAL), atol=1e-12
    )
    np.testing.assert_allclose(
        in_robot_frame(estimate, mounted, metric=True).pose, mounted @ turn @ inverse(mounted), atol=1e-12
    )


def test_the_adjoint_moves_a_twist_as_conjugation_moves_its_motion():
    rng = np.random.default_rng(2)
    T = transform(rng.normal(size=3), rng.normal(size=4))
    twist = 0.3 * rng.normal(size=6)
    conjugated = T @ exponential(twist) @ inverse(T)
    np.testing.assert_allclose(exponential(adjoint(T) @ twist), conjugated, atol=1e-12)


def test_orthonormal_leaves_a_rotation_alone():
    T = transform((1, 2, 3), (0.1, 0.2, 0.3, 0.9))
    np.testing.assert_allclose(orthonormal(T), T, atol=1e-14)
