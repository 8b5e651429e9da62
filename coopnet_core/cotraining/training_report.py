"""The report of a training: report.html for people and report.json for programs, from what a run folder holds.

Everything but the pictures can be written again at any time; the pictures stay in the folder, and are drawn anew where
the images are there.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console

from coopnet_core import __version__
from coopnet_core.checkpoint import read_metadata
from coopnet_core.config import TrainConfig, differences, load_config, preset_names
from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.cotraining.objective import SCORED
from coopnet_core.cotraining.report_pictures import draw_error_model, draw_predictions, residuals
from coopnet_core.cotraining.run_folder import best_checkpoint, last_checkpoint
from coopnet_core.cotraining.verdict import best_validation, verdict
from coopnet_core.errors import CoopnetError, NoUsableDataError, UsageError
from coopnet_core.evaluation.reports import Picture, Remark, Section, Table, finite, number, write_json, write_report
from coopnet_core.rerun_log import log_training

if TYPE_CHECKING:  # to write a report again takes none of the modules that read recordings
    from coopnet_core.data.clips import PreparedData, SourceSummary
    from coopnet_core.data.frames import Clip

_FIGURES = (
    *SCORED,
    "rigid_photometric",
    "e_r",
    "e_f",
    "e_identity",
    "moving_share",
    "consistency",
    "pixel_share_depth",
    "pixel_share_flow",
    "depth_median",
    "depth_spread",
)
_LATE_LINES = 20
_DROPPED_OPTIONS = {"--resume": 0, "--init": 1}
"""Options of the first command that one that goes on must not repeat, with the number of their values."""


End = Literal["done", "interrupted", "out of patience", "diverged"]


@dataclass(frozen=True)
class Session:
    """One call of the command that trains.

    Attributes:
        command: its arguments, as typed.
        recordings: those among them, for validation ones last.
        seconds: it took.
        end: how it ended.
        words: more on that, a sentence; "" where there is no more to say.
        device: that computed.
        init: weights it started from, or None.
        assumed_degrees: horizontal field of view of cameras without calibration, where there are some.
        torch, python, system: versions.
    """

    command: Sequence[str]
    recordings: Sequence[str]
    seconds: float
    end: End
    words: str
    device: str
    init: str | None = None
    assumed_degrees: float | None = None
    torch: str = torch.__version__
    python: str = platform.python_version()
    system: str = field(default_factory=platform.platform)


def report_of_a_training(
    output: Path,
    console: Console,
    data: PreparedData | None = None,
    session: Session | None = None,
    rerun: Path | None = None,
) -> bool:
    """Write report.html and say where it is; where that fails, say why. A run is never lost to its report.

    Args:
        output: the run folder.
        console: to speak to.
        data: the clips, for pictures; None: those that were drawn before are kept.
        session: the call that ends; None: the report is only written again.
        rerun: an .rrd file to write too, or None.

    Returns:
        Whether it was written.
    """
    console.print("writing the report ...", style="dim")
    try:
        path, missing = write_training_report(output, data, session, rerun)
    except KeyboardInterrupt:
        reason = "interrupted"
    except Exception as error:  # whatever it is: hours of training must not end with the exit code of a diagram
        reason = _in_words(error)
    else:
        console.print(f"report           {path}", markup=False, highlight=False, soft_wrap=True)
        for text in missing:
            console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return True
    console.print(
        f"The report could not be written ({reason}); the run itself is not affected. Write it with: "
        f"train_from_bags --report {output}",
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return False


def write_training_report(
    output: Path, data: PreparedData | None = None, session: Session | None = None, rerun: Path | None = None
) -> tuple[Path, list[str]]:
    """Write report.html and report.json of the run in a folder.

    Args:
        output, data, session, rerun: as for `report_of_a_training`.

    Returns:
        The page; and what is missing in it, with the reason, a sentence each.

    Raises:
        UsageError: the folder holds no run.
        OSError: the disk refuses.
    """
    if not (output / "config.yaml").is_file():
        raise UsageError(f"{output} holds no run: config.yaml is missing.")
    config = load_config(None, [output / "config.yaml"], {})
    facts = _updated(_read_json(output / "report.json"), data, session)
    lines = _lines(output, config)
    missing: list[str] = []
    clips = [] if data is None else data.validation or data.train
    if clips:
        factor = next((line["focal_factor"] for line in reversed(lines) if line.get("focal_factor")), 1.0)
        facts |= _drawn(output, clips, config, factor, missing)
        facts["pictures_of"] = "validation" if data.validation else "training"
    curves = _attempt(missing, "Curves", lambda: _curves(output, lines, config)) or []
    judged = verdict(lines, config, facts.get("assumed_degrees"))
    findings = [*judged.findings, *_ending(facts)]
    sections = [
        Section("Findings", remarks=findings),
        _warnings(output),
        _pictures_section(output, facts),
        _next(output, config, facts, lines),
        _trained_on(output, facts),
        _figures(lines),
        Section("Curves", [_stages(lines)], pictures=curves, columns=2) if curves else None,
        _error_model(output, facts),
        *_settings(config),
        _run(output, config, facts, lines),
        Section("Not in this report", missing) if missing else None,
    ]
    report = {"version": __version__, "verdict": judged.summary.text, "state": judged.summary.state}
    report |= {"findings": [asdict(finding) for finding in findings], **facts}
    write_json(output / "report.json", report)
    page = write_report(
        output / "report.html",
        f"Training {output.resolve().name}",
        [section for section in sections if section is not None],
        verdict=judged.summary,
    )
    if rerun is not None:
        _attempt(missing, "The log for Rerun", lambda: log_training(rerun, output))
    return page, missing


def _updated(facts: dict[str, Any], data: PreparedData | None, session: Session | None) -> dict[str, Any]:
    """What is known besides the run's other files, with this call added."""
    facts = {key: value for key, value in facts.items() if key not in ("version", "verdict", "state", "findings")}
    facts.setdefault("sessions", [])
    if data is not None:
        facts["sources"] = [_described(source) for source in data.sources]
        facts["not_used"] = list(data.failed)
        facts["size"] = list(data.size)
    if session is not None:
        facts["sessions"] = [*facts["sessions"], finite(asdict(session))]
        facts["init"] = session.init or facts.get("init")
        facts["assumed_degrees"] = session.assumed_degrees
    return facts


