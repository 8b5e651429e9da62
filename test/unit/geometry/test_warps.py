"""Projection and sampling, with the peers' bugs 1, 3, 6 and 7 in mind."""

import numpy as np
import pytest
import torch

from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import flow_warp, inside, pixel_grid, rays, rigid_warp, scaled_matrix
from coopnet_core.geometry.sampling import resize_flow, sample

CAMERA = Camera(40, 30, 35.0, 36.0, 19.0, 14.0)
MATRIX = torch.from_numpy(CAMERA.matrix).float()[None]


def test_identity_grid_returns_the_image():
    image = torch.rand(2, 3, 13, 17)
    torch.testing.assert_close(sample(image, pixel_grid(13, 17).expand(2, -1, -1, -1)), image, atol=1e-5, rtol=0)


def test_sampling_half_a_pixel_is_the_mean_of_neighbours():
    image = torch.arange(6.0).view(1, 1, 1, 6)
    coordinates = torch.tensor([1.5, 0.0]).view(1, 2, 1, 1)
    assert sample(image, coordinates).item() == pytest.approx(1.5, abs=1e-5)


def test_identity_pose_projects_every_pixel_onto_itself():
    depth = torch.rand(1, 1, 30, 40) * 10 + 0.5
    warp = rigid_warp(depth, torch.eye(4)[None], MATRIX)
    torch.testing.assert_close(warp.coordinates, pixel_grid(30, 40), atol=1e-3, rtol=0)


def test_projection_equals_a_loop_in_numpy():
    rng = np.random.default_rng(1)
    depth = rng.uniform(2, 10, (30, 40))
    transform = np.eye(4)
    transform[:3, 3] = (0.2, -0.1, -0.5)
    angle = 0.05
    transform[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    warp = rigid_warp(torch.from_numpy(depth).float()[None, None], torch.from_numpy(transform).float()[None], MATRIX)
    for y, x in [(0, 0), (7, 33), (29, 39), (15, 20)]:
        point = depth[y, x] * np.linalg.inv(CAMERA.matrix) @ [x, y, 1]
        moved = transform @ [*point, 1]
        u, v, w = CAMERA.matrix @ moved[:3]
        np.testing.assert_allclose(warp.coordinates[0, :, y, x].numpy(), [u / w, v / w], atol=1e-3)


def test_points_behind_the_camera_are_invalid_and_finite():
    transform = torch.eye(4)[None].clone()
    transform[0, 2, 3] = -5.0
    depth = torch.full((1, 1, 30, 40), 3.0, requires_grad=True)
    warp = rigid_warp(depth, transform, MATRIX)
    assert not warp.valid.any()
    assert warp.coordinates.isfinite().all()
    warp.coordinates.sum().backward()
    assert depth.grad.isfinite().all()


def test_validity_comes_from_coordinates_not_colours():
    warp = flow_warp(torch.zeros(1, 2, 8, 9))
    assert warp.valid.all()
    shifted = flow_warp(torch.full((1, 2, 8, 9), 1.0))
    assert not shifted.valid[..., -1].any()
    assert shifted.valid[..., :-1, :-1].all()
    assert inside(torch.tensor([8.0, 7.0]).view(1, 2, 1, 1), 8, 9).item()


def test_scaled_matrix_agrees_with_the_camera_value():
    np.testing.assert_allclose(scaled_matrix(MATRIX, 0.5)[0].numpy(), CAMERA.scaled(20, 15).matrix, atol=1e-5)


def test_rays_have_unit_depth_and_pass_the_principal_point():
    camera = Camera(40, 30, 35.0, 36.0, 19.0, 14.0)
    result = rays(torch.from_numpy(camera.matrix).float()[None], 30, 40)
    assert (result[:, 2] == 1).all()
    assert result[0, :2, 14, 19].abs().max() < 1e-6


def test_resized_flow_is_in_the_new_pixels():
    flow = torch.ones(1, 2, 4, 8)
    resized = resize_flow(flow, 8, 32)
    assert resized[0, 0].unique().item() == 4.0
    assert resized[0, 1].unique().item() == 2.0
