"""The height of the camera above the ground, measured in the depth image. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coopnet_core.geometry.camera import Camera
from coopnet_ros.point_cloud import ray_slopes
from coopnet_ros.scale_tracker import NoSampleError

_BELOW_HORIZON_DEGREES = 5.0
"""Nearer to the horizon the ground is far away, and its depth the worst."""
_MOST_PIXELS = 2000
_FEWEST_PIXELS = 50
_TOLERANCE = 0.1
"""A pixel on the ground may lie so far above or below it, as a share of the camera's height."""
_LEAST_SHARE = 0.4
_LARGEST_TILT_DEGREES = 15.0


@dataclass(frozen=True)
class Ground:
    """The ground as the depth shows it.

    Attributes:
        distance: of the camera's centre from the ground, in the unit of the depth.
        share: of what is seen below the horizon, the part on the ground; near pixels weigh more.
        tilt_degrees: between the plane through the pixels on the ground and the ground that the mounting expects.
    """

    distance: float
    share: float
    tilt_degrees: float


def find_ground(depth: np.ndarray, camera: Camera, up: np.ndarray, excluded: np.ndarray | None = None) -> Ground:
    """The level plane that holds most of what is seen below the horizon.

    Its direction is that of the mounting, only its distance is measured. A plane of free direction would follow the
    camera's pitch, but also the bend of a learned depth: where that grows too slowly with the distance, a free plane
    explains it by a tilt, and its distance is wrong (test_ground_plane.py shows how far).

    Args:
        depth: (h, w) along the optical axis, any unit; what is not finite and positive is left out.
        camera: of the depth image, without distortion.
        up: (3,) unit vector in the optical frame, away from the ground, as the mounting of the camera says.
        excluded: (h, w) bool, pixels that are no ground, such as those that move.

    Raises:
        NoSampleError: too little is seen below the horizon, or it is no level ground.
    """
    points = _points_below_horizon(depth, camera, up, excluded)
    if len(points) < _FEWEST_PIXELS:
        raise NoSampleError(
            f"{len(points)} pixels with a depth look at the ground, at least {_FEWEST_PIXELS} were expected: it is "
            "hidden or out of view, or base_to_camera.rotation is not that of this camera"
        )
    heights = -(points @ up)
    # near ground weighs more: fewer obstacles hide it, its depth is better, and the mounting's pitch matters less there
    weights = heights / np.linalg.norm(points, axis=1)
    distance, share = _densest(heights, weights)
    on_ground = np.abs(np.log(heights / distance)) < _TOLERANCE
    tilt = _tilt_degrees(points[on_ground], up)
    if share < _LEAST_SHARE or tilt > _LARGEST_TILT_DEGREES:
        raise NoSampleError(
            f"no ground is seen: the best level plane holds {100 * share:.0f} % of what is below the horizon, and what "
            f"it holds is tilted by {tilt:.0f} degrees; at least {100 * _LEAST_SHARE:.0f} % and at most "
            f"{_LARGEST_TILT_DEGREES:.0f} degrees were expected"
        )
    return Ground(distance, share, tilt)


def _points_below_horizon(depth: np.ndarray, camera: Camera, up: np.ndarray, excluded: np.ndarray | None) -> np.ndarray:
    """(N, 3) points of the pixels whose rays go down, thinned out evenly to about `_MOST_PIXELS`."""
    slope_x, slope_y = ray_slopes(camera, 1)
    rays = np.stack(np.broadcast_arrays(slope_x, slope_y, np.float32(1)), axis=-1).reshape(-1, 3)
    usable = rays @ up < -np.sin(np.radians(_BELOW_HORIZON_DEGREES)) * np.linalg.norm(rays, axis=1)
    values = depth.reshape(-1).astype(np.float64)
    usable &= np.isfinite(values) & (values > 0)
    if excluded is not None:
        usable &= ~excluded.reshape(-1)
    chosen = np.flatnonzero(usable)
    chosen = chosen[:: max(1, len(chosen) // _MOST_PIXELS)]
    return rays[chosen] * values[chosen, None]


def _densest(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The weighted median of the positive values in the interval +-`_TOLERANCE` of most weight, and its share."""
    order = np.argsort(values)
    logarithms = np.log(values[order])
    cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
    ends = np.searchsorted(logarithms, logarithms + 2 * _TOLERANCE, side="right")
    held = cumulated[ends] - cumulated[:-1]
    first = int(np.argmax(held))
    middle = cumulated[first] + held[first] / 2
    median = values[order[np.searchsorted(cumulated[1:], middle)]]
    return float(median), float(held[first] / cumulated[-1])


def _tilt_degrees(points: np.ndarray, up: np.ndarray) -> float:
    """Angle between `up` and the normal of the plane p . X = -1 through the points (N, 3): a wall has 90 degrees."""
    plane = np.linalg.lstsq(points, -np.ones(len(points)), rcond=None)[0]
    length = float(np.linalg.norm(plane))
    return float(np.degrees(np.arccos(np.clip(plane @ up / length, -1.0, 1.0)))) if length > 0 else 180.0
