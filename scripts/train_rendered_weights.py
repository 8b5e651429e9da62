"""Train the shipped weights models/small_rendered.safetensors on rendered scenes, self-supervised.

The renderer's truth is never given to the training. Clips are rendered once into a cache; a run that was stopped goes
on with --resume. Phases follow docs/method.md: flow alone, depth and odometry, then all together.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from coopnet_core.config import load_config
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.frames import Clip
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.geometry.camera import Camera

FIELDS_OF_VIEW = (60.0, 95.0)
FRAMES = 12


def camera_of(seed: int, width: int, height: int) -> Camera:
    """A camera whose focal length and principal point vary with the seed."""
    rng = np.random.default_rng(seed)
    camera = Camera.from_field_of_view(width, height, rng.uniform(*FIELDS_OF_VIEW))
    shift = rng.uniform(-0.06, 0.06, 2) * (width, height)
    return Camera(width, height, camera.fx, camera.fy, camera.cx + shift[0], camera.cy + shift[1])


def cached_clip(seed: int, folder: Path, width: int, height: int) -> Clip:
    """The clip of a seed, rendered on first use."""
    camera = camera_of(seed, width, height)
    path = folder / f"clip_{width}x{height}_{seed:05d}.npz"
    if not path.exists():
        rendered = render_clip(SceneConfig(seed=seed, frames=FRAMES, camera=camera))
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=rendered.clip.images, stamps_ns=rendered.clip.stamps_ns)
        partial.rename(path)
    with np.load(path) as stored:
        return Clip(f"rendered {seed}", stored["images"], stored["stamps_ns"], camera)


def main() -> int:
    """Render, train, report where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/rendered_weights"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/rendered"))
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--size", default="416x128")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--render-only", action="store_true")
    arguments = parser.parse_args()
    console = Console()
    width, height = (int(side) for side in arguments.size.split("x"))
    arguments.cache.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.clips)
    with concurrent.futures.ProcessPoolExecutor(arguments.workers) as pool:
        jobs = [pool.submit(cached_clip, seed, arguments.cache, width, height) for seed in seeds]
        clips = [job.result() for job in track(jobs, "rendering", console=console)]
    if arguments.render_only:
        return 0
    torch.set_num_threads(arguments.threads)
    overrides = dict(pair.split("=", 1) for pair in arguments.set)
    if arguments.steps:
        overrides["steps"] = str(arguments.steps)
    held_out = max(1, len(clips) // 20)
    facts = {"source": "rendered scenes", "seeds": [seeds[0], seeds[-1]], "clips": len(clips), "frames": FRAMES}
    result = train(
        load_config("small", [], overrides),
        clips[held_out:],
        clips[:held_out],
        arguments.output,
        init=arguments.init,
        resume=arguments.resume,
        data_facts=facts,
        console=console,
    )
    console.print(f"{result.steps} steps; weights: {result.last}")
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
