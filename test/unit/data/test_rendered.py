"""The rendered clips against references that know nothing of how they were rendered."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from coopnet_core.data.rendered import SceneConfig, iter_rendered, render_clip
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

CAMERA = Camera.from_field_of_view(256, 80, 80.0)
SEED = 2


@pytest.fixture(scope="module")
def drive():
    return render_clip(SceneConfig(SEED, 4, CAMERA, movers=0.2, camera_moves=True, noise=0.0))


def rigid_projection(depth: np.ndarray, T_other_this: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, 2) and depth (H, W) of every point in another camera, by K alone."""
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width].astype(float)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(CAMERA.matrix).T
    points = rays * depth[..., None] @ T_other_this[:3, :3].T + T_other_this[:3, 3]
    pixels = points @ CAMERA.matrix.T
    return pixels[..., :2] / pixels[..., 2:], points[..., 2]


def pixel_grid() -> np.ndarray:
    v, u = np.mgrid[0 : CAMERA.height, 0 : CAMERA.width]
    return np.stack([u, v], -1).astype(np.float32)


def warp(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    u, v = pixels.astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(image.astype(np.float32), np.ascontiguousarray(u), np.ascontiguousarray(v), cv2.INTER_LINEAR)


def error(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean(-1)[where].mean())


def pairs(clip):
    """(index, other, flow, occluded) in both directions."""
    last = len(clip.clip) - 1
    for k in range(len(clip.clip)):
        if k > 0:
            yield k, k - 1, clip.truth[k].flow, clip.truth[k].occluded
        if k < last:
            yield k, k + 1, clip.flow_to_next[k], clip.occluded_to_next[k]


def test_warping_by_depth_and_pose_reproduces_the_static_part_of_the_frame(drive):
    for k, other, _, occluded in pairs(drive):
        T_other_this = np.linalg.inv(drive.truth[other].pose) @ drive.truth[k].pose
        pixels, _ = rigid_projection(drive.truth[k].depth, T_other_this)
        static = ~occluded & ~drive.truth[k].moving
        image = drive.clip.images[k]
        warped = error(warp(drive.clip.images[other], pixels), image, static)
        assert warped < 0.25 * error(drive.clip.images[other], image, static)
        assert warped < 7.0


def test_warping_by_flow_reproduces_the_frame_with_its_movers(drive):
    for k, other, flow, occluded in pairs(drive):
        image, moving = drive.clip.images[k], drive.truth[k].moving
        warped = warp(drive.clip.images[other], pixel_grid() + np.nan_to_num(flow))
        assert error(warped, image, ~occluded) < 7.0
        assert error(warped, image, ~occluded & moving) < 0.6 * error(drive.clip.images[other], image, moving)


def test_flow_of_static_points_is_that_of_depth_and_pose_and_of_movers_is_not(drive):
    for k, other, flow, occluded in pairs(drive):
        T_other_this = np.linalg.inv(drive.truth[other].pose) @ drive.truth[k].pose
        rigid = rigid_projection(drive.truth[k].depth, T_other_this)[0] - pixel_grid()
        difference = np.linalg.norm(rigid - flow, axis=-1)
        moving = drive.truth[k].moving
        assert difference[~occluded & ~moving].max() < 2e-3
        assert np.median(difference[~occluded & moving]) > 0.3


def test_flow_there_and_back_cancels_on_visible_points(drive):
    for k in range(len(drive.clip) - 1):
        there = drive.flow_to_next[k]
        visible = ~drive.occluded_to_next[k]
        back = warp(drive.truth[k + 1].flow, pixel_grid() + np.nan_to_num(there))
        cycle = np.linalg.norm(there + back, axis=-1)[visible]
        assert np.median(cycle) < 0.02


def test_occlusion_agrees_with_the_depth_of_the_other_frame_in_both_directions(drive):
    """Brute force by the other frame's depth image: decided wherever its four neighbours agree."""
    for k, other, _, occluded in pairs(drive):
        static = ~drive.truth[k].moving
        T_other_this = np.linalg.inv(drive.truth[other].pose) @ drive.truth[k].pose
        pixels, depth = rigid_projection(drive.truth[k].depth, T_other_this)
        outside = (depth <= 0) | (pixels < -0.5).any(-1)
        outside |= (pixels[..., 0] > CAMERA.width - 0.5) | (pixels[..., 1] > CAMERA.height - 0.5)
        assert (occluded[static & outside]).all()
        inner = static & ~outside & (pixels >= 0).all(-1)
        inner &= (pixels[..., 0] < CAMERA.width - 1) & (pixels[..., 1] < CAMERA.height - 1)
        corner = np.floor(np.where(inner[..., None], pixels, 0)).astype(int)
        seen = drive.truth[other].depth
        neighbours = np.stack([seen[corner[..., 1] + j, corner[..., 0] + i] for i in (0, 1) for j in (0, 1)])
        behind = inner & (depth > 1.1 * neighbours.max(0))
        smooth = neighbours.max(0) < 1.2 * neighbours.min(0)
        level = inner & smooth & (depth > 0.99 * neighbours.min(0)) & (depth < 1.01 * neighbours.max(0))
        assert behind.sum() + level.sum() > 0.8 * inner.sum()
        # A point may be seen through a gap narrower than a pixel.
        assert occluded[behind].mean() > 0.97
        assert occluded[level].mean() < 0.002


def test_driving_forwards_uncovers_little_and_loses_much(drive):
    lost = np.mean([mask.mean() for mask in drive.occluded_to_next[:-1]])
    uncovered = np.mean([truth.occluded.mean() for truth in drive.truth[1:]])
    assert lost > 1.5 * uncovered


def test_ends_of_the_clip_have_no_partner(drive):
    assert np.isnan(drive.truth[0].flow).all()
    assert drive.truth[0].occluded.all()
    assert np.isnan(drive.flow_to_next[-1]).all()
    assert drive.occluded_to_next[-1].all()


def test_depth_is_finite_and_poses_are_rigid_and_drive_in_the_speed_range(drive):
    for truth in drive.truth:
        assert np.isfinite(truth.depth).all()
        assert truth.depth.min() > 0.3
        assert truth.depth.max() < 400
        assert np.allclose(truth.pose[:3, :3] @ truth.pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert 1.1 < -truth.pose[1, 3] < 2.1
    steps = [np.linalg.norm(b.pose[:3, 3] - a.pose[:3, 3]) for a, b in zip(drive.truth, drive.truth[1:], strict=False)]
    assert min(steps) > 0.4
    assert max(steps) < 1.6


def test_kinds_label_exactly_the_moving_pixels(drive):
    for truth, kind in zip(drive.truth, drive.kinds, strict=True):
        assert np.array_equal(kind > 0, truth.moving)
    assert set(np.unique(np.stack(drive.kinds))) <= {0, 1, 2}


def test_share_of_movers_follows_the_wish(drive):
    assert 0.08 < np.mean([truth.moving.mean() for truth in drive.truth]) < 0.35
    none = render_clip(SceneConfig(SEED, 2, CAMERA, movers=0.0))
    assert not any(truth.moving.any() for truth in none.truth)


def test_standing_camera_sees_only_movers_move():
    clip = render_clip(SceneConfig(5, 3, CAMERA, movers=0.15, camera_moves=False, noise=0.0))
    assert all(np.array_equal(truth.pose, clip.truth[0].pose) for truth in clip.truth)
    static = ~clip.truth[1].moving & ~clip.truth[1].occluded
    assert np.abs(clip.truth[1].flow[static]).max() < 1e-3
    both = (
        static
        & ~clip.truth[0].moving
        & ~cv2.dilate(clip.truth[0].moving.astype(np.uint8), np.ones((3, 3))).astype(bool)
    )
    both &= ~cv2.dilate(clip.truth[1].moving.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert np.array_equal(clip.clip.images[0][both], clip.clip.images[1][both])
    assert clip.truth[1].moving.any()


def test_the_seed_decides_everything():
    config = SceneConfig(11, 2, CAMERA)
    first, again, other = render_clip(config), render_clip(config), render_clip(SceneConfig(12, 2, CAMERA))
    assert np.array_equal(first.clip.images, again.clip.images)
    assert np.array_equal(first.truth[1].depth, again.truth[1].depth)
    assert not np.array_equal(first.clip.images, other.clip.images)


def test_streaming_gives_the_same_frames_and_truth(drive):
    config = SceneConfig(SEED, 4, CAMERA, movers=0.2, camera_moves=True, noise=0.0)
    for k, (frame, truth) in enumerate(iter_rendered(config)):
        assert np.array_equal(frame.image, drive.clip.images[k])
        assert frame.stamp_ns == drive.clip.stamps_ns[k]
        assert frame.camera == CAMERA
        for name in ("depth", "pose", "flow", "moving", "occluded"):
            assert np.array_equal(getattr(truth, name), getattr(drive.truth[k], name), equal_nan=name == "flow")
    assert k == 3


def test_long_wavelengths_dominate_the_texture(drive):
    """Photometric learning needs a correlation length of several pixels."""
    grey = drive.clip.images.astype(float).mean(-1)
    grey -= grey.mean()
    for lag in (2, 4):
        along = (grey[..., lag:] * grey[..., :-lag]).mean() / grey.var()
        assert along > 0.5
    assert drive.clip.images.std() > 20


def test_frame_rate_sets_the_stamps():
    clip = render_clip(SceneConfig(1, 3, CAMERA, fps=20.0, movers=0.0, start_ns=7))
    assert clip.clip.stamps_ns.tolist() == [7, 50_000_007, 100_000_007]


@pytest.mark.parametrize(
    "change", [{"frames": 0}, {"fps": 0.0}, {"supersampling": 0}, {"movers": 0.9}, {"movers": -0.1}]
)
def test_impossible_configurations_are_refused(change):
    with pytest.raises(UsageError, match="expected"):
        SceneConfig(**{"seed": 0, "frames": 2, "camera": CAMERA, **change})


def test_a_distorted_camera_is_refused():
    lens = Camera(64, 32, 50.0, 50.0, 31.5, 15.5, "plumb_bob", (0.1, 0.0, 0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="undistorted"):
        SceneConfig(0, 2, lens)
