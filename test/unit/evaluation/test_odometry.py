import json

import numpy as np
import pytest

from coopnet_core.errors import UsageError
from coopnet_core.evaluation.odometry import (
    ALIGNMENTS,
    DegenerateAlignmentError,
    align,
    ate,
    ate_5,
    chain,
    fitted_scale,
    odometry_figures,
    path_lengths,
    read_kitti_trajectory,
    relative_errors,
    relative_to,
    rotation_angle,
    segment_errors,
    straight_line,
    umeyama,
)
from coopnet_core.evaluation.trajectory_files import evaluate_trajectories


def rotation(axis, angle):
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def pose(R=None, t=(0, 0, 0)):
    T = np.eye(4)
    T[:3, :3] = np.eye(3) if R is None else R
    T[:3, 3] = t
    return T


def curve(n=60, step=3.0, turn=0.03):
    generator = np.random.default_rng(5)
    steps = [pose(rotation((0.1, 1, 0.05), turn), (0, 0.02 * generator.standard_normal(), step)) for _ in range(n - 1)]
    return chain(steps)


def noisy(poses, amount=0.02, seed=1):
    generator = np.random.default_rng(seed)
    steps = np.linalg.inv(poses[:-1]) @ poses[1:]
    return chain(
        [
            step @ pose(rotation(generator.standard_normal(3), amount * 0.1), amount * generator.standard_normal(3))
            for step in steps
        ]
    )


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("sequence", ["09", "10"])
def test_reference_figures_of_an_independent_tool(shared_data, alignment, sequence):
    folder = shared_data("odom_reference")
    expected = json.loads((folder / "expected.json").read_text())["odom"]["values"]["example_0"][alignment][sequence]
    report = evaluate_trajectories(
        folder / "example_0" / f"{sequence}.txt", folder / "gt_poses" / f"{sequence}.txt", None, alignment
    )
    names = {"t_err_pct": "t_err_pct", "r_err_deg_100m": "r_err_deg_per_100m", "ATE_m": "ate_m"}
    names |= {"RPE_m": "rpe_m", "RPE_deg": "rpe_deg"}
    for theirs, ours in names.items():
        assert report["odometry"][ours] == pytest.approx(expected[theirs], abs=1e-6, rel=1e-9)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_perfect_prediction(alignment):
    truth = curve()
    figures, reasons = odometry_figures(truth, truth, alignment=alignment)
    assert not reasons
    for key in ("ate_7dof_m", "ate_m", "t_err_pct", "r_err_deg_per_100m", "rpe_m", "rpe_deg"):
        assert figures[key] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("alignment", ["scale", "7dof", "scale_7dof"])
def test_scale_does_not_matter_where_it_is_fitted(alignment):
    truth = curve()
    estimate = noisy(truth)
    larger = estimate.copy()
    larger[:, :3, 3] *= 7.0
    first, second = (odometry_figures(e, truth, alignment=alignment)[0] for e in (estimate, larger))
    for key in ("ate_7dof_m", "ate_m", "t_err_pct", "r_err_deg_per_100m", "rpe_m", "rpe_deg"):
        assert first[key] == pytest.approx(second[key], rel=1e-9)


def test_world_does_not_matter():
    truth = curve()
    estimate = noisy(truth)
    moved = pose(rotation((1, 2, 3), 0.8), (5, -3, 2)) @ estimate
    first, second = (odometry_figures(e, truth, alignment="none")[0] for e in (estimate, moved))
    assert first["ate_m"] == pytest.approx(second["ate_m"])


def test_umeyama_recovers_a_similarity_and_never_mirrors():
    generator = np.random.default_rng(2)
    points = generator.standard_normal((30, 3))
    R, t = rotation((1, -1, 0.5), 2.1), np.array([1.0, 2.0, 3.0])
    fit = umeyama(points, 2.5 * points @ R.T + t, with_scale=True)
    assert fit.scale == pytest.approx(2.5)
    np.testing.assert_allclose(fit.rotation, R, atol=1e-12)
    np.testing.assert_allclose(fit.translation, t, atol=1e-12)
    mirrored = umeyama(points, points * [1, 1, -1], with_scale=False)
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1)


def test_umeyama_is_the_least_of_all_similarities():
    truth, estimate = curve(), noisy(curve(), 0.2)
    best = ate(estimate, truth, "7dof")["rmse_m"]
    positions, target = relative_to(estimate)[:, :3, 3], relative_to(truth)[:, :3, 3]
    fit = umeyama(positions, target, with_scale=True)
    generator = np.random.default_rng(0)
    for _ in range(50):
        R = rotation(generator.standard_normal(3), 0.01) @ fit.rotation
        s = fit.scale * (1 + 0.01 * generator.standard_normal())
        moved = s * positions @ R.T + fit.translation + 0.1 * generator.standard_normal(3)
        assert np.sqrt(((moved - target) ** 2).sum(1).mean()) >= best


def test_points_on_one_line_are_refused_with_a_reason():
    line = straight_line(np.arange(20) * 10**8)
    with pytest.raises(DegenerateAlignmentError, match="on one line"):
        align(line, curve(20), "7dof")
    with pytest.raises(DegenerateAlignmentError, match="on one line"):
        align(curve(20), line, "6dof")
    with pytest.raises(DegenerateAlignmentError, match="does not move"):
        align(np.repeat(np.eye(4)[None], 20, 0), curve(20), "7dof")
    with pytest.raises(DegenerateAlignmentError, match="does not move"):
        fitted_scale(np.zeros((5, 3)), np.ones((5, 3)))
    figures, reasons = odometry_figures(line, curve(20))
    assert figures["ate_7dof_m"] is None
    assert "on one line" in reasons[["odometry", "ate_7dof_m"][1]]


