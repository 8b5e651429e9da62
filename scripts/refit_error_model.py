"""Fit the error model of a checkpoint anew, its networks untouched: after a change of the model, or for other images.

Give it many images that the networks have not learnt: of bags their last tenth is taken, of rendered clips those of the
first seeds. A single scene with few movers is not enough: its share of movers falls to the floor.

python scripts/refit_error_model.py CHECKPOINT --output NEW --bags BAG ...          or --cache FOLDER of rendered clips
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from train_rendered_weights import cached_clip

from coopnet_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from coopnet_core.config import TrainConfig, load_config
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.step import step
from coopnet_core.data.augmentation import to_float
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.frames import Clip
from coopnet_core.data.triplets import TripletSampler


@torch.inference_mode()
def refitted(
    checkpoint: Checkpoint, clips: list[Clip], config: TrainConfig, batches: int, console: Console
) -> ErrorModelState:
    """The state after so many batches of the last stage of fine-tuning, from a state that knows nothing."""
    sampler = TripletSampler(clips, config.frame_offsets, config.batch_size, config.seed)
    state, stage = ErrorModelState.initial(), config.fine_tuning[-1]
    for _ in track(range(batches), "fitting", console=console):
        batch = to_float(sampler.next(stage.sources))
        state = step(checkpoint.networks, batch, state, config.loss, stage, torch.bfloat16).error_model
    return state


def main() -> int:
    """Read, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="cpu-small")
    parser.add_argument("--bags", type=Path, nargs="+", default=[])
    parser.add_argument("--frames", type=int, default=None, help="first images of each bag")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=60)
    arguments = parser.parse_args()
    if bool(arguments.bags) == bool(arguments.cache):
        parser.error("give either --bags or --cache")
    checkpoint = load_checkpoint(arguments.checkpoint)
    size = checkpoint.metadata.width, checkpoint.metadata.height
    if arguments.bags:
        options = PrepareOptions(frames=(0, arguments.frames))
        clips = prepare_clips(arguments.bags, size=size, options=options).validation
    else:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.clips)
        clips = [cached_clip(seed, arguments.cache, *size) for seed in seeds]
    config, console = load_config(arguments.preset, [], {}), Console()
    state = refitted(checkpoint, clips, config, arguments.batches, console)
    metadata = replace(
        checkpoint.metadata,
        error_model=state.as_floats(),
        error_model_config=config.loss.error_model.model_dump(mode="json"),
    )
    save_checkpoint(arguments.output, checkpoint.networks, metadata)
    console.print({name: round(value, 4) for name, value in state.as_floats().items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
