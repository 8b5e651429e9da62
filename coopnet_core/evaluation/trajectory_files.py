"""Compare two trajectories in KITTI's text format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coopnet_core.errors import NoUsableDataError
from coopnet_core.evaluation.odometry import (
    SEGMENT_LENGTHS,
    align,
    odometry_figures,
    read_kitti_trajectory,
    relative_to,
)
from coopnet_core.evaluation.reports import finite, write_json
from coopnet_core.plots import plot_trajectory


def evaluate_trajectories(
    estimate: Path,
    truth: Path,
    output: Path | None,
    alignment: str = "7dof",
    lengths: Sequence[float] = SEGMENT_LENGTHS,
) -> dict[str, object]:
    """Odometry figures of an estimated trajectory; writes report.json and trajectory.png.

    Args:
        estimate: KITTI text, 12 columns, or 13 with the frame index first (frames may be missing).
        truth: the same, complete.
        output: folder to write to; None writes nothing.
        alignment: none, scale, 6dof, 7dof or scale_7dof.
        lengths: of the segments, metres.

    Raises:
        UsageError: a file cannot be read.
        NoUsableDataError: fewer than two frames are in both.
        DegenerateAlignmentError: the positions do not determine the alignment.
    """
    frames, found = read_kitti_trajectory(estimate)
    true_frames, true = read_kitti_trajectory(truth)
    common, rows, columns = np.intersect1d(frames, true_frames, return_indices=True)
    if len(common) < 2:
        raise NoUsableDataError(
            f"{estimate} has frames {frames[0]}-{frames[-1]}, {truth} has {true_frames[0]}-{true_frames[-1]}: two or "
            "more common ones were expected. With 12 columns the rows count from 0; give 13, the frame index first."
        )
    aligned = align(found[rows], true[columns], alignment)
    figures, reasons = odometry_figures(found[rows], true, columns, alignment, lengths)
    report = finite(
        {
            "odometry": figures,
            "reasons": {f"odometry.{key}": reason for key, reason in reasons.items()},
            "protocol": {"odometry": {"alignment": alignment, "segment_lengths_m": list(lengths), "segment_step": 10}},
            "counts": {"frames": len(common), "frames_without_truth": len(frames) - len(common)},
            "source": {"trajectory": str(estimate), "truth": str(truth)},
        }
    )
    if output is not None:
        write_json(output / "report.json", report)
        names = {"estimate": aligned}
        plot_trajectory(output / "trajectory.png", relative_to(true[columns]), names, f"alignment {alignment}")
    return report
