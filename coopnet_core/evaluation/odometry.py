"""Odometry figures: ATE, ATE-5, KITTI segment errors and RPE, under a named alignment.

A trajectory is (N, 4, 4) float64, T_world_camera of each frame; the world is arbitrary. Where an estimate covers only
some frames of the truth, `frames` (M,) names them, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coopnet_core.errors import NoUsableDataError, UsageError

ALIGNMENTS = ("none", "scale", "6dof", "7dof", "scale_7dof")
SEGMENT_LENGTHS = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
SEGMENT_STEP = 10
SHORT_LENGTHS = (5.0, 10.0, 20.0, 50.0)
"""For recordings too short for KITTI's segments; from every frame. Reported under names of their own."""
_LEAST_SPREAD = 1e-6


class DegenerateAlignmentError(NoUsableDataError):
    """The positions do not determine the alignment: they coincide or lie on one line."""


@dataclass(frozen=True)
class Similarity:
    """x' = scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray


def umeyama(source: np.ndarray, target: np.ndarray, with_scale: bool, allow_line: bool = False) -> Similarity:
    """The similarity (or rigid motion) that takes `source` to `target` with the least squared error.

    Umeyama 1991, equations 34-43.

    Args:
        source: (N, 3) positions.
        target: (N, 3) positions.
        with_scale: False keeps the scale at 1.
        allow_line: accept positions on one line. The rotation about that line is then arbitrary, but the residual is
            not: it is the least that any similarity reaches. For baselines that are straight lines by construction.

    Raises:
        DegenerateAlignmentError: one of the two sets lies on a line (or in a point).

    >>> points = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    >>> round(umeyama(points, 2 * points + 1, with_scale=True).scale, 12)
    2.0
    """
    for name, points in (("estimated", source), ("true", target)):
        _check_spread(points, name, allow_line)
    source_mean, target_mean = source.mean(0), target.mean(0)
    centred = source - source_mean
    covariance = (target - target_mean).T @ centred / len(source)
    left, singular, right = np.linalg.svd(covariance)
    signs = np.ones(3)
    if np.linalg.det(left) * np.linalg.det(right) < 0:
        signs[2] = -1.0
    rotation = left @ np.diag(signs) @ right
    scale = float((singular * signs).sum() / (centred**2).sum(1).mean()) if with_scale else 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def relative_to(poses: np.ndarray, index: int = 0) -> np.ndarray:
    """The trajectory seen from the camera of one of its frames: inv(T_index) T_k."""
    return np.linalg.inv(poses[index]) @ poses


def chain(relative: Sequence[np.ndarray]) -> np.ndarray:
    """Accumulate T_previous_current of N pairs to the (N + 1, 4, 4) trajectory that starts at the identity.

    >>> step = np.eye(4)
    >>> step[2, 3] = 0.5
    >>> chain([step, step])[:, 2, 3].tolist()
    [0.0, 0.5, 1.0]
    """
    poses = [np.eye(4)]
    for step in relative:
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def fitted_scale(estimate: np.ndarray, truth: np.ndarray) -> float:
    """The factor that takes estimated positions (N, 3) to the true ones, least squares without an offset.

    Raises:
        DegenerateAlignmentError: the estimate does not move.
    """
    energy = float((estimate**2).sum())
    if energy < 1e-18:
        raise DegenerateAlignmentError("The estimated camera does not move: no scale can be fitted.")
    return float((truth * estimate).sum() / energy)


def align(estimate: np.ndarray, truth: np.ndarray, alignment: str, allow_line: bool = False) -> np.ndarray:
    """Align an estimate to the truth; both are first taken relative to their first frame.

    Args:
        estimate: (N, 4, 4).
        truth: (N, 4, 4), the same frames.
        alignment: none; scale (least squares about the first position); 6dof; 7dof (Umeyama); scale_7dof (only the
            scale of the 7dof alignment, so that the start stays common).
        allow_line: see `umeyama`.

    Returns:
        (N, 4, 4) in the frame of `relative_to(truth)`.

    Raises:
        UsageError: an unknown alignment, or trajectories of different length.
        DegenerateAlignmentError: the positions do not determine it.
    """
    if alignment not in ALIGNMENTS:
        raise UsageError(f"Alignment {alignment!r}: one of {', '.join(ALIGNMENTS)} was expected.")
    if len(estimate) != len(truth) or len(truth) < 2:
        raise UsageError(f"{len(estimate)} estimated and {len(truth)} true poses: two or more pairs were expected.")
    aligned, reference = relative_to(estimate), relative_to(truth)
    if alignment == "none":
        return aligned
    positions = aligned[:, :3, 3]
    if alignment == "scale":
        aligned[:, :3, 3] = positions * fitted_scale(positions, reference[:, :3, 3])
        return aligned
    fit = umeyama(positions, reference[:, :3, 3], with_scale=alignment != "6dof", allow_line=allow_line)
    aligned[:, :3, 3] = positions * fit.scale
    if alignment == "scale_7dof":
        return aligned
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = fit.rotation, fit.translation
    return motion @ aligned


def rotation_angle(rotation: np.ndarray) -> np.ndarray:
    """The geodesic angle of rotation matrices (..., 3, 3), radians: arccos((tr R - 1) / 2).

    Angles below 1e-8 cannot be told from zero in this form; it is the one that published figures are made with, and
    with poses rounded to seven digits any other differs from them in the fourth digit.

    >>> float(rotation_angle(np.eye(3)))
    0.0
    """
    return np.arccos(np.clip(0.5 * (np.trace(rotation, axis1=-2, axis2=-1) - 1.0), -1.0, 1.0))


def absolute_errors(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N,) distances between the positions of an aligned estimate and the truth relative to its first frame, m."""
    return np.linalg.norm(estimate[:, :3, 3] - relative_to(truth)[:, :3, 3], axis=1)


