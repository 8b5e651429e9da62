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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coopnet_core.checkpoint import read_metadata
from coopnet_core.config import TrainConfig, load_config
from coopnet_core.cotraining.apportionment import APPORTIONMENTS
from coopnet_core.cotraining.rules import RULES
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.evaluation.depth import DepthMeter, DepthProtocol
from coopnet_core.evaluation.runner import BagSelection, evaluate_predictor
from coopnet_core.evaluation.session import EvaluationOptions, EvaluationSession
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.resources import shipped_file

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_TRAIN_SEEDS, _TEST_SEEDS = 5000, 9000
_NEAR_MOVER = 9
_SHORT = (5.0, 10.0)
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
    "share_depth",
    "fairness",
)


@dataclass(frozen=True)
class Scenario:
    """One difficulty of rendered scenes.

    Attributes:
        movers: wanted share of moving pixels.
        noise: sensor noise, grey levels.
        treatment: what is done to the images: "none", "exposure" (each has its own gain) or "poor" (little texture).
    """

    movers: float = 0.15
    noise: float = 1.0
    treatment: str = "none"


SCENARIOS = {
    "no movers": Scenario(movers=0.0),
    "plain": Scenario(),
    "many movers": Scenario(movers=0.3),
    "noise": Scenario(noise=6.0),
    "exposure": Scenario(treatment="exposure"),
    "poor texture": Scenario(treatment="poor"),
}


@dataclass(frozen=True)
class Variant:
    """What differs between two runs: the rule, the scalar apportionment, the identity auto-mask."""

    rule: str
    apportionment: str
    auto_mask: bool

    @property
    def name(self) -> str:
        """For folders and tables."""
        scalar = "" if self.apportionment == "per_pixel" else f", {self.apportionment}"
        return f"{self.rule}{scalar}{'' if self.auto_mask else ', no auto-mask'}"


def rendered(scenario: Scenario, seeds: Sequence[int], frames: int, size: tuple[int, int]) -> Iterator[RenderedClip]:
    """Clips with the truth of the scenario."""
    camera = Camera.from_field_of_view(*size, 80.0)
    for seed in seeds:
        config = SceneConfig(seed, frames, camera, movers=scenario.movers, noise=scenario.noise, camera_moves=True)
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


def training_clips(scenario: Scenario, name: str, arguments: argparse.Namespace, console: Console) -> list[Clip]:
    """The training clips of a scenario, rendered once into the output folder."""
    folder = arguments.output / "clips" / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    size = _start_size(arguments)
    clips = []
    for seed in range(_TRAIN_SEEDS, _TRAIN_SEEDS + arguments.clips):
        path = folder / f"{seed}.npz"
        if not path.exists():
            console.print(f"rendering {name}, scene {seed}")
            clip = next(rendered(scenario, [seed], arguments.frames, size)).clip
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, images=clip.images, stamps_ns=clip.stamps_ns, moving=clip.moving)
            partial.rename(path)
        with np.load(path) as stored:
            camera = Camera.from_field_of_view(*size, 80.0)
            clips.append(Clip(f"rendered {seed}", stored["images"], stored["stamps_ns"], camera, stored["moving"]))
    return clips


