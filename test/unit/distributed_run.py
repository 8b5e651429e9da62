"""One process of several that torchrun starts: trains the tiny networks; a program of its own for test_distributed.py.

torchrun ... distributed_run.py OUTPUT [--fail-at STEP | --stop-at STEP | --nan-at STEP] [--init FILE] [--frozen PARTS]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from unit.tiny_run import tiny_clip, tiny_config

from coopnet_core.cotraining import trainer
from coopnet_core.distributed import announced

SETTINGS = {
    "steps": 5,
    "batch_size": 4,
    "checkpoint_every": 2,
    "stages": [{"name": "together", "share": 1.0, "sources": 1, "consistency": 0.02, "matches": 0.1}],
    "loss": {"apportionment": "progress", "contact": 0.01, "depth_consistency": 0.1, "auto_mask": False},
    "learn_intrinsics": True,
}
"""Everything that has a mean over a mask, a statistic of the batch or a state."""


_OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")


def run_program(output: Path, processes: int, *options: str) -> None:
    """The program, alone or under torchrun."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    environment |= {"PYTHONPATH": f"{root}:{root / 'test'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--max-restarts=1"]
    command += [__file__, str(output), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    for name in ("--fail-at", "--stop-at", "--nan-at"):
        parser.add_argument(name, type=int)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--frozen", type=lambda text: text.split(","), default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    original_train, original_step = trainer._train_on_a_batch, trainer.step
    second = announced().rank == 1
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

    def watched(run, *rest):
        if second and run.step == arguments.fail_at and restarts == 0:
            os._exit(1)
        if second and run.step == arguments.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        nan = second and run.step == arguments.nan_at

        def step(*arguments):
            output = original_step(*arguments)
            return replace(output, loss=output.loss * torch.nan) if nan else output

        trainer.step = step
        return original_train(run, *rest)

    trainer._train_on_a_batch = watched
    clips = [tiny_clip(9, assumed=True)]
    config = tiny_config(**SETTINGS, frozen=arguments.frozen)
    result = trainer.train(config, clips, [tiny_clip(seed=1)], arguments.output, init=arguments.init)
    said = arguments.output / f"rank_{announced().rank}.txt"
    said.write_text(f"{result.steps} {result.interrupted} {restarts}")


if __name__ == "__main__":
    main()
