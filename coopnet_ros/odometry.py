"""Integration of the camera's motion and its conversion to the robot's frame (REP-103, REP-105). Pure numpy.

Poses are (4, 4) float64 matrices `T_dst_src`; a twist is (6,): linear (m/s) then angular (rad/s) velocity. While the
scale is not known, the networks' unit stands for the metre.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
        position_variance, orientation_variance: variances of the pose, m^2 and rad^2, each axis, that do not come from
            the networks.
        linear_variance, angular_variance: likewise of the twist, (m/s)^2 and (rad/s)^2.
        lost: this frame could not be connected with the one before it.
        metric: pose and twist are in metres, by the present scale or by the last one known. Otherwise they are in the
            networks' unit.
        pose_uncertainty: (6, 6) covariance that the networks give their own motions, added up: of u, where exp(u) pose
            is the true one (a small motion about the origin of the odometry frame, translation first).
        twist_uncertainty: (6, 6) likewise of the twist, in the child frame.
    """

    pose: np.ndarray
    twist: np.ndarray
    position_variance: float
    orientation_variance: float
    linear_variance: float
    angular_variance: float
    lost: bool
    metric: bool = True
    pose_uncertainty: np.ndarray = field(default_factory=lambda: np.zeros((6, 6)))
    twist_uncertainty: np.ndarray = field(default_factory=lambda: np.zeros((6, 6)))

    def pose_covariance(self) -> np.ndarray:
        """(36,) row-major, order x y z rotation-x rotation-y rotation-z, along the axes of the odometry frame.

        What turns the path turns its end about the origin: an error of the heading is one of the position as well.
        """
        to_position = np.eye(6)
        to_position[:3, 3:] = -_skew(self.pose[:3, 3])
        networks = to_position @ self.pose_uncertainty @ to_position.T
        return (_diagonal(self.position_variance, self.orientation_variance) + networks).ravel()

    def twist_covariance(self) -> np.ndarray:
        """(36,) row-major, order as of the pose, in the child frame."""
        return (_diagonal(self.linear_variance, self.angular_variance) + self.twist_uncertainty).ravel()


