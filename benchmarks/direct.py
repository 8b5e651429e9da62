"""The effect of a rule without the luck of training: free depth, motion and flow per pair, optimised directly.

Every rule starts from the same estimates: the truth, disturbed until static pixels are off by a set number of pixels.
What each rule then makes of them shows what it does to depth and flow, in minutes on a CPU. Finished runs are kept in
runs.jsonl and not repeated.

python benchmarks/direct.py --output out/direct [--starts 0.7 1.3] [--rules sum min hybrid oracle] [--pairs 8]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from coopnet_core.config import ErrorModelConfig, LossConfig, StageConfig
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.instrumentation import gradient_shares, retain_gradients
from coopnet_core.cotraining.objective import Estimates, RigidEstimate, objective
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.data.triplets import Batch
from coopnet_core.evaluation.mask import auc, iou
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import rigid_warp
from coopnet_core.geometry.sampling import resize, resize_flow
from coopnet_core.geometry.se3 import transform_from_vector

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RULES = ("sum", "min", "soft_min", "competition", "threshold", "hybrid_hard", "hybrid", "oracle")
SIZE = (320, 96)
_GRID_STRIDE = 4
"""Pixels of the image to one of the grid: like a network's depth, that of a static pixel depends on its neighbours."""
_TURNED_SHARE = 0.5
"""Share of the static pixels' disturbance that a wrong rotation alone would make."""
_FIELD_STRIDE = 16
_NEAR_MOVER = 9
"""Side of the box around movers, pixels, in which static pixels count as near them."""
_REPRESENTABLE = 0.05
"""Pixels whose true depth the grid cannot hold to this relative error (at edges) are not judged."""
_RATES = {"log_depth": 1e-2, "motion": 1e-3, "flow": 5e-2}


@dataclass(frozen=True)
class Problem:
    """P pairs of rendered images with all that is true of them, at H x W.

    Attributes:
        batch: images, cameras and true moving masks; one source per target.
        depth: (P, 1, H, W) metres.
        motion: (P, 4, 4) T_source_target, metres.
        flow, back: (P, 2, H, W) target -> source and source -> target.
        seen: (P, 1, H, W) bool, visible in the source.
    """

    batch: Batch
    depth: Tensor
    motion: Tensor
    flow: Tensor
    back: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Outcome:
    """What one rule made of one start.

    Depth errors are of static pixels that are seen in the source and that the grid can hold, after median scaling.

    Attributes:
        static_abs_rel, near_abs_rel: depth, on all static pixels and on those near movers.
        rotation_deg: mean error of the rotation.
        flow_static, flow_moving: end-point error, pixels.
        iou_first, iou_last: of the withheld pixels (weight above one half) with the true movers, first and last step.
        auc_last: of the withheld share.
        share_depth: mean share of pixels that fed depth and motion.
        fairness: mean share of the gradient that reached the rigid side.
    """

    static_abs_rel: float
    near_abs_rel: float
    rotation_deg: float
    flow_static: float
    flow_moving: float
    iou_first: float
    iou_last: float
    auc_last: float
    share_depth: float
    fairness: float


