"""The ground in the depth: against depth cast from planes, boxes and bumps, in units of half a metre."""

from __future__ import annotations

import numpy as np
import pytest
from ros.rig_truth import turn

from coopnet_core.geometry.camera import Camera
from coopnet_ros.ground_plane import find_ground
from coopnet_ros.odometry import transform
from coopnet_ros.scale_tracker import NoSampleError

CAMERA = Camera(208, 64, 123.0, 123.0, 102.0, 29.5)
HEIGHT = 1.65
UNIT = 0.5
AHEAD = transform((0, 0, 0), (-0.5, 0.5, -0.5, 0.5))
SKY = 80.0


def directions(mount: np.ndarray = AHEAD) -> np.ndarray:
    """(h, w, 3) in the robot's axes, of one unit along the optical axis."""
    y, x = np.mgrid[: CAMERA.height, : CAMERA.width]
    rays = np.stack([(x - CAMERA.cx) / CAMERA.fx, (y - CAMERA.cy) / CAMERA.fy, np.ones(x.shape)], axis=-1)
    return rays @ mount[:3, :3].T


RAYS = directions()


def level(mount: np.ndarray = AHEAD, height: float = HEIGHT) -> np.ndarray:
    """(h, w) metres along the optical axis to level ground, `SKY` beyond."""
    down = -directions(mount)[..., 2]
    return np.where(down > height / SKY, height / np.maximum(down, 1e-9), SKY)


def relief(elevation) -> np.ndarray:
    """(h, w) metres to ground whose elevation is a function of x (ahead) and y (left), found by marching."""
    depth = np.full((CAMERA.height, CAMERA.width), SKY)
    x, y, z = np.moveaxis(RAYS, -1, 0)
    for step in np.arange(1.0, SKY, 0.01):
        below = HEIGHT + z * step < elevation(x * step, y * step)
        depth[below & (depth == SKY)] = step
    return depth


def distance(depth: np.ndarray, mount: np.ndarray = AHEAD, **kwargs) -> float:
    """Of the ground from the camera, metres."""
    return find_ground((depth / UNIT).astype(np.float32), CAMERA, mount[2, :3], **kwargs).distance * UNIT


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (20, 0), (-5, 0), (0, 8), (35, -12), (90, 0)])
def test_the_height_over_level_ground_whichever_way_the_camera_is_mounted(pitch, roll):
    mount = turn("y", pitch) @ turn("x", roll) @ AHEAD
    depth = level(mount)
    assert distance(depth, mount) == pytest.approx(HEIGHT, rel=1e-5)
    ground = find_ground(depth, CAMERA, mount[2, :3])
    assert ground.share == pytest.approx(1.0)
    assert ground.tilt_degrees < 0.01


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.06])
def test_noise(noise):
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        errors.append(distance(level() * np.exp(noise * rng.normal(size=level().shape))) / HEIGHT - 1)
    assert np.abs(errors).max() < 0.02


def test_outliers_and_pixels_without_a_depth():
    rng = np.random.default_rng(0)
    depth = level()
    wrong = rng.random(depth.shape) < 0.2
    depth[wrong] = rng.uniform(0.5, 60.0, wrong.sum())
    for value in (np.nan, np.inf, 0.0, -3.0):
        depth[rng.random(depth.shape) < 0.05] = value
    assert distance(depth) == pytest.approx(HEIGHT, rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_the_ground_is_hidden_by_obstacles(seed):
    """Upright faces that stand on the ground, until they hide 30 % of what is below the horizon."""
    rng = np.random.default_rng(seed)
    depth, ground = level(), level()
    below = ground < SKY
    while (depth < ground - 1e-6)[below].mean() < 0.3:
        left, width = rng.integers(CAMERA.width), rng.integers(10, 40)
        near = rng.uniform(4.0, 15.0)
        columns = np.s_[:, left : left + width]
        top = RAYS[columns][..., 2] * near + HEIGHT < rng.uniform(0.5, 2.0)
        depth[columns] = np.where(top & (depth[columns] > near), near, depth[columns])
    assert distance(depth) == pytest.approx(HEIGHT, rel=0.01)


def test_what_moves_is_left_out():
    """A lorry's flat bed, level too, in front of 60 % of the ground."""
    depth = level()
    moving = np.zeros(depth.shape, bool)
    moving[:, : int(0.6 * CAMERA.width)] = True
    depth[moving] = level(height=HEIGHT / 2)[moving]
    assert distance(depth) == pytest.approx(HEIGHT / 2, rel=0.01)
    assert distance(depth, excluded=moving) == pytest.approx(HEIGHT, rel=0.01)


@pytest.mark.parametrize("unevenness", ["bumps", "kerb", "ramp"])
def test_ground_that_is_not_flat(unevenness):
    elevation = {
        "bumps": lambda x, y: 0.06 * np.sin(1.3 * x) * np.cos(0.7 * y),
        "kerb": lambda x, y: np.where(y < -2.0, 0.12, 0.0),
        "ramp": lambda x, y: 0.06 * np.maximum(x - 12.0, 0.0),
    }[unevenness]
    assert distance(relief(elevation)) == pytest.approx(HEIGHT, rel=0.03)


def test_a_depth_that_bends_as_learned_ones_do_keeps_the_scale_of_the_near_ground():
    """Right at 6 m, a third too small at 20 m. A plane of free direction would be off by more than a fifth."""
    depth = level()
    bent = depth * (np.maximum(depth, 6.0) / 6.0) ** -0.3
    assert distance(bent) == pytest.approx(HEIGHT, rel=0.08)
    points = (RAYS @ AHEAD[:3, :3] * bent[..., None])[depth < 20]
    free = 1 / np.linalg.norm(np.linalg.lstsq(points, -np.ones(len(points)), rcond=None)[0])
    assert free > 1.2 * HEIGHT


def test_the_nodding_of_the_robot_averages_out():
    found = [distance(level(turn("y", pitch) @ AHEAD)) for pitch in np.sin(np.arange(40))]
    assert np.median(found) == pytest.approx(HEIGHT, rel=0.02)


@pytest.mark.parametrize(("pitch", "factor"), [(-1, 1.08), (1, 0.92)])
def test_a_mounting_that_is_wrong_by_a_degree_costs_8_percent(pitch, factor):
    """With the 15 degrees below the horizon that this camera sees."""
    assert distance(level(turn("y", pitch) @ AHEAD)) == pytest.approx(factor * HEIGHT, rel=0.015)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.1])
def test_a_wall_is_no_ground(noise):
    depth = 7.0 * np.exp(noise * np.random.default_rng(0).normal(size=level().shape))
    with pytest.raises(NoSampleError, match="no ground is seen"):
        distance(depth)


def test_a_thicket_is_no_ground():
    depth = np.exp(np.random.default_rng(0).uniform(np.log(1.0), np.log(40.0), level().shape))
    with pytest.raises(NoSampleError, match="no ground is seen"):
        distance(depth)


def test_a_camera_that_looks_up_sees_no_ground():
    mount = turn("y", -40) @ AHEAD
    with pytest.raises(NoSampleError, match="0 pixels"):
        distance(np.full(level().shape, 5.0), mount)


def test_a_depth_that_is_not_finite_anywhere_is_no_ground():
    with pytest.raises(NoSampleError, match="0 pixels"):
        distance(np.full(level().shape, np.nan))


def test_the_same_image_gives_the_same_ground():
    depth = level() * np.exp(0.1 * np.random.default_rng(3).normal(size=level().shape))
    assert distance(depth) == distance(depth)