def test_straight_line_baseline_gets_the_least_error_of_any_line():
    truth = curve(40)
    line = straight_line(np.arange(40) * 10**8)
    figures, _ = odometry_figures(line, truth, is_line=True)
    # Brute force: the best uniform motion x_k = a + b k, by linear least squares for each coordinate.
    design = np.stack([np.ones(40), np.arange(40)], 1)
    target = relative_to(truth)[:, :3, 3]
    fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert figures["ate_7dof_m"] == pytest.approx(np.sqrt(((fitted - target) ** 2).sum(1).mean()))
    assert figures["rpe_m"] is not None


def test_segments_against_loops():
    truth = curve(120)
    estimate = noisy(truth)
    found, starts = [], range(0, 120, 10)
    for start in starts:
        for length in (30.0, 100.0, 250.0):
            travelled, last = 0.0, None
            for k in range(start, 119):
                travelled += float(np.linalg.norm(truth[k + 1, :3, 3] - truth[k, :3, 3]))
                if travelled > length:
                    last = k + 1
                    break
            if last is None:
                continue
            E = np.linalg.inv(np.linalg.inv(estimate[start]) @ estimate[last]) @ (
                np.linalg.inv(truth[start]) @ truth[last]
            )
            angle = np.arccos(np.clip((np.trace(E[:3, :3]) - 1) / 2, -1, 1))
            found.append((np.linalg.norm(E[:3, 3]) / length, angle / length))
    errors = segment_errors(estimate, truth, lengths=(30.0, 100.0, 250.0))
    assert len(errors.lengths) == len(found) > 10
    assert errors.t_err_pct == pytest.approx(100 * np.mean([t for t, _ in found]))
    assert errors.r_err_deg_per_100m == pytest.approx(np.degrees(np.mean([r for _, r in found])) * 100)


def test_segment_by_hand():
    truth = chain([pose(t=(0, 0, 10.0))] * 11)
    estimate = chain([pose(t=(0, 0, 11.0))] * 11)
    errors = segment_errors(estimate, truth, lengths=(100.0,))
    # The end lies at 110 m (the first beyond 100), the estimate is 11 m off; start 10 finds no end.
    assert errors.t_err_pct == pytest.approx(11.0)
    assert len(errors.lengths) == 1


def test_short_drive_has_no_t_err_but_a_reason():
    truth = curve(10)
    figures, reasons = odometry_figures(noisy(truth), truth)
    assert figures["t_err_pct"] is None
    assert "27.0 m" in reasons["t_err_pct"]
    short = segment_errors(align(noisy(truth), truth, "7dof"), truth, lengths=(5.0, 10.0, 20.0, 50.0), step=1)
    assert figures["t_err_short_pct"] == pytest.approx(short.t_err_pct)
    assert set(short.lengths) == {5.0, 10.0, 20.0}
    figures, reasons = odometry_figures(noisy(truth), truth, lengths=(5.0, 10.0))
    assert figures["t_err_pct"] > 0
    assert not reasons


def test_frames_without_an_estimate_are_left_out():
    truth = curve(80)
    frames = np.array([k for k in range(80) if k not in (0, 1, 33)])
    estimate = noisy(truth)[frames]
    figures, _ = odometry_figures(estimate, truth, frames)
    kept = segment_errors(relative_to(estimate), truth, frames)
    assert figures["segments"] == len(kept.lengths) < len(segment_errors(truth, truth).lengths)
    # The step over the missing frame 33 counts in no relative error.
    errors = relative_errors(estimate, truth[frames])[1]
    assert figures["rpe_deg"] == pytest.approx(np.delete(errors, 30).mean())


def test_ate_5_divides_outside_the_root():
    truth = chain([pose(t=(0, 0, 1.0))] * 4)
    estimate = truth.copy()
    estimate[2, 0, 3] = 0.5
    scale = 30.0 / 30.25
    residual = np.array([[0, 0, k * scale - k] for k in range(5)], float)
    residual[2, 0] = 0.5 * scale
    figures = ate_5(estimate, truth)
    assert figures["mean_m"] == pytest.approx(np.linalg.norm(residual) / 5)
    assert figures["rmse_mean_m"] == pytest.approx(np.sqrt((residual**2).sum() / 5))
    assert figures["snippets"] == 1


def test_rotation_angle():
    for angle in (0.0, 1e-3, 1.0, np.pi):
        assert rotation_angle(rotation((1, 2, 3), angle)) == pytest.approx(angle, abs=1e-7)


def test_path_lengths():
    np.testing.assert_allclose(path_lengths(chain([pose(t=(3, 0, 4))] * 2)), [0, 5, 10])


def test_kitti_files(tmp_path):
    truth = curve(6)
    rows = truth[:, :3].reshape(6, 12)
    np.savetxt(tmp_path / "12.txt", rows)
    np.savetxt(tmp_path / "13.txt", np.column_stack([np.arange(6) + 4, rows]))
    np.savetxt(tmp_path / "7.txt", rows[:, :7])
    frames, poses = read_kitti_trajectory(tmp_path / "13.txt")
    assert frames.tolist() == [4, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(poses, truth, atol=1e-12)
    assert read_kitti_trajectory(tmp_path / "12.txt")[0].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="12 or 13"):
        read_kitti_trajectory(tmp_path / "7.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_kitti_trajectory(tmp_path / "none.txt")


def test_unknown_alignment_and_lengths_are_refused():
    with pytest.raises(UsageError, match="scale_7dof"):
        align(curve(5), curve(5), "8dof")
    with pytest.raises(UsageError, match="pairs"):
        align(curve(5), curve(6), "none")
    with pytest.raises(UsageError, match="must name a frame"):
        odometry_figures(curve(5), curve(4))
