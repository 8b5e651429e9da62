"""The command `evaluate`: a recording with truth and a checkpoint in, figures beside trivial baselines out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from coopnet_core.errors import UsageError
from coopnet_core.evaluation.depth import CROPS, SCALINGS, DepthProtocol
from coopnet_core.evaluation.odometry import ALIGNMENTS, SEGMENT_LENGTHS
from coopnet_core.evaluation.reports import number
from coopnet_core.evaluation.runner import (
    BagSelection,
    OnFrame,
    Output,
    evaluate_predictor,
    evaluate_recorded,
)
from coopnet_core.evaluation.session import STABLE_KEYS, EvaluationOptions
from coopnet_core.evaluation.trajectory_files import evaluate_trajectories
from coopnet_core.inference.prediction import REFINE_CHOICES
from coopnet_ros.command import INTERRUPTED, run_guarded

_EXAMPLES = """\
examples:
  a checkpoint on a recording with /ground_truth topics:
      evaluate --bag demo_bag --checkpoint models/small_rendered.safetensors --output out/evaluation
  only the images 500 to 599, the KITTI depth protocol:
      evaluate --bag kitti --checkpoint run/checkpoints/best.safetensors --frames 500:600 --crop garg --output out/kitti
  what a running node published (saved by record_outputs):
      evaluate --bag demo_bag --predictions out/recorded --output out/live
  two trajectories in KITTI's text format:
      evaluate --trajectory estimate.txt --truth poses.txt --align 7dof --output out/trajectory

exit codes: 0 done, 2 wrong usage, 3 no usable data, 130 interrupted (what was evaluated so far is written)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_guarded(
        lambda: _run(_parser().parse_args(argv), Console()), "Interrupted before the first frame: nothing was written."
    )


def evaluate_bag(
    bag: Path,
    checkpoint: Path,
    output: Path | None,
    device: str = "cpu",
    selection: BagSelection | None = None,
    options: EvaluationOptions | None = None,
    pictures: int = 4,
    console: Console | None = None,
    refine: str = "static",
    rerun: Path | None = None,
) -> dict[str, object]:
    """Evaluate a checkpoint on a recording; writes report.json, report.html and pictures, and returns the report.

    Args:
        bag: bag folder, .mcap or .db3 file.
        checkpoint: a .safetensors file of this project.
        output: folder to write to; None writes nothing.
        device: auto, cpu, cuda or cuda:N.
        selection: topic and range of images; `bag` goes before the one in it.
        options: protocols.
        pictures: number of panels; 0 for no picture at all.
        console: for a progress bar; None shows none.
        refine: refinement of the motion, one of `REFINE_CHOICES`.
        rerun: an .rrd file for images, depth, flow, mask and camera path, or None.

    Raises:
        CheckpointError: it cannot be read.
        UsageError: no such bag or topic, or `rerun` without the package it needs.
        NoUsableDataError: no frame can be evaluated.
    """
    # Here, not at the top: torch takes seconds to import, and --help needs none of it.
    from coopnet_core.inference.stream import StreamPredictor
    from coopnet_core.rerun_log import LoggedPredictor

    chosen = selection or BagSelection(bag)
    chosen = replace(chosen, bag=bag)
    predictor = StreamPredictor(checkpoint, device, refine=refine)
    facts = {"checkpoint": str(checkpoint), "device": device, "refine": refine, "metric": predictor.metric}
    where = Output(output, pictures, f"Evaluation of {checkpoint.name} on {bag.name}", facts)
    logged = predictor if rerun is None else LoggedPredictor(predictor, rerun)
    with _progress(console) as on_frame:
        return evaluate_predictor(chosen, logged, options, where, on_frame)


