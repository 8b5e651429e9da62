"""The demo's result: report.json, report.html and pictures, from what its steps left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ConsoleTable

from coopnet_core import __version__
from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.errors import CoopnetError
from coopnet_core.evaluation.reports import Picture, Section, Table, number, write_json, write_report
from coopnet_core.plots import plot_curves
from coopnet_core.visualization import depth_range, depth_to_color, tile, write_animation, write_picture
from coopnet_ros.demo_parts import Split

# Figure, the baseline beside it, and whether less is better.
_FIGURES = (
    ("depth.abs_rel", "constant", True),
    ("depth.a1", "constant", False),
    ("odometry.ate_7dof_m", "straight_line", True),
    ("odometry.t_err_pct", "straight_line", True),
    ("odometry.rotation_deg_per_frame", "straight_line", True),
    ("flow.epe", "zero", True),
    ("flow.fl_pct", "zero", True),
    ("mask.auc", "frame_difference", False),
    ("mask.iou_moving", "frame_difference", False),
)
_PHOTOMETRIC = ("rigid", "flow")
COLUMNS = ("before", "after", "live")
_DEPTHS = ("depth", "depth_relative")
NOT_BEATEN = (
    "On the part it validates on, training found nothing better than the weights it started from: best.safetensors of "
    "the run holds those. 'After' and 'live' are its last weights, to show what it did."
)
_TRAINING_KEYS = (
    "stage",
    "loss",
    "e_r",
    "e_f",
    "b_r",
    "b_f",
    "pi",
    "open_steps",
    "fairness",
    "moving_share",
    "triplets_per_s",
)


@dataclass
class DemoFacts:
    """What is known of a demo, filled by its steps.

    Attributes:
        seed: of scene and training.
        rendered: whether the recording was rendered here.
        seconds: wall time by step.
        failure: why it is not complete, "" when it is.
        recording: bag, topic and image ranges, as plain data.
        split: the same, for the steps.
        run: training run folder.
        trained: checkpoint of that run.
        start_was_beaten: whether its validation found better weights than those it started from.
        evaluations: result folder of `evaluate` by name (before, after).
        live: result folder of `record_outputs`.
    """

    seed: int = 0
    rendered: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    recording: dict[str, Any] = field(default_factory=dict)
    split: Split | None = None
    run: Path | None = None
    trained: Path | None = None
    start_was_beaten: bool = True
    evaluations: dict[str, Path] = field(default_factory=dict)
    live: Path | None = None
    figures: list[list[object]] = field(default_factory=list)

    def set_split(self, bag: Path, split: Split) -> None:
        """Note what is used of the recording."""
        self.split = split
        self.recording = {
            "bag": str(bag),
            "topic": split.topics.image,
            "train_images": list(split.train),
            "test_images": list(split.test),
            "images_per_second": round(split.fps, 3),
        }

    def write_marker(self, path: Path) -> None:
        """Mark the folder as a demo's, so that the next demo may move it aside."""
        write_json(path, {"coopnet": __version__, "seed": self.seed, "rendered": self.rendered})

    def print_summary(self, console: Console) -> None:
        """The figures before and after, on the terminal."""
        if not self.figures:
            return
        if not self.start_was_beaten:
            console.print(NOT_BEATEN, soft_wrap=True)
        table = ConsoleTable(title="on images that training never saw")
        for heading in ("figure", "trivial", *COLUMNS):
            table.add_column(heading, justify="left" if heading == "figure" else "right")
        for row in self.figures:
            table.add_row(*(number(cell) for cell in row))
        console.print(table)


