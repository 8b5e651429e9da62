"""The organised cloud against closed forms, and its bytes as an independent reader sees them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from coopnet_core.geometry.camera import Camera
from coopnet_ros.point_cloud import POINT_XYZ, POINT_XYZRGB, organised_cloud, packed_rgb, ray_slopes

CAMERA = Camera(31, 18, 27.0, 35.0, 12.25, 9.75)
"""Nothing symmetric: another focal length and another centre in x than in y."""
PIXELS = np.stack(np.meshgrid(np.arange(31.0), np.arange(18.0)), axis=-1)
RANDOM = np.random.default_rng(3)
DEPTH = RANDOM.uniform(0.5, 80.0, (18, 31)).astype(np.float32)
IMAGE = RANDOM.integers(0, 256, (18, 31, 3), dtype=np.uint8)


def xyz(points: np.ndarray) -> np.ndarray:
    return np.stack([points["x"], points["y"], points["z"]], axis=-1)


def test_a_plane_is_a_plane():
    """A road 1.5 m below a camera that looks 8 degrees down: n X = 1.5 on every ray that meets it."""
    normal = np.array([0.0, np.cos(np.radians(8)), np.sin(np.radians(8))])
    rays = np.concatenate([PIXELS, np.ones((18, 31, 1))], axis=-1) @ np.linalg.inv(CAMERA.matrix).T
    depth = (1.5 / (rays @ normal)).astype(np.float32)
    meets = depth > 0
    assert 0.5 < meets.mean() < 1
    points = xyz(organised_cloud(depth, CAMERA))
    np.testing.assert_allclose(points[meets] @ normal, 1.5, rtol=1e-4)
    np.testing.assert_allclose(points[meets], (rays * depth[..., None])[meets], rtol=1e-5, atol=1e-5)
    assert np.isnan(points[~meets]).all()


@pytest.mark.parametrize("stride", [1, 2, 5, 16])
def test_every_point_is_seen_in_the_pixel_it_came_from(stride):
    points = organised_cloud(DEPTH, CAMERA, stride=stride)
    assert points.shape == (-(-18 // stride), -(-31 // stride))
    projected = xyz(points).astype(np.float64) @ CAMERA.matrix.T
    np.testing.assert_allclose(projected[..., :2] / projected[..., 2:], PIXELS[::stride, ::stride], atol=1e-4)
    np.testing.assert_array_equal(points["z"], DEPTH[::stride, ::stride])


def test_the_axes_are_right_down_and_ahead():
    points = organised_cloud(np.full((18, 31), 2.0, np.float32), CAMERA)
    assert points["x"][9, 0] < 0 < points["x"][9, 30]
    assert points["y"][0, 12] < 0 < points["y"][17, 12]
    assert (points["z"] == 2).all()


def test_the_colours_of_known_pixels_are_read_back_from_the_bytes():
    """As PCL and RViz read them: the four bytes at the offset of rgb are one integer 0x00RRGGBB."""
    image = IMAGE.copy()
    image[0, 0], image[7, 3], image[17, 30] = (255, 0, 0), (1, 2, 3), (0, 128, 255)
    points = organised_cloud(DEPTH, CAMERA, image)
    assert points.dtype == POINT_XYZRGB
    data, step, offset = points.tobytes(), points.itemsize, points.dtype.fields["rgb"][1]
    for (row, column), expected in (((0, 0), 0xFF0000), ((7, 3), 0x010203), ((17, 30), 0x0080FF)):
        assert struct.unpack_from("<I", data, (row * 31 + column) * step + offset)[0] == expected
    read = np.array([struct.unpack_from("<fffBBBB", data, index * step) for index in range(18 * 31)])
    np.testing.assert_array_equal(read[:, [5, 4, 3]].reshape(18, 31, 3), image)
    assert (read[:, 6] == 0).all()
    np.testing.assert_array_equal(read[:, :3].astype(np.float32).reshape(18, 31, 3), xyz(points))


def test_packed_colours():
    assert packed_rgb(np.array([[[0x12, 0x34, 0x56]]], np.uint8)).tolist() == [[0x123456]]


def test_a_stride_takes_points_and_colours_out_of_the_whole_cloud():
    whole = organised_cloud(DEPTH, CAMERA, IMAGE, DEPTH > 60)
    thinned = organised_cloud(DEPTH, CAMERA, IMAGE, DEPTH > 60, stride=3)
    assert thinned.tobytes() == whole[::3, ::3].tobytes()


def test_points_without_colour_are_three_floats():
    points = organised_cloud(DEPTH, CAMERA)
    assert (points.dtype, points.itemsize) == (POINT_XYZ, 12)
    np.testing.assert_array_equal(xyz(points), xyz(organised_cloud(DEPTH, CAMERA, IMAGE)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -3.0, 0.0])
def test_where_the_depth_is_none_all_three_are_nan_and_the_colour_stays(bad):
    """Also in the column and the row of the principal point, where infinity times zero would be NaN in one alone."""
    camera = Camera(31, 18, 27.0, 35.0, 12.0, 9.0)
    depth = DEPTH.copy()
    depth[9, 12] = depth[9, 4] = depth[2, 12] = depth[0, 0] = bad
    with np.errstate(all="raise"):
        points = organised_cloud(depth, camera, IMAGE)
    gone = depth != DEPTH
    assert gone.sum() == 4
    assert np.isnan(xyz(points)[gone]).all()
    assert np.isfinite(xyz(points)[~gone]).all()
    np.testing.assert_array_equal(points["rgb"].view(np.uint32), packed_rgb(IMAGE))


def test_removed_pixels_are_nan_and_the_others_as_before():
    removed = np.zeros((18, 31), bool)
    removed[4:9, 10:20] = True
    before, depth = organised_cloud(DEPTH, CAMERA, IMAGE), DEPTH.copy()
    points = organised_cloud(depth, CAMERA, IMAGE, removed)
    assert np.isnan(xyz(points)[removed]).all()
    np.testing.assert_array_equal(points[~removed], before[~removed])
    np.testing.assert_array_equal(depth, DEPTH)


def test_without_anything_removed_every_pixel_is_a_point():
    points = organised_cloud(DEPTH, CAMERA, IMAGE, removed=None)
    assert np.isfinite(xyz(points)).all()
    assert points.tobytes() == organised_cloud(DEPTH, CAMERA, IMAGE, np.zeros((18, 31), bool)).tobytes()


def test_rays_are_computed_once_for_equal_cameras_and_cannot_be_changed():
    first = ray_slopes(CAMERA, 2)
    assert ray_slopes(Camera(31, 18, 27.0, 35.0, 12.25, 9.75), 2) is first
    assert ray_slopes(CAMERA, 3) is not first
    assert ray_slopes(Camera(31, 18, 27.0, 35.0, 12.5, 9.75), 2) is not first
    with pytest.raises(ValueError, match="read-only"):
        first[0][0] = 0