def _ending(facts: Mapping[str, Any]) -> list[Remark]:
    """Why the run ended before its last step."""
    session = facts["sessions"][-1] if facts["sessions"] else {"words": ""}
    if not session["words"]:
        return []
    words = f"{session['words'][0].upper()}{session['words'][1:].rstrip('.')}."
    return [Remark(words, "bad" if session["end"] == "diverged" else "plain")]


def _described(source: SourceSummary) -> dict[str, Any]:
    """A recording as plain data."""
    report = source.report
    return {
        "name": source.name,
        "number": source.number,
        "kind": source.kind,
        "topic": source.camera,
        "camera": list(source.cameras),
        "weight": source.weight,
        "seconds": round(source.duration_s, 3),
        "rate_hz": round(source.rate_hz, 3),
        "images": report.messages,
        "unusable": dict(report.skipped),
        "still": source.still,
        "short": source.short,
        "gaps": source.gaps,
        "train_frames": source.train,
        "validation_frames": source.validation,
        "notes": [source.why, *report.notes, *report.unread],
    }


def _drawn(
    output: Path, clips: Sequence[Clip], config: TrainConfig, factor: float, missing: list[str]
) -> dict[str, Any]:
    """Draw what needs networks and images; gives what the report must know of it."""
    folder, best = output / "pictures", best_checkpoint(output)
    found: dict[str, Any] = {}
    histogram = folder / "error_model.svg"

    def draw_histogram() -> Path | None:
        return draw_error_model(histogram, best, residuals(best, clips, config, factor))

    if _attempt(missing, "The error model", draw_histogram) is not None:
        found["error_model"] = str(histogram.relative_to(output))
    pictures = _attempt(missing, "Pictures", lambda: draw_predictions(folder, best, clips, factor))
    if pictures is not None:
        found["pictures"] = [[str(path.relative_to(output)), caption] for path, caption in pictures]
        found["pictures_step"] = read_metadata(best).step
    return found


