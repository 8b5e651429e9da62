"""How well the visibility checks find what is hidden, against the renderer's exact occlusion, as a table and as JSON.

python benchmarks/visibility.py --output out/visibility [--seeds 8] [--frames 3] [--movers 0.15] [--checkpoint FILE]

Judged are pixels whose true match lies inside the image; hidden is what is to be found. `kept` is the share of the
visible pixels that a check leaves to learn from. The rigid checks are judged on static pixels nearer than the backdrop.
With a checkpoint, the checks meet the flow of its network too, whose two directions err as real ones do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.data.rendered import RenderedClip, SceneConfig, render_clip
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.sampling import resize_flow
from coopnet_core.losses.consistency import depth_consistency
from coopnet_core.losses.visibility import forward_backward_visible, rigid_visible, splat_visible
from coopnet_core.networks.bundle import CoopNetworks, normalise

SIZE = (416, 128)
BACKDROP = 200.0
CELL = 8
"""Size of the smooth errors, pixels: a network errs by regions, not by single pixels."""
FLOW_ERRORS = (
    ("exact", 0.0, 1),
    ("0.5 px", 0.5, 1),
    ("1 px", 1.0, 1),
    ("0.5 px smooth", 0.5, CELL),
    ("1 px smooth", 1.0, CELL),
)
DEPTH_ERRORS = (("exact", 0.0, CELL), ("3 % smooth", 0.03, CELL), ("10 % smooth", 0.1, CELL))


@dataclass(frozen=True)
class Pair:
    """A target and a source with all that is true of them; shapes as the losses have them, with a batch of one.

    `direction` tells where the source lies in time, `images` are target and source, `inside` marks the pixels with a
    match inside the image, and `static` those of them that stand still.
    """

    direction: str
    images: Tensor
    flow: Tensor
    backward: Tensor
    hidden: Tensor
    depth: Tensor
    source_depth: Tensor
    T_source_target: Tensor
    camera_matrix: Tensor
    inside: Tensor
    static: Tensor


def pairs_of(rendered: RenderedClip) -> Iterator[Pair]:
    """Every two frames that follow each other, in both directions."""
    for first in range(len(rendered.truth) - 1):
        to_next, to_previous = rendered.flow_to_next[first], rendered.truth[first + 1].flow
        yield _pair(rendered, first, first + 1, to_next, to_previous, rendered.occluded_to_next[first])
        yield _pair(rendered, first + 1, first, to_previous, to_next, rendered.truth[first + 1].occluded)


def _pair(
    rendered: RenderedClip, target: int, source: int, flow: np.ndarray, backward: np.ndarray, hidden: np.ndarray
) -> Pair:
    truth, other = rendered.truth[target], rendered.truth[source]
    forward, depth = _planes(flow.transpose(2, 0, 1)), _planes(truth.depth[None])
    inside = flow_warp(forward).valid
    return Pair(
        direction="next" if source > target else "previous",
        images=torch.from_numpy(rendered.clip.images[[target, source]]).permute(0, 3, 1, 2).float() / 255,
        flow=forward,
        backward=_planes(backward.transpose(2, 0, 1)),
        hidden=_planes(hidden[None]),
        depth=depth,
        source_depth=_planes(other.depth[None]),
        T_source_target=_planes((np.linalg.inv(other.pose) @ truth.pose).astype(np.float32)),
        camera_matrix=_planes(rendered.clip.camera.matrix.astype(np.float32)),
        inside=inside,
        static=inside & ~_planes(truth.moving[None]) & (depth < BACKDROP),
    )


def _planes(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]


def noise(like: Tensor, deviation: float, cell: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the given standard deviation (per component), smooth over `cell` pixels."""
    height, width = like.shape[-2:]
    values = torch.randn(*like.shape[:2], height // cell, width // cell, generator=generator)
    if cell > 1:
        values = F.interpolate(values, size=(height, width), mode="bicubic", align_corners=False)
        values = values / values.std()
    return deviation * values


@torch.inference_mode()
def network_flows(networks: CoopNetworks, pair: Pair) -> tuple[Tensor, Tensor]:
    """What a trained network takes for the flow and the backward flow."""
    target, source = normalise(pair.images).split(1)
    flow, backward = networks.flow.both_ways(target, source)[0]
    return resize_flow(flow, *target.shape[-2:]), resize_flow(backward, *target.shape[-2:])


def end_point_error(pairs: list[Pair], flows: list[tuple[Tensor, Tensor]]) -> float:
    """Mean over the visible pixels of all pairs, pixels."""
    errors = []
    for pair, (flow, _) in zip(pairs, flows, strict=True):
        errors.append((flow - pair.flow).square().sum(1, keepdim=True).sqrt()[pair.inside & ~pair.hidden])
    return torch.cat(errors).mean().item()


def flow_answers(flow: Tensor, backward: Tensor) -> dict[str, Tensor]:
    """What each check of the flow calls visible."""
    ours, splat = forward_backward_visible(flow, backward), splat_visible(flow, backward)
    return {
        "forward-backward .01, .5": forward_backward_visible(flow, backward, 0.01, 0.5),
        "forward-backward .05, 2": ours,
        "forward-backward .05, 10": forward_backward_visible(flow, backward, 0.05, 10.0),
        "splatting": splat,
        "splatting and f-b .05, 2": splat & ours,
        "splatting or f-b .05, 2": splat | ours,
    }


def rigid_answers(pair: Pair, depth: Tensor, source_depth: Tensor, splat: Tensor) -> dict[str, Tensor]:
    """What each check of depth and motion calls visible; `splat` is the answer of the flow."""
    buffer = rigid_visible(depth, pair.T_source_target, pair.camera_matrix)
    found = depth_consistency(depth, source_depth, pair.T_source_target, pair.camera_matrix)
    return {
        "z-buffer": buffer,
        "splatting, flow 0.5 px smooth": splat,
        "z-buffer and that splatting": buffer & splat,
        "depth consistency < .05": found.valid & (found.error < 0.05),
        "depth consistency < .1": found.valid & (found.error < 0.1),
    }


class Counts:
    """Pixels by (direction, error, check): rightly rejected, wrongly rejected, wrongly kept, rightly kept."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], np.ndarray] = {}

    def add(self, key: tuple[str, str, str], visible: Tensor, hidden: Tensor, judged: Tensor) -> None:
        """Count the judged pixels of one answer."""
        cells = [~visible & hidden, ~visible & ~hidden, visible & hidden, visible & ~hidden]
        counts = np.array([(cell & judged).sum().item() for cell in cells])
        self._counts[key] = self._counts.get(key, 0) + counts

    def rows(self) -> list[dict[str, str | float]]:
        """Precision and recall of the hidden pixels, and the share of the visible ones that is kept."""
        rows = []
        for (direction, error, check), (found, rejected, missed, kept) in self._counts.items():
            rows.append(
                {
                    "source": direction,
                    "error": error,
                    "check": check,
                    "precision": float(found / max(found + rejected, 1)),
                    "recall": float(found / max(found + missed, 1)),
                    "kept": float(kept / max(kept + rejected, 1)),
                    "hidden_share": float((found + missed) / max(found + rejected + missed + kept, 1)),
                }
            )
        return rows


def measure(
    pairs: list[Pair], flows_of_network: list[tuple[Tensor, Tensor]]
) -> dict[str, list[dict[str, str | float]]]:
    """All checks under all errors, of which each strikes all checks alike; all noise follows from one seed.

    `flows_of_network` holds flow and backward flow of every pair, or nothing.
    """
    flow_counts, rigid_counts = Counts(), Counts()
    generator = torch.Generator().manual_seed(0)
    for number, pair in enumerate(pairs):
        # Beside depth and motion, the flow of a network that has learnt, not the exact one.
        splat = splat_visible(*(f + noise(f, 0.5, CELL, generator) for f in (pair.flow, pair.backward)))
        flows = {
            name: tuple(f + noise(f, deviation, cell, generator) for f in (pair.flow, pair.backward))
            for name, deviation, cell in FLOW_ERRORS
        }
        if flows_of_network:
            flows["network"] = flows_of_network[number]
        for name, (flow, backward) in flows.items():
            for check, visible in flow_answers(flow, backward).items():
                flow_counts.add((pair.direction, name, check), visible, pair.hidden, pair.inside)
        for name, deviation, cell in DEPTH_ERRORS:
            factors = [(1 + noise(pair.depth, deviation, cell, generator)).clamp(min=0.5) for _ in range(2)]
            answers = rigid_answers(pair, pair.depth * factors[0], pair.source_depth * factors[1], splat)
            for check, visible in answers.items():
                rigid_counts.add((pair.direction, name, check), visible, pair.hidden, pair.static)
    return {"flow": flow_counts.rows(), "rigid": rigid_counts.rows()}


def table_of(title: str, rows: list[dict[str, str | float]]) -> Table:
    """One line for each check and error; both directions side by side as precision / recall / kept."""
    cells = {(row["error"], row["check"], row["source"]): row for row in rows}
    table = Table("error", "check", "source: next frame", "source: previous frame", title=title)
    error = None
    for key in dict.fromkeys((row["error"], row["check"]) for row in rows):
        figures = [cells[(*key, direction)] for direction in ("next", "previous")]
        texts = [f"{row['precision']:.2f} / {row['recall']:.2f} / {row['kept']:.3f}" for row in figures]
        table.add_row(key[0] if key[0] != error else "", key[1], *texts)
        error = key[0]
    return table


def main() -> int:
    """Render, measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/visibility"))
    parser.add_argument("--seeds", type=int, default=8, help="number of scenes")
    parser.add_argument("--frames", type=int, default=3, help="frames of each scene, at least 2")
    parser.add_argument("--movers", type=float, default=0.15, help="share of moving pixels, about")
    parser.add_argument("--checkpoint", type=Path, help="weights whose flow is judged too")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.frames < 2:
        parser.error("at least one seed and two frames are needed for a pair")
    camera = Camera.from_field_of_view(*SIZE, 80.0)
    networks = None if arguments.checkpoint is None else load_checkpoint(arguments.checkpoint).networks.eval()
    # Where no network looks at the images, one ray for each pixel will do.
    rays = 1 if networks is None else 2
    scenes = [
        SceneConfig(seed=seed, frames=arguments.frames, camera=camera, movers=arguments.movers, supersampling=rays)
        for seed in range(arguments.seeds)
    ]
    pairs = [pair for scene in scenes for pair in pairs_of(render_clip(scene))]
    facts = {"size": SIZE, "seeds": arguments.seeds, "frames": arguments.frames, "movers": arguments.movers}
    flows = [] if networks is None else [network_flows(networks, pair) for pair in pairs]
    if flows:
        facts |= {"checkpoint": arguments.checkpoint.name, "network_epe": end_point_error(pairs, flows)}
    results = measure(pairs, flows)
    console = Console()
    for name, rows in results.items():
        console.print(table_of(f"{name}: precision / recall of hidden pixels / visible kept", rows))
    if flows:
        console.print(f"End-point error of the network: {facts['network_epe']:.1f} pixels.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "visibility.json").write_text(json.dumps(facts | results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
