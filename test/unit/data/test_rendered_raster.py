"""Ray casting and textures against loops over single rays and texels."""

from __future__ import annotations

import numpy as np
import pytest

from coopnet_core.data.rendered_objects import face
from coopnet_core.data.rendered_raster import NEAR, cast_grid, concatenate, hidden, ray_axes, view
from coopnet_core.data.rendered_textures import build_atlas, noise
from coopnet_core.geometry.camera import Camera

CAMERA = Camera(40, 24, 30.0, 28.0, 18.3, 12.1)


def random_faces(rng: np.random.Generator, count: int):
    parts = []
    for _ in range(count):
        basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        centre = np.array([rng.uniform(-4, 4), rng.uniform(-2, 2), rng.uniform(-1, 9)])
        parts.append(face(centre, basis[0], basis[1], tuple(rng.uniform(0.5, 6, 2)), 0))
    return concatenate(parts)


def first_hit(faces, ray: np.ndarray, limit: float = np.inf, skip: int = -1) -> tuple[float, int]:
    """Nearest front side that a ray from the origin meets: one face after the other, nothing clever."""
    best, which = limit, -1
    for q in range(len(faces)):
        u, v, corner = faces.axis_u[q], faces.axis_v[q], faces.origin[q]
        normal = np.cross(u, v)
        if q == skip or normal @ corner >= 0:
            continue
        solution = np.linalg.solve(np.column_stack([ray, -u, -v]), corner)
        depth, along_u, along_v = solution
        inside = 0 <= along_u <= faces.size[q, 0] and 0 <= along_v <= faces.size[q, 1]
        if inside and NEAR < depth < best:
            best, which = depth, q
    return best, which


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("supersampling", [1, 2])
def test_every_ray_meets_the_nearest_front_side(seed, supersampling):
    faces = random_faces(np.random.default_rng(seed), 14)
    depth, which = cast_grid(view(faces, np.eye(4), CAMERA), supersampling)
    xs, ys = ray_axes(CAMERA, supersampling)
    wrong = 0
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            expected, face_index = first_hit(faces, np.array([x, y, 1.0]))
            if which[j, i] != face_index:
                wrong += 1  # a ray within rounding of an edge
            elif face_index >= 0:
                assert depth[j, i] == pytest.approx(expected, rel=1e-4)
    assert wrong <= 0.003 * depth.size


def test_no_ray_falls_between_two_faces_that_share_an_edge():
    # Far walls, as around a rendered street: rounding there is that of hundreds of metres.
    camera = Camera(640, 40, 500.0, 500.0, 319.5, 19.5)
    rng = np.random.default_rng(5)
    down = np.array([0.0, 1.0, 0.0])
    for _ in range(100):
        turn, distance = rng.uniform(-0.5, 0.5), rng.uniform(50, 300)
        along = np.array([np.cos(turn), 0.0, np.sin(turn)])
        towards = np.array([np.sin(turn), 0.0, -np.cos(turn)])
        corner = np.array([rng.uniform(-5, 5), rng.uniform(-1, 1), distance])
        walls = [
            face(corner + x * 400 * along + y * 30 * down, towards, down, (800.0, 60.0), 0)
            for x in (-1, 1)
            for y in (-1, 1)
        ]
        _, which = cast_grid(view(concatenate(walls), np.eye(4), camera), 2)
        assert (which >= 0).all()


@pytest.mark.parametrize("seed", [3, 4])
def test_hidden_points_are_those_with_a_face_before_them(seed):
    rng = np.random.default_rng(seed)
    faces = random_faces(rng, 14)
    scene = view(faces, np.eye(4), CAMERA)
    owner = rng.integers(0, len(faces), 400)
    share = rng.uniform(0, 1, (400, 2)) * faces.size[owner]
    points = faces.origin[owner] + share[:, :1] * faces.axis_u[owner] + share[:, 1:] * faces.axis_v[owner]
    result = hidden(scene, points, owner)
    for point, q, found in zip(points, owner, result, strict=True):
        normal = np.cross(faces.axis_u[q], faces.axis_v[q])
        expected = point[2] <= NEAR or normal @ faces.origin[q] >= 0
        if not expected:
            u, v = (CAMERA.matrix @ point)[:2] / point[2]
            expected = not (-0.5 <= u <= CAMERA.width - 0.5 and -0.5 <= v <= CAMERA.height - 0.5)
        if not expected:
            expected = first_hit(faces, point / point[2], point[2] * (1 - 1e-3), skip=q)[1] >= 0
        assert found == expected
    assert 0.1 < result.mean() < 0.98


def test_atlas_returns_texels_at_their_centres_and_means_from_afar():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (16, 32, 3)).round().astype(np.float32)
    atlas = build_atlas([np.zeros((4, 4, 3), np.float32), image])
    rows, columns = np.mgrid[0:16, 0:32]
    texture = np.ones(rows.size, np.int64)
    u, v = (grid.ravel().astype(np.float32) + np.float32(0.5) for grid in (columns, rows))
    small, large = np.full(rows.size, 0.7, np.float32), np.full(rows.size, 1e4, np.float32)
    assert np.allclose(atlas.sample(texture, u, v, small, small), image.reshape(-1, 3), atol=1e-3)
    assert np.allclose(atlas.sample(texture, u + 32, v - 16, small, small), image.reshape(-1, 3), atol=1e-3)
    assert np.allclose(atlas.sample(texture, u, v, large, large), image.mean((0, 1)), atol=1.0)
    # Blurred along the columns only: the mean of each row remains.
    rows_only = atlas.sample(texture, u, v, large, small).reshape(16, 32, 3)
    assert np.allclose(rows_only, image.mean(1, keepdims=True), atol=1.0)


def test_atlas_interpolates_between_texels():
    image = np.zeros((2, 4, 3), np.float32)
    image[:, 1] = 100
    atlas = build_atlas([image])
    one = np.ones(3, np.float32)
    u = np.array([0.5, 0.75, 1.0], np.float32)
    colour = atlas.sample(np.zeros(3, np.int64), u, one, one, one)
    assert np.allclose(colour[:, 0], [0, 25, 50])


def test_noise_tiles_and_is_normalised():
    field = noise(np.random.default_rng(1), 64, 128)
    assert abs(field.mean()) < 1e-5
    assert field.std() == pytest.approx(1, abs=1e-4)
    seam = np.abs(field[:, 0] - field[:, -1]).mean()
    assert seam < 2 * np.abs(np.diff(field, axis=1)).mean()
