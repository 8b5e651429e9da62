"""Diagrams (matplotlib, without a display): trajectories from above, curves and error model of a training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from coopnet_core.files import write_whole

_TRUTH_COLOR, _COLORS = "#222222", ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MOST_POINTS = 600
# On a logarithmic axis that spans little, numbers with these first digits have a label besides the powers of ten.
_LABELLED, _WIDE = ("2", "3", "4", "6"), 50.0
_INK, _PAPER = "#010203", "#fdfeff"
"""Stand for the colours of text and page until a diagram that follows the reader's theme is written."""
_THEME = (
    "<style>svg{--ink:#24292f;--paper:#fff}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--paper:#0d1117}}</style>"
)
_MARGINS = {"left": 0.12, "right": 0.98, "bottom": 0.18, "top": 0.96}
_THEMED = {
    "svg.fonttype": "none",
    "svg.hashsalt": "coopnet",
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Curve:
    """One diagram of a training.

    Attributes:
        key: names its file.
        title: for people.
        names: of the figures in metrics.jsonl.
        logarithmic: whether the axis may be.
        meaning: what to look for, a sentence.
    """

    key: str
    title: str
    names: tuple[str, ...]
    logarithmic: bool = False
    meaning: str = ""


CURVES: tuple[Curve, ...] = (
    Curve("loss", "loss", ("loss",), True, "The sum that is minimised; it jumps where a stage begins."),
    Curve(
        "errors",
        "mean photometric error",
        ("e_r", "e_f", "e_identity"),
        True,
        "By depth and odometry (e_r), by flow (e_f), by the unmoved image (e_identity): e_r must fall below the last.",
    ),
    Curve(
        "unexplained",
        "error left by each reconstruction, pixels that it cannot explain included",
        ("rigid_unexplained", "flow_unexplained"),
        True,
        "Their sum on the validation images (dots) chooses the best checkpoint.",
    ),
    Curve(
        "photometric",
        "photometric terms of the loss",
        ("rigid_photometric", "flow_photometric", "flow_coarse"),
        True,
        "What is left of e_r and e_f on the pixels that teach.",
    ),
    Curve("smoothness", "smoothness terms of the loss", ("disparity_smoothness", "flow_smoothness"), True),
    Curve(
        "distances",
        "distance of the flow to matches, and of the rigid flow to it, px",
        ("flow_matches", "consistency"),
        True,
    ),
    Curve("scales", "spread of the error model", ("b_r", "b_f"), True, "Both sink as the reconstructions improve."),
    Curve(
        "moving",
        "share of moving pixels: fitted, and withheld",
        ("pi", "moving_share"),
        False,
        "0 for ever: nothing moves, or the mask is dead. At its cap: everything is taken to move.",
    ),
    Curve(
        "gates",
        "separation of moving from static pixels, by cue",
        ("separation", "log_separation"),
        False,
        "Of brightness and of correspondence; a cue speaks once it is above its gate (dotted).",
    ),
    Curve("gate", "gate of the moving mask", ("gate",), False, "0: shut, nothing is withheld; 1: wholly open."),
    Curve("threshold", "threshold tau and temperature T of the mask, on Delta", ("tau", "temperature")),
    Curve("gradients", "gradient reaching depth and flow", ("gradient_depth", "gradient_flow")),
    Curve(
        "shares",
        "fairness of the gradient, share of pixels",
        ("fairness", "pixel_share_depth", "pixel_share_flow"),
        False,
        "Fairness: the rigid side's share of the gradient. Pixel shares: what each side learns from.",
    ),
    Curve("depth", "depth: median, and spread of its logarithm", ("depth_median", "depth_spread"), True),
    Curve("focal", "learned focal length over the assumed one", ("focal_factor",)),
    Curve("rate", "learning rate", ("lr",), True),
    Curve("speed", "targets per second", ("triplets_per_s",)),
    Curve("waiting", "share of the time in which a step waited for its images", ("data_wait_share",)),
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
    drawn = _known_curves(lines)
    if not drawn:
        raise NoUsableDataError(f"{metrics} holds none of the figures of a training (loss, e_r, e_f, ...).")
    rows = -(-len(drawn) // 2)
    figure, grid = plt.subplots(rows, 2, figsize=(10.0, 2.9 * rows), squeeze=False, layout="constrained")
    for axes, curve in zip(grid.flat, drawn, strict=False):
        _draw_curve(axes, lines, curve)
        axes.set_title(curve.title, fontsize=10)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_visible(False)
    figure.suptitle("lines: training, dots: validation, dotted: a stage begins", fontsize=9)
    return _save(path, figure)


def plot_each_curve(
    lines: Sequence[Mapping[str, Any]], folder: Path, gates: Mapping[str, float] | None = None
) -> dict[Curve, Path]:
    """The same curves, an SVG file each that is light or dark as the reader's system is.

    Args:
        lines: of metrics.jsonl; figures they lack are left out.
        folder: to write to; a file is named by the key of its curve.
        gates: by the name of a figure, the value above which it opens a gate, drawn as a dotted line.

    Raises:
        OSError: the disk refuses.
    """
    paths = {}
    with plt.rc_context(_THEMED):
        for curve in _known_curves(lines):
            # Fixed margins: to work out the best ones takes as long again as to draw.
            figure, axes = plt.subplots(figsize=(5.2, 2.7), gridspec_kw=_MARGINS)
            _draw_curve(axes, lines, curve)
            for index, name in enumerate(curve.names):
                if gates and name in gates:
                    axes.axhline(gates[name], color=_COLORS[index % len(_COLORS)], linestyle=":", linewidth=1.0)
            paths[curve] = _save_themed(folder / f"{curve.key}.svg", figure)
    return paths


def plot_error_model(path: Path, edges: np.ndarray, seen: np.ndarray, expected: np.ndarray, tau: float) -> Path:
    """Delta = e_r - e_f as it was seen, and as the fitted model expects it; an SVG for light and dark.

    Args:
        path: SVG to write.
        edges: (N + 1,) of the bins.
        seen: (N,) share of the pixels in each bin.
        expected: (N,) the same by the model.
        tau: Delta at which a pixel is as likely to move as not; NaN where there is none.

    Raises:
        OSError: the disk refuses.
    """
    with plt.rc_context(_THEMED):
        figure, axes = plt.subplots(figsize=(8.0, 3.2), gridspec_kw=_MARGINS)
        axes.stairs(seen, edges, fill=True, color=_COLORS[0], alpha=0.5, label="pixels")
        axes.plot((edges[1:] + edges[:-1]) / 2, expected, color=_COLORS[1], linewidth=1.6, label="fitted model")
        if np.isfinite(tau):
            axes.axvline(tau, color="#888888", linestyle=":", linewidth=1.2, label="tau")
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(float(seen[seen > 0].min(initial=1.0)) / 3, 1e-6))
        axes.set(xlabel="Delta = e_r - e_f", ylabel="share of the pixels")
        axes.legend(fontsize=8)
        return _save_themed(path, figure)


def _known_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Those of which there is something to draw."""
    return [curve for curve in CURVES if any(len(_series(lines, name)[0]) for name in curve.names)]


def _draw_curve(axes: Axes, lines: Sequence[Mapping[str, Any]], curve: Curve) -> None:
    train = [line for line in lines if not line.get("validation")]
    validation = [line for line in lines if line.get("validation")]
    _draw_curves(axes, train, validation, curve.names)
    axes.set_xlabel("step")
    if curve.logarithmic and _is_positive(lines, curve.names):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        labelled = _LABELLED if high / low < _WIDE else ()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in labelled else "")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _draw_stages(axes, train)


def _draw_path(axes: Axes, poses: np.ndarray, name: str, color: str, width: float) -> None:
    positions = poses[:, :3, 3] if poses.ndim == 3 else poses
    axes.plot(positions[:, 0], positions[:, 2], color=color, linewidth=width, label=name)
    axes.plot(positions[:1, 0], positions[:1, 2], "o", color=color, markersize=4)


def _draw_curves(
    axes: Axes, train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], names: Sequence[str]
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
            # Figures that only a validation has measured still need a name.
            named = f"_{name}" if len(_series(train, name)[0]) else name
            axes.plot(steps, values, "o", color=color, markersize=3, label=named)


def _draw_stages(axes: Axes, train: Sequence[Mapping[str, Any]]) -> None:
    """A dotted line where a stage of the training begins."""
    for before, after in pairwise(train):
        if before.get("stage") != after.get("stage"):
            axes.axvline(after["step"], color="#888888", linestyle=":", linewidth=1.0)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    table = table[:: max(1, len(table) // _MOST_POINTS)]
    return table[:, 0], table[:, 1]


def _smoothed(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    if window < 2:
        return steps, values
    kernel = np.full(window, 1.0 / window)
    return np.convolve(steps, kernel, mode="valid"), np.convolve(values, kernel, mode="valid")


def _is_positive(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    values = np.concatenate([_series(lines, name)[1] for name in names])
    return bool(values.size and (values > 0).all())


def _save(path: Path, figure: plt.Figure) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _save_themed(path: Path, figure: plt.Figure) -> Path:
    """The figure as an SVG whose text and page follow the reader's theme (drawn within `_THEMED`)."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    plt.close(figure)
    text = drawn.getvalue()
    # Without the prologue, which names a DTD on the network.
    head, body = text[text.index("<svg") :].split(">", maxsplit=1)
    svg = f"{head}>{_THEME}{body}".replace(_INK, "var(--ink)").replace(_PAPER, "var(--paper)")
    write_whole(path, lambda partial: partial.write_text(svg, encoding="utf-8"))
    return path
