"""A run that is interrupted at whatever moment, and resumed, ends as one that was not: bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from unit.tiny_run import interrupt_in_step, logged, same, same_end, tiny_clip, tiny_config

from coopnet_core.config import TrainConfig
from coopnet_core.cotraining import trainer
from coopnet_core.cotraining.run_state import restore, start, state_of, state_path
from coopnet_core.cotraining.trainer import train
from coopnet_core.errors import CheckpointError

_TOGETHER = {"name": "together", "share": 1.0, "sources": 1, "consistency": 0.02}
_VARIANTS = {
    "plain": {},
    "a mixture of recordings": {},
    "one average of the weights, and a stage that ends": {
        "optimiser": {"ema_decay": 0.9},
        "stages": [_TOGETHER | {"name": "flow", "train": ["flow"], "posterior": "off", "share": 3.0}, _TOGETHER],
    },
    "a focal length": {"learn_intrinsics": True},
    "progress, on the learning rate": {"loss": {"apportionment": "progress", "apportionment_acts_on": "learning_rate"}},
    "relative progress, other families": {
        "loss": {
            "apportionment": "relative_progress",
            "error_model": {"static_family": "student_t", "moving_family": "exponential"},
        }
    },
    "importance, divided pixels": {"loss": {"apportionment": "importance", "rule": "min"}},
}


_MIXTURE = [replace(tiny_clip(), weight=3.0), replace(tiny_clip(5, seed=2), source=1, weight=1.0)]


def _train(config: TrainConfig, output: Path, resume: bool = False, mixed: bool = False) -> trainer.TrainResult:
    clips = _MIXTURE if mixed else [tiny_clip(assumed=config.learn_intrinsics)]
    return train(config, clips, [tiny_clip(seed=1)], output, resume=resume)


@pytest.mark.parametrize("variant", _VARIANTS)
def test_two_and_two_steps_are_four(tmp_path, monkeypatch, variant):
    # 5 targets in batches of 2: the second step ends amid the first pass, the third begins the next one.
    config, mixed = tiny_config(validate_every=3, **_VARIANTS[variant]), "mixture" in variant
    _train(config, tmp_path / "whole", mixed=mixed)
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        assert _train(config, tmp_path / "parts", mixed=mixed).interrupted
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert sum(json.loads(state["sampler"])["positions"]) == 4
    torch.rand(1)  # whoever draws in between
    assert _train(config, tmp_path / "parts", resume=True, mixed=mixed).steps == 4
    assert same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_global_random_numbers_go_on(tmp_path):
    config = tiny_config()

    def drawn() -> list[object]:
        return [random.random(), random.gauss(0, 1), np.random.normal(), torch.rand(2)]  # noqa: NPY002

    run = start(config, [tiny_clip()], None, torch.device("cpu"))
    drawn()
    torch.save(state_of(run), state_path(tmp_path))
    before = drawn()
    restore(run, tmp_path)
    assert same(before, drawn())


def test_rejected_steps_in_a_row_are_counted_on(tmp_path):
    run = start(tiny_config(), [tiny_clip()], None, torch.device("cpu"))
    run.bad_steps, run.waited, run.skipped["steps_rejected"] = 3, 2, 5
    torch.save(state_of(run), state_path(tmp_path))
    other = start(tiny_config(seed=1), [tiny_clip()], None, torch.device("cpu"))
    restore(other, tmp_path)
    assert (other.bad_steps, other.waited, other.skipped["steps_rejected"]) == (3, 2, 5)
    assert same(state_of(run)["networks"], state_of(other)["networks"])


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_state_that_cannot_be_read_is_said(tmp_path, content):
    run = start(tiny_config(), [tiny_clip()], None, torch.device("cpu"))
    if content is None:
        torch.save(state_of(run), state_path(tmp_path))
        content = state_path(tmp_path).read_bytes()[:5000]
    state_path(tmp_path).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be restored"):
        restore(run, tmp_path)


@pytest.fixture(scope="module")
def kills(tmp_path_factory) -> dict[str, dict[str, object]]:
    """What became of the runs that `killed_runs.py` has killed, by the name of the moment."""
    folder = tmp_path_factory.mktemp("kills")
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'test'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


def test_killed_within_every_file_operation_of_a_save(kills):
    moments = kills["in a save"]
    files = {"last.safetensors", "best.safetensors", "state.pt", "metrics.jsonl"}
    assert {moment["name"] for moment in moments} == {f"half {name}" for name in files} | {"fsync", "replace"}
    for moment in moments:
        assert moment["killed"], moment
        assert moment["loadable"], moment
        assert moment["same end"], moment


def test_killed_again_and_again_at_random_moments(kills):
    chain = kills["at random"]
    assert len(chain["steps found"]) >= 12
    assert chain["steps found"] == sorted(chain["steps found"])
    assert chain["same end"]


def test_a_run_leaves_no_partial_files(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.safetensors.partial").write_text("of a killed process")
    _train(tiny_config(steps=1), tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    assert [line["step"] for line in logged(tmp_path)] == [1, 1]
