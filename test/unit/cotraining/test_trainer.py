import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.config import StageConfig, load_config
from coopnet_core.cotraining.trainer import learning_rate, stage_at, train
from coopnet_core.data.frames import Clip
from coopnet_core.errors import DivergedError, NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera

CAMERA = Camera(96, 64, 80.0, 80.0, 47.5, 31.5)


def _clip(frames=7, seed=0):
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 255, (16, 40, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    images = np.stack([wide[:, 2 * k : 2 * k + 96] for k in range(frames)])
    return Clip(f"moving {seed}", images, np.arange(frames) * 10**8, CAMERA)


def _config(**overrides):
    base = {
        "steps": "4",
        "batch_size": "2",
        "log_every": "1",
        "validate_every": "2",
        "checkpoint_every": "2",
        "mixed_precision": "false",
        "optimiser.warm_up_steps": "0",
        "device": "cpu",
    }
    return load_config("cpu-small", [], base | overrides)


def _weights(path):
    return load_checkpoint(path).networks.state_dict()


def test_a_run_leaves_everything(tmp_path):
    result = train(_config(), [_clip()], [_clip(seed=1)], tmp_path, data_facts={"source": "test"})
    assert result.steps == 4
    assert not result.interrupted
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if not line["validation"]] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["validation"]] == [2, 4]
    assert {"b_r", "b_f", "pi", "fairness", "moving_share", "e_r", "e_f"} <= set(lines[-2])
    assert (tmp_path / "config.yaml").is_file()
    curves = EventAccumulator(str(tmp_path / "tensorboard"), {"histograms": 0}).Reload()
    measured, fitted = (curves.Histograms(f"error_model/delta{part}") for part in ("", "_by_the_model"))
    assert [event.step for event in measured] == [event.step for event in fitted] == [2, 4]
    assert 0 < sum(measured[-1].histogram_value.bucket) <= 2 * 2 * CAMERA.width * CAMERA.height
    assert sum(fitted[-1].histogram_value.bucket) == pytest.approx(sum(measured[-1].histogram_value.bucket), rel=0.5)
    metadata = load_checkpoint(result.best).metadata
    assert metadata.data == {"source": "test"}
    assert metadata.step == 4
    assert metadata.figures["e_f"] > 0
    assert metadata.camera_matrix == CAMERA.matrix.tolist()


def test_the_same_seed_gives_the_same_weights(tmp_path):
    first = train(_config(), [_clip()], [], tmp_path / "a")
    second = train(_config(), [_clip()], [], tmp_path / "b")
    third = train(_config(seed="1"), [_clip()], [], tmp_path / "c")
    a, b, c = (_weights(result.last) for result in (first, second, third))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    whole = train(_config(), [_clip()], [_clip(seed=1)], tmp_path / "whole")
    from coopnet_core.cotraining import trainer

    original, calls = trainer.step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(trainer, "step", interrupted)
    first = train(_config(), [_clip()], [_clip(seed=1)], tmp_path / "parts")
    assert first.interrupted
    assert first.steps == 2
    monkeypatch.setattr(trainer, "step", original)
    second = train(_config(), [_clip()], [_clip(seed=1)], tmp_path / "parts", resume=True)
    assert second.steps == 4
    a, b = _weights(whole.last), _weights(second.last)
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]


def test_fine_tuning_starts_from_the_weights(tmp_path):
    first = train(_config(), [_clip()], [], tmp_path / "first")
    second = train(_config(steps="1"), [_clip()], [], tmp_path / "second", init=first.last)
    a, b = _weights(first.last), _weights(second.last)
    differences = [(a[n] - b[n]).abs().max().item() for n in a if a[n].is_floating_point() and "running" not in n]
    assert 0 < max(differences) < 2e-3
    assert load_checkpoint(second.last).metadata.step == 5


