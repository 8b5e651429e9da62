"""Train the shipped weights models/small_rendered.safetensors on rendered scenes, self-supervised.

The renderer's truth is never given to the training. Clips are rendered once into a cache; a run that was stopped goes
on with --resume. Phases follow docs/method.md: flow alone, depth and odometry, then all together. A GPU is used where
there is one (--set device=cpu: not).

In slices, each call going on where the last one stopped, rendering included (`make reference-weights`):

python scripts/train_rendered_weights.py --output out/reference_weights --slice-minutes 8
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from coopnet_core.config import load_config
from coopnet_core.cotraining.run_folder import last_checkpoint
from coopnet_core.cotraining.run_state import state_path
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.frames import Clip
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.files import write_whole
from coopnet_core.geometry.camera import Camera
from coopnet_ros.command import image_size

FIELDS_OF_VIEW = (60.0, 95.0)
FRAMES = 12
_REMINDER_S = 1.0
SHIPPED = Path(__file__).resolve().parents[1] / "models" / "small_rendered.safetensors"


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


def rendered_clips(
    seeds: Sequence[int], folder: Path, size: tuple[int, int], workers: int, deadline: float, console: Console
) -> list[Clip]:
    """The clips of the seeds, in their order; those that were ready when `deadline` (time.monotonic()) passed."""
    clips = []
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(cached_clip, seed, folder, *size) for seed in seeds]
        for job in track(jobs, "rendering", console=console):
            clips.append(job.result())
            if time.monotonic() > deadline:
                pool.shutdown(cancel_futures=True)
                break
    return clips


@contextlib.contextmanager
def stopped_at(deadline: float) -> Iterator[None]:
    """SIGTERM to this process from `deadline` (time.monotonic()) on: training ends between two steps and is saved."""
    ended, asked = threading.Event(), threading.Event()

    def remind() -> None:
        # Again and again: what comes before training has begun to listen would be lost.
        while not ended.wait(_REMINDER_S):
            if asked.is_set() or time.monotonic() >= deadline:
                os.kill(os.getpid(), signal.SIGTERM)

    earlier = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        ended.set()
        reminder.join()
        signal.signal(signal.SIGTERM, earlier)


def steps_done(output: Path) -> int | None:
    """Of the run in a folder; None where there is none."""
    path = state_path(output)
    return torch.load(path, weights_only=True)["step"] if path.is_file() else None


def install(weights: Path, target: Path, console: Console) -> None:
    """Put the weights in the place of the shipped ones."""
    write_whole(target, lambda partial: shutil.copyfile(weights, partial))
    console.print(
        f"{target} is replaced. docs/results.md and models/README.md speak of the weights before: measure anew.",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Render, train, report where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/rendered_weights"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/rendered"))
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--size", type=image_size, default=(416, 128), metavar="WxH")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--init", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--render-only", action="store_true")
    parser.add_argument(
        "--slice-minutes",
        type=float,
        metavar="MINUTES",
        help="end after so long with everything saved (exit code 0), and go on where the last call ended",
    )
    parser.add_argument(
        "--install",
        type=Path,
        nargs="?",
        const=SHIPPED,
        metavar="PATH",
        help="once all steps are done, replace this file by the weights (without PATH: the shipped ones)",
    )
    options = parser.parse_args(arguments)
    console = Console()
    deadline = time.monotonic() + 60 * options.slice_minutes if options.slice_minutes is not None else float("inf")
    overrides = dict(pair.split("=", 1) for pair in options.set)
    if options.steps:
        overrides["steps"] = str(options.steps)
    config = load_config("cpu-small", [], overrides)
    done = steps_done(options.output)
    goes_on = options.resume or (options.slice_minutes is not None and done is not None)
    if goes_on and done is not None and done >= config.steps:
        return _conclude(options.output, config.steps, options.install, console)
    options.cache.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first_seed, options.first_seed + options.clips)
    clips = rendered_clips(seeds, options.cache, options.size, options.workers, deadline, console)
    if time.monotonic() > deadline:
        console.print(f"{len(clips)} of {len(seeds)} clips are rendered. The next call goes on.")
        return 0
    if options.render_only:
        return 0
    torch.set_num_threads(options.threads)
    held_out = max(1, len(clips) // 20)
    facts = {"source": "rendered scenes", "seeds": [seeds[0], seeds[-1]], "clips": len(clips), "frames": FRAMES}
    with stopped_at(deadline):
        result = train(
            config,
            clips[held_out:],
            clips[:held_out],
            options.output,
            init=options.init,
            resume=goes_on,
            data_facts=facts,
            console=console,
        )
    if not result.interrupted:
        return _conclude(options.output, result.steps, options.install, console)
    console.print(f"Step {result.steps} of {config.steps}. The next call goes on.")
    return 0 if time.monotonic() >= deadline else 130


def _conclude(output: Path, steps: int, target: Path | None, console: Console) -> int:
    weights = last_checkpoint(output)
    console.print(f"{steps} steps; weights: {weights}", soft_wrap=True)
    if target is not None:
        install(weights, target, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
