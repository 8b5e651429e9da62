"""Diagrams (matplotlib, without a display): trajectories from above, curves of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.errors import NoUsableDataError

_TRUTH_COLOR, _COLORS = "#222222", ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MOST_POINTS = 600
# One diagram each: title, names of the figures, logarithmic or not.
_CURVES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("loss", ("loss",), True),
    ("mean photometric error", ("e_r", "e_f", "e_identity"), True),
    ("spread of the error model", ("b_r", "b_f"), True),
    ("share of moving pixels: fitted, and withheld", ("pi", "moving_share"), False),
    ("separation of moving from static pixels, by cue", ("separation", "log_separation"), False),
    ("threshold tau and temperature T of the mask, on Delta", ("tau", "temperature"), False),
    ("distance of the flow to matches, and of the rigid flow to it, px", ("flow_matches", "consistency"), True),
    ("gradient reaching depth and flow", ("gradient_depth", "gradient_flow"), False),
    ("fairness of the gradient, share of pixels", ("fairness", "pixel_share_depth", "pixel_share_flow"), False),
)


def plot_trajectory(path: Path, truth: np.ndarray | None, estimates: Mapping[str, np.ndarray], title: str = "") -> Path:
    """Trajectories seen from above (x to the right, z ahead), drawn to one scale.

    Args:
        path: PNG or SVG to write.
        truth: (N, 4, 4) or (N, 3) camera positions, metres; None where unknown.
        estimates: the same, by name; aligned to the truth where there is one.
        title: for people; names the alignment.
    """
    figure, axes = plt.subplots(figsize=(6.4, 6.4), layout="constrained")
    if truth is not None:
        _draw_path(axes, truth, "truth", _TRUTH_COLOR, 2.4)
    for index, (name, estimate) in enumerate(estimates.items()):
        _draw_path(axes, estimate, name, _COLORS[index % len(_COLORS)], 1.6)
    axes.set(xlabel="x, m" if truth is not None else "x", ylabel="z, m" if truth is not None else "z", title=title)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return _save(path, figure)


def plot_curves(metrics: Path, path: Path) -> Path:
    """The curves of a training: loss, errors, error model, and how pixels and gradient are shared out.

    Args:
        metrics: metrics.jsonl of a run folder; figures it lacks are left out.
        path: PNG or SVG to write.

    Raises:
        NoUsableDataError: it cannot be read, or holds no figure that is drawn here.
    """
    lines = read_metrics(metrics)
    train = [line for line in lines if not line.get("validation")]
    validation = [line for line in lines if line.get("validation")]
    drawn = [curve for curve in _CURVES if any(len(_series(lines, name)[0]) for name in curve[1])]
    if not drawn:
        raise NoUsableDataError(f"{metrics} holds none of the figures of a training (loss, e_r, e_f, ...).")
    rows = -(-len(drawn) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(10.0, 2.9 * rows), squeeze=False, layout="constrained")
    for axes, (title, names, logarithmic) in zip(grid.flat, drawn, strict=False):
        _draw_curves(axes, train, validation, names)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_yscale("log" if logarithmic and _is_positive(train + validation, names) else "linear")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        _draw_stages(axes, train)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_visible(False)
    figure.suptitle("lines: training, dots: validation, dotted: a stage begins", fontsize=9)
    return _save(path, figure)


def _draw_path(axes: Axes, poses: np.ndarray, name: str, color: str, width: float) -> None:
    positions = poses[:, :3, 3] if poses.ndim == 3 else poses
    axes.plot(positions[:, 0], positions[:, 2], color=color, linewidth=width, label=name)
    axes.plot(positions[:1, 0], positions[:1, 2], "o", color=color, markersize=4)


def _draw_curves(
    axes: Axes, train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]], names: Sequence[str]
) -> None:
    """Training lines as smoothed curves, validation lines as dots, one colour for each figure."""
    for index, name in enumerate(names):
        color = _COLORS[index % len(_COLORS)]
        steps, values = _series(train, name)
        if len(steps):
            window = max(1, len(steps) // 50)
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
            axes.plot(*_smoothed(steps, values, window), color=color, linewidth=1.5, label=name)
        steps, values = _series(validation, name)
        if len(steps):
            axes.plot(steps, values, "o", color=color, markersize=3)


def _draw_stages(axes: Axes, train: Sequence[dict[str, Any]]) -> None:
    """A dotted line where a stage of the training begins."""
    for before, after in pairwise(train):
        if before.get("stage") != after.get("stage"):
            axes.axvline(after["step"], color="#888888", linestyle=":", linewidth=1.0)


def _series(lines: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    table = np.array([row for row in rows if np.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)
    table = table[:: max(1, len(table) // _MOST_POINTS)]
    return table[:, 0], table[:, 1]


def _smoothed(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    if window < 2:
        return steps, values
    kernel = np.full(window, 1.0 / window)
    return np.convolve(steps, kernel, mode="valid"), np.convolve(values, kernel, mode="valid")


def _is_positive(lines: Sequence[dict[str, Any]], names: Sequence[str]) -> bool:
    values = np.concatenate([_series(lines, name)[1] for name in names])
    return bool(values.size and (values > 0).all())


def _save(path: Path, figure: plt.Figure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
