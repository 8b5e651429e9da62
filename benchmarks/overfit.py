"""The tiny problem that must be solved: the networks learn one rendered clip by heart, without labels.

Trains on a single clip with movers and compares what the networks then say of that clip with its truth. If this does
not come out right, something in the loss, the geometry or the evaluation is wrong, whatever longer runs show. Depth is
judged on the images that were targets. Its goal is for static pixels: video alone does not tell the depth of what
moves, which is shown beside it. Writes overfit.json and panel.png. The command can be stopped and goes on where it was.

python benchmarks/overfit.py --output out/overfit [--seed 12] [--steps 2500]
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
from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.evaluation.depth import DepthMeter, DepthProtocol, valid_pixels
from coopnet_core.evaluation.session import EvaluationOptions, EvaluationSession
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import flow_warp
from coopnet_core.inference.prediction import Prediction
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.resources import shipped_file
from coopnet_core.visualization import panel, write_picture
from coopnet_ros.command import image_size

GOALS = {"static_abs_rel": 0.05, "flow_epe_px": 0.5, "rotation_deg": 0.05, "mask_auc": 0.95}
"""Below these, but the AUC above."""
ALSO = ("median_error", "abs_rel", "flow_epe_inside_px")
"""Shown beside them: the median relative error of static depth, AbsRel of all pixels, movers too, and the flow's error
where the match lies inside the other image."""


class TargetErrors:
    """Errors on the images that were targets: depth of static pixels, scaled by its median ratio, and of all; flow."""

    def __init__(self) -> None:
        protocol = DepthProtocol(crop="none")
        self._static, self._all = DepthMeter(protocol), DepthMeter(protocol)
        self._errors: list[np.ndarray] = []
        self._flow_errors: list[np.ndarray] = []

    def add(self, prediction: Prediction, truth: FrameTruth) -> None:
        """One image at the size of its truth."""
        self._static.update(truth.depth, 1 / prediction.depth, ~truth.moving)
        self._all.update(truth.depth, 1 / prediction.depth)
        known = ~truth.moving & valid_pixels(truth.depth, self._static.protocol)
        scaled = prediction.depth[known] * self._static.scales[-1]
        self._errors.append(np.abs(scaled - truth.depth[known]) / truth.depth[known])
        lands_inside = flow_warp(torch.from_numpy(truth.flow).permute(2, 0, 1)[None]).valid[0, 0].numpy()
        inside = lands_inside & np.isfinite(prediction.flow).all(axis=-1)
        self._flow_errors.append(np.linalg.norm(prediction.flow - truth.flow, axis=-1)[inside])

    def figures(self) -> dict[str, float]:
        """By name."""
        return {
            "static_abs_rel": self._static.compute()["abs_rel"],
            "median_error": float(np.median(np.concatenate(self._errors))),
            "abs_rel": self._all.compute()["abs_rel"],
            "flow_epe_inside_px": float(np.concatenate(self._flow_errors).mean()),
        }


def figures_of(checkpoint: Path, clip: RenderedClip, targets: range, picture: Path) -> dict[str, float]:
    """What the networks say of the clip against its truth; the middle image is drawn."""
    session, depth = EvaluationSession(EvaluationOptions(segment_lengths=(2.0,))), TargetErrors()
    predictor = StreamPredictor(checkpoint, "cpu", (clip.clip.camera.width, clip.clip.camera.height))
    for index, (image, stamp, truth) in enumerate(zip(clip.clip.images, clip.clip.stamps_ns, clip.truth, strict=True)):
        frame = Frame(image, int(stamp), clip.clip.camera)
        prediction = predictor.predict(frame)
        session.add(frame, prediction, truth)
        if index in targets:
            depth.add(prediction, truth)
        if index == len(clip.truth) // 2:
            write_picture(picture, panel(prediction, truth))
    report = session.report()
    return depth.figures() | {
        "flow_epe_px": report["flow"]["epe"],
        "rotation_deg": report["odometry"]["rotation_deg_per_frame"],
        "mask_auc": (report["mask"] or {}).get("auc") or np.nan,
    }


def main() -> int:
    """Train, judge, say what was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/overfit"))
    parser.add_argument("--init", type=Path, default=None, help="default: models/small_rendered.safetensors")
    parser.add_argument("--seed", type=int, default=12, help="of the scene")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=image_size, default=(320, 96), metavar="WxH")
    parser.add_argument("--rate", type=float, default=10.0, help="images per second")
    parser.add_argument("--movers", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    camera = Camera.from_field_of_view(*arguments.size, 80.0)
    scene = SceneConfig(
        arguments.seed, arguments.frames, camera, arguments.rate, movers=arguments.movers, camera_moves=True, noise=0.5
    )
    clip = render_clip(scene)
    start = arguments.init or shipped_file("models/small_rendered.safetensors")
    stage = "[{name: overfit, share: 1.0, consistency: 0.02, sources: 1}]"
    overrides = {"steps": str(arguments.steps), "device": "cpu", "fine_tuning": stage, "log_every": "20"}
    overrides |= {"frame_offsets": "[-2, -1, 1, 2]", "batch_size": "2", "checkpoint_every": "100"}
    overrides |= {"loss.depth_consistency": "0.2", "loss.contact": "0.01"}
    overrides |= {f"augmentation.{name}": "0" for name in ("flip", "brightness", "contrast", "saturation", "grey")}
    config = load_config("cpu-small", [], overrides | dict(pair.split("=", 1) for pair in arguments.set))
    run = arguments.output / "run"
    resume = (run / "state.pt").exists()
    result = train(config, [clip.clip], [], run, init=None if resume else start, resume=resume, console=console)
    targets = range(-min(config.frame_offsets), arguments.frames - max(config.frame_offsets))
    before = figures_of(start, clip, targets, arguments.output / "panel_start.png")
    after = figures_of(result.last, clip, targets, arguments.output / "panel.png")
    table = Table("figure", "start", f"after {result.steps} steps", "goal")
    for name, goal in (GOALS | dict.fromkeys(ALSO)).items():
        wanted = "" if goal is None else f"{'>' if name == 'mask_auc' else '<'} {goal}"
        table.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", wanted)
    console.print(table)
    (arguments.output / "overfit.json").write_text(json.dumps({"start": before, "end": after}, indent=1) + "\n")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
