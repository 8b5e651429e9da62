"""Compare the families of the error model on rendered scenes, whose moving pixels are known.

Each frame is reconstructed from the one before it: by the networks of a checkpoint as in training, with the motion
made to agree with depth and flow, or by the scene's true warps disturbed by a smooth error, which shows what better
networks would see. The families are fitted to the static and to the moving pixels (KS distance, AIC), and every pair of
them is run through the error model (AUC and IoU of the mask). An anchor made of the true movers shows what the
displaced one costs. Writes families.json, families.png (densities of Delta), model.png (the fitted error model over its
data) and maps.png (what it makes of one frame of each scene).

python benchmarks/families.py --checkpoint models/small_rendered.safetensors --seeds 1 2 --output out/families
python benchmarks/families.py --warps truth --rigid-error 0.5 --flow-error 0.5
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from coopnet_core.checkpoint import Checkpoint, load_checkpoint
from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.error_model import (
    Anchor,
    ErrorModelState,
    Evidence,
    gate_is_open,
    log_disagreement,
    moving_log_density,
    posterior,
    smoothed,
    static_log_density,
    update,
)
from coopnet_core.cotraining.families import LOG_RATIO, MOVING, STATIC, Parameters, gaussian_log_density
from coopnet_core.cotraining.goodness import Goodness, compare_families
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.evaluation.mask import MaskMeter
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import Warp, flow_warp, pixel_grid, rigid_warp
from coopnet_core.geometry.refinement import refine_motion
from coopnet_core.geometry.sampling import resize, resize_flow, sample
from coopnet_core.losses.photometric import photometric_error
from coopnet_core.losses.visibility import forward_backward_visible
from coopnet_core.networks.bundle import normalise

LEAST_ERROR = 1e-3
"""Added to both errors in the log ratio: below it, errors are rounding and noise."""
FAR = 1e4
"""Pixels; the flow of points that pass behind the camera: outside every image."""
EM_STEPS = 10
CUES = ("photometric", "correspondence", "joint")


@dataclass(frozen=True)
class Pixels:
    """What the networks say of frame pairs and what is true of them, (P, 1, H, W) each but the image.

    Attributes:
        image: (P, 3, H, W) in [0, 1].
        delta: smoothed e_r - e_f.
        anchored_delta: the same with the source displaced instead of warped rigidly.
        log_ratio: log(e_r / e_f), both smoothed.
        disagreement, anchored_disagreement: `log_disagreement`, and with the rigid flow displaced.
        visible: bool, both warps can be judged.
        moving: bool, the truth.
    """

    image: Tensor
    delta: Tensor
    anchored_delta: Tensor
    log_ratio: Tensor
    disagreement: Tensor
    anchored_disagreement: Tensor
    visible: Tensor
    moving: Tensor


@dataclass(frozen=True)
class Warps:
    """Frames but the first, and where their pixels are in the frames before: by flow, back, and rigidly."""

    target: Tensor
    source: Tensor
    flow: Tensor
    backward: Tensor
    rigid: Warp


def network_warps(checkpoint: Checkpoint, rendered: RenderedClip, refine: bool) -> Warps:
    """What the networks say; `refine` makes the motion agree with depth and flow on all visible pixels."""
    networks = checkpoint.networks
    target, source, matrix = _pairs(rendered)
    height, width = target.shape[-2:]
    flow_low, backward_low = networks.flow.both_ways(normalise(target), normalise(source))[0]
    flow, backward = resize_flow(flow_low, height, width), resize_flow(backward_low, height, width)
    depth = networks.depths(target)[1]
    motion = networks.motion(target, source, flow_low, depth, matrix)
    if refine:
        visible = forward_backward_visible(flow, backward).float()
        motion = refine_motion(motion, depth, flow, visible, matrix).T_source_target
    return Warps(target, source, flow, backward, rigid_warp(depth, motion, matrix))


def true_warps(rendered: RenderedClip, rigid_error: float, flow_error: float, seed: int) -> Warps:
    """The scene's own warps with smooth errors of these lengths (root mean square, pixels)."""
    target, source, matrix = _pairs(rendered)
    generator = torch.Generator().manual_seed(seed)
    depth = torch.stack([torch.from_numpy(truth.depth) for truth in rendered.truth[1:]])[:, None]
    poses = [truth.pose for truth in rendered.truth]
    motion = np.stack([np.linalg.inv(before) @ now for before, now in pairwise(poses)])
    flow, backward = (
        torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).nan_to_num(FAR)
        for flows in ([truth.flow for truth in rendered.truth[1:]], rendered.flow_to_next[:-1])
    )
    rigid = rigid_warp(depth, torch.from_numpy(motion).float(), matrix)
    return Warps(
        target,
        source,
        flow + _smooth_noise(flow, flow_error, generator),
        backward + _smooth_noise(flow, flow_error, generator),
        replace(rigid, coordinates=rigid.coordinates + _smooth_noise(flow, rigid_error, generator)),
    )