def write_demo_report(output: Path, facts: DemoFacts) -> Path:
    """Write report.json and report.html for whatever steps were done; gives the page's path."""
    reports = {name: _read_json(folder / "report.json") for name, folder in facts.evaluations.items()}
    facts.figures = comparison(reports)
    live = live_summary(facts, output) if facts.live is not None else None
    write_json(
        output / "report.json",
        {
            "version": __version__,
            "complete": not facts.failure,
            "failure": facts.failure or None,
            "seed": facts.seed,
            "rendered": facts.rendered,
            "recording": facts.recording,
            "seconds": facts.seconds,
            "checkpoint": str(facts.trained) if facts.trained else None,
            "start_was_beaten": facts.start_was_beaten,
            **{name: reports.get(name) for name in COLUMNS},
            "received": live,
        },
    )
    sections = [_figures_section(facts, reports), *_picture_sections(output, facts)]
    sections += [_training_section(output, facts)] if facts.run is not None else []
    sections += [_live_section(output, live)] if live is not None else []
    sections.append(_time_section(facts))
    return write_report(output / "report.html", "coopnet: from a recording to live depth", sections, _intro(facts))


def comparison(reports: Mapping[str, dict[str, Any] | None]) -> list[list[object]]:
    """Rows of [figure, trivial baseline, before, after, live]; figures that no report has are left out.

    Args:
        reports: what `evaluate` wrote, by the names of `COLUMNS`; None or missing where it did not.
    """
    columns = [reports.get(name) or {} for name in COLUMNS]
    # The trivial figures belong to the whole held-out part; live, a dropped frame may be missing from it.
    reference = next((column for column in (columns[1], columns[0], columns[2]) if column), None)
    if reference is None:
        return []
    rows = []
    for name, baseline, less_is_better in _FIGURES:
        part, key = name.split(".")
        found = [column.get(part, {}).get(key) for column in columns]
        if any(value is not None for value in found):
            trivial = (reference["baselines"][part].get(baseline) or {}).get(key)
            rows.append([f"{name} ({'less' if less_is_better else 'more'} is better)", trivial, *found])
    for kind in _PHOTOMETRIC:
        found = [(column.get("photometric") or {}).get(kind) for column in columns]
        if any(value is not None for value in found):
            identity = (reference.get("photometric") or {}).get("identity")
            rows.append([f"photometric error, {kind} (less is better)", identity, *found])
    return rows


def live_summary(facts: DemoFacts, output: Path) -> dict[str, Any] | None:
    """What the independent subscriber received, by its own account."""
    summary = _read_json(facts.live / "summary.json")
    if summary is None:
        return None
    received = sorted((facts.live / "frames").glob("*.npz"), key=lambda path: int(path.stem))
    _write_live_pictures(output, received)
    return summary