def rendered_problem(seeds: Sequence[int], pairs: int, size: tuple[int, int] = SIZE, movers: float = 0.15) -> Problem:
    """Pairs from the middle of clips of these seeds, `pairs` in all, each with its previous image as source."""
    camera = Camera.from_field_of_view(*size, 80.0)
    frames = 2 + -(-pairs // len(seeds))
    rows: list[tuple[RenderedClip, int]] = []
    for seed in seeds:
        clip = render_clip(SceneConfig(seed=seed, frames=frames, camera=camera, movers=movers, camera_moves=True))
        rows += [(clip, index) for index in range(2, frames)]
    return _problem(rows[:pairs], camera)


def _problem(rows: list[tuple[RenderedClip, int]], camera: Camera) -> Problem:
    def images(offset: int) -> Tensor:
        chosen = np.stack([clip.clip.images[index + offset] for clip, index in rows])
        return torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 255

    def maps(values: list[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(values))
        return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)

    truths = [clip.truth[index] for clip, index in rows]
    before = [clip.truth[index - 1] for clip, index in rows]
    motion = np.stack([np.linalg.inv(b.pose) @ t.pose for b, t in zip(before, truths, strict=True)])
    matrix = torch.from_numpy(camera.matrix).float().expand(len(rows), 3, 3)
    moving = maps([truth.moving for truth in truths])
    flow = maps([truth.flow for truth in truths])
    seen = ~maps([truth.occluded for truth in truths]) & flow.isfinite().all(1, keepdim=True)
    return Problem(
        Batch(images(0), images(-1)[:, None], matrix, moving),
        maps([truth.depth for truth in truths]).float(),
        torch.from_numpy(motion).float(),
        flow.nan_to_num(0.0),
        maps([clip.flow_to_next[index - 1] for clip, index in rows]).nan_to_num(0.0),
        seen,
    )


class FreeEstimates(torch.nn.Module):
    """Depth, motion and flow of every pair as free numbers, on a grid of a quarter of the size."""

    def __init__(self, problem: Problem, start_px: float, seed: int = 0) -> None:
        """The truth, disturbed by a rotation and smooth fields until static pixels are off by `start_px` on average."""
        super().__init__()
        self._matrix = problem.batch.camera_matrix
        self._size = tuple(problem.depth.shape[-2:])
        grid = tuple(side // _GRID_STRIDE for side in self._size)
        generator = torch.Generator().manual_seed(seed)
        log_depth = resize(problem.depth.log(), *grid)
        fields = _smooth_fields(len(log_depth), 5, grid, generator)
        static = resize((problem.seen & ~problem.batch.moving).float(), *self._size)
        axes = F.normalize(torch.randn(len(log_depth), 3, generator=generator), dim=1)
        angles = _TURNED_SHARE * start_px / self._matrix[:, :1, 0]
        self.base_motion = problem.motion
        self.motion = torch.nn.Parameter(torch.cat([torch.zeros_like(axes), angles * axes], dim=1))
        start = self.T_source_target().detach()
        scale = _scale_for(problem, log_depth, fields[:, :1], start, static, start_px)
        self.log_depth = torch.nn.Parameter(log_depth + scale * fields[:, :1])
        # Two independent components of unit spread: the length of the error is 1.25 times that spread on average.
        noise = start_px / 1.25 / _GRID_STRIDE * fields[:, 1:]
        flows = torch.cat([resize_flow(problem.flow, *grid), resize_flow(problem.back, *grid)], dim=1)
        self.flow = torch.nn.Parameter(flows + noise)

    def depth(self) -> Tensor:
        """(P, 1, H, W)."""
        return resize(self.log_depth, *self._size).exp()

    def T_source_target(self) -> Tensor:
        """(P, 4, 4)."""
        return transform_from_vector(self.motion) @ self.base_motion

    def forward(self) -> Estimates:
        """What the objective judges."""
        depth = self.depth()
        rigid = RigidEstimate([(-self.log_depth).exp()], depth, self.T_source_target())
        return Estimates([(self.flow[:, :2], self.flow[:, 2:])], rigid)


def _smooth_fields(rows: int, count: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(rows, count, *grid) of unit spread, correlated over some sixteen pixels of the image."""
    step = _FIELD_STRIDE // _GRID_STRIDE
    coarse = torch.randn(rows, count, *(side // step + 2 for side in grid), generator=generator)
    fields = F.interpolate(coarse, size=grid, mode="bicubic", align_corners=True)
    return fields / fields.std((2, 3), keepdim=True)


def _scale_for(
    problem: Problem, log_depth: Tensor, field: Tensor, motion: Tensor, static: Tensor, wanted_px: float
) -> Tensor:
    """Factors (P, 1, 1, 1) of the depth's disturbance for a mean error of the rigid flow of `wanted_px`: bisection."""
    size = tuple(problem.depth.shape[-2:])
    true_flow = rigid_warp(problem.depth, problem.motion, problem.batch.camera_matrix).coordinates
    low, high = torch.zeros(len(field), 1, 1, 1), torch.ones(len(field), 1, 1, 1)
    for _ in range(20):
        middle = 0.5 * (low + high)
        depth = resize(log_depth + middle * field, *size).exp()
        found = rigid_warp(depth, motion, problem.batch.camera_matrix).coordinates
        error = (found - true_flow).square().sum(1, keepdim=True).sqrt()
        mean = (error * static).sum((1, 2, 3), keepdim=True) / static.sum((1, 2, 3), keepdim=True)
        low, high = torch.where(mean < wanted_px, middle, low), torch.where(mean < wanted_px, high, middle)
    return 0.5 * (low + high)


def loss_config(rule: str, auto_mask: bool) -> LossConfig:
    """The loss of the experiment: no term that would teach the flow behind a rule's back.

    Smoothness stands in for what a network knows of depth, and so is stronger than in training.
    """
    return LossConfig(
        rule=rule,
        auto_mask=auto_mask,
        coarse_flow=0.0,
        flow_smoothness=0.01,
        disparity_smoothness=1e-2,
        error_model=ErrorModelConfig(decay=0.8, ramp_steps=1),
    )


def optimise(
    problem: Problem, rule: str, start_px: float, steps: int, auto_mask: bool = False, seed: int = 0
) -> tuple[Outcome, dict[str, list[float]]]:
    """Let one rule work on one start; the outcome, and shares by step."""
    torch.manual_seed(seed)
    free = FreeEstimates(problem, start_px, seed)
    optimiser = torch.optim.Adam([{"params": [getattr(free, name)], "lr": rate} for name, rate in _RATES.items()])
    config, stage = loss_config(rule, auto_mask), StageConfig(name="direct", share=1.0, sources=1)
    state = ErrorModelState.initial()
    curves: dict[str, list[float]] = {"share_depth": [], "fairness": [], "iou": []}
    for index in range(steps):
        for group, rate in zip(optimiser.param_groups, _RATES.values(), strict=True):
            group["lr"] = rate * (1 - 0.9 * index / steps)
        output = objective(problem.batch, free(), state, config, stage)
        state = output.error_model
        optimiser.zero_grad()
        retain_gradients(output)
        output.loss.backward()
        optimiser.step()
        curves["share_depth"].append(float(output.terms["pixel_share_depth"]))
        curves["fairness"].append(gradient_shares(output).get("fairness", float("nan")))
        curves["iou"].append(_mask_iou(problem, output.gamma))
    return _outcome(problem, free, output.gamma, curves), curves


def _mask_iou(problem: Problem, gamma: Tensor) -> float:
    seen = problem.seen.numpy()
    return iou((gamma > 0.5).numpy()[seen], problem.batch.moving.numpy()[seen])[1]


@torch.no_grad()
def _outcome(problem: Problem, free: FreeEstimates, gamma: Tensor, curves: dict[str, list[float]]) -> Outcome:
    moving = problem.batch.moving.numpy()[:, 0]
    seen = (problem.seen & _representable(problem)).numpy()[:, 0]
    box = np.ones((_NEAR_MOVER, _NEAR_MOVER), np.uint8)
    near = np.stack([cv2.dilate(mask.astype(np.uint8), box) > 0 for mask in moving])
    static = seen & ~moving
    truth, found = problem.depth.numpy()[:, 0], free.depth().numpy()[:, 0]
    errors = []
    for true, depth, judged in zip(truth, found, static, strict=True):
        scaled = depth * np.median(true[judged]) / np.median(depth[judged])
        errors.append(np.abs(scaled - true) / true)
    error = np.stack(errors)
    flow = resize_flow(free.flow[:, :2], *problem.depth.shape[-2:])
    distance = (flow - problem.flow).square().sum(1).sqrt().numpy()
    relative = problem.motion[:, :3, :3].transpose(1, 2) @ free.T_source_target()[:, :3, :3]
    cosine = (0.5 * (relative.diagonal(dim1=1, dim2=2).sum(1) - 1)).clamp(-1, 1)
    return Outcome(
        static_abs_rel=float(error[static].mean()),
        near_abs_rel=float(error[static & near].mean()),
        rotation_deg=float(cosine.double().arccos().rad2deg().mean()),
        flow_static=float(distance[static].mean()),
        flow_moving=float(distance[seen & moving].mean()),
        iou_first=curves["iou"][0],
        iou_last=curves["iou"][-1],
        auc_last=auc(gamma.numpy()[:, 0][seen], moving[seen]),
        share_depth=float(np.mean(curves["share_depth"])),
        fairness=float(np.mean(curves["fairness"])),
    )


def _representable(problem: Problem) -> Tensor:
    """(P, 1, H, W) bool: the grid can hold the true depth here."""
    size = tuple(problem.depth.shape[-2:])
    log_depth = problem.depth.log()
    held = resize(resize(log_depth, *(side // _GRID_STRIDE for side in size)), *size)
    return (held - log_depth).abs() < _REPRESENTABLE


def start_errors(problem: Problem, start_px: float, seed: int = 0) -> Outcome:
    """The figures of a start itself, before any rule has worked on it."""
    free = FreeEstimates(problem, start_px, seed)
    nothing = torch.zeros_like(problem.depth)
    return _outcome(problem, free, nothing, {"iou": [0.0], "share_depth": [1.0], "fairness": [float("nan")]})


def main() -> int:
    """Every rule from every start; table, JSON and curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/direct"))
    parser.add_argument("--starts", type=float, nargs="+", default=[0.7, 1.3])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--scenes", type=int, nargs="+", default=[1, 5, 12, 14])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3, help="disturbances of each start")
    parser.add_argument("--movers", type=float, default=0.15)
    parser.add_argument("--auto-mask", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    problem = rendered_problem(arguments.scenes, arguments.pairs, movers=arguments.movers)
    runs = list(itertools.product(arguments.starts, arguments.rules, range(arguments.seeds)))
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / "runs.jsonl"
    known = _known_runs(log, _settings(arguments))
    for start, rule, seed in track(runs, "optimising", console=console):
        if (start, rule, seed) not in known:
            outcome, curve = optimise(problem, rule, start, arguments.steps, arguments.auto_mask, seed)
            record = {"start": start, "rule": rule, "seed": seed, "outcome": asdict(outcome), "curves": curve}
            with log.open("a") as file:
                file.write(json.dumps(record | {"settings": _settings(arguments)}) + "\n")
            known[start, rule, seed] = outcome, curve
    results = {(start, rule): [known[start, rule, s][0] for s in range(arguments.seeds)] for start, rule, _ in runs}
    curves = {(start, rule): known[start, rule, 0][1] for start, rule, _ in runs}
    for start in arguments.starts:
        results[start, "start"] = [start_errors(problem, start, seed) for seed in range(arguments.seeds)]
        _print(console, start, {rule: results[start, rule] for rule in ("start", *arguments.rules)})
    report = {
        "settings": _settings(arguments) | {"starts": arguments.starts, "rules": arguments.rules},
        "moving_share": float(problem.batch.moving.float().mean()),
        "results": [
            {"start_px": start, "rule": rule, "seeds": [asdict(outcome) for outcome in outcomes]}
            for (start, rule), outcomes in results.items()
        ],
    }
    (arguments.output / "direct.json").write_text(json.dumps(report, indent=1) + "\n")
    _plot(curves, arguments.output / "direct.png")
    console.print(f"{arguments.output / 'direct.json'}, {arguments.output / 'direct.png'}")
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What a run depends on besides its start, rule and seed."""
    return {name: getattr(arguments, name) for name in ("scenes", "pairs", "steps", "movers", "auto_mask")}


def _known_runs(log: Path, settings: dict[str, object]) -> dict[tuple[float, str, int], tuple[Outcome, dict]]:
    """Finished runs of these settings, by start, rule and seed."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {
        (line["start"], line["rule"], line["seed"]): (Outcome(**line["outcome"]), line["curves"])
        for line in lines
        if line["settings"] == settings
    }


def _print(console: Console, start: float, outcomes: dict[str, list[Outcome]]) -> None:
    table = Table("figure", *outcomes, title=f"start: static pixels off by {start} px (mean and spread over the seeds)")
    for name in Outcome.__dataclass_fields__:
        rows = [np.array([getattr(value, name) for value in values]) for values in outcomes.values()]
        table.add_row(name, *(_cell(row) for row in rows))
    if "sum" in outcomes:
        for name in ("static_abs_rel", "near_abs_rel"):
            table.add_row(f"{name} - sum", *(_cell(_paired(o, outcomes["sum"], name)) for o in outcomes.values()))
    console.print(table)


def _cell(values: np.ndarray) -> str:
    return f"{values.mean():.3f}\n±{values.std(ddof=min(1, len(values) - 1)):.3f}"


def _paired(outcomes: list[Outcome], others: list[Outcome], name: str) -> np.ndarray:
    """Differences of the same disturbance: what the disturbances have in common cancels."""
    return np.array([getattr(a, name) - getattr(b, name) for a, b in zip(outcomes, others, strict=True)])


def _plot(curves: dict[tuple[float, str], dict[str, list[float]]], path: Path) -> None:
    titles = {
        "share_depth": "share of pixels that feed depth",
        "fairness": "share of gradient on the rigid side",
        "iou": "IoU of withheld pixels and movers",
    }
    starts = sorted({start for start, _ in curves})
    figure, axes = plt.subplots(len(starts), 3, figsize=(15, 4 * len(starts)), squeeze=False, layout="constrained")
    for row, start in enumerate(starts):
        for axis, (name, title) in zip(axes[row], titles.items(), strict=True):
            for (begin, rule), curve in curves.items():
                if begin == start:
                    axis.plot(curve[name], label=rule, linewidth=1.2)
            axis.set(title=f"{title}, from {start} px", xlabel="step", ylim=(0, 1))
        axes[row][0].legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
