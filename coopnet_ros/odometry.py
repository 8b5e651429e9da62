"""Integration of the camera's motion and its conversion to the robot's frame (REP-103, REP-105). Pure numpy.

Poses are (4, 4) float64 matrices `T_dst_src`; a twist is (6,): linear (m/s) then angular (rad/s) velocity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coopnet_core.errors import UsageError

UNKNOWN_VARIANCE = 9999.0
"""Variance of what is not known: the pose when lost, a translation whose scale is unknown."""


@dataclass(frozen=True)
class MotionNoise:
    """Standard deviations of one pair's motion: the translation's fraction of its length, its floor, the rotation."""

    translation_fraction: float = 0.05
    translation_floor: float = 0.005
    rotation: float = 0.002


@dataclass(frozen=True)
class OdometryEstimate:
    """Where the robot is, in the odometry frame, and how fast it moves, in its own frame.

    Attributes:
        pose: T_odom_child, (4, 4).
        twist: (6,) in the child frame; zeros where unknown.
        position_variance, orientation_variance: variances of the pose, m^2 and rad^2, each axis.
        linear_variance, angular_variance: variances of the twist, (m/s)^2 and (rad/s)^2, each axis.
        lost: this frame could not be connected with the one before it.
    """

    pose: np.ndarray
    twist: np.ndarray
    position_variance: float
    orientation_variance: float
    linear_variance: float
    angular_variance: float
    lost: bool

    def pose_covariance(self) -> np.ndarray:
        """(36,) row-major, order x y z rotation-x rotation-y rotation-z."""
        return _diagonal(self.position_variance, self.orientation_variance)

    def twist_covariance(self) -> np.ndarray:
        """(36,) row-major, order as of the pose."""
        return _diagonal(self.linear_variance, self.angular_variance)


class PoseIntegrator:
    """Chains the motions of successive pairs, in the camera's optical frame.

    The mounting of the camera enters only in `in_robot_frame`, so that it may become known later than the motion.
    """

    def __init__(self, noise: MotionNoise | None = None) -> None:
        """Start at the origin, at an unknown time."""
        self._noise = noise or MotionNoise()
        self._pose = np.eye(4)
        self._stamp_ns: int | None = None
        self._twist = np.zeros(6)
        self._position_variance = self._noise.translation_floor**2
        self._orientation_variance = self._noise.rotation**2

    @property
    def pose(self) -> np.ndarray:
        """T_first_current of the camera, (4, 4)."""
        return self._pose.copy()

    def set_noise(self, noise: MotionNoise) -> None:
        """Use other standard deviations from the next motion on."""
        self._noise = noise

    def advance(self, stamp_ns: int, previous_stamp_ns: int, T_previous_current: np.ndarray) -> OdometryEstimate:
        """Add the motion between two frames; lost if it does not start where the last one ended.

        Args:
            stamp_ns: stamp of the newer frame.
            previous_stamp_ns: stamp of the older frame.
            T_previous_current: (4, 4) pose of the camera in the previous camera's frame.
        """
        connected = self._stamp_ns is None or previous_stamp_ns == self._stamp_ns
        if not connected or stamp_ns <= previous_stamp_ns or not is_rigid(T_previous_current):
            return self.interrupt(stamp_ns)
        interval = (stamp_ns - previous_stamp_ns) * 1e-9
        self._pose = orthonormal(self._pose @ T_previous_current)
        self._stamp_ns = stamp_ns
        self._twist = logarithm(T_previous_current) / interval
        length = float(np.linalg.norm(T_previous_current[:3, 3]))
        translation = (self._noise.translation_fraction * length) ** 2 + self._noise.translation_floor**2
        rotation = self._noise.rotation**2
        self._position_variance = min(self._position_variance + translation, UNKNOWN_VARIANCE)
        self._orientation_variance = min(self._orientation_variance + rotation, UNKNOWN_VARIANCE)
        return self._estimate(translation / interval**2, rotation / interval**2, lost=False)

    def start(self, stamp_ns: int) -> OdometryEstimate:
        """The first frame: the pose is the present one by definition, the speed is not known yet."""
        self._stamp_ns = stamp_ns
        self._twist = np.zeros(6)
        return self._estimate(UNKNOWN_VARIANCE, UNKNOWN_VARIANCE, lost=False)

    def interrupt(self, stamp_ns: int) -> OdometryEstimate:
        """A frame without a connection to the one before: the pose is kept and said to be lost.

        What may have been travelled unseen, at the last known speed, stays in the variance of the pose afterwards.
        """
        unseen = max(0.0, (stamp_ns - self._stamp_ns) * 1e-9) if self._stamp_ns is not None else 0.0
        linear, angular = np.linalg.norm(self._twist[:3]), np.linalg.norm(self._twist[3:])
        self._position_variance = min(self._position_variance + float(linear * unseen) ** 2, UNKNOWN_VARIANCE)
        self._orientation_variance = min(self._orientation_variance + float(angular * unseen) ** 2, UNKNOWN_VARIANCE)
        self._stamp_ns = stamp_ns
        self._twist = np.zeros(6)
        return OdometryEstimate(
            self.pose, np.zeros(6), UNKNOWN_VARIANCE, UNKNOWN_VARIANCE, UNKNOWN_VARIANCE, UNKNOWN_VARIANCE, lost=True
        )

    def _estimate(self, linear_variance: float, angular_variance: float, lost: bool) -> OdometryEstimate:
        return OdometryEstimate(
            pose=self.pose,
            twist=self._twist.copy(),
            position_variance=self._position_variance,
            orientation_variance=self._orientation_variance,
            linear_variance=min(linear_variance, UNKNOWN_VARIANCE),
            angular_variance=min(angular_variance, UNKNOWN_VARIANCE),
            lost=lost,
        )


def in_robot_frame(estimate: OdometryEstimate, T_base_camera: np.ndarray, metric: bool) -> OdometryEstimate:
    """The camera's estimate as the robot's: odom is base_link at the first frame, x ahead, y left, z up.

    Args:
        estimate: pose and twist of the optical frame.
        T_base_camera: (4, 4) pose of the optical frame in base_link.
        metric: whether the translation is in metres. Otherwise its variances are unknown, and only the rotation of the
            mounting is used: a lever arm in metres means nothing beside a translation in another unit.
    """
    if not metric:
        T_base_camera = rotation_only(T_base_camera)
    pose = T_base_camera @ estimate.pose @ inverse(T_base_camera)
    return OdometryEstimate(
        pose=pose,
        twist=adjoint(T_base_camera) @ estimate.twist,
        position_variance=estimate.position_variance if metric else UNKNOWN_VARIANCE,
        orientation_variance=estimate.orientation_variance,
        linear_variance=estimate.linear_variance if metric else UNKNOWN_VARIANCE,
        angular_variance=estimate.angular_variance,
        lost=estimate.lost,
    )


def rotation_only(T: np.ndarray) -> np.ndarray:
    """A rigid transform (4, 4) without its translation."""
    result = T.copy()
    result[:3, 3] = 0.0
    return result


def inverse(T: np.ndarray) -> np.ndarray:
    """Inverse of a rigid transform, (4, 4)."""
    result = np.eye(4)
    result[:3, :3] = T[:3, :3].T
    result[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return result


def adjoint(T: np.ndarray) -> np.ndarray:
    """(6, 6) matrix that takes a twist (linear, angular) of the source frame to the destination frame."""
    rotation, translation = T[:3, :3], T[:3, 3]
    result = np.zeros((6, 6))
    result[:3, :3] = rotation
    result[3:, 3:] = rotation
    result[:3, 3:] = _skew(translation) @ rotation
    return result


def orthonormal(T: np.ndarray) -> np.ndarray:
    """The nearest rigid transform: rounding of thousands of products would otherwise shear the axes."""
    u, _, vt = np.linalg.svd(T[:3, :3])
    result = np.eye(4)
    result[:3, :3] = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    result[:3, 3] = T[:3, 3]
    return result


def is_rigid(T: np.ndarray, tolerance: float = 1e-3) -> bool:
    """Whether a matrix is a finite (4, 4) rigid transform."""
    T = np.asarray(T, dtype=np.float64)
    if T.shape != (4, 4) or not np.isfinite(T).all():
        return False
    rotation = T[:3, :3]
    return bool(np.allclose(rotation @ rotation.T, np.eye(3), atol=tolerance) and np.linalg.det(rotation) > 0)


def logarithm(T: np.ndarray) -> np.ndarray:
    """(6,) twist (linear, angular) that, held for one unit of time, makes the rigid transform T."""
    omega = rotation_vector(T[:3, :3])
    angle = float(np.linalg.norm(omega))
    skew = _skew(omega)
    # the second-order series keeps full precision below the angle where 1 - cos loses it
    factor = 1 / 12 if angle < 1e-4 else (1 - angle / 2 / np.tan(angle / 2)) / angle**2
    inverse_left_jacobian = np.eye(3) - 0.5 * skew + factor * skew @ skew
    return np.concatenate([inverse_left_jacobian @ T[:3, 3], omega])


def rotation_vector(R: np.ndarray) -> np.ndarray:
    """(3,) axis times angle (rad) of a rotation matrix."""
    x, y, z, w = quaternion_from_matrix(R)
    vector = np.array([x, y, z])
    sine = float(np.linalg.norm(vector))
    if sine < 1e-12:
        return 2.0 * vector
    return vector / sine * 2.0 * np.arctan2(sine, w)


def quaternion_from_matrix(R: np.ndarray) -> np.ndarray:
    """(4,) unit quaternion x y z w with w >= 0 of a rotation matrix."""
    m = np.asarray(R, dtype=np.float64)
    # the largest of the four squared components is divided by: none of the branches is ill-conditioned
    squares = np.array(
        [
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
            1 + m[0, 0] + m[1, 1] + m[2, 2],
        ]
    )
    largest = int(np.argmax(squares))
    rows = (
        (squares[0], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]),
        (m[0, 1] + m[1, 0], squares[1], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]),
        (m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[2], m[1, 0] - m[0, 1]),
        (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]),
    )
    quaternion = np.array(rows[largest])
    quaternion /= np.linalg.norm(quaternion)
    return quaternion if quaternion[3] >= 0 else -quaternion


def matrix_from_quaternion(quaternion: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """(3, 3) rotation matrix of a quaternion x y z w (normalised here).

    Raises:
        UsageError: its norm is zero or not finite.
    """
    q = np.asarray(quaternion, dtype=np.float64)
    norm = np.linalg.norm(q)
    if q.shape != (4,) or not np.isfinite(norm) or norm < 1e-9:
        raise UsageError(f"Quaternion {tuple(quaternion)}: four numbers x y z w of norm 1 were expected.")
    x, y, z, w = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def transform(translation: tuple[float, ...] | np.ndarray, quaternion: tuple[float, ...] | np.ndarray) -> np.ndarray:
    """(4, 4) rigid transform of a translation x y z and a quaternion x y z w."""
    result = np.eye(4)
    result[:3, :3] = matrix_from_quaternion(quaternion)
    result[:3, 3] = translation
    return result


def _skew(v: np.ndarray) -> np.ndarray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def _diagonal(first: float, second: float) -> np.ndarray:
    return np.diag([first] * 3 + [second] * 3).reshape(-1)