class PoseIntegrator:
    """Chains the motions of successive pairs, in the camera's optical frame.

    The mounting of the camera enters only in `robot_pose.RobotPose`, so that it may become known later than the motion.

    A pose never mixes units. Until the first scale is known it is in the networks' unit; then the path so far is
    multiplied, and from there on the pose is in metres for good. A later scale acts on later motions only: what it
    would have made of the path behind differs from what was published, and that difference is in the variance. While
    the scale is not known any more, the last one goes on, and the variances of all lengths are unknown.
    """

    def __init__(self, noise: MotionNoise | None = None, metric: bool = True) -> None:
        """Start at the origin, at an unknown time.

        Args:
            noise: standard deviations of the motions.
            metric: whether motions are in metres unless `use_scale` says otherwise.
        """
        self._noise = noise or MotionNoise()
        self._pose = np.eye(4)
        self._stamp_ns: int | None = None
        self._twist = np.zeros(6)
        self._metric = self._scale_known = metric
        self._scale: float | None = 1.0 if metric else None
        self._spread = 0.0
        # the path of these networks in their own unit, and where it began in the pose's unit
        self._path = np.zeros(3)
        self._path_start = np.zeros(3)
        # what grows with the path is in the pose's unit, what does not is in metres from the beginning
        self._path_variance = 0.0
        self._floor_variance = self._noise.translation_floor**2
        self._orientation_variance = self._noise.rotation**2
        # what the networks say of their motions, added up, in the pose's unit
        self._uncertainty = np.zeros((6, 6))
        # stamp, variances and twist before the last frame, where that was an interruption
        self._before_interruption: tuple[int, float, float, np.ndarray] | None = None

    @property
    def pose(self) -> np.ndarray:
        """T_first_current of the camera, (4, 4)."""
        return self._pose.copy()

    @property
    def has_moved(self) -> bool:
        """Whether the pose has left the origin."""
        return bool(self._pose[:3, 3].any())

    @property
    def can_go_on(self) -> bool:
        """Whether a motion can be added: not where the pose is in metres and the networks' unit was never known."""
        return not self._metric or self._scale is not None

    def set_noise(self, noise: MotionNoise) -> None:
        """Use other standard deviations from the next motion on."""
        self._noise = noise

    def use_scale(self, metres_per_unit: float | None, spread: float = 0.0) -> None:
        """Take the motions from now on to be of this scale.

        Args:
            metres_per_unit: of the networks' unit; None where it is not known.
            spread: its relative standard deviation from frame to frame.
        """
        self._scale_known = metres_per_unit is not None
        if metres_per_unit is None:
            return
        if not self._metric:
            self._become_metric(metres_per_unit, spread)
        self._scale, self._spread = metres_per_unit, spread

    def change_networks(self) -> None:
        """The motions from now on are of other networks, whose unit is another. The pose is kept."""
        if self._metric:
            self._path_variance += self._disagreement()
        elif self._path.any():
            self._path_variance = np.inf  # of a unit whose length nobody will ever know
        self._before_interruption = None
        self._scale, self._scale_known = None, False
        self._path = np.zeros(3)
        self._path_start = self._pose[:3, 3].copy()

    def advance(
        self,
        stamp_ns: int,
        previous_stamp_ns: int,
        T_previous_current: np.ndarray,
        covariance: np.ndarray | None = None,
        since_ns: int | None = None,
    ) -> OdometryEstimate:
        """Add the motion between two frames; lost if it does not start where the last one ended.

        Lost as well where other networks have taken over a metric pose and their scale is not known yet. A motion that
        is none (a camera that stands) makes the pose no less certain.

        Args:
            stamp_ns: stamp of the newer frame.
            previous_stamp_ns: stamp of the older frame.
            T_previous_current: (4, 4) pose of the camera in the previous camera's frame, in the networks' unit.
            covariance: (6, 6) of u, where exp(u) T_previous_current is the true motion, in the networks' unit; None
                where they do not say: the rotation then has the variance of `MotionNoise`.
            since_ns: stamp of the frame since which the motion was travelled, where that is an earlier one.
        """
        connected = self._stamp_ns is None or previous_stamp_ns == self._stamp_ns
        in_order = connected and stamp_ns > previous_stamp_ns
        if not in_order or not self.can_go_on or not is_rigid(T_previous_current):
            return self.interrupt(stamp_ns)
        self._before_interruption = None
        interval = (stamp_ns - (previous_stamp_ns if since_ns is None else since_ns)) * 1e-9
        motion = scaled(T_previous_current, self._scale or 1.0)
        uncertainty = np.zeros((6, 6)) if covariance is None else scaled_covariance(covariance, self._scale or 1.0)
        to_origin = adjoint(self._pose)
        self._uncertainty = self._uncertainty + to_origin @ uncertainty @ to_origin.T
        self._path = self._path + self._pose[:3, :3] @ T_previous_current[:3, 3]
        self._pose = orthonormal(self._pose @ motion)
        self._stamp_ns = stamp_ns
        self._twist = logarithm(motion) / interval
        length = float(np.linalg.norm(motion[:3, 3]))
        along = (self._noise.translation_fraction**2 + self._spread**2) * length**2
        floor = self._noise.translation_floor**2
        stands = np.array_equal(T_previous_current, np.eye(4))
        rotation = self._noise.rotation**2 if covariance is None or stands else 0.0
        if not stands:
            self._path_variance += along
            self._floor_variance += floor
            self._orientation_variance = min(self._orientation_variance + rotation, UNKNOWN_VARIANCE)
        # an error of the motion is one of the twist as it is seen from half way (to second order in the motion)
        to_twist = adjoint(exponential(-0.5 * interval * self._twist)) / interval
        return self._estimate(
            (along + floor) / interval**2, rotation / interval**2, to_twist @ uncertainty @ to_twist.T
        )

    def start(self, stamp_ns: int) -> OdometryEstimate:
        """The first frame: the pose is the present one by definition, the speed is not known yet."""
        self._stamp_ns = stamp_ns
        self._twist = np.zeros(6)
        return self._estimate(UNKNOWN_VARIANCE, UNKNOWN_VARIANCE)

    def interrupt(self, stamp_ns: int) -> OdometryEstimate:
        """A frame without a connection to the one before: the pose is kept and said to be lost.

        What may have been travelled unseen, at the last known speed, stays in the variance of the pose afterwards;
        not where the next stamp shows that the one of the interruption was wrong (a single stamp in the future).
        """
        before = self._before_interruption
        if before is not None and before[0] <= stamp_ns < self._stamp_ns:
            self._stamp_ns, self._path_variance, self._orientation_variance, self._twist = before
        self._before_interruption = None
        if self._stamp_ns is not None and stamp_ns > self._stamp_ns:
            self._before_interruption = (
                self._stamp_ns,
                self._path_variance,
                self._orientation_variance,
                self._twist,
            )
        unseen = max(0.0, (stamp_ns - self._stamp_ns) * 1e-9) if self._stamp_ns is not None else 0.0
        linear, angular = np.linalg.norm(self._twist[:3]), np.linalg.norm(self._twist[3:])
        self._path_variance += float(linear * unseen) ** 2
        self._orientation_variance = min(self._orientation_variance + float(angular * unseen) ** 2, UNKNOWN_VARIANCE)
        self._stamp_ns = stamp_ns
        self._twist = np.zeros(6)
        unknown = [UNKNOWN_VARIANCE] * 4
        return OdometryEstimate(self.pose, np.zeros(6), *unknown, lost=True, metric=self._metric)

    def _become_metric(self, metres_per_unit: float, spread: float) -> None:
        """Multiply the path so far, and what is known of its error, by the first scale."""
        self._before_interruption = None
        self._pose[:3, 3] *= metres_per_unit
        self._twist[:3] *= metres_per_unit
        self._path_start = self._path_start * metres_per_unit
        self._uncertainty = scaled_covariance(self._uncertainty, metres_per_unit)
        self._path_variance *= metres_per_unit**2
        self._path_variance += float(spread * np.linalg.norm(self._pose[:3, 3])) ** 2
        self._metric = True

    def _disagreement(self) -> float:
        """Squared distance between the path as it was added up and as the present scale would make it."""
        if self._scale is None:
            return 0.0
        difference = self._pose[:3, 3] - self._path_start - self._scale * self._path
        return float(difference @ difference)

    def _estimate(
        self, linear_variance: float, angular_variance: float, twist_uncertainty: np.ndarray | None = None
    ) -> OdometryEstimate:
        position_variance = self._path_variance + self._floor_variance + self._disagreement()
        return OdometryEstimate(
            pose=self.pose,
            twist=self._twist.copy(),
            position_variance=min(position_variance, UNKNOWN_VARIANCE) if self._scale_known else UNKNOWN_VARIANCE,
            orientation_variance=self._orientation_variance,
            linear_variance=min(linear_variance, UNKNOWN_VARIANCE) if self._scale_known else UNKNOWN_VARIANCE,
            angular_variance=min(angular_variance, UNKNOWN_VARIANCE),
            lost=False,
            metric=self._metric,
            pose_uncertainty=self._uncertainty.copy(),
            twist_uncertainty=np.zeros((6, 6)) if twist_uncertainty is None else twist_uncertainty,
        )


