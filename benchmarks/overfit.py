"""The tiny problem that must be solved: the networks learn one rendered clip by heart, without labels.

Trains on a single clip with movers and compares what the networks then say of that clip with its truth. If this does
not come out right, something in the loss, the geometry or the evaluation is wrong, whatever longer runs show. The
command can be stopped and goes on where it was.

python benchmarks/overfit.py --output out/overfit [--seed 14] [--steps 2000]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coopnet_core.config import load_config
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.evaluation.session import EvaluationOptions, EvaluationSession
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.resources import shipped_file

GOALS = {"depth_abs_rel": 0.05, "flow_epe_px": 0.5, "rotation_deg": 0.05, "mask_auc": 0.95}
"""Below these, but the AUC above."""


def figures_of(checkpoint: Path, clip: RenderedClip) -> dict[str, float]:
    """What the networks say of the clip against its truth."""
    session = EvaluationSession(EvaluationOptions(segment_lengths=(2.0,)))
    predictor = StreamPredictor(checkpoint, "cpu", (clip.clip.camera.width, clip.clip.camera.height))
    for image, stamp, truth in zip(clip.clip.images, clip.clip.stamps_ns, clip.truth, strict=True):
        frame = Frame(image, int(stamp), clip.clip.camera)
        session.add(frame, predictor.predict(frame), truth)
    report = session.report()
    return {
        "depth_abs_rel": report["depth"]["abs_rel"],
        "flow_epe_px": report["flow"]["epe"],
        "rotation_deg": report["odometry"]["rotation_deg_per_frame"],
        "mask_auc": (report["mask"] or {}).get("auc") or np.nan,
    }


def main() -> int:
    """Train, judge, say what was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/overfit"))
    parser.add_argument("--init", type=Path, default=None, help="default: models/small_rendered.safetensors")
    parser.add_argument("--seed", type=int, default=14, help="of the scene")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", default="320x96")
    parser.add_argument("--movers", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    camera = Camera.from_field_of_view(*(int(side) for side in arguments.size.split("x")), 80.0)
    scene = SceneConfig(arguments.seed, arguments.frames, camera, movers=arguments.movers, camera_moves=True, noise=0.5)
    clip = render_clip(scene)
    start = arguments.init or shipped_file("models/small_rendered.safetensors")
    stage = "[{name: overfit, share: 1.0, consistency: 0.02, sources: 1}]"
    overrides = {"steps": str(arguments.steps), "device": "cpu", "fine_tuning": stage, "log_every": "20"}
    overrides |= {f"augmentation.{name}": "0" for name in ("flip", "brightness", "contrast", "saturation", "grey")}
    config = load_config("small", [], overrides | dict(pair.split("=", 1) for pair in arguments.set))
    run = arguments.output / "run"
    resume = (run / "state.pt").exists()
    result = train(config, [clip.clip], [], run, init=None if resume else start, resume=resume, console=console)
    before, after = figures_of(start, clip), figures_of(result.last, clip)
    table = Table("figure", "start", f"after {result.steps} steps", "goal")
    for name, goal in GOALS.items():
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", f"{'>' if name == 'mask_auc' else '<'} {goal}")
    console.print(table)
    (arguments.output / "overfit.json").write_text(json.dumps({"start": before, "end": after}, indent=1) + "\n")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
