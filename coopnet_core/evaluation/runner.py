"""Run a recording through something that predicts, and leave figures, pictures and a report in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coopnet_core.data.bag import find_camera, open_bag, read_frames
from coopnet_core.data.bag_truth import BagTruth, read_truth, static_transform
from coopnet_core.data.frames import Frame
from coopnet_core.data.report import ReadReport
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.evaluation.gallery import Gallery, draw_trajectories
from coopnet_core.evaluation.recorded import RecordedPredictions
from coopnet_core.evaluation.reports import Picture, Section, evaluation_tables, finite, write_json, write_report
from coopnet_core.evaluation.session import EvaluationOptions, EvaluationSession
from coopnet_core.inference.prediction import Prediction, Predictor

Predict = Callable[[Frame], Prediction | None]
OnFrame = Callable[[int, int], None]
_TITLES = {
    "depth": "Depth",
    "odometry": "Odometry",
    "flow": "Optical flow",
    "mask": "Moving mask",
    "photometric": "Photometric error of the reconstructions",
    "flow_parts": "Optical flow by part of the image",
}


@dataclass(frozen=True)
class BagSelection:
    """What of a bag is evaluated.

    Attributes:
        bag: folder or file.
        topic: image topic; by default the only camera.
        frames: first image and the one to stop before.
        fov_degrees: to assume where there is no calibration.
        info: CameraInfo topic; by default the one beside the image topic.
    """

    bag: Path
    topic: str | None = None
    frames: tuple[int, int | None] = (0, None)
    fov_degrees: float | None = None
    info: str | None = None


@dataclass(frozen=True)
class Output:
    """What is left behind.

    Attributes:
        folder: for report.json, report.html and pictures; None writes nothing.
        pictures: number of panels; 0 for no picture at all.
        title: of the page.
        facts: added to the report under "source" (checkpoint, device, ...).
    """

    folder: Path | None = None
    pictures: int = 4
    title: str = "Evaluation"
    facts: dict[str, object] = field(default_factory=dict)


def evaluate_predictor(
    selection: BagSelection,
    predictor: Predictor,
    options: EvaluationOptions | None = None,
    output: Output | None = None,
    on_frame: OnFrame | None = None,
) -> dict[str, object]:
    """Run a predictor over a bag and compare it with the bag's truth.

    Args:
        selection: the recording.
        predictor: starts without a previous frame (it is reset).
        options: protocols.
        output: where to write what.
        on_frame: called with (frames done, frames expected).

    Returns:
        The report, as in report.json; "interrupted" is true where Ctrl-C ended it early (it is written all the same).

    Raises:
        UsageError: no such bag or topic.
        NoUsableDataError: no frame can be evaluated.
    """
    predictor.reset()
    return _evaluate(selection, predictor.predict, options, output or Output(), on_frame)


def evaluate_recorded(
    selection: BagSelection,
    predictions: Path,
    options: EvaluationOptions | None = None,
    output: Output | None = None,
    on_frame: OnFrame | None = None,
    base_frame: str = "base_link",
) -> dict[str, object]:
    """Compare what a node published (a folder of `record_outputs`) with the truth of the bag that it was fed with.

    Frames that the node dropped are counted, not evaluated.

    Args:
        selection: the recording.
        predictions: the folder.
        options: protocols.
        output: where to write what.
        on_frame: called with (frames done, frames expected).
        base_frame: the frame whose pose the node publishes; its mounting is taken from the bag's /tf_static.

    Raises:
        UsageError: no such bag or topic.
        NoUsableDataError: no prediction, or no frame can be evaluated.
    """
    with open_bag(selection.bag) as bag:
        first = next(
            read_frames(bag, find_camera(bag, selection.topic, selection.info), fov_degrees=selection.fov_degrees), None
        )
        mounting = static_transform(bag, base_frame, first.frame_id) if first and first.frame_id else None
    recorded = RecordedPredictions(predictions, mounting)
    return _evaluate(selection, recorded.predict, options, output or Output(), on_frame)


def _evaluate(
    selection: BagSelection,
    predict: Predict,
    options: EvaluationOptions | None,
    output: Output,
    on_frame: OnFrame | None,
) -> dict[str, object]:
    session = EvaluationSession(options)
    read = ReadReport()
    with open_bag(selection.bag) as bag:
        topics = find_camera(bag, selection.topic, selection.info)
        expected = _expected_frames(bag.topics[topics.image].count, selection.frames)
        pictures = output.pictures if output.folder is not None else 0
        gallery = Gallery(output.folder or Path(), pictures, expected, session.options.depth)
        frames = read_frames(bag, topics, read, selection.fov_degrees, selection.frames)
        interrupted = False
        try:
            with read_truth(selection.bag) as truth:
                _run(session, gallery, frames, predict, truth, expected, on_frame)
                notes = list(truth.notes)
        except KeyboardInterrupt:
            interrupted, notes = True, []
        if not session.frames:
            raise NoUsableDataError(_nothing_evaluated(selection, topics.image, read))
    report = session.report()
    report["source"] = {
        "bag": str(selection.bag),
        "topic": topics.image,
        "frames": [selection.frames[0], selection.frames[1]],
        "skipped_images": dict(read.skipped),
        "notes": read.notes + notes + read.unread,
        **output.facts,
    }
    report["interrupted"] = interrupted
    report = finite(report)
    if output.folder is not None:
        _write(report, session, gallery, output)
    return report


def _run(
    session: EvaluationSession,
    gallery: Gallery,
    frames: object,
    predict: Predict,
    truth: BagTruth,
    expected: int,
    on_frame: OnFrame | None,
) -> None:
    for index, frame in enumerate(frames):
        if frame.camera is None:
            raise UsageError(
                "The images have no calibration (no CameraInfo, or K[0] = 0): depth and odometry need it. Record "
                "CameraInfo, or give the horizontal field of view (--fov)."
            )
        known = truth.get(frame.stamp_ns)
        prediction = predict(frame)
        session.add(frame, prediction, known)
        if prediction is not None:
            gallery.add(index, frame, prediction, known)
        if on_frame is not None:
            on_frame(index + 1, max(expected, index + 1))


def _expected_frames(count: int, frames: tuple[int, int | None]) -> int:
    start, stop, _ = slice(*frames).indices(count)
    return max(0, stop - start)


def _nothing_evaluated(selection: BagSelection, topic: str, read: ReadReport) -> str:
    reasons = "; ".join(f"{count} {reason}" for reason, count in read.skipped.items())
    first, last = selection.frames
    return (
        f"No image of {topic} in {selection.bag} could be used ({read.messages} in the range {first}:{last or ''}"
        f"{'; skipped: ' + reasons if reasons else ''}). Choose another range or topic."
    )


def _write(report: dict[str, object], session: EvaluationSession, gallery: Gallery, output: Output) -> None:
    """report.json, the pictures and report.html."""
    folder = output.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    pictures = [Picture(path, path.stem) for path in gallery.panels]
    pictures += [
        Picture(errors, errors.stem)
        for errors in (path.with_name(path.name.replace("panel", "errors")) for path in gallery.panels)
    ]
    sections = []
    if output.pictures:
        animation = gallery.write_animation()
        pictures = ([Picture(animation, "image, depth, flow, moving; the truth below")] if animation else []) + pictures
        run = session.trajectories()
        if run is not None and len(run.stamps_ns) > 2:
            path = draw_trajectories(folder / "trajectory.png", run, session.options.alignment)
            sections = [Section("Trajectory, from above", pictures=[Picture(path, "longest unbroken run")])]
    sections = [*report_sections(report), *sections, Section("Pictures", pictures=pictures)]
    write_report(folder / "report.html", output.title, sections, _introduction(report))


def report_sections(report: dict[str, object]) -> list[Section]:
    """The tables of a report for `write_report`, each with what is missing and why."""
    tables = evaluation_tables(report)
    reasons: dict[str, str] = report["reasons"]
    sections = []
    for name, title in _TITLES.items():
        missing = [f"{key}: {reason}" for key, reason in reasons.items() if key.split(".")[0] == name]
        if name in tables or missing:
            sections.append(Section(title, missing, [tables[name]] if name in tables else []))
    descriptions = report["baselines"]["descriptions"]
    lines = [f"{name.replace('_', ' ')}: {text}" for name, text in descriptions.items()]
    return [*sections, Section("The trivial baselines", lines), Section("Protocol", _flat_lines(report["protocol"]))]


def _introduction(report: dict[str, object]) -> list[str]:
    source, counts = report["source"], report["counts"]
    lines = [f"{name}: {value}" for name, value in source.items() if isinstance(value, str | int | float)]
    lines.append(f"{counts['frames']} frames, {counts['pairs']} pairs")
    lines += [f"{count} x {note}" for note, count in counts["notes"].items()]
    return lines + (["Interrupted: only a part was evaluated."] if report["interrupted"] else [])


def _flat_lines(values: dict[str, object]) -> list[str]:
    lines = []
    for name, value in values.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        lines.append(f"{name}: {text}")
    return lines