def scaled(T: np.ndarray, factor: float) -> np.ndarray:
    """A rigid transform (4, 4) whose translation is multiplied."""
    result = T.copy()
    result[:3, 3] *= factor
    return result


def scaled_covariance(covariance: np.ndarray, factor: float) -> np.ndarray:
    """(6, 6) of a motion (translation, rotation) whose translation is multiplied."""
    factors = np.array([factor] * 3 + [1.0] * 3)
    return covariance * np.outer(factors, factors)


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
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    return bool(error <= tolerance and np.linalg.det(rotation) > 0)


def logarithm(T: np.ndarray) -> np.ndarray:
    """(6,) twist (linear, angular) that, held for one unit of time, makes the rigid transform T."""
    omega = rotation_vector(T[:3, :3])
    angle = float(np.linalg.norm(omega))
    skew = _skew(omega)
    # the second-order series keeps full precision below the angle where 1 - cos loses it
    factor = 1 / 12 if angle < 1e-4 else (1 - angle / 2 / np.tan(angle / 2)) / angle**2
    inverse_left_jacobian = np.eye(3) - 0.5 * skew + factor * skew @ skew
    return np.concatenate([inverse_left_jacobian @ T[:3, 3], omega])


def exponential(twist: np.ndarray) -> np.ndarray:
    """(4, 4) rigid transform that a twist (6,) (linear, angular) makes when held for one unit of time."""
    angle = float(np.linalg.norm(twist[3:]))
    skew = _skew(twist[3:])
    if angle < 1e-4:  # series, where the closed form loses its digits
        sine, cosine, cubic = 1 - angle**2 / 6, 0.5 - angle**2 / 24, 1 / 6
    else:
        sine, cosine = np.sin(angle) / angle, (1 - np.cos(angle)) / angle**2
        cubic = (angle - np.sin(angle)) / angle**3
    result = np.eye(4)
    result[:3, :3] += sine * skew + cosine * skew @ skew
    result[:3, 3] = (np.eye(3) + cosine * skew + cubic * skew @ skew) @ twist[:3]
    return result


def interpolate(T_start: np.ndarray, T_end: np.ndarray, share: float) -> np.ndarray:
    """(4, 4) the pose a share in [0, 1] of the way between two poses, at constant linear and angular velocity."""
    return T_start @ exponential(share * logarithm(inverse(T_start) @ T_end))


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
    # plain numbers: taking them out of an array one by one costs more than what is done with them
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(R, dtype=np.float64).tolist()
    # the largest of the four squared components is divided by: none of the branches is ill-conditioned
    squares = (1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz, 1 + xx + yy + zz)
    largest = squares.index(max(squares))
    rows = (
        (squares[0], xy + yx, xz + zx, zy - yz),
        (xy + yx, squares[1], yz + zy, xz - zx),
        (xz + zx, yz + zy, squares[2], yx - xy),
        (zy - yz, xz - zx, yx - xy, squares[3]),
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
    return np.diag([first] * 3 + [second] * 3)
