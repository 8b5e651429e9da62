"""Pose integration and frames: against closed forms and against the matrix exponential."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coopnet_core.errors import UsageError
from coopnet_ros import odometry
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import (
    UNKNOWN_VARIANCE,
    MotionNoise,
    PoseIntegrator,
    adjoint,
    interpolate,
    inverse,
    is_rigid,
    logarithm,
    matrix_from_quaternion,
    orthonormal,
    quaternion_from_matrix,
    rotation_vector,
    transform,
)
from coopnet_ros.robot_pose import RobotPose

OPTICAL = transform((0, 0, 0), (-0.5, 0.5, -0.5, 0.5))
SECOND = 1_000_000_000


def on_robot(estimate: odometry.OdometryEstimate, T_base_camera: np.ndarray) -> odometry.OdometryEstimate:
    """The camera's estimate as that of a robot whose camera has always been mounted so."""
    return RobotPose().update(estimate, Mounting(T_base_camera), 0)


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
        np.testing.assert_allclose(odometry.exponential(twist), exponential(twist), atol=1e-9)


def test_interpolation_is_along_the_arc():
    start = transform((1, 2, 3), (0.1, 0.2, 0.3, 0.9))
    twist = np.array([1.0, 0.2, -0.1, 0.3, -0.2, 0.5])
    end = start @ exponential(twist)
    for share in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(interpolate(start, end, share), start @ exponential(share * twist), atol=1e-9)


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
    robot = on_robot(estimate, OPTICAL)
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
    integrator = PoseIntegrator(metric=False)
    estimate = on_robot(integrator.start(0), OPTICAL)
    assert estimate.position_variance == UNKNOWN_VARIANCE
    assert estimate.orientation_variance < 1


def test_without_a_scale_the_lever_arm_is_left_away():
    mounted = OPTICAL.copy()
    mounted[:3, 3] = (1.5, 0.2, 1.2)
    turn = transform((0.1, 0.0, 0.4), (0.0, 0.1, 0.0, 1.0))
    estimate = replace(PoseIntegrator().start(0), pose=turn)
    relative = on_robot(replace(estimate, metric=False), mounted)
    np.testing.assert_allclose(relative.pose, OPTICAL @ turn @ inverse(OPTICAL), atol=1e-12)
    np.testing.assert_allclose(on_robot(estimate, mounted).pose, mounted @ turn @ inverse(mounted), atol=1e-12)


def test_the_adjoint_moves_a_twist_as_conjugation_moves_its_motion():
    rng = np.random.default_rng(2)
    T = transform(rng.normal(size=3), rng.normal(size=4))
    twist = 0.3 * rng.normal(size=6)
    conjugated = T @ exponential(twist) @ inverse(T)
    np.testing.assert_allclose(exponential(adjoint(T) @ twist), conjugated, atol=1e-12)


def test_orthonormal_leaves_a_rotation_alone():
    T = transform((1, 2, 3), (0.1, 0.2, 0.3, 0.9))
    np.testing.assert_allclose(orthonormal(T), T, atol=1e-14)


AHEAD = transform((0, 0, 2), (0, 0, 0, 1))
EXACT = MotionNoise(1e-6, 1e-6, 1e-6)


class Walk:
    """Steps of two units ahead, once per second."""

    def __init__(self, noise: MotionNoise = EXACT, metric: bool = False):
        self.integrator = PoseIntegrator(noise, metric)
        self.estimate = self.integrator.start(0)
        self.now = 0

    def go(self, steps: int, scale: float | None, spread: float = 0.0):
        for _ in range(steps):
            self.now += 1
            self.integrator.use_scale(scale, spread)
            self.estimate = self.integrator.advance(self.now * SECOND, (self.now - 1) * SECOND, AHEAD)
        return self.estimate

    @property
    def z(self) -> float:
        return self.estimate.pose[2, 3]


def test_the_path_is_multiplied_when_the_scale_becomes_known_and_not_when_it_changes():
    walk = Walk()
    unknown = walk.go(5, None)
    assert (walk.z, unknown.metric) == (10.0, False)
    assert unknown.position_variance == unknown.linear_variance == UNKNOWN_VARIANCE
    known = walk.go(1, 0.5)
    assert (walk.z, known.metric) == (pytest.approx(6.0), True)
    np.testing.assert_allclose(known.twist, [0, 0, 1, 0, 0, 0])
    assert known.position_variance < 1e-9
    changed = walk.go(1, 0.75)
    assert walk.z == pytest.approx(7.5)
    # with 0.75 the six metres before would have been nine
    assert changed.position_variance == pytest.approx(3.0**2)
    back = walk.go(1, 0.5)
    assert walk.z == pytest.approx(8.5)
    assert back.position_variance == pytest.approx(0.5**2)