def evaluate_predictions(
    bag: Path,
    predictions: Path,
    output: Path | None,
    selection: BagSelection | None = None,
    options: EvaluationOptions | None = None,
    pictures: int = 4,
    console: Console | None = None,
) -> dict[str, object]:
    """Evaluate what a node published while a recording was played (a folder of `record_outputs`).

    The arguments are those of `evaluate_bag`; returns the report.

    Raises:
        UsageError: no such bag or topic.
        NoUsableDataError: no prediction, or no frame can be evaluated.
    """
    chosen = selection or BagSelection(bag)
    chosen = replace(chosen, bag=bag)
    where = Output(output, pictures, f"Evaluation of the live node on {bag.name}", {"predictions": str(predictions)})
    with _progress(console) as on_frame:
        return evaluate_recorded(chosen, predictions, options, where, on_frame)


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="evaluate",
        description="Depth, odometry, flow and moving mask against the truth in a recording (topics /ground_truth/"
        "{depth,odometry,flow,motion_mask}), next to trivial baselines. Writes report.json, report.html and pictures; "
        "figures without a truth are null, with the reason.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", "-o", type=Path, required=True, metavar="DIR", help="folder to write to")
    add("--bag", type=Path, metavar="BAG", help="bag folder, .mcap or .db3 file")
    add("--checkpoint", type=Path, metavar="FILE", help="the networks to evaluate (.safetensors)")
    add("--predictions", type=Path, metavar="DIR", help="instead of a checkpoint: the output of record_outputs")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add(
        "--refine",
        choices=REFINE_CHOICES,
        default="static",
        help="make the motion agree with depth and flow, as the node's parameter does (default: %(default)s)",
    )
    add("--topic", help="image topic (default: the only camera of the bag)")
    add("--camera-info", metavar="TOPIC", help="CameraInfo topic (default: camera_info beside the image topic)")
    add("--frames", type=_frame_range, default=(0, None), metavar="A:B", help="only the images A to B-1 (default: all)")
    add("--fov", type=float, metavar="DEGREES", help="horizontal field of view, where there is no calibration")
    add("--pictures", type=int, default=4, metavar="N", help="panels to draw; 0 draws nothing (default: %(default)s)")
    add("--rerun", type=Path, metavar="FILE", help="with --checkpoint: write what is predicted for Rerun, too (.rrd)")
    add("--overwrite", action="store_true", help="replace the report of another evaluation in the output folder")
    _add_protocol_options(parser.add_argument_group("protocols"))
    files = parser.add_argument_group("trajectories as files (KITTI text, 12 or 13 columns), instead of a bag")
    files.add_argument("--trajectory", type=Path, metavar="EST", help="estimated poses")
    files.add_argument("--truth", type=Path, metavar="GT", help="true poses")
    return parser


