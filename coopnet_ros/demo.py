"""The command `demo`: render a recording, train on its first part, replay the rest live, evaluate, report."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from coopnet_core.errors import CoopnetError, UsageError
from coopnet_core.resources import SHIPPED_WEIGHTS, shipped_file
from coopnet_ros.command import INTERRUPTED, image_size, run_guarded
from coopnet_ros.demo_parts import FEWEST_IMAGES, Split, split_bag
from coopnet_ros.demo_processes import Background, run_command
from coopnet_ros.demo_report import DemoFacts, write_demo_report
from coopnet_ros.train_options import DEFAULT_PRESET

_MARKER = "demo.json"
_NODE_NAME = "coopnet"
_MOVERS = 0.15
"""Share of the rendered pixels that move on their own; left to the seed, some scenes have none."""
_EXAMPLES = """\
examples:
  everything, rendered, in a few minutes:
      demo --output out/demo
  with an own recording (images of one camera and its CameraInfo):
      demo --output out/drive --bag my_drive.mcap
  without the shipped weights (a cold start learns little in minutes):
      demo --output out/scratch --scratch

exit codes: 0 done, 2 wrong usage, 3 no usable data, 4 diverged, 130 interrupted (what was written is kept)
"""


@dataclass
class Demo:
    """One run of the demo: what was asked for, and what is known so far."""

    options: argparse.Namespace
    output: Path
    console: Console
    facts: DemoFacts = field(default_factory=DemoFacts)

    @property
    def bag(self) -> Path:
        """The recording: the user's, or the rendered one."""
        return self.options.bag or self.output / "bag"

    @property
    def first_weights(self) -> Path | None:
        """What training starts from; None for nothing."""
        if self.options.scratch:
            return None
        return self.options.weights or shipped_file(SHIPPED_WEIGHTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_guarded(
        lambda: _run(_parser().parse_args(argv), Console()), "Interrupted. What was written so far is kept."
    )


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Render a recording (or take yours), train on its first part, replay the rest through the live "
        "node, evaluate before and after training, and write a report.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("out/demo"), metavar="DIR", help="result folder (default: %(default)s)")
    add("--bag", type=Path, metavar="BAG", help="your recording instead of the rendered one")
    add("--topic", help="image topic of your recording, where it has several cameras")
    add("--camera-info", metavar="TOPIC", help="CameraInfo topic (default: beside the image topic)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--scratch", action="store_true", help="train from nothing instead of the shipped weights")
    start.add_argument(
        "--weights", type=Path, metavar="CHECKPOINT", help=f"start from these (default: {SHIPPED_WEIGHTS})"
    )
    add("--seed", type=int, default=0, help="of the rendered scene and of training (default: %(default)s)")
    add("--frames", type=int, default=240, help="length of the rendered recording (default: %(default)s)")
    add("--size", type=image_size, default=(416, 128), metavar="WxH", help="of the rendered images (default: 416x128)")
    add("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    add("--share", type=float, default=0.6, help="first part that trains (default: %(default)s of the images)")
    add(
        "--rate",
        type=float,
        default=0.5,
        help="speed of the live replay; at 1 the node, the player and the subscriber together are too much for 2 cores "
        "and frames are dropped (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def _run(options: argparse.Namespace, console: Console) -> int:
    """All steps in order; the report is written even where a later step failed."""
    _check(options)
    _make_folder(options.output, console)
    demo = Demo(options, options.output, console)
    demo.facts.seed = options.seed
    demo.facts.rendered = options.bag is None
    demo.facts.write_marker(demo.output / _MARKER)
    domain = os.environ.setdefault("ROS_DOMAIN_ID", str(random.randint(1, 100)))
    console.print(f"Result in {demo.output}; ROS_DOMAIN_ID {domain}; stop with Ctrl-C, what is written stays.")
    code = _run_steps(demo)
    report = write_demo_report(demo.output, demo.facts)
    console.rule("[bold]done" if code == 0 else "[bold red]not complete")
    demo.facts.print_summary(console)
    if code != 0:
        console.print(escape(demo.facts.failure), style="red", soft_wrap=True)
    console.print(f"Report: [bold]{report}[/]", soft_wrap=True)
    return code


def _run_steps(demo: Demo) -> int:
    """All steps in order up to the first that fails; returns the exit code, the reason is in the facts."""
    steps = _steps(demo)
    for number, (title, step) in enumerate(steps, start=1):
        demo.console.rule(f"[bold]{number}/{len(steps)}  {title}")
        name = f"Step {number} of {len(steps)} ({title})"
        began = time.monotonic()
        try:
            step()
        except CoopnetError as error:
            demo.facts.failure = f"{name} failed. {error} What was written is kept in {demo.output}."
            return error.exit_code
        except KeyboardInterrupt:
            demo.facts.failure = f"{name} was interrupted. What was written is kept in {demo.output}."
            return INTERRUPTED
        finally:
            demo.facts.seconds[title] = round(time.monotonic() - began, 1)
    return 0


def _steps(demo: Demo) -> list[tuple[str, Callable[[], None]]]:
    """The steps by title; each reads and fills `demo.facts`."""
    steps: list[tuple[str, Callable[[], None]]] = []
    if demo.options.bag is None:
        steps.append(("render a recording", lambda: _render(demo)))
    steps.append(("choose the parts", lambda: _choose_parts(demo)))
    if demo.first_weights is not None:
        steps.append(
            ("evaluate before training", lambda: _evaluate(demo, "before", "--checkpoint", demo.first_weights))
        )
    steps += [
        ("train", lambda: _train(demo)),
        ("replay through the live node", lambda: _live(demo)),
        ("evaluate after training", lambda: _evaluate(demo, "after", "--checkpoint", demo.facts.trained)),
        ("evaluate what came live", lambda: _evaluate(demo, "live", "--predictions", demo.facts.live)),
    ]
    return steps


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot become a demo, before anything is written.

    Raises:
        UsageError: says what, and what was expected.
    """
    if not 0.2 <= options.share <= 0.9:
        raise UsageError(f"--share {options.share}: between 0.2 and 0.9 was expected.")
    if options.steps < 1 or options.rate <= 0 or options.frames < FEWEST_IMAGES:
        raise UsageError(
            f"--steps {options.steps} --rate {options.rate} --frames {options.frames}: at least 1 step, a positive "
            f"rate and at least {FEWEST_IMAGES} frames were expected."
        )
    if options.bag is not None and not options.bag.exists():
        raise UsageError(f"There is no bag {options.bag}: a rosbag2 folder, an .mcap or a .db3 file was expected.")
    weights = options.weights
    if weights is None and not options.scratch:
        weights = shipped_file(SHIPPED_WEIGHTS)
    if weights is not None and not weights.is_file():
        raise UsageError(f"There is no checkpoint {weights}: a .safetensors file was expected.")


def _make_folder(output: Path, console: Console) -> None:
    """An empty result folder; the result of an earlier demo is moved aside, anything else is refused.

    Raises:
        UsageError: the folder holds something else.
    """
    # COLCON_IGNORE alone marks the folder above all results as none of colcon's business.
    if output.exists() and any(path.name != "COLCON_IGNORE" for path in output.iterdir()):
        if not (output / _MARKER).is_file():
            raise UsageError(f"{output} holds something that is no demo's: name another folder with --output.")
        previous = output.with_name(output.name + ".previous")
        if previous.exists():
            shutil.rmtree(previous)
        output.rename(previous)
        console.print(f"The earlier result is kept in {previous}.")
    output.mkdir(parents=True, exist_ok=True)


def _render(demo: Demo) -> None:
    """Step: the demo bag."""
    options = demo.options
    width, height = options.size
    run_command(
        "make_demo_bag",
        [
            *("--output", demo.bag, "--seed", options.seed, "--frames", options.frames),
            *("--width", width, "--height", height, "--movers", _MOVERS),
        ],
    )


def _choose_parts(demo: Demo) -> None:
    """Step: which images train and which are held out."""
    split = split_bag(demo.bag, demo.options.topic, demo.options.camera_info, demo.options.share)
    demo.facts.set_split(demo.bag, split)
    demo.console.print(
        f"{demo.bag}: {split.topics.image} ({split.topics.why}), {split.fps:.1f} images per second.\n"
        f"Images {split.train[0]} to {split.train[1] - 1} train; {split.test[0]} to {split.test[1] - 1} are replayed "
        "live and evaluated, training never sees them."
    )


def _camera_arguments(split: Split) -> list[str]:
    """The options that name the camera, for the commands that read the bag."""
    return ["--topic", split.topics.image, *(["--camera-info", split.topics.info] if split.topics.info else [])]


def _train(demo: Demo) -> None:
    """Step: training on the first part."""
    split, options = demo.facts.split, demo.options
    run = demo.output / "run"
    init = ["--init", demo.first_weights] if demo.first_weights else ["--preset", DEFAULT_PRESET]
    run_command(
        "train_from_bags",
        [
            *(demo.bag, *_camera_arguments(split), "--frames", f"{split.train[0]}:{split.train[1]}", "--output", run),
            *(*init, "--steps", options.steps, "--device", options.device, "--seed", options.seed),
        ],
    )
    demo.facts.run = run
    demo.facts.trained, demo.facts.start_was_beaten = trained_weights(run, demo.first_weights)


def trained_weights(run: Path, start: Path | None) -> tuple[Path, bool]:
    """The weights that show what training did, and whether its validation found any better than those it started from.

    The best ones; the last ones where the best are still the start.

    Args:
        run: the run folder.
        start: weights it started from; None: random ones.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    from coopnet_core.checkpoint import read_metadata
    from coopnet_core.cotraining.run_folder import best_checkpoint, last_checkpoint

    best = best_checkpoint(run)
    if start is not None and read_metadata(best).step == read_metadata(start).step:
        return last_checkpoint(run), False
    return best, True


def _evaluate(demo: Demo, name: str, source: str, path: Path) -> None:
    """Step: figures and pictures on the held-out part, of a checkpoint or of what was received live."""
    split = demo.facts.split
    folder = demo.output / "evaluation" / name
    run_command(
        "evaluate",
        [
            *("--bag", demo.bag, *_camera_arguments(split), "--frames", f"{split.test[0]}:{split.test[1]}"),
            *(source, path, "--output", folder, "--device", demo.options.device),
        ],
    )
    demo.facts.evaluations[name] = folder


def _live(demo: Demo) -> None:
    """Step: the held-out part through the running node, seen by a subscriber of its own."""
    split, folder = demo.facts.split, demo.output / "live"
    folder.mkdir()
    image, info = split.topics.image, split.topics.info
    # The compressed transport adds its own ending to the name.
    image_base = image.removesuffix("/compressed") if split.topics.compressed else image
    transport = "compressed" if split.topics.compressed else "raw"
    node_arguments = [
        *("--checkpoint", demo.facts.trained.resolve(), "--ros-args", "-r", f"image:={image_base}"),
        *("-r", f"camera_info:={info}", "-p", f"image_transport:={transport}"),
        *("-p", f"device:={demo.options.device}", "-p", "base_to_camera.source:=parameters"),
    ]
    expected = split.test[1] - split.test[0]
    longest = 90 + (split.end_s - split.start_s) / demo.options.rate
    record = ["--output", folder / "received", "--node-name", _NODE_NAME, "--timeout", f"{longest:.0f}", "--idle", 3]
    with (
        Background("coopnet_node", node_arguments, folder / "node.log"),
        Background("record_outputs", [*record, "--expect-frames", expected], folder / "record.log") as recorder,
    ):
        demo.console.print("The node loads and warms up; the replay begins when it subscribes.")
        run_command(
            "play_bag",
            [
                *(demo.bag, "--topics", image, info, "--start", f"{split.start_s:.4f}", "--end", f"{split.end_s:.4f}"),
                *("--rate", demo.options.rate, "--wait-for-subscribers", 2, "--wait-timeout", 90),
            ],
        )
        recorder.wait(30)
    demo.facts.live = folder / "received"


if __name__ == "__main__":
    sys.exit(main())
