"""Visibility and depth consistency against loops, and on a scene whose hidden columns are known by hand."""

import numpy as np
import torch

from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.se3 import transform_from_vector
from coopnet_core.losses.consistency import depth_consistency
from coopnet_core.losses.visibility import coverage, forward_backward_visible, rigid_visible, splat_visible

HEIGHT, WIDTH = 12, 48
MATRIX = torch.tensor([[[40.0, 0, 23.5], [0, 40.0, 5.5], [0, 0, 1]]])
TO_THE_RIGHT = transform_from_vector(torch.tensor([[-1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]))
"""The camera moves 1 m to the right: a point at z moves by 40 / z pixels to the left."""


def _box_before_a_wall():
    """A box at 5 m (columns 20-29, in the source 12-21) before a wall at 10 m, seen from both places."""
    depth, source_depth = torch.full((1, 1, HEIGHT, WIDTH), 10.0), torch.full((1, 1, HEIGHT, WIDTH), 10.0)
    depth[..., 20:30], source_depth[..., 12:22] = 5.0, 5.0
    flow, backward = (torch.cat([s * 40 / d, torch.zeros_like(d)], 1) for s, d in ((-1, depth), (1, source_depth)))
    visible = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.bool)
    visible[..., :4] = False  # leaves the image
    visible[..., 16:20] = False  # the wall behind the box
    return depth, source_depth, flow, backward, visible


def test_the_wall_behind_the_box_is_hidden():
    depth, _, flow, backward, visible = _box_before_a_wall()
    assert torch.equal(splat_visible(flow, backward), visible)
    assert torch.equal(rigid_visible(depth, TO_THE_RIGHT, MATRIX), visible)
    assert torch.equal(forward_backward_visible(flow, backward), visible)


def test_depths_of_one_scene_agree_where_it_is_visible():
    depth, source_depth, _, _, visible = _box_before_a_wall()
    found = depth_consistency(depth, source_depth, TO_THE_RIGHT, MATRIX)
    assert torch.equal(found.valid[..., 4:], torch.ones_like(visible[..., 4:]))
    assert not found.valid[..., :4].any()
    assert found.error[visible].max() < 1e-5
    torch.testing.assert_close(found.error[..., 16:20], torch.full((1, 1, HEIGHT, 4), 1 / 3))


def test_an_error_of_the_flow_costs_the_check_all_and_the_splatting_little():
    _, _, flow, backward, visible = _box_before_a_wall()
    disturbed, disturbed_back = flow + 1.2, backward + 1.2
    assert forward_backward_visible(disturbed, disturbed_back)[visible].float().mean() < 0.2
    assert splat_visible(disturbed, disturbed_back)[visible].float().mean() > 0.7


def test_thresholds_of_the_check():
    # Both flows 0 but for an offset of (1, 1) in one of them: a squared mismatch of 2, a squared length of 2.
    flow, backward = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    assert forward_backward_visible(flow, backward).all()
    assert not forward_backward_visible(flow, backward, 0.01, 0.5).any()
    assert forward_backward_visible(flow, backward, 0.0, 2.01).all()
    assert forward_backward_visible(flow, backward, 1.01, 0.0).all()


def test_nothing_is_hidden_at_rest():
    # Poles with gaps of one pixel: a z-buffer that draws each point larger than it is would close the gaps.
    depth = torch.full((1, 1, HEIGHT, WIDTH), 10.0)
    depth[..., ::2] = 2.0
    assert rigid_visible(depth, torch.eye(4)[None], MATRIX).all()
    assert splat_visible(torch.zeros(1, 2, HEIGHT, WIDTH), torch.zeros(1, 2, HEIGHT, WIDTH)).all()


def test_a_slanted_road_does_not_hide_itself():
    camera = Camera.from_field_of_view(104, 32, 80.0)
    rows = torch.arange(32.0)[:, None].expand(32, 104)
    # A ground 1.6 m below the camera up to a wall at 60 m: at the far end its depth doubles from one row to the next.
    depth = (camera.fy * 1.6 / (rows - camera.cy).clamp(min=1e-3)).clamp(max=60.0)[None, None]
    matrix = torch.from_numpy(camera.matrix).float()[None]
    for z in (-1.0, 1.0):
        motion = transform_from_vector(torch.tensor([[0.0, 0.0, z, 0.0, 0.01, 0.0]]))
        visible, inside = rigid_visible(depth, motion, matrix), _projected_inside(depth, motion, matrix)
        # Where the wall meets the ground, one row may be lost.
        assert (inside & ~visible).sum() <= 104


def _projected_inside(depth, motion, matrix):
    from coopnet_core.geometry.projection import rigid_warp

    return rigid_warp(depth, motion, matrix).valid


def test_a_magnified_image_is_visible():
    x, y = torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="xy")
    centred = torch.stack([x - 19.5, y - 14.5])[None]
    flow, backward = centred / 1.5 - centred, 0.5 * centred
    inner = coverage(backward)[..., 2:-2, 2:-2]
    assert inner.min() > 0.2
    assert abs(inner.mean().item() - 1 / 1.5**2) < 0.03
    assert splat_visible(flow, backward)[..., 2:-2, 2:-2].all()