def _write_live_pictures(output: Path, received: list[Path]) -> None:
    """A panel and an animation of what was received: depth, flow, moving mask."""
    panels: list[np.ndarray] = []
    limits: tuple[float, float] | None = None
    for path in received:
        with np.load(path) as arrays:
            name = next((name for name in _DEPTHS if name in arrays), None)
            if name is None or not all(other in arrays for other in ("flow_color", "mask")):
                continue
            depth, flow, mask = arrays[name], arrays["flow_color"], arrays["mask"]
        # The node's own depth colours span a fixed range in metres, which says little where the scale is unknown.
        limits = limits or depth_range(depth)
        pictures = [depth_to_color(depth, *limits), flow, np.repeat(mask[..., None], 3, axis=2)]
        panels.append(
            tile(pictures, [f"{name.replace('_', ', ')} {limits[0]:.3g}-{limits[1]:.3g}", "flow", "moving"], 3)
        )
    if panels:
        write_picture(output / "live_panel.png", panels[len(panels) // 2])
        write_animation(output / "live.webp", panels)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _intro(facts: DemoFacts) -> list[str]:
    source = "rendered here, so every truth is exact" if facts.rendered else "your recording"
    lines = [f"coopnet {__version__}, seed {facts.seed}. The recording: {source}."]
    if facts.recording:
        train, test = facts.recording["train_images"], facts.recording["test_images"]
        lines.append(
            f"Images {train[0]} to {train[1] - 1} of {facts.recording['topic']} trained the networks, without labels; "
            f"{test[0]} to {test[1] - 1} were held out: all figures and pictures below are of those."
        )
    if facts.failure:
        lines.append(f"NOT COMPLETE. {facts.failure}")
    return lines


def _figures_section(facts: DemoFacts, reports: dict[str, dict[str, Any] | None]) -> Section:
    text = []
    if "before" not in facts.evaluations:
        text.append(
            "Training started from nothing: there is no column before it. A cold start learns little in minutes."
        )
    if not facts.start_was_beaten:
        text.append(NOT_BEATEN)
    for name, report in reports.items():
        reasons = (report or {}).get("reasons", {})
        text += [f"{key} {name}: {reason}." for key, reason in reasons.items()] if name == "after" else []
    if not facts.figures:
        text.append("No figures: the evaluation was not reached.")
    header = ["figure", "trivial baseline", "before training", "after training", "received live"]
    tables = [Table(header, facts.figures)] if facts.figures else []
    return Section("Figures", text, tables)


def _picture_sections(output: Path, facts: DemoFacts) -> list[Section]:
    """The pictures that `evaluate` drew, after training where there are some, else before."""
    for name in ("after", "before"):
        folder = facts.evaluations.get(name)
        if folder is None:
            continue
        found = sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".webp", ".gif"})
        if found:
            pictures = [Picture(path, f"{name} training: {path.relative_to(output)}") for path in found]
            return [Section("Pictures", pictures=pictures)]
    return []


def _training_section(output: Path, facts: DemoFacts) -> Section:
    metrics = facts.run / "metrics.jsonl"
    try:
        curves = plot_curves(metrics, output / "curves.png")
        lines = [line for line in read_metrics(metrics) if not line.get("validation")]
    except CoopnetError as error:
        return Section("Training", [str(error)])
    steps = [lines[0], lines[-1]] if len(lines) > 1 else lines
    rows = [[key, *(line.get(key) for line in steps)] for key in _TRAINING_KEYS]
    header = ["", *(f"step {line.get('step')}" for line in steps)]
    return Section("Training", pictures=[Picture(curves, "losses and apportionment")], tables=[Table(header, rows)])


def _live_section(output: Path, live: dict[str, Any]) -> Section:
    """What arrived, from the subscriber's summary."""
    topics = {name: topic for name, topic in live.get("topics", {}).items() if topic.get("count")}
    silent = sorted(set(live.get("topics", {})) - set(topics))
    rows = [
        [
            name,
            topic["type"],
            topic["encoding"],
            topic["count"],
            f"{topic['width']}x{topic['height']}" if topic["width"] else "",
            topic["frame_id"],
            topic["rate_hz"],
        ]
        for name, topic in topics.items()
    ]
    header = ["topic", "type", "encoding", "messages", "size", "frame", "Hz"]
    diagnostics = live.get("diagnostics", {})
    tables = [Table(header, rows), Table(["/diagnostics", ""], [[key, value] for key, value in diagnostics.items()])]
    text = [f"Received by a process of its own while the held-out part was replayed: {live.get('frames')} frames."]
    text += [f"Nothing came on {', '.join(silent)} (depth is on the topics that fit its scale, known or not)."] * bool(
        silent
    )
    pictures = [
        Picture(output / "live_panel.png", "received: depth, flow, moving mask"),
        Picture(output / "live.webp", "the same, all frames"),
        Picture(output / "evaluation" / "live" / "trajectory.png", "the odometry received, as evaluated"),
    ]
    return Section("Live", text, tables, pictures)


def _time_section(facts: DemoFacts) -> Section:
    rows: list[list[object]] = [[title, seconds] for title, seconds in facts.seconds.items()]
    rows.append(["together", round(sum(facts.seconds.values()), 1)])
    return Section("Time", tables=[Table(["step", "seconds"], rows)])