def ate(estimate: np.ndarray, truth: np.ndarray, alignment: str, allow_line: bool = False) -> dict[str, float]:
    """Absolute trajectory error after an alignment: {"rmse_m", "mean_m"}.

    Raises:
        DegenerateAlignmentError: the positions do not determine the alignment.
    """
    errors = absolute_errors(align(estimate, truth, alignment, allow_line), truth)
    return {"rmse_m": float(np.sqrt((errors**2).mean())), "mean_m": float(errors.mean())}


def relative_errors(estimate: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the motion from each frame to the next, for (N, 4, 4) trajectories.

    Returns:
        Translation (N - 1,), metres (in the scale of `estimate`), and rotation (N - 1,), degrees.
    """
    error = np.linalg.inv(np.linalg.inv(truth[:-1]) @ truth[1:]) @ (np.linalg.inv(estimate[:-1]) @ estimate[1:])
    return np.linalg.norm(error[:, :3, 3], axis=1), np.degrees(rotation_angle(error[:, :3, :3]))


@dataclass(frozen=True)
class SegmentErrors:
    """The errors of all segments, pooled.

    Attributes:
        translation: (S,) |E_t| / L.
        rotation: (S,) radians per metre.
        lengths: (S,) the nominal length of each, metres.
    """

    translation: np.ndarray
    rotation: np.ndarray
    lengths: np.ndarray

    @property
    def t_err_pct(self) -> float:
        """Mean translation error, %; NaN without a segment."""
        return float(100.0 * self.translation.mean()) if self.translation.size else float("nan")

    @property
    def r_err_deg_per_100m(self) -> float:
        """Mean rotation error, degrees per 100 m; NaN without a segment."""
        return float(np.degrees(self.rotation.mean()) * 100.0) if self.rotation.size else float("nan")


def segment_errors(
    estimate: np.ndarray,
    truth: np.ndarray,
    frames: np.ndarray | None = None,
    lengths: Sequence[float] = SEGMENT_LENGTHS,
    step: int = SEGMENT_STEP,
) -> SegmentErrors:
    """KITTI errors over sub-trajectories: all starts 0, step, 2 step, ... of the truth, all lengths.

    A segment ends at the first frame whose distance along the truth exceeds the length; segments that begin or end at
    a frame without an estimate are left out.

    Args:
        estimate: (M, 4, 4), aligned.
        truth: (N, 4, 4), all frames.
        frames: (M,) the index into `truth` of each estimated pose; by default all.
        lengths: metres.
        step: frames between starts.
    """
    frames = np.arange(len(truth)) if frames is None else np.asarray(frames)
    row_of = {int(frame): row for row, frame in enumerate(frames)}
    distance = path_lengths(truth)
    found: list[tuple[float, float, float]] = []
    for first in range(0, len(truth), step):
        for length in lengths:
            last = int(np.searchsorted(distance, distance[first] + length, side="right"))
            if last >= len(truth) or first not in row_of or last not in row_of:
                continue
            estimated = np.linalg.inv(estimate[row_of[first]]) @ estimate[row_of[last]]
            error = np.linalg.inv(estimated) @ (np.linalg.inv(truth[first]) @ truth[last])
            angle = float(rotation_angle(error[:3, :3]))
            found.append((float(np.linalg.norm(error[:3, 3])) / length, angle / length, length))
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return SegmentErrors(table[:, 0], table[:, 1], table[:, 2])


def path_lengths(poses: np.ndarray) -> np.ndarray:
    """(N,) distance travelled up to each frame, in the unit of the poses."""
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def ate_5(estimate: np.ndarray, truth: np.ndarray, length: int = 5) -> dict[str, float]:
    """ATE over all snippets of five frames, each with its own scale (the protocol of SfMLearner).

    The literature divides the norm by N outside the root; that figure and the true RMSE are both given.

    Returns:
        {"mean_m", "std_m", "rmse_mean_m", "snippets"}.

    Raises:
        NoUsableDataError: fewer frames than a snippet.
    """
    if len(truth) < length or len(truth) != len(estimate):
        raise NoUsableDataError(
            f"{len(truth)} true and {len(estimate)} estimated poses: {length} or more were expected."
        )
    published, rmse = [], []
    for start in range(len(truth) - length + 1):
        true = relative_to(truth[start : start + length])[:, :3, 3]
        found = relative_to(estimate[start : start + length])[:, :3, 3]
        energy = (found**2).sum()
        scale = (true * found).sum() / energy if energy > 0 else 0.0
        norm = float(np.linalg.norm(scale * found - true))
        published.append(norm / length)
        rmse.append(norm / np.sqrt(length))
    return {
        "mean_m": float(np.mean(published)),
        "std_m": float(np.std(published)),
        "rmse_mean_m": float(np.mean(rmse)),
        "snippets": len(published),
    }


def straight_line(stamps_ns: np.ndarray) -> np.ndarray:
    """The trivial baseline: (N, 4, 4), straight ahead along the optical axis at 1 unit per second, never turning."""
    poses = np.repeat(np.eye(4)[None], len(stamps_ns), axis=0)
    poses[:, 2, 3] = (np.asarray(stamps_ns, dtype=np.int64) - int(stamps_ns[0])) * 1e-9
    return poses


def odometry_figures(
    estimate: np.ndarray,
    truth: np.ndarray,
    frames: np.ndarray | None = None,
    alignment: str = "7dof",
    lengths: Sequence[float] = SEGMENT_LENGTHS,
    is_line: bool = False,
) -> tuple[dict[str, object], dict[str, str]]:
    """All odometry figures of one estimate, and why those that are None are None.

    Args:
        estimate: (M, 4, 4).
        truth: (N, 4, 4).
        frames: (M,) index into `truth` of each estimate; by default all.
        alignment: for t_err, r_err, ATE and RPE; `ate_7dof_m` is always after 7dof.
        lengths: of the segments, metres.
        is_line: the estimate is a straight line by construction (the baseline): its ATE is the least that any
            similarity reaches, its segments are scaled only.

    Raises:
        UsageError: the alignment is unknown, or a frame has no truth.
    """
    frames = np.arange(len(truth)) if frames is None else np.asarray(frames)
    if len(frames) != len(estimate) or (len(frames) and int(frames[-1]) >= len(truth)):
        raise UsageError(
            f"{len(estimate)} estimated poses for frames up to {int(frames[-1]) if len(frames) else 'none'}, "
            f"{len(truth)} true poses: each estimate must name a frame of the truth."
        )
    matching = truth[frames]
    figures: dict[str, object] = dict.fromkeys(
        (
            "ate_7dof_m",
            "ate_7dof_mean_m",
            "ate_m",
            "t_err_pct",
            "r_err_deg_per_100m",
            "rpe_m",
            "rpe_deg",
            "t_err_short_pct",
            "r_err_short_deg_per_100m",
        )
    )
    reasons: dict[str, str] = {}
    figures["rpe_deg"] = float(relative_errors(estimate, matching)[1][_consecutive(frames)].mean())
    try:
        full = ate(estimate, matching, "7dof", allow_line=is_line)
        figures["ate_7dof_m"], figures["ate_7dof_mean_m"] = full["rmse_m"], full["mean_m"]
    except DegenerateAlignmentError as error:
        reasons["ate_7dof_m"] = str(error)
    try:
        aligned = align(estimate, matching, "scale" if is_line and alignment.endswith("dof") else alignment)
        figures["ate_m"] = float(np.sqrt((absolute_errors(aligned, matching) ** 2).mean()))
        figures["rpe_m"] = float(relative_errors(aligned, matching)[0][_consecutive(frames)].mean())
        segments = segment_errors(aligned, truth, frames, lengths)
        figures["segments"] = len(segments.lengths)
        if len(segments.lengths):
            figures["t_err_pct"], figures["r_err_deg_per_100m"] = segments.t_err_pct, segments.r_err_deg_per_100m
        else:
            travelled = float(path_lengths(matching)[-1])
            reason = f"the camera travels {travelled:.1f} m; the shortest segment is {min(lengths):.0f} m"
            reasons.update(t_err_pct=reason, r_err_deg_per_100m=reason)
        short = segment_errors(aligned, truth, frames, SHORT_LENGTHS, step=1)
        if len(short.lengths):
            figures["t_err_short_pct"], figures["r_err_short_deg_per_100m"] = short.t_err_pct, short.r_err_deg_per_100m
    except DegenerateAlignmentError as error:
        reasons.update(dict.fromkeys(("t_err_pct", "r_err_deg_per_100m", "ate_m", "rpe_m"), str(error)))
    if len(estimate) >= 5:
        figures["ate_5"] = ate_5(estimate, matching)
    return figures, reasons


def read_kitti_trajectory(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a KITTI pose file: rows of 12 numbers (3x4, row by row), or 13 with the frame index first.

    Returns:
        Frame indices (N,) int64 ascending, and poses (N, 4, 4) float64.

    Raises:
        UsageError: the file is missing, or not made of such rows.
    """
    try:
        rows = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a trajectory ({error}). Rows of 12 or 13 numbers expected."
        ) from None
    if rows.size == 0 or rows.shape[1] not in (12, 13) or not np.isfinite(rows).all():
        raise UsageError(
            f"{path} has rows of {rows.shape[1]} numbers; 12 or 13 finite ones were expected (KITTI poses)."
        )
    frames = rows[:, 0].astype(np.int64) if rows.shape[1] == 13 else np.arange(len(rows))
    if (np.diff(frames) <= 0).any():
        raise UsageError(f"{path}: the frame indices in the first column do not increase.")
    poses = np.repeat(np.eye(4)[None], len(rows), axis=0)
    poses[:, :3, :] = rows[:, -12:].reshape(-1, 3, 4)
    return frames, poses


def _consecutive(frames: np.ndarray) -> np.ndarray:
    """(M - 1,) bool: the pairs that are neighbours in the truth; all, where none is."""
    neighbours = np.diff(frames) == 1
    return neighbours if neighbours.any() else np.ones(len(frames) - 1, dtype=bool)


def _check_spread(points: np.ndarray, name: str, allow_line: bool) -> None:
    """Refuse positions that coincide or lie on one line.

    Raises:
        DegenerateAlignmentError: they do.
    """
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    if spread[0] < 1e-9:
        raise DegenerateAlignmentError(f"The {name} camera does not move: no alignment can be found.")
    if not allow_line and (len(spread) < 2 or spread[1] < _LEAST_SPREAD * spread[0]):
        raise DegenerateAlignmentError(
            f"The {name} positions lie on one line: they do not determine the rotation of an alignment. Use the "
            "alignment 'scale' or 'none', or a recording with a curve."
        )