def test_coverage_equals_a_loop():
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(2, 2, 7, 9)) * 4
    expected = np.zeros((2, 1, 7, 9))
    for b, y, x in np.ndindex(2, 7, 9):
        for v, u in np.ndindex(7, 9):
            along, down = abs(v - (y + flow[b, 1, y, x])), abs(u - (x + flow[b, 0, y, x]))
            expected[b, 0, v, u] += max(0, 1 - along) * max(0, 1 - down)
    np.testing.assert_allclose(coverage(torch.from_numpy(flow)).numpy(), expected, atol=1e-5)


def test_rigid_visibility_equals_a_loop():
    rng = np.random.default_rng(1)
    depth = rng.uniform(4, 5, (HEIGHT, WIDTH))
    depth[3:8, 10:30] = rng.uniform(2, 2.2, (5, 20))
    motion = transform_from_vector(torch.tensor([[-0.3, 0.1, -0.5, 0.01, 0.02, 0.03]])).double()
    ours = rigid_visible(torch.from_numpy(depth)[None, None], motion, MATRIX)[0, 0].numpy()
    expected = _visible_by_loop(depth, motion[0].numpy(), MATRIX[0].double().numpy())
    assert 20 < (~expected).sum() < 500
    assert (ours == expected).all()


def _visible_by_loop(depth, motion, matrix):
    height, width = depth.shape
    z, touched, nearest = np.full(depth.shape, np.inf), {}, {}
    for y, x in np.ndindex(depth.shape):
        point = (motion @ [*(depth[y, x] * np.linalg.inv(matrix) @ [x, y, 1]), 1])[:3]
        u, v = (matrix @ point)[:2] / point[2]
        if not (0 <= u <= width - 1 and 0 <= v <= height - 1):
            continue
        z[y, x] = point[2]
        around = [(int(v) + j, int(u) + i) for j in (0, 1) for i in (0, 1)]
        touched[y, x] = [(j, i) for j, i in around if (1 - abs(u - i)) * (1 - abs(v - j)) > 0.05]
        for pixel in touched[y, x]:
            nearest[pixel] = min(nearest.get(pixel, np.inf), point[2])
    visible = np.zeros(depth.shape, bool)
    for (y, x), pixels in touched.items():
        slope = 0.0
        for (j, i), (k, h) in (((y, x - 1), (y, x + 1)), ((y - 1, x), (y + 1, x))):
            steps = [abs(z[y, x] - z[a, b]) for a, b in ((j, i), (k, h)) if 0 <= a < height and 0 <= b < width]
            slope += min(steps)
        visible[y, x] = z[y, x] <= 1.05 * max(nearest[pixel] for pixel in pixels) + 2 * slope
    return visible


def test_depth_consistency_equals_a_loop():
    rng = np.random.default_rng(2)
    depth, source_depth = rng.uniform(3, 6, (2, HEIGHT, WIDTH))
    motion = transform_from_vector(torch.tensor([[-0.3, 0.1, -0.5, 0.01, 0.02, 0.03]], dtype=torch.float64))
    matrix = MATRIX[0].double().numpy()
    found = depth_consistency(
        *(torch.from_numpy(d)[None, None] for d in (depth, source_depth)), motion, MATRIX.double()
    )
    seen = 0
    for y, x in np.ndindex(depth.shape):
        point = (motion[0].numpy() @ [*(depth[y, x] * np.linalg.inv(matrix) @ [x, y, 1]), 1])[:3]
        u, v = (matrix @ point)[:2] / point[2]
        inside = 0 <= u <= WIDTH - 1 and 0 <= v <= HEIGHT - 1
        assert found.valid[0, 0, y, x].item() == inside
        if inside:
            i, j = int(u), int(v)
            patch = source_depth[j : j + 2, i : i + 2]
            sampled = (
                np.array([1 - v + j, v - j])[: len(patch)] @ patch @ np.array([1 - u + i, u - i])[: patch.shape[1]]
            )
            expected = abs(point[2] - sampled) / (point[2] + sampled)
            np.testing.assert_allclose(found.error[0, 0, y, x].item(), expected, atol=1e-9)
            seen += 1
    assert seen > 100


def test_no_gradient_and_one_answer_for_each_item_of_a_batch():
    depth, _, flow, backward, visible = _box_before_a_wall()
    depth.requires_grad_()
    flow.requires_grad_()
    pair = torch.cat([depth, torch.full_like(depth, 10.0)])
    rigid = rigid_visible(pair, TO_THE_RIGHT.expand(2, 4, 4), MATRIX.expand(2, 3, 3))
    assert torch.equal(rigid[:1], visible)
    assert torch.equal(rigid[1:], flow_warp(torch.tensor([-4.0, 0.0]).view(1, 2, 1, 1).expand_as(flow)).valid)
    assert not coverage(backward).requires_grad