def _curves(output: Path, lines: Sequence[Mapping[str, Any]], config: TrainConfig) -> list[Picture]:
    from coopnet_core.plots import plot_each_curve

    model = config.loss.error_model
    gates = {"separation": model.gate_separation, "log_separation": model.gate_log_separation}
    train = [line for line in lines if not line.get("validation")]
    pictures = []
    for curve, path in plot_each_curve(lines, output / "pictures", gates).items():
        last = [f"{name} {number(value)}" for name in curve.names if (value := _last(train, name)) is not None]
        parts = [f"{curve.title[0].upper()}{curve.title[1:]}.", curve.meaning]
        parts.append(f"At the end: {', '.join(last)}." if last else "")
        pictures.append(Picture(path, " ".join(filter(None, parts))))
    return pictures


def _warnings(output: Path) -> Section | None:
    """What the run has complained of."""
    try:
        texts = (output / "warnings.txt").read_text().splitlines()
    except OSError:
        return None
    remarks = [Remark(f"{text[0].upper()}{text[1:]}.", "bad") for text in texts if text]
    return Section("Warnings during the run", remarks=remarks) if remarks else None


def _pictures_section(output: Path, facts: Mapping[str, Any]) -> Section | None:
    found = facts.get("pictures")
    if not found:
        return None
    steps = f"{facts['pictures_step']} steps" + (", those before --init included" if facts.get("init") else "")
    text = [
        f"Images of the {facts['pictures_of']} part and what the best checkpoint ({steps}) makes of them: depth (near "
        "is bright; the unit is the networks' own until a scale is known), flow towards the image before (the colour "
        "is the direction), and what is taken to move (red)."
    ]
    return Section("Pictures", text, pictures=[Picture(output / path, caption) for path, caption in found], columns=4)