def test_a_resumed_fine_tuning_keeps_its_schedule(tmp_path):
    first = train(_config(steps="1"), [_clip()], [], tmp_path / "first")
    train(_config(steps="1"), [_clip()], [], tmp_path / "second", init=first.last)
    train(_config(steps="2"), [_clip()], [], tmp_path / "second", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["together", "together"]


def test_init_of_other_networks_is_refused(tmp_path):
    first = train(_config(steps="1"), [_clip()], [], tmp_path / "first")
    with pytest.raises(UsageError, match="another configuration"):
        train(_config(**{"networks.pose.width": "16"}), [_clip()], [], tmp_path / "second", init=first.last)


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(UsageError, match="Nothing to resume"):
        train(_config(), [_clip()], [], tmp_path, resume=True)


def test_a_single_bad_batch_changes_nothing_and_many_stop_the_run(tmp_path, monkeypatch):
    from coopnet_core.cotraining import trainer

    original, count = trainer.step, [0]

    def sometimes_nan(*arguments):
        output = original(*arguments)
        count[0] += 1
        bad = count[0] == 2 or count[0] > 4
        return output if not bad else type(output)(**(output.__dict__ | {"loss": output.loss * float("nan")}))

    monkeypatch.setattr(trainer, "step", sometimes_nan)
    result = train(_config(), [_clip()], [], tmp_path / "once")
    assert all(value.isfinite().all() for value in _weights(result.last).values())
    with pytest.raises(DivergedError, match="last good checkpoint"):
        train(_config(steps="40"), [_clip()], [], tmp_path / "often")
    assert all(value.isfinite().all() for value in _weights(tmp_path / "often/checkpoints/last.safetensors").values())


def test_too_short_clips_are_refused(tmp_path):
    with pytest.raises(NoUsableDataError, match="at least 3 frames"):
        train(_config(), [_clip(frames=2)], [], tmp_path)


def test_schedule():
    stages = (StageConfig(name="a", share=1), StageConfig(name="b", share=3))
    assert [stage_at(stages, k, 8)[1].name for k in range(8)] == ["a"] * 2 + ["b"] * 6
    assert stage_at(stages, 3, 8)[2] == 1


def test_learning_rate_starts_small_and_ends_at_the_final_factor():
    config = load_config("cpu-small", [], {"steps": "1000", "optimiser.warm_up_steps": "9"})
    stage = StageConfig(name="a", share=1)
    assert learning_rate(config, stage, 0, 0) == pytest.approx(config.optimiser.learning_rate / 10)
    assert learning_rate(config, stage, 1000, 500) == pytest.approx(config.optimiser.learning_rate * 0.1)
    rates = [learning_rate(config, stage, k, k) for k in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)
    slow = StageConfig(name="b", share=1, rate=0.5)
    assert learning_rate(config, slow, 40, 40) == pytest.approx(0.5 * learning_rate(config, stage, 40, 40))


def _assumed(clip):
    return replace(clip, camera=replace(clip.camera, assumed=True))


def test_a_focal_length_is_learned_kept_and_resumed(tmp_path):
    overrides = {"learn_intrinsics": "true", "fine_tuning": "[{name: together, share: 1.0, sources: 1}]"}
    start = train(_config(steps="2"), [_clip()], [], tmp_path / "start")
    clips = [_assumed(_clip())]
    whole = train(_config(**overrides), clips, [], tmp_path / "whole", init=start.last)
    assert whole.focal is not None
    assert whole.focal.factor != 1.0
    learned = load_checkpoint(whole.last).metadata.camera_matrix
    assert learned[0][0] == pytest.approx(CAMERA.fx * whole.focal.factor)
    assert learned[1][2] == CAMERA.cy
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["focal_factor"] == pytest.approx(whole.focal.factor, abs=1e-6)
    part = _config(**overrides)
    train(part.model_copy(update={"steps": 2}), clips, [], tmp_path / "part", init=start.last)
    state = torch.load(tmp_path / "part" / "state.pt", weights_only=True)
    resumed = train(part, clips, [], tmp_path / "part", resume=True)
    assert state["focal"]["log_factor"] != 0
    assert resumed.focal.factor != pytest.approx(float(state["focal"]["log_factor"].exp()), abs=1e-9)


def test_calibrated_cameras_have_nothing_to_learn(tmp_path):
    result = train(_config(learn_intrinsics="true", steps="2"), [_clip()], [], tmp_path)
    assert result.focal is None
    assert load_checkpoint(result.last).metadata.camera_matrix == CAMERA.matrix.tolist()