def configuration(variant: Variant, seed: int, arguments: argparse.Namespace) -> TrainConfig:
    """One run: all three networks on reduced images, nothing that teaches the flow behind the rule's back."""
    stage = f"[{{name: ablation, share: 1.0, posterior: fine, sources: 1, loss_factor: {arguments.loss_factor}}}]"
    overrides = {
        "steps": str(arguments.steps),
        "seed": str(seed),
        "device": arguments.device,
        "fine_tuning": stage,
        "optimiser.learning_rate": str(arguments.learning_rate),
        "checkpoint_every": str(arguments.steps),
        "log_every": str(max(1, arguments.steps // 50)),
        "loss.rule": variant.rule,
        "loss.apportionment": variant.apportionment,
        "loss.auto_mask": str(variant.auto_mask).lower(),
        "loss.coarse_flow": "0",
        "loss.error_model.ramp_steps": "20",
    }
    return load_config("small", [], overrides)


def rendered_figures(checkpoint: Path, scenario: Scenario, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures on scenes that no run has trained on."""
    session = EvaluationSession(EvaluationOptions(segment_lengths=_SHORT))
    protocol = DepthProtocol(crop="none")
    meters = {"static": DepthMeter(protocol), "near": DepthMeter(protocol)}
    tracks = []
    predictor = StreamPredictor(checkpoint, arguments.device)
    seeds = range(_TEST_SEEDS, _TEST_SEEDS + arguments.test_scenes)
    for clip in rendered(scenario, seeds, arguments.frames, _start_size(arguments)):
        predictor.reset()
        track = EvaluationSession(EvaluationOptions(segment_lengths=_SHORT))
        for image, stamp, truth in zip(clip.clip.images, clip.clip.stamps_ns, clip.truth, strict=True):
            frame = Frame(image, int(stamp), clip.clip.camera)
            prediction = predictor.predict(frame)
            for one in (session, track):
                one.add(frame, prediction, truth)
            _add_parts(meters, truth.depth, truth.moving, prediction.depth)
        tracks.append(track.report()["odometry"])
    report = session.report()
    figures = {f"{name}_abs_rel": (meter.compute() or {}).get("abs_rel", np.nan) for name, meter in meters.items()}
    figures |= {"abs_rel": report["depth"]["abs_rel"], "a1": report["depth"]["a1"]}
    for key, source in (
        ("ate_7dof_m", "ate_7dof_m"),
        ("t_err_short_pct", "t_err_short_pct"),
        ("rotation_deg", "rotation_deg_per_frame"),
    ):
        known = [track[source] for track in tracks if track.get(source) is not None]
        figures[key] = float(np.mean(known)) if known else np.nan
    flow = report["flow"]
    for part in ("static", "moving"):
        figures[f"flow_{part}_epe"] = (flow.get(part) or {}).get("epe", np.nan)
        figures[f"flow_{part}_fl"] = (flow.get(part) or {}).get("fl_pct", np.nan)
    return figures | {"mask_auc": report["mask"]["auc"], "mask_iou": report["mask"]["iou_moving"]}


def _add_parts(meters: dict[str, DepthMeter], depth: np.ndarray, moving: np.ndarray, found: np.ndarray) -> None:
    near = cv2.dilate(moving.astype(np.uint8), np.ones((_NEAR_MOVER, _NEAR_MOVER), np.uint8)) > 0
    meters["static"].update(depth, 1 / found, ~moving)
    meters["near"].update(depth, 1 / found, near & ~moving)


def real_figures(checkpoint: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Figures on the held-out part of the recording: odometry where its poses are known, photometric errors."""
    selection = BagSelection(arguments.real, frames=arguments.real_test)
    options = EvaluationOptions(segment_lengths=(10.0, 20.0, 50.0))
    report = evaluate_predictor(selection, StreamPredictor(checkpoint, arguments.device), options)
    odometry, photometric = report["odometry"], report["photometric"] or {}
    figures = {"ate_7dof_m": odometry["ate_7dof_m"], "rotation_deg": odometry["rotation_deg_per_frame"]}
    figures["t_err_short_pct"] = odometry["t_err_pct"]
    return figures | {f"photometric_{key}": value for key, value in photometric.items() if isinstance(value, float)}


def shares(run: Path) -> dict[str, float]:
    """Means of the logged shares over the second half of a run, and the curve of the pixels that feed depth."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if not line["validation"]]
    late = logged[len(logged) // 2 :]
    means = {
        "share_depth": float(np.mean([line["pixel_share_depth"] for line in late])),
        "fairness": float(np.mean([line.get("fairness", np.nan) for line in late])),
    }
    return means | {"curve": [[line["step"], line["pixel_share_depth"]] for line in logged]}


def run_one(name: str, clips: list[Clip], variant: Variant, seed: int, arguments: argparse.Namespace) -> dict:
    """Train and evaluate one run, or read what it gave before."""
    folder = arguments.output / "runs" / name.replace(" ", "_") / variant.name.replace(", ", "+") / f"seed{seed}"
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    config = configuration(variant, seed, arguments)
    trained = train(config, clips, [], folder, init=arguments.init, data_facts={"source": name})
    if trained.interrupted:
        raise KeyboardInterrupt
    figures = (
        real_figures(trained.last, arguments)
        if name == "real"
        else rendered_figures(trained.last, SCENARIOS[name], arguments)
    )
    figures |= shares(folder)
    result.write_text(json.dumps(figures) + "\n")
    return figures


def summarise(name: str, results: dict[Variant, list[dict]], arguments: argparse.Namespace, console: Console) -> None:
    """Table (terminal and Markdown) with mean and spread over the seeds, and the curves of the pixel share."""
    known = next(iter(results.values()))[0]
    columns = [column for column in (*COLUMNS, *sorted(set(known) - set(COLUMNS) - {"curve"})) if column in known]
    names = [variant.name for variant in results]
    table = Table("figure", *names, title=f"{name}: mean ± spread over {len(arguments.seeds)} seeds")
    lines = ["| figure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for column in columns:
        rows = [np.array([run[column] for run in runs], dtype=float) for runs in results.values()]
        cells = [f"{row.mean():.3f} ±{row.std():.3f}" for row in rows]
        table.add_row(column, *(cell.replace(" ", "\n") for cell in cells))
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    console.print(table)
    stem = arguments.output / name.replace(" ", "_")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for variant, runs in results.items():
        axis.plot(*np.array(runs[0]["curve"]).T, label=variant.name, linewidth=1.2)
    axis.set(title=f"{name}: share of pixels that feed depth", xlabel="step", ylim=(0, 1))
    axis.legend(fontsize=7)
    figure.savefig(stem.with_suffix(".png"), dpi=80)
    plt.close(figure)


def _start_size(arguments: argparse.Namespace) -> tuple[int, int]:
    metadata = read_metadata(arguments.init)
    return metadata.width, metadata.height


def _range(text: str) -> tuple[int, int | None]:
    first, _, stop = text.partition(":")
    return int(first or 0), int(stop) if stop else None


def main() -> int:
    """Run what is missing, then say what all of it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/ablation"))
    parser.add_argument("--init", type=Path, default=None, help="default: models/small_rendered.safetensors")
    parser.add_argument("--scenarios", nargs="*", default=["plain"], choices=list(SCENARIOS))
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--apportionments", nargs="+", default=["per_pixel"], choices=list(APPORTIONMENTS))
    parser.add_argument("--auto-mask", choices=("on", "off", "both"), default="on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--loss-factor", type=int, default=2, help="the losses see images reduced by this factor")
    parser.add_argument("--clips", type=int, default=40, help="training scenes")
    parser.add_argument("--test-scenes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=12, help="of each scene")
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
    for name in ["real"] if arguments.real else arguments.scenarios:
        if name == "real":
            options = PrepareOptions(frames=arguments.real_train, validation_share=0.0)
            clips = prepare_clips([arguments.real], size=_start_size(arguments), options=options).train
        else:
            clips = training_clips(SCENARIOS[name], name, arguments, console)
        results: dict[Variant, list[dict]] = {}
        for seed in arguments.seeds:
            for variant in variants:
                console.print(f"{name}: {variant.name}, seed {seed}")
                results.setdefault(variant, []).append(run_one(name, clips, variant, seed, arguments))
        summarise(name, results, arguments, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
