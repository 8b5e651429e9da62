"""Learning the camera: a wrong focal length beside the true one of rendered scenes.

Trains on scenes whose horizontal field of view is known, from one that is assumed, and plots where the focal length
goes. The command can be stopped and goes on where it was.

python benchmarks/intrinsics.py --output out/intrinsics [--assumed 100] [--true 80] [--steps 800]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track

from coopnet_core.config import load_config
from coopnet_core.cotraining.metrics_file import read_metrics
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.frames import Clip
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.geometry.camera import Camera
from coopnet_core.resources import shipped_file
from coopnet_ros.command import image_size

_SEEDS = 7000


def clips_with_assumed_camera(scenes: int, size: tuple[int, int], true: float, assumed: float) -> list[Clip]:
    """Eight images at 10 Hz of each scene, seen with one field of view (degrees) and labelled with another."""
    seen = Camera.from_field_of_view(*size, true)
    label = replace(Camera.from_field_of_view(*size, assumed), assumed=True)
    seeds = range(_SEEDS, _SEEDS + scenes)
    return [
        replace(render_clip(SceneConfig(seed, 8, seen, camera_moves=True)).clip, camera=label)
        for seed in track(seeds, "rendering")
    ]


def field_of_view(assumed: float, factor: float) -> float:
    """Degrees, of a focal length `factor` times that of the assumed field of view."""
    return 2 * math.degrees(math.atan(math.tan(math.radians(assumed / 2)) / factor))


def draw(curve: list[tuple[int, float]], assumed: float, true: float, path: Path) -> None:
    """The field of view over the steps, with the truth."""
    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    steps, factors = zip(*curve, strict=True)
    axis.plot(steps, [field_of_view(assumed, factor) for factor in factors], label="learned")
    axis.axhline(true, color="black", linestyle="--", label="true")
    axis.axhline(assumed, color="grey", linestyle=":", label="assumed")
    axis.set(xlabel="step", ylabel="horizontal field of view, degrees")
    axis.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> int:
    """Train, then say where the focal length went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/intrinsics"))
    parser.add_argument("--init", type=Path, default=None, help="default: models/small_rendered.safetensors")
    parser.add_argument("--assumed", type=float, default=100.0, help="horizontal field of view, degrees")
    parser.add_argument("--true", type=float, default=80.0)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--size", type=image_size, default=(320, 96), metavar="WxH")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    width, height = arguments.size
    clips = clips_with_assumed_camera(arguments.scenes, (width, height), arguments.true, arguments.assumed)
    stage = {"name": "camera", "share": 1.0, "rate": 0.5, "sources": 1, "loss_factor": 2}
    stage |= {"matches": 0.1, "consistency": 0.02}
    overrides = {"steps": str(arguments.steps), "device": "cpu", "fine_tuning": json.dumps([stage])}
    overrides |= {"learn_intrinsics": "true", "optimiser.intrinsics_rate": "5e-3", "checkpoint_every": "100"}
    config = load_config("cpu-small", [], overrides | dict(pair.split("=", 1) for pair in arguments.set))
    run = arguments.output / "run"
    resume = (run / "state.pt").exists()
    init = None if resume else arguments.init or shipped_file("models/small_rendered.safetensors")
    result = train(config, clips, [], run, init=init, resume=resume, console=Console())
    lines = read_metrics(run / "metrics.jsonl")
    curve = [(line["step"], line["focal_factor"]) for line in lines if line.get("focal_factor") is not None]
    found = {
        "steps": result.steps,
        "assumed_deg": arguments.assumed,
        "true_deg": arguments.true,
        "found_deg": field_of_view(arguments.assumed, result.focal.factor),
        "late_change": result.focal.late_change,
        "settled": result.focal.settled,
        "curve": curve,
    }
    (arguments.output / "intrinsics.json").write_text(json.dumps(found) + "\n")
    draw(curve, arguments.assumed, arguments.true, arguments.output / "intrinsics.png")
    settled = "settled" if result.focal.settled else "not settled"
    Console().print(
        f"Assumed {arguments.assumed:.1f} degrees, true {arguments.true:.1f}, found {found['found_deg']:.1f} after "
        f"{result.steps} steps ({settled}: {result.focal.late_change:.1%} over the last quarter)."
    )
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