def _pairs(rendered: RenderedClip) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, the frames before them, (P, 3, H, W) in [0, 1], and K."""
    images = torch.from_numpy(rendered.clip.images).permute(0, 3, 1, 2).float() / 255
    matrix = torch.from_numpy(rendered.clip.camera.matrix).float().expand(len(images) - 1, 3, 3)
    return images[1:], images[:-1], matrix


def _smooth_noise(like: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """(P, 2, H, W) vectors that change over some ten pixels, as errors of networks do."""
    pairs, _, height, width = like.shape
    noise = resize(torch.randn(pairs, 2, height // 8, width // 8, generator=generator), height, width)
    return noise * (length / noise.square().sum(1).mean().sqrt())


def measured(warps: Warps, moving: Tensor, window: int, seed: int) -> Pixels:
    """Both errors of the warps, and those of their anchors."""
    target, source, size = warps.target, warps.source, tuple(warps.target.shape[-2:])
    rigid_flow = warps.rigid.coordinates - pixel_grid(*size)
    generator = torch.Generator().manual_seed(seed)
    shift = [int(torch.randint(side // 4, 3 * side // 4 + 1, (), generator=generator)) for side in size]
    error_rigid, error_flow, error_unrelated = (
        smoothed(photometric_error(target, image), window, size)
        for image in (
            sample(source, warps.rigid.coordinates),
            sample(source, flow_warp(warps.flow).coordinates),
            source.roll(shift, dims=(2, 3)),
        )
    )
    return Pixels(
        target,
        error_rigid - error_flow,
        error_unrelated - error_flow,
        ((error_rigid + LEAST_ERROR) / (error_flow + LEAST_ERROR)).log(),
        log_disagreement(warps.flow, rigid_flow),
        log_disagreement(warps.flow, rigid_flow.roll(1, dims=0).roll(shift, dims=(2, 3))),
        forward_backward_visible(warps.flow, warps.backward) & warps.rigid.valid,
        moving,
    )


@torch.inference_mode()
def measured_scene(checkpoint: Checkpoint, scene: SceneConfig, window: int, options: argparse.Namespace) -> Pixels:
    """Render a scene, warp its frames as wanted, measure."""
    rendered = render_clip(scene)
    if options.warps == "truth":
        warps = true_warps(rendered, options.rigid_error, options.flow_error, scene.seed)
    else:
        warps = network_warps(checkpoint, rendered, refine=options.warps == "refined")
    moving = torch.stack([torch.from_numpy(truth.moving) for truth in rendered.truth[1:]])[:, None]
    return measured(warps, moving, window, scene.seed)


def together(parts: Iterable[Pixels]) -> Pixels:
    return Pixels(*(torch.cat(tensors) for tensors in zip(*map(astuple, parts), strict=True)))


def mask_figures(pixels: Pixels, base: ErrorModelConfig) -> list[dict[str, object]]:
    """AUC and IoU of the mask for every pair of families, and of the default pair with the best possible anchor."""
    displaced = Anchor(pixels.anchored_delta, pixels.anchored_disagreement)
    rows = [
        mask_of(pixels, displaced, "displaced", base, cue, static, moving)
        for cue, static, moving in product(("photometric", "joint"), STATIC, MOVING)
    ]
    default = ("asymmetric_laplace", "gaussian")
    rows.append(mask_of(pixels, displaced, "displaced", base, "correspondence", *default))
    movers = (pixels.moving & pixels.visible).flatten().nonzero().flatten()
    if len(movers):
        drawn = movers[torch.arange(pixels.delta.numel()) % len(movers)].view_as(pixels.delta)
        oracle = Anchor(pixels.delta.take(drawn), pixels.disagreement.take(drawn))
        rows += [mask_of(pixels, oracle, "true movers", base, cue, *default) for cue in CUES]
    return rows


def evidence_of(pixels: Pixels) -> Evidence:
    return Evidence(pixels.delta, pixels.disagreement, pixels.visible.float())


def fitted(pixels: Pixels, anchor: Anchor, config: ErrorModelConfig) -> ErrorModelState:
    """The error model fitted to these pixels from nothing."""
    once = config.model_copy(update={"em_steps": EM_STEPS})
    return update(ErrorModelState.initial(), evidence_of(pixels), anchor, once)


def mask_of(
    pixels: Pixels, anchor: Anchor, source: str, base: ErrorModelConfig, cue: str, static: str, moving: str
) -> dict[str, object]:
    """The error model fitted to these pixels from nothing, and the figures of its mask."""
    chosen = {"cue": cue, "static_family": static, "moving_family": moving}
    config = base.model_copy(update=chosen)
    state = fitted(pixels, anchor, config)
    meter = MaskMeter()
    meter.update(pixels.moving.numpy(), posterior(evidence_of(pixels), state, config).numpy(), pixels.visible.numpy())
    facts = {"anchor": source, "gate": bool(gate_is_open(state, config)), "pi": state.pi.item()}
    return chosen | facts | (meter.compute() or {})


def draw(path: Path, pixels: Pixels, rows: tuple[Goodness, ...]) -> None:
    """Histograms with the fitted densities over them, logarithmic so that tails show."""
    static, movers = pixels.visible & ~pixels.moving, pixels.visible & pixels.moving
    panels = (
        ("static", STATIC, pixels.delta[static], "e_r - e_f, static pixels"),
        ("moving", MOVING, pixels.delta[movers], "e_r - e_f, moving pixels; dashed: anchored"),
        ("static, log ratio", LOG_RATIO, pixels.log_ratio[static], "log(e_r / e_f), static pixels"),
    )
    figure, grid = plt.subplots(1, 3, figsize=(16.0, 4.8), layout="constrained")
    for axes, (group, families, values, title) in zip(grid, panels, strict=True):
        axes.set(title=title, yscale="log", ylabel="density")
        if len(values):
            low, high = values.quantile(0.001).item(), values.quantile(0.999).item()
            heights, _, _ = axes.hist(values.numpy(), 120, range=(low, high), density=True, color="#cccccc")
            x = torch.linspace(low, high, 500)
            _draw_densities(axes, x, families, [row for row in rows if row.group == group], "-")
            _draw_densities(axes, x, families, [row for row in rows if row.group == f"{group}, anchored"], "--")
            axes.set_ylim(heights[heights > 0].min() / 3, 3 * heights.max())
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_model(path: Path, pixels: Pixels, state: ErrorModelState, config: ErrorModelConfig) -> None:
    """Both cues: shares of static and moving pixels, and the densities that the error model gives them."""
    count = pixels.visible.sum().item()
    cues = (
        (
            "e_r - e_f",
            pixels.delta,
            lambda x: (static_log_density(x, state, config), moving_log_density(x, state, config)),
        ),
        (
            "log |F - F_rigid|, relative",
            pixels.disagreement,
            lambda x: (
                gaussian_log_density(x, state.log_static_mean, state.log_static_spread),
                gaussian_log_density(x, state.log_moving_mean, state.log_moving_spread),
            ),
        ),
    )
    figure, grid = plt.subplots(1, 2, figsize=(13.0, 4.2), layout="constrained")
    for axes, (title, values, log_densities) in zip(grid, cues, strict=True):
        low, high = values[pixels.visible].quantile(0.002).item(), values[pixels.visible].quantile(0.998).item()
        x = torch.linspace(low, high, 400)
        groups = (("static", ~pixels.moving, "C0", 1 - state.pi), ("moving", pixels.moving, "C3", state.pi))
        for (name, group, color, share), log_density in zip(groups, log_densities(x), strict=True):
            chosen = values[group & pixels.visible]
            weights = np.full(len(chosen), 100 / ((high - low) * count))
            axes.hist(
                chosen.numpy(), 100, range=(low, high), weights=weights, color=color, alpha=0.4, label=f"{name}, true"
            )
            axes.plot(x.numpy(), (share * log_density.exp()).numpy(), color=color, label=f"{name}, fitted")
        axes.set(title=title, yscale="log", ylabel="density times share", ylim=(1e-3, None))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_maps(path: Path, pixels: Pixels, state: ErrorModelState, config: ErrorModelConfig, scenes: int) -> None:
    """Image, both cues, posterior and truth of the middle frame of each scene."""
    gamma = posterior(evidence_of(pixels), state, config)
    pairs = len(gamma) // scenes
    figure, grid = plt.subplots(scenes, 5, figsize=(20.0, 1.5 * scenes), squeeze=False, layout="constrained")
    for row, axes in enumerate(grid):
        index = row * pairs + pairs // 2
        disagreement = pixels.disagreement[index, 0]
        low, high = state.log_static_mean.item(), state.log_anchor_mean.item()
        panels = (
            ("image", pixels.image[index].permute(1, 2, 0), {}),
            ("e_r - e_f", pixels.delta[index, 0], {"cmap": "coolwarm", "vmin": -0.3, "vmax": 0.3}),
            ("log |F - F_rigid|", disagreement, {"cmap": "magma", "vmin": low, "vmax": high}),
            ("posterior of motion (black: not visible)", gamma[index, 0], {"cmap": "gray", "vmin": 0, "vmax": 1}),
            ("truth", pixels.moving[index, 0].float(), {"cmap": "gray", "vmin": 0, "vmax": 1}),
        )
        for axis, (title, values, style) in zip(axes, panels, strict=True):
            axis.imshow(values.numpy(), interpolation="nearest", **style)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
    figure.savefig(path, dpi=60)
    plt.close(figure)


def _draw_densities(axes: Axes, x: Tensor, families: dict, rows: list[Goodness], line: str) -> None:
    for index, row in enumerate(rows):
        parameters = Parameters(*(torch.tensor(value) for value in (row.location, row.scale, row.shape)))
        density = families[row.family].log_density(x, parameters).exp()
        label = f"{row.family}, KS {row.ks:.3f}"
        axes.plot(x.numpy(), density.numpy(), line, color=f"C{index}", linewidth=1.4, label=label)


def tables(rows: tuple[Goodness, ...], masks: list[dict[str, object]]) -> list[Table]:
    """AIC as the distance from the best of its group."""
    best = {row.group: min(other.aic for other in rows if other.group == row.group) for row in rows}
    fits = Table("pixels", "family", "KS", "AIC - best", "nats", "location", "scale", "shape", title="fits")
    for row in rows:
        figures = (f"{value:.3f}" for value in (row.nats, row.location, row.scale, row.shape))
        fits.add_row(row.group, row.family, f"{row.ks:.3f}", f"{row.aic - best[row.group]:.0f}", *figures)
    mask = Table("cue", "static", "moving", "anchor", "gate", "pi", "AUC", "IoU", title="mask")
    for row in masks:
        names = (row[name] for name in ("cue", "static_family", "moving_family", "anchor"))
        figures = (row.get(name) for name in ("pi", "auc", "iou_moving"))
        gate = "open" if row["gate"] else "shut"
        mask.add_row(*names, gate, *("-" if value is None else f"{value:.3f}" for value in figures))
    return [fits, mask]


def main() -> int:
    """Render, measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/small_rendered.safetensors"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4], help="one scene each")
    parser.add_argument("--frames", type=int, default=8, help="frames of each scene")
    parser.add_argument("--movers", type=float, default=0.2, help="wanted share of moving pixels")
    parser.add_argument("--warps", choices=("networks", "refined", "truth"), default="networks")
    parser.add_argument("--rigid-error", type=float, default=0.5, help="of --warps truth, pixels")
    parser.add_argument("--flow-error", type=float, default=0.5, help="likewise")
    parser.add_argument("--output", type=Path, default=Path("out/families"))
    arguments = parser.parse_args()
    console = Console()
    checkpoint = load_checkpoint(arguments.checkpoint)
    metadata = checkpoint.metadata
    config = ErrorModelConfig.model_validate(metadata.error_model_config)
    camera = Camera.from_field_of_view(metadata.width, metadata.height, 80.0)
    parts = []
    for seed in track(arguments.seeds, "scenes", console=console):
        scene = SceneConfig(seed, arguments.frames, camera, movers=arguments.movers, camera_moves=True)
        parts.append(measured_scene(checkpoint, scene, config.smoothing, arguments))
    pixels = together(parts)
    rows = compare_families(pixels.delta, pixels.moving, pixels.visible, pixels.anchored_delta, pixels.log_ratio)
    masks = mask_figures(pixels, config)
    for table in tables(rows, masks):
        console.print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    facts = {
        "checkpoint": arguments.checkpoint.name,
        "step": metadata.step,
        "warps": arguments.warps,
        "rigid_error": arguments.rigid_error if arguments.warps == "truth" else None,
        "flow_error": arguments.flow_error if arguments.warps == "truth" else None,
        "seeds": arguments.seeds,
        "frames": arguments.frames,
        "pixels": pixels.visible.numel(),
        "visible": pixels.visible.float().mean().item(),
        "moving": pixels.moving.float().mean().item(),
        "fits": [asdict(row) for row in rows],
        "masks": masks,
    }
    (arguments.output / "families.json").write_text(json.dumps(facts, indent=2) + "\n")
    draw(arguments.output / "families.png", pixels, rows)
    state = fitted(pixels, Anchor(pixels.anchored_delta, pixels.anchored_disagreement), config)
    draw_model(arguments.output / "model.png", pixels, state, config)
    draw_maps(arguments.output / "maps.png", pixels, state, config, len(arguments.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