def _next(output: Path, config: TrainConfig, facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Section:
    """Commands that make sense now, each under a comment."""
    best = best_checkpoint(output)
    sessions = facts["sessions"]
    recordings = sessions[-1]["recordings"] if sessions else []
    bag = next((source for source in facts.get("sources") or [] if source["kind"] == "rosbag2"), None)
    topic = f" image:={shlex.quote(bag['topic'])}" if bag is not None and bag["topic"] else ""
    named = recordings[bag["number"]] if bag is not None and bag["number"] < len(recordings) else "RECORDING"
    # A folder of one's own name: the node may be started from anywhere.
    commands = [
        "# live, on a camera or a bag that is played\n"
        f"ros2 launch coopnet_ros coopnet.launch.py checkpoint:={shlex.quote(str(best.resolve()))}{topic}",
        "# figures and pictures on a recording, beside trivial baselines\n"
        f"evaluate --bag {shlex.quote(named)} --checkpoint {shlex.quote(str(best))} "
        f"--output {shlex.quote(str(output / 'evaluation'))}",
    ]
    done = bool(lines) and lines[-1]["step"] >= config.steps
    if sessions and not done:
        command = f"train_from_bags {_repeatable(sessions[0]['command'])} --resume"
        if sessions[-1]["end"] == "diverged":
            command += f" --set optimiser.learning_rate={config.optimiser.learning_rate / 2:g}"
        elif sessions[-1]["end"] == "out of patience":
            command += " --set patience=0"
        commands.append(f"# to the end of this run\n{command}")
    commands.append(
        "# a new run from these weights, on other or more recordings\n"
        f"train_from_bags RECORDING --init {shlex.quote(str(best))} --output NEW_FOLDER"
    )
    return Section("What to type next", commands=commands)


def _repeatable(command: Sequence[str]) -> str:
    """The arguments of a run without those that only its start needs."""
    kept, left_out = [], 0
    for word in command:
        name, _, value = word.partition("=")
        if left_out:
            left_out -= 1
        elif name in _DROPPED_OPTIONS:
            left_out = 0 if value else _DROPPED_OPTIONS[name]
        else:
            kept.append(word)
    return shlex.join(kept)


def _trained_on(output: Path, facts: Mapping[str, Any]) -> Section:
    """Recordings, cameras, frames, and what was dropped."""
    sources = facts.get("sources")
    if sources is None:
        try:
            sources = read_metadata(last_checkpoint(output)).data.get("sources", [])
        except CoopnetError as error:
            return Section("Trained on", [str(error)])
    header = ["recording", "kind", "camera", "images", "unusable", "still", "in short clips", "train", "validation"]
    rows = [
        [
            source["name"],
            source["kind"],
            "; ".join(filter(None, [source.get("topic"), *source.get("camera", [])])),
            source.get("images"),
            sum(source["unusable"].values()) if "unusable" in source else None,
            source.get("still"),
            source.get("short"),
            source.get("train_frames"),
            source.get("validation_frames"),
        ]
        for source in sources
    ]
    text = []
    if facts.get("init"):
        text.append(f"It started from {facts['init']}.")
    if facts.get("size"):
        text.append("The networks saw {}x{} pixels.".format(*facts["size"]))
    remarks = [Remark(f"{source['name']}: {note}") for source in sources for note in source.get("notes", [])]
    remarks += [
        Remark(f"{source['name']}: {count} images not used, {reason}", "poor")
        for source in sources
        for reason, count in source.get("unusable", {}).items()
    ]
    remarks += [Remark(f"not used: {reason}", "bad") for reason in facts.get("not_used", [])]
    return Section("Trained on", text, [Table(header, rows)], remarks=remarks)


def _figures(lines: Sequence[Mapping[str, Any]]) -> Section | None:
    """Training at its begin and end; the first, the best and the last validation."""
    train = [line for line in lines if not line.get("validation")]
    checks = [line for line in lines if line.get("validation")]
    columns: dict[str, Mapping[str, Any]] = {}
    if train:
        late = train[-_LATE_LINES:]
        columns[f"training, step\u00a0{train[0]['step']}"] = train[0]
        columns[f"training, mean of the last {len(late)} lines"] = {name: _mean(late, name) for name in _FIGURES}
    best = best_validation(lines)
    if best is not None:
        columns |= {f"validation, step\u00a0{line['step']}": line for line in (checks[0], best, checks[-1])}
    rows = [[name, *(figures.get(name) for figures in columns.values())] for name in _FIGURES]
    rows = [row for row in rows if any(value is not None for value in row[1:])]
    if not rows:
        return None
    text = [
        "e_r, e_f, e_identity: mean photometric error of the reconstruction by depth and odometry, by flow, and of the "
        "unmoved image. Validation at step 0 is that of the weights it started from."
        + (f" The best checkpoint is that of step {best['step']}." if best is not None else "")
    ]
    return Section("Figures", text, [Table(["", *columns], rows)])


def _stages(lines: Sequence[Mapping[str, Any]]) -> str:
    """When which stage began."""
    begins: list[str] = []
    before = None
    for line in lines:
        if not line.get("validation") and line.get("stage") != before:
            before = line.get("stage")
            begins.append(f"{before} (first logged at step {line['step']})")
    return f"Lines: training, smoothed; dots: validation; dotted: a stage begins. Stages: {', '.join(begins)}."


def _error_model(output: Path, facts: Mapping[str, Any]) -> Section | None:
    if not facts.get("error_model"):
        return None
    caption = (
        f"Delta of the visible pixels of {facts['pictures_of']} images, and what the model of the best checkpoint "
        "expects; right of tau a pixel is more likely to move than not, by brightness alone."
    )
    text = [
        "Delta is the error of the rigid reconstruction less that of the flow. Where the line leaves the histogram, "
        "the model does not describe these images."
    ]
    return Section("Error model", text, pictures=[Picture(output / facts["error_model"], caption)])


def _settings(config: TrainConfig) -> list[Section]:
    """What differs from the nearest preset, then everything."""
    different = {name: differences(config, load_config(name, [], {})) for name in preset_names()}
    nearest = min(different, key=lambda name: len(different[name]))
    found = different[nearest]
    rows = [[key, _as_text(own), _as_text(preset)] for key, (own, preset) in found.items()]
    text = f"Against the preset {nearest}, the nearest one; everything else is as there."
    tables = [Table(["setting", "here", nearest], rows)] if rows else []
    complete = [
        [key, value, "differs" if any(f"{key}.".startswith(f"{other}.") for other in found) else ""]
        for key, value in flat_settings(config.model_dump(mode="json")).items()
    ]
    return [
        Section("Settings that differ", [text if rows else f"All as in the preset {nearest}."], tables),
        Section("All settings", tables=[Table(["setting", "here", f"from {nearest}"], complete)], folded=True),
    ]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def flat_settings(tree: object, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a nested configuration with their values as text.

    >>> flat_settings({"a": {"b": 1}, "c": [{"d": True}, 2]})
    {'a.b': '1', 'c.0.d': 'true', 'c.1': '2'}
    """
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        items = list(enumerate(tree))
    else:
        return {prefix.rstrip("."): _as_text(tree)}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= flat_settings(value, f"{prefix}{key}.")
    return flat


def _run(output: Path, config: TrainConfig, facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Section:
    """Where, when and with what."""
    sessions = facts["sessions"]
    steps = lines[-1]["step"] if lines else 0
    rows: list[list[object]] = [["steps logged", f"{steps} of {config.steps}"], ["coopnet", __version__]]
    speeds = [line["triplets_per_s"] for line in lines if line.get("triplets_per_s")]
    if speeds:
        rows.append(["targets per second, median", number(float(median(speeds)))])
    if sessions:
        last = sessions[-1]
        rows += [[name, str(last[name])] for name in ("device", "torch", "python", "system")]
        rows.append(["duration", _duration(sum(session["seconds"] or 0.0 for session in sessions))])
        rows += [
            [f"session {index}", f"train_from_bags {shlex.join(session['command'])} ({_duration(session['seconds'])})"]
            for index, session in enumerate(sessions, 1)
        ]
    rows += [["best checkpoint", str(best_checkpoint(output))], ["last checkpoint", str(last_checkpoint(output))]]
    text = [] if sessions else ["This run was made before there were reports, or killed: device and duration are lost."]
    return Section("Run", text, [Table(["", ""], rows)])


def _lines(output: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Of metrics.jsonl, with the gate of the mask between 0 and 1; none where not one step was logged."""
    try:
        lines = read_metrics(output / "metrics.jsonl")
    except NoUsableDataError:
        return []
    ramp = config.loss.error_model.ramp_steps
    for line in lines:
        if isinstance(line.get("open_steps"), int | float):
            line["gate"] = min(line["open_steps"] / ramp, 1.0)
    return lines


def _attempt(missing: list[str], what: str, make: Callable[[], Any]) -> Any:
    """What `make` gives; where it fails, None, and the reason among the `missing`: the rest of the page is not lost."""
    try:
        return make()
    except Exception as error:
        missing.append(f"{what}: {_in_words(error)}.")
        return None


def _in_words(error: Exception) -> str:
    """The first line of an error, with its kind where the error is not meant for users."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = next(iter(str(error).splitlines()), "").rstrip(".")
    return text if isinstance(error, CoopnetError) else f"{type(error).__name__}: {text}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if isinstance(line.get(name), int | float)), None)


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return sum(values) / len(values) if values else None


def _duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> _duration(42.4), _duration(7384)
    ('42 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds or 0.0), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