def test_while_the_scale_is_unknown_again_the_last_one_goes_on_and_no_length_is_vouched_for():
    walk = Walk()
    walk.go(2, 0.5)
    held = walk.go(3, None)
    assert (walk.z, held.metric, held.lost) == (pytest.approx(5.0), True, False)
    assert held.position_variance == held.linear_variance == UNKNOWN_VARIANCE
    assert held.orientation_variance < 1e-9
    np.testing.assert_allclose(held.twist, [0, 0, 1, 0, 0, 0])
    found = walk.go(1, 0.6)
    assert walk.z == pytest.approx(6.2)
    assert found.position_variance == pytest.approx(1.0**2)


def test_the_first_scale_multiplies_the_variance_of_the_path_and_adds_its_own():
    walk = Walk(MotionNoise(0.1, 1e-6, 1e-6))
    walk.go(4, None)
    known = walk.go(1, 3.0, spread=0.05)
    along = (0.1**2 + 0.05**2) * 6.0**2
    expected = 4 * (0.1 * 2.0 * 3.0) ** 2 + (0.05 * 8.0 * 3.0) ** 2 + along
    assert known.position_variance == pytest.approx(expected)
    assert known.linear_variance == pytest.approx(along)


def test_the_floor_of_the_variance_is_in_metres_from_the_beginning():
    walk = Walk(MotionNoise(1e-9, 0.01, 1e-6))
    walk.go(99, None)
    assert walk.go(1, 50.0).position_variance == pytest.approx(101 * 0.01**2)


def test_a_turn_before_the_scale_is_known_is_kept():
    integrator = PoseIntegrator(EXACT, metric=False)
    integrator.start(0)
    turn = exponential(np.array([0.0, 0.0, 2.0, 0.0, -0.5, 0.0]))
    for index in range(1, 4):
        integrator.use_scale(None)
        integrator.advance(index * SECOND, (index - 1) * SECOND, turn)
    integrator.use_scale(0.5)
    estimate = integrator.advance(4 * SECOND, 3 * SECOND, turn)
    np.testing.assert_allclose(estimate.pose, exponential(4 * np.array([0, 0, 1.0, 0, -0.5, 0])), atol=1e-9)
    assert estimate.position_variance < 1e-9


def test_other_networks_never_go_on_in_a_unit_nobody_knows():
    walk = Walk()
    walk.go(2, 0.5)
    walk.integrator.change_networks()
    assert walk.go(2, None).lost
    assert walk.z == pytest.approx(2.0)
    assert not walk.integrator.can_go_on
    found = walk.go(2, 4.0)
    assert (walk.z, found.lost) == (pytest.approx(18.0), False)
    assert found.position_variance < 1e-9 + 1.0  # what the two lost seconds may have been, at 1 m/s
    assert walk.go(1, 5.0).position_variance == pytest.approx(found.position_variance + 4.0**2)


def test_a_path_of_networks_that_are_gone_before_their_unit_was_known_stays_unknown():
    walk = Walk()
    walk.go(2, None)
    walk.integrator.change_networks()
    assert walk.go(3, 0.5).position_variance == UNKNOWN_VARIANCE
    assert walk.estimate.linear_variance < 1e-9


def test_the_disagreement_with_networks_that_are_gone_stays_in_the_variance():
    walk = Walk()
    walk.go(2, 0.5)
    walk.go(1, 0.75)
    walk.integrator.change_networks()
    assert walk.go(1, 2.0).position_variance == pytest.approx(1.0**2)


def test_one_stamp_in_the_future_leaves_no_variance_behind():
    """The next stamp shows that it was wrong: what lies between the true stamps is what was not seen."""
    second = 1_000_000_000
    forward = np.eye(4)
    forward[2, 3] = 1.0
    integrator, undisturbed = PoseIntegrator(), PoseIntegrator()
    for one in (integrator, undisturbed):
        one.start(second)
        one.advance(2 * second, second, forward)
    assert integrator.interrupt(2_000_000_000 * second).lost
    assert integrator.interrupt(3 * second).lost
    undisturbed.interrupt(3 * second)
    estimates = [one.advance(4 * second, 3 * second, forward) for one in (integrator, undisturbed)]
    assert estimates[0].position_variance == pytest.approx(estimates[1].position_variance)
    assert 1.0 < estimates[0].position_variance < 2.0


def _walk_with_covariance(covariances, motions, **options):
    integrator = PoseIntegrator(MotionNoise(1e-6, 1e-6, 1e-6), **options)
    integrator.start(0)
    for index, (motion, covariance) in enumerate(zip(motions, covariances, strict=True)):
        estimate = integrator.advance((index + 1) * SECOND, index * SECOND, motion, covariance)
    return integrator, estimate