def _add_protocol_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--cap", type=float, default=80.0, metavar="M", help="largest evaluated depth (default: %(default)s)")
    add("--crop", choices=sorted(CROPS), default="garg", help="evaluated part of the image (default: %(default)s)")
    add(
        "--scaling",
        choices=SCALINGS[:2],
        default="median",
        help="of the depth, per image (default: %(default)s; none: the prediction is in metres)",
    )
    add(
        "--alignment",
        "--align",
        choices=ALIGNMENTS,
        default="7dof",
        help="of the trajectory, for t_err, r_err and RPE (default: %(default)s)",
    )
    add(
        "--segments",
        type=_lengths,
        default=SEGMENT_LENGTHS,
        metavar="M,M,...",
        help="lengths for t_err and r_err (default: 100 to 800 m in steps of 100)",
    )
    add("--mask-threshold", type=float, default=0.5, metavar="P", help="moving above it (default: %(default)s)")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    _check_arguments(arguments)
    options = EvaluationOptions(
        DepthProtocol(cap=arguments.cap, crop=arguments.crop, scaling=arguments.scaling),
        arguments.alignment,
        arguments.segments,
        arguments.mask_threshold,
    )
    if arguments.trajectory is not None:
        _check_output(arguments.output, {"trajectory": str(arguments.trajectory)}, arguments.overwrite)
        report = evaluate_trajectories(
            arguments.trajectory, arguments.truth, arguments.output, options.alignment, options.segment_lengths
        )
        _print_odometry(report, console)
        return 0
    subject = "checkpoint" if arguments.predictions is None else "predictions"
    source = {"bag": str(arguments.bag), subject: str(getattr(arguments, subject))}
    _check_output(arguments.output, source, arguments.overwrite)
    selection = BagSelection(arguments.bag, arguments.topic, arguments.frames, arguments.fov, arguments.camera_info)
    console.print(f"Evaluating {source[subject]} on {source['bag']}", soft_wrap=True, highlight=False)
    where = {"selection": selection, "options": options, "pictures": arguments.pictures, "console": console}
    if arguments.predictions is not None:
        report = evaluate_predictions(arguments.bag, arguments.predictions, arguments.output, **where)
    else:
        where |= {"device": arguments.device, "refine": arguments.refine, "rerun": arguments.rerun}
        report = evaluate_bag(arguments.bag, arguments.checkpoint, arguments.output, **where)
    _print(report, console)
    console.print(f"Report: [bold]{escape(str(arguments.output / 'report.html'))}[/] and report.json", soft_wrap=True)
    return INTERRUPTED if report["interrupted"] else 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse combinations without a meaning.

    Raises:
        UsageError: with what to give.
    """
    if (arguments.trajectory is None) != (arguments.truth is None):
        raise UsageError("--trajectory and --truth belong together: give both, or a --bag and a --checkpoint.")
    if arguments.trajectory is not None:
        if arguments.bag or arguments.checkpoint or arguments.predictions:
            raise UsageError("Give either --trajectory and --truth, or --bag with --checkpoint or --predictions.")
        return
    if arguments.bag is None or (arguments.checkpoint is None) == (arguments.predictions is None):
        raise UsageError("--bag and one of --checkpoint and --predictions are needed (or --trajectory and --truth).")
    if arguments.pictures < 0:
        raise UsageError(f"--pictures {arguments.pictures}: 0 or more was expected.")


def _check_output(folder: Path, source: dict[str, str], overwrite: bool) -> None:
    """Refuse a folder that holds something else than the report of this very evaluation.

    Raises:
        UsageError: with what was found and what to do.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; a folder was expected.")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / "report.json").read_text())["source"]
    except (OSError, ValueError, KeyError, TypeError):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise UsageError(
            f"--output {folder} is not empty and holds no report of an evaluation (it holds: {names}). Choose a new "
            "folder, or pass --overwrite to write beside them."
        ) from None
    if any(found.get(key) != value for key, value in source.items()):
        other = " on ".join(
            str(found[key]) for key in ("checkpoint", "predictions", "trajectory", "bag") if key in found
        )
        raise UsageError(f"--output {folder} holds the report of {other}. Choose a new folder, or pass --overwrite.")


@contextmanager
def _progress(console: Console | None) -> Iterator[OnFrame | None]:
    """A progress bar over the frames; nothing without a console."""
    if console is None:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("frames", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(report: dict[str, dict], console: Console) -> None:
    """The stable figures beside the first baseline of each part, and why figures are missing."""
    table = Table("figure", "prediction", "baseline", "")
    for part, keys in STABLE_KEYS.items():
        for key in keys:
            name = {"mask": "frame_difference"}.get(part) or next(iter(report["baselines"][part]))
            trivial = (report["baselines"][part][name] or {}).get(key)
            table.add_row(f"{part}.{key}", number(report[part][key]), number(trivial), name.replace("_", " "))
    photometric = report["photometric"] or {}
    for kind in ("rigid", "flow"):
        table.add_row(
            f"photometric {kind}", number(photometric.get(kind)), number(photometric.get("identity")), "identity"
        )
    console.print(table)
    for key, reason in report["reasons"].items():
        console.print(f"{key}: {reason}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _print_odometry(report: dict[str, dict], console: Console) -> None:
    table = Table("figure", "value")
    for key, value in report["odometry"].items():
        if not isinstance(value, dict):
            table.add_row(key, number(value))
    console.print(table)
    for key, reason in report["reasons"].items():
        console.print(f"{key}: {reason}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _frame_range(text: str) -> tuple[int, int | None]:
    """A:B, A:, :B as (start, stop)."""
    parts = text.split(":")
    try:
        if len(parts) != 2:
            raise ValueError
        start, stop = (int(part) if part.strip() else None for part in parts)
        if (start or 0) < 0 or (stop is not None and stop <= (start or 0)):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: A:B with 0 <= A < B was expected, such as 500:600 or 500:"
        ) from None
    return start or 0, stop


def _lengths(text: str) -> tuple[float, ...]:
    try:
        lengths = tuple(float(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: positive lengths in metres were expected, such as 10,20,50")
    return lengths


if __name__ == "__main__":
    sys.exit(main())
