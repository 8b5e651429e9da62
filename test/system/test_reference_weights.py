"""Training of the shipped weights in slices: what is done in several calls ends as what is done in one."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from unit.tiny_run import same_end, tiny_clip

from coopnet_core.data.triplets import TripletSampler
from scripts import train_rendered_weights as script

STEPS = 30
CLIPS = 3


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A tiny run on clips that are in the cache already."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for seed in range(1000, 1000 + CLIPS):
        clip = tiny_clip(script.FRAMES, seed)
        np.savez(cache / f"clip_64x64_{seed:05d}.npz", images=clip.images, stamps_ns=clip.stamps_ns)
    settings = ("device=cpu", "batch_size=1", "log_every=1", f"validate_every={STEPS}", "mixed_precision=false")
    stages = "stages=[{name: flow, share: 1, train: [flow], posterior: 'off'}, {name: together, share: 1, sources: 1}]"
    networks = (
        "networks.depth.encoder={layers: [1, 1, 1, 1], widths: [4, 4, 8, 8, 8]}",
        "networks.depth.decoder_widths=[4, 4, 8, 8, 8]",
        "networks.flow.widths=[4, 4, 8, 8, 8]",
        "networks.flow.decoder_widths=[8, 8]",
    )
    return [
        *("--cache", str(cache), "--clips", str(CLIPS), "--size", "64x64", "--steps", str(STEPS), "--workers", "1"),
        *(text for setting in (*settings, *networks, stages) for text in ("--set", setting)),
    ]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script's clock: it stands at `now`, and is an hour later once `batches` batches have been drawn."""
    state = SimpleNamespace(now=0.0, batches=math.inf)
    original = TripletSampler.next

    def next_batch(sampler: TripletSampler, *rest: object) -> object:
        state.batches -= 1
        if state.batches <= 0:
            state.now = 3600.0
            time.sleep(0.2)  # so that the reminder comes before the run is over
        return original(sampler, *rest)

    monkeypatch.setattr(TripletSampler, "next", next_batch)
    monkeypatch.setattr(script, "time", SimpleNamespace(monotonic=lambda: state.now))
    monkeypatch.setattr(script, "_REMINDER_S", 0.02)
    return state


def test_slices_end_as_one_run_does(tmp_path, arguments, clock, capsys):
    sliced, whole = tmp_path / "sliced", tmp_path / "whole"
    calls, steps = 0, []
    while not steps or steps[-1] < STEPS:
        clock.now, clock.batches = 0.0, STEPS // 2 - 2
        assert script.main([*arguments, "--output", str(sliced), "--slice-minutes", "8"]) == 0
        steps.append(script.steps_done(sliced))
        calls += 1
        assert calls < 10
    assert calls > 2, "it was really sliced"
    assert steps == sorted(set(steps)), "every slice goes on where the last one ended"
    said = capsys.readouterr().out
    assert f"Step {steps[0]} of {STEPS}. The next call goes on." in said
    assert f"{STEPS} steps; weights:" in said
    clock.batches = math.inf
    assert script.main([*arguments, "--output", str(whole)]) == 0
    assert same_end(sliced, whole)


def test_a_slice_may_end_while_clips_are_rendered(tmp_path, arguments, clock, monkeypatch, capsys):
    monkeypatch.setattr(script, "track", lambda jobs, *rest, **named: _an_hour_each(jobs, clock))
    output = tmp_path / "output"
    assert script.main([*arguments, "--output", str(output), "--slice-minutes", "90"]) == 0
    assert f"2 of {CLIPS} clips are rendered. The next call goes on." in capsys.readouterr().out
    assert not output.exists()


def _an_hour_each(jobs, clock):
    for job in jobs:
        clock.now += 3600
        yield job


def test_only_finished_weights_replace_others_and_only_when_asked(tmp_path, arguments, clock):
    target, output = tmp_path / "shipped.safetensors", tmp_path / "output"
    target.write_bytes(b"as they were")
    asked = [*arguments, "--output", str(output), "--slice-minutes", "8", "--install", str(target)]
    clock.batches = 3
    assert script.main(asked) == 0
    assert 0 < script.steps_done(output) < STEPS
    assert target.read_bytes() == b"as they were"
    clock.now, clock.batches = 0.0, math.inf
    assert script.main([*arguments, "--output", str(output), "--slice-minutes", "8"]) == 0
    assert script.steps_done(output) == STEPS
    assert target.read_bytes() == b"as they were"
    before = (output / "metrics.jsonl").read_bytes()
    assert script.main(asked) == 0
    assert target.read_bytes() == (output / "checkpoints" / "last.safetensors").read_bytes()
    assert (output / "metrics.jsonl").read_bytes() == before, "a finished run is not repeated"