def test_the_covariance_of_the_path_is_that_of_many_disturbed_paths():
    """A curve with a mounted camera: sample covariances of position and rotation of the robot against the published."""
    rng = np.random.default_rng(0)
    mounted = transform((0.4, -0.1, 1.2), (-0.5, 0.5, -0.5, 0.5))
    motions = [exponential(np.array([0.02, 0.01, 1.0, 0.0, 0.08, 0.01]))] * 15
    deviations = np.array([0.01, 0.004, 0.03, 0.002, 0.005, 0.003])
    mixed = np.eye(6) + 0.3 * rng.normal(size=(6, 6))
    root = np.diag(deviations) @ mixed
    covariance = root @ root.T
    _, estimate = _walk_with_covariance([covariance] * 15, motions)
    robot = on_robot(estimate, mounted)
    errors, twists = [], []
    for _ in range(3000):
        pose = np.eye(4)
        for motion in motions:
            disturbed = odometry.exponential(root @ rng.normal(size=6)) @ motion
            pose = pose @ disturbed
        true = mounted @ pose @ inverse(mounted)
        errors.append(
            np.concatenate([true[:3, 3] - robot.pose[:3, 3], rotation_vector(true[:3, :3] @ robot.pose[:3, :3].T)])
        )
        twists.append(logarithm(mounted @ disturbed @ inverse(mounted)) - robot.twist)
    for found, said in ((errors, robot.pose_covariance()), (twists, robot.twist_covariance())):
        sampled, said = np.cov(np.array(found).T), np.array(said).reshape(6, 6)
        scale = np.sqrt(np.outer(np.diag(said), np.diag(said)))
        np.testing.assert_allclose(sampled / scale, said / scale, atol=0.12)


def test_a_wrong_heading_puts_the_end_of_a_long_straight_aside():
    heading = np.diag([0, 0, 0, 0, 0.01**2, 0])  # about the optical y: left and right
    straight = transform((0, 0, 5), (0, 0, 0, 1))
    _, estimate = _walk_with_covariance([heading] + [np.zeros((6, 6))] * 19, [straight] * 20)
    robot = on_robot(estimate, OPTICAL)
    covariance = np.array(robot.pose_covariance()).reshape(6, 6)
    assert np.sqrt(covariance[1, 1]) == pytest.approx(0.01 * 100, rel=0.01)  # y of the robot, after 100 m
    assert np.sqrt(covariance[0, 0]) < 1e-4
    assert covariance[1, 5] == pytest.approx(100 * 0.01**2, rel=0.01)


def test_standing_makes_the_pose_no_less_certain():
    integrator = PoseIntegrator()
    integrator.start(0)
    before = integrator.advance(SECOND, 0, transform((0, 0, 1), (0, 0, 0, 1)), 1e-6 * np.eye(6))
    for index in range(1, 1000):
        after = integrator.advance((index + 1) * SECOND, index * SECOND, np.eye(4), np.zeros((6, 6)))
    np.testing.assert_allclose(after.pose_covariance(), before.pose_covariance())
    assert np.diag(np.reshape(after.twist_covariance(), (6, 6))).min() > 0


def test_a_motion_that_began_earlier_is_slower():
    integrator = PoseIntegrator()
    integrator.start(0)
    for index in range(1, 4):
        integrator.advance(index * SECOND, (index - 1) * SECOND, np.eye(4))
    estimate = integrator.advance(4 * SECOND, 3 * SECOND, transform((0, 0, 2), (0, 0, 0, 1)), since_ns=0)
    assert not estimate.lost
    np.testing.assert_allclose(estimate.twist, [0, 0, 0.5, 0, 0, 0])


def test_the_first_scale_multiplies_the_covariance_of_the_networks():
    integrator, relative = _walk_with_covariance([1e-4 * np.eye(6)], [transform((0, 0, 1), (0, 0, 0, 1))], metric=False)
    integrator.use_scale(3.0)
    metric = integrator.advance(2 * SECOND, SECOND, transform((0, 0, 1), (0, 0, 0, 1)), 1e-4 * np.eye(6))
    # both motions in metres: the second as the first, seen from where the first ended, 3 m ahead
    one = np.diag([9e-4] * 3 + [1e-4] * 3)
    seen = adjoint(transform((0, 0, 3), (0, 0, 0, 1)))
    np.testing.assert_allclose(metric.pose_uncertainty, one + seen @ one @ seen.T)
    assert relative.position_variance == UNKNOWN_VARIANCE
