"""What each rule is worth: rules x seeds from one pre-trained start, with the true mask (oracle) as the ceiling.

Every run has the same budget, start, clips and order of clips; only the rule differs, so seeds are paired. Finished
runs are kept and not repeated: the command can be stopped and started again, and more rules or seeds can be added.

python benchmarks/ablation.py --output out/ablation [--scenarios plain] [--rules sum hybrid oracle] [--seeds 0 1 2]
    [--real BAG --real-train A:B --real-test C:D]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coopnet_core.config import TrainConfig, load_config
from coopnet_core.cotraining.apportionment import APPORTIONMENTS
from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.cotraining.rules import RULES
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.frames import Clip, Frame, FrameTruth
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.evaluation.depth import DepthMeter, DepthProtocol
from coopnet_core.evaluation.mask import MaskMeter
from coopnet_core.evaluation.runner import BagSelection, evaluate_predictor
from coopnet_core.evaluation.session import EvaluationOptions, EvaluationSession
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Prediction
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.resources import shipped_file
from coopnet_ros.command import image_size

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_TRAIN_SEEDS, _START_SEEDS, _TEST_SEEDS = 5000, 6000, 9000
_NEAR_MOVER = 9
_STAGE = "stage."
_SHORT = (5.0, 10.0)
SEEN = "seen_"
"""Prefix of the figures on the scenes that were trained on (without labels, as on one's own recording)."""
KINDS = {"along": 1, "across": 2}
"""Movers along the road, which move along epipolar lines, and across it."""
Arguments = argparse.Namespace
Figures = Callable[[Path], dict[str, float]]
COLUMNS = (
    "abs_rel",
    "a1",
    "static_abs_rel",
    "near_abs_rel",
    "ate_7dof_m",
    "t_err_short_pct",
    "rotation_deg",
    "flow_static_epe",
    "flow_moving_epe",
    "flow_static_fl",
    "flow_moving_fl",
    "mask_auc",
    "mask_iou",
    "mask_auc_along",
    "mask_auc_across",
    "share_depth",
    "fairness",
)


@dataclass(frozen=True)
class Scenario:
    """One difficulty of rendered scenes.

    Attributes:
        movers: wanted share of moving pixels.
        noise: sensor noise, grey levels.
        fps: images per second. At 25 Hz the start is near what an ablation needs (0.7 px of rigid error, 1 px of flow);
            at 10 Hz it is not.
        treatment: what is done to the images: "none", "exposure" (each has its own gain) or "poor" (little texture).
    """

    movers: float = 0.15
    noise: float = 1.0
    fps: float = 25.0
    treatment: str = "none"


SCENARIOS = {
    "no movers": Scenario(movers=0.0),
    "plain": Scenario(),
    "many movers": Scenario(movers=0.3),
    "noise": Scenario(noise=6.0),
    "exposure": Scenario(treatment="exposure"),
    "poor texture": Scenario(treatment="poor"),
    "fast motion": Scenario(movers=0.3, fps=10.0),
}


@dataclass(frozen=True)
class Variant:
    """What differs between two runs: the rule, the scalar apportionment, the identity auto-mask, or other settings.

    Attributes:
        rule, apportionment, auto_mask: of the loss.
        label: the name of a variant with `settings`.
        settings: (key, value) of the configuration, or of the stage where the key begins with "stage.".
    """

    rule: str
    apportionment: str
    auto_mask: bool
    label: str = ""
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """For folders and tables."""
        if self.label:
            return self.label
        scalar = "" if self.apportionment == "per_pixel" else f", {self.apportionment}"
        return f"{self.rule}{scalar}{'' if self.auto_mask else ', no auto-mask'}"


def rendered(scenario: Scenario, seeds: Sequence[int], frames: int, size: tuple[int, int]) -> Iterator[RenderedClip]:
    """Clips with the truth of the scenario."""
    camera = Camera.from_field_of_view(*size, 80.0)
    for seed in seeds:
        config = SceneConfig(
            seed, frames, camera, scenario.fps, scenario.movers, noise=scenario.noise, camera_moves=True
        )
        clip = render_clip(config)
        yield replace(clip, clip=replace(clip.clip, images=treated(clip.clip.images, scenario.treatment, seed)))


def treated(images: np.ndarray, treatment: str, seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8 images made harder: a gain of 0.8 to 1.2 per image, or a third of the contrast, blurred."""
    if treatment == "exposure":
        gains = np.random.default_rng([seed, 7]).uniform(0.8, 1.2, len(images))
        return np.clip(images * gains[:, None, None, None] + 0.5, 0, 255).astype(np.uint8)
    if treatment == "poor":
        blurred = np.stack([cv2.GaussianBlur(image, (5, 5), 1.5) for image in images]).astype(np.float32)
        mean = blurred.mean((1, 2, 3), keepdims=True)
        return np.clip(mean + (blurred - mean) / 3 + 0.5, 0, 255).astype(np.uint8)
    return images


class Scenes:
    """Rendered clips of the scenarios, in memory once rendered."""

    def __init__(self, size: tuple[int, int], frames: int) -> None:
        """At (width, height), so many frames each."""
        self._size, self._frames = size, frames
        self._known: dict[tuple[str, int], RenderedClip] = {}

    def of(self, name: str, seeds: Sequence[int], console: Console) -> list[RenderedClip]:
        """The clips of a scenario with these seeds."""
        missing = [seed for seed in seeds if (name, seed) not in self._known]
        if missing:
            found = rendered(SCENARIOS[name], missing, self._frames, self._size)
            for seed in track(missing, f"rendering {name}", console=console):
                self._known[name, seed] = next(found)
        return [self._known[name, seed] for seed in seeds]


def configuration(variant: Variant, seed: int, arguments: Arguments) -> TrainConfig:
    """One run: all three networks on reduced images, nothing that teaches the flow behind the rule's back."""
    stage = {"name": "ablation", "share": 1.0, "posterior": "fine", "sources": 1, "loss_factor": arguments.loss_factor}
    stage |= {key.removeprefix(_STAGE): yaml.safe_load(v) for key, v in variant.settings if key.startswith(_STAGE)}
    overrides = {
        "steps": str(arguments.steps),
        "seed": str(seed),
        "device": arguments.device,
        "fine_tuning": json.dumps([stage]),
        "optimiser.learning_rate": str(arguments.learning_rate),
        "checkpoint_every": str(arguments.steps),
        "log_every": str(max(1, arguments.steps // 50)),
        "loss.rule": variant.rule,
        "loss.apportionment": variant.apportionment,
        "loss.auto_mask": str(variant.auto_mask).lower(),
        "loss.coarse_flow": "0",
        "loss.error_model.ramp_steps": "20",
    }
    overrides |= {key: value for key, value in variant.settings if not key.startswith(_STAGE)}
    return load_config("cpu-small", [], overrides)


def pretrained(scenes: Scenes, arguments: Arguments, console: Console) -> Path:
    """The start of all runs: --init, trained on scenes without movers at the frame rate of the scenarios.

    Weights that know another frame rate leave static pixels off by more than movers are, and then no rule can tell.
    """
    folder = arguments.output / "start"
    last = folder / "checkpoints" / "last.safetensors"
    if arguments.start_steps == 0:
        return arguments.init
    if not (folder / "done").exists():
        stage = {"name": "start", "share": 1.0, "sources": 1, "matches": 0.1, "consistency": 0.1}
        overrides = {
            "steps": str(arguments.start_steps),
            "device": arguments.device,
            "fine_tuning": json.dumps([stage]),
            "optimiser.learning_rate": str(2 * arguments.learning_rate),
            "loss.rule": "sum",
        }
        seeds = range(_START_SEEDS, _START_SEEDS + 2 * arguments.clips)
        clips = [scene.clip for scene in scenes.of("no movers", seeds, console)]
        config = load_config("cpu-small", [], overrides)
        if train(config, clips, [], folder, init=arguments.init, data_facts={}, console=console).interrupted:
            raise KeyboardInterrupt
        (folder / "done").touch()
    return last


def rendered_figures(checkpoint: Path, scenes: Sequence[RenderedClip], device: str) -> dict[str, float]:
    """Figures of the networks on these scenes, their motion as they say it, without refinement."""
    options = EvaluationOptions(segment_lengths=_SHORT)
    session, tracks = EvaluationSession(options), []
    parts = Parts()
    predictor = StreamPredictor(checkpoint, device, _size_of(scenes), refine="off")
    for clip in scenes:
        predictor.reset()
        track_alone = EvaluationSession(options)
        for image, stamp, truth, kinds in zip(
            clip.clip.images, clip.clip.stamps_ns, clip.truth, clip.kinds, strict=True
        ):
            frame = Frame(image, int(stamp), clip.clip.camera)
            prediction = predictor.predict(frame)
            session.add(frame, prediction, truth)
            track_alone.add(frame, prediction, FrameTruth(pose=truth.pose))
            parts.add(prediction, truth, kinds)
        tracks.append(track_alone.report()["odometry"])
    report = session.report()
    figures = parts.figures() | {"abs_rel": report["depth"]["abs_rel"], "a1": report["depth"]["a1"]}
    for key, source in (
        ("ate_7dof_m", "ate_7dof_m"),
        ("t_err_short_pct", "t_err_short_pct"),
        ("rotation_deg", "rotation_deg_per_frame"),
    ):
        known = [one[source] for one in tracks if one.get(source) is not None]
        figures[key] = float(np.mean(known)) if known else np.nan
    flow, mask = report["flow"], report["mask"] or {}
    for part in ("static", "moving"):
        figures[f"flow_{part}_epe"] = (flow.get(part) or {}).get("epe", np.nan)
        figures[f"flow_{part}_fl"] = (flow.get(part) or {}).get("fl_pct", np.nan)
    return figures | {"mask_auc": _number(mask.get("auc")), "mask_iou": _number(mask.get("iou_moving"))}


class Parts:
    """Depth on static pixels and near movers, and the mask for each kind of mover against static pixels."""

    def __init__(self) -> None:
        protocol = DepthProtocol(crop="none")
        self._depth = {"static": DepthMeter(protocol), "near": DepthMeter(protocol)}
        self._mask = {kind: MaskMeter() for kind in KINDS}

    def add(self, prediction: Prediction, truth: FrameTruth, kinds: np.ndarray) -> None:
        """One frame at the size of its truth."""
        near = cv2.dilate(truth.moving.astype(np.uint8), np.ones((_NEAR_MOVER, _NEAR_MOVER), np.uint8)) > 0
        disparity = 1 / prediction.depth
        self._depth["static"].update(truth.depth, disparity, ~truth.moving)
        self._depth["near"].update(truth.depth, disparity, near & ~truth.moving)
        if prediction.motion_probability is not None:
            for kind, number in KINDS.items():
                within = (kinds == number) | (kinds == 0)
                self._mask[kind].update(kinds == number, prediction.motion_probability, within)

    def figures(self) -> dict[str, float]:
        """By column."""
        depth = {f"{name}_abs_rel": _number((m.compute() or {}).get("abs_rel")) for name, m in self._depth.items()}
        return depth | {f"mask_auc_{kind}": _number((m.compute() or {}).get("auc")) for kind, m in self._mask.items()}


def _size_of(scenes: Sequence[RenderedClip]) -> tuple[int, int]:
    camera = scenes[0].clip.camera
    return camera.width, camera.height


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def real_figures(checkpoint: Path, arguments: Arguments) -> dict[str, float]:
    """Figures on the held-out part of the recording: odometry where its poses are known, photometric errors."""
    selection = BagSelection(arguments.real, frames=arguments.real_test)
    options = EvaluationOptions(segment_lengths=(10.0, 20.0, 50.0))
    report = evaluate_predictor(
        selection, StreamPredictor(checkpoint, arguments.device, arguments.size, refine="off"), options
    )
    odometry, photometric = report["odometry"], report["photometric"] or {}
    figures = {"ate_7dof_m": odometry["ate_7dof_m"], "rotation_deg": odometry["rotation_deg_per_frame"]}
    figures["t_err_short_pct"] = odometry["t_err_pct"]
    return figures | {f"photometric_{key}": value for key, value in photometric.items() if isinstance(value, float)}


def shares(run: Path) -> dict[str, float]:
    """Means of the logged shares over the second half of a run, and the curve of the pixels that feed depth."""
    logged = [line for line in read_metrics(run / "metrics.jsonl") if not line["validation"]]
    late = logged[len(logged) // 2 :]
    means = {
        "share_depth": float(np.mean([line["pixel_share_depth"] for line in late])),
        "fairness": float(np.mean([line.get("fairness", np.nan) for line in late])),
    }
    return means | {"curve": [[line["step"], line["pixel_share_depth"]] for line in logged]}


def run_one(
    name: str, clips: Callable[[], list[Clip]], figures_of: Figures, variant: Variant, seed: int, arguments: Arguments
) -> dict:
    """Train and evaluate one run, or read what it gave before."""
    folder = arguments.output / "runs" / name.replace(" ", "_") / variant.name.replace(", ", "+") / f"seed{seed}"
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    config = configuration(variant, seed, arguments)
    trained = train(config, clips(), [], folder, init=arguments.init, data_facts={"source": name})
    if trained.interrupted:
        raise KeyboardInterrupt
    figures = figures_of(trained.last) | shares(folder)
    result.write_text(json.dumps(figures) + "\n")
    (folder / "state.pt").unlink()
    return figures


def start_of(name: str, figures_of: Figures, arguments: Arguments) -> dict:
    """The figures of the start itself, before any rule has worked on it."""
    result = arguments.output / "runs" / name.replace(" ", "_") / "start.json"
    if not result.is_file():
        result.parent.mkdir(parents=True, exist_ok=True)
        figures = figures_of(arguments.init) | {"share_depth": np.nan, "fairness": np.nan, "curve": []}
        result.write_text(json.dumps(figures) + "\n")
    return json.loads(result.read_text())


def summarise(name: str, start: dict, results: dict[str, list[dict]], arguments: Arguments, console: Console) -> None:
    """Table (terminal and Markdown) with mean and spread over the seeds, and the curves of the pixel share."""
    results = {"start": [start]} | results
    ordered = [f"{prefix}{column}" for prefix in ("", SEEN) for column in COLUMNS]
    columns = [column for column in (*ordered, *sorted(set(start) - set(ordered) - {"curve"})) if column in start]
    names = list(results)
    title = f"{name}: mean ± standard deviation over {len(arguments.seeds)} seeds"
    table = Table("figure", *names, title=title)
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for column in columns:
        rows = [np.array([run[column] for run in runs], dtype=float) for runs in results.values()]
        cells = [f"{row.mean():.3f}" + (f" ±{row.std(ddof=1):.3f}" if len(row) > 1 else "") for row in rows]
        table.add_row(column, *(cell.replace(" ", "\n") for cell in cells))
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    console.print(table)
    stem = arguments.output / name.replace(" ", "_")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for variant, runs in results.items():
        if runs[0]["curve"]:
            axis.plot(*np.array(runs[0]["curve"]).T, label=variant, linewidth=1.2)
    axis.set(title=f"{name}: share of pixels that feed depth", xlabel="step", ylim=(0, 1))
    axis.legend(fontsize=7)
    figure.savefig(stem.with_suffix(".png"), dpi=80)
    plt.close(figure)


def _range(text: str) -> tuple[int, int | None]:
    first, _, stop = text.partition(":")
    return int(first or 0), int(stop) if stop else None


def _variant(text: str) -> Variant:
    """NAME:KEY=VALUE,..."""
    label, _, settings = text.partition(":")
    pairs = tuple(tuple(pair.split("=", 1)) for pair in settings.split(","))
    return Variant("hybrid", "per_pixel", auto_mask=True, label=label, settings=pairs)


def material(
    name: str, scenes: Scenes, arguments: Arguments, console: Console
) -> tuple[Callable[[], list[Clip]], Figures]:
    """What a scenario trains on, and how its checkpoints are judged; nothing is rendered or read before it is used."""
    if name == "real":
        options = PrepareOptions(frames=arguments.real_train, validation_share=0.0)
        read = cache(lambda: prepare_clips([arguments.real], size=arguments.size, options=options).train)
        return read, lambda checkpoint: real_figures(checkpoint, arguments)
    seen = range(_TRAIN_SEEDS, _TRAIN_SEEDS + arguments.clips)
    unseen = range(_TEST_SEEDS, _TEST_SEEDS + arguments.test_scenes)

    def figures_of(checkpoint: Path) -> dict[str, float]:
        on_seen = rendered_figures(checkpoint, scenes.of(name, seen, console), arguments.device)
        on_unseen = rendered_figures(checkpoint, scenes.of(name, unseen, console), arguments.device)
        return on_unseen | {SEEN + key: value for key, value in on_seen.items()}

    return lambda: [scene.clip for scene in scenes.of(name, seen, console)], figures_of


def main() -> int:
    """Run what is missing, then say what all of it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/ablation"))
    parser.add_argument("--init", type=Path, default=None, help="default: models/small_rendered.safetensors")
    parser.add_argument("--start-steps", type=int, default=400, help="of training on scenes without movers first")
    parser.add_argument("--scenarios", nargs="*", default=["plain"], choices=list(SCENARIOS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--apportionments", nargs="+", default=["per_pixel"], choices=list(APPORTIONMENTS))
    parser.add_argument(
        "--also",
        type=_variant,
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="hybrid with other settings, such as splatting:loss.occlusion=splatting or coupled:stage.consistency=0.02",
    )
    parser.add_argument("--auto-mask", choices=("on", "off", "both"), default="on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--loss-factor", type=int, default=2, help="the losses see images reduced by this factor")
    parser.add_argument("--clips", type=int, default=12, help="training scenes")
    parser.add_argument("--size", type=image_size, default=(320, 96), metavar="WxH")
    parser.add_argument("--test-scenes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=10, help="of each scene")
    parser.add_argument("--real", type=Path, metavar="BAG", help="a recording, instead of rendered scenes")
    parser.add_argument("--real-train", type=_range, default=(0, None), metavar="A:B")
    parser.add_argument("--real-test", type=_range, default=(0, None), metavar="C:D")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.init = arguments.init or shipped_file("models/small_rendered.safetensors")
    console = Console()
    masks = {"on": [True], "off": [False], "both": [True, False]}[arguments.auto_mask]
    variants = [
        Variant(rule, scalar, mask)
        for mask in masks
        for scalar in arguments.apportionments
        for rule in arguments.rules
        if not (rule == "oracle" and arguments.real)
    ]
    variants += arguments.also
    scenes = Scenes(arguments.size, arguments.frames)
    if not arguments.real:
        arguments.init = pretrained(scenes, arguments, console)
    for name in ["real"] if arguments.real else arguments.scenarios:
        clips, figures_of = material(name, scenes, arguments, console)
        results: dict[str, list[dict]] = {}
        for seed in arguments.seeds:
            for variant in variants:
                console.print(f"{name}: {variant.name}, seed {seed}")
                run = run_one(name, clips, figures_of, variant, seed, arguments)
                results.setdefault(variant.name, []).append(run)
        summarise(name, start_of(name, figures_of, arguments), results, arguments, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
