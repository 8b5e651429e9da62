"""Frozen parts stay as they were, to the bit; the others learn. And the weights that a run starts from are judged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from unit.distributed_run import run_program
from unit.tiny_run import interrupt_in_step, logged, same, same_end, tiny_clip, tiny_config, tiny_weights

from coopnet_core.config import StageConfig, load_config
from coopnet_core.cotraining import trainer
from coopnet_core.cotraining.run_state import start
from coopnet_core.cotraining.trainer import train
from coopnet_core.errors import UsageError
from coopnet_core.networks.bundle import CoopNetworks
from coopnet_core.networks.parts import chosen_parts, parts, without_frozen

FROZEN = [("depth.encoder", "flow"), ("depth",), ("pose", "flow.features"), ("depth", "pose"), ("flow.decoder",)]
_PREFIXES = {
    "depth": ("depth.",),
    "depth.encoder": ("depth.encoder.",),
    "pose": ("pose.",),
    "flow": ("flow.",),
    "flow.features": ("flow.stages.", "flow.project."),
    "flow.decoder": ("flow.decoder.", "flow.head.", "flow.log_temperature"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Weights to start from."""
    return train(tiny_config(), [tiny_clip()], [], tmp_path_factory.mktemp("begun")).last


def _changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ, counters and running means included."""
    a, b = tiny_weights(before), tiny_weights(after)
    return {name for name in a if not torch.equal(a[name], b[name])}


def _is_frozen(tensor: str, frozen: tuple[str, ...]) -> bool:
    return tensor.startswith(tuple(prefix for name in frozen for prefix in _PREFIXES[name]))


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(tmp_path, begun, frozen, ema_decay):
    config = tiny_config(frozen=frozen, optimiser={"ema_decay": ema_decay})
    result = train(config, [tiny_clip()], [tiny_clip(seed=1)], tmp_path, init=begun)
    changed = _changed(begun, result.last)
    assert not {name for name in changed if _is_frozen(name, frozen)}
    learning = {name for name in tiny_weights(begun) if not _is_frozen(name, frozen)}
    assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in learning}
    if ema_decay == 0:  # the very first mean may be one of two weights that rounding makes equal
        assert len(changed) > 0.9 * len(learning)


def _statistics(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_without_the_statistics_of_batches_the_running_ones_are_used_and_stay(tmp_path, begun):
    def trained(folder: str, **stage: object) -> Path:
        stages = [{"name": "together", "share": 1.0, "sources": 1, **stage}]
        return train(tiny_config(fine_tuning=stages), [tiny_clip()], [], tmp_path / folder, init=begun).last

    fixed = _changed(begun, trained("fixed", batch_statistics=False))
    assert not _statistics(fixed)
    assert fixed
    everything = set(tiny_weights(begun))
    assert _statistics(_changed(begun, trained("moving"))) == _statistics(everything)


def test_stages_may_differ_in_their_statistics(tmp_path, begun):
    """The first moves them, the second leaves them."""
    stages = [
        {"name": "moves", "share": 1.0, "sources": 1},
        {"name": "leaves", "share": 1.0, "sources": 1, "batch_statistics": False},
    ]
    config = tiny_config(fine_tuning=stages, keep_last=9, checkpoint_every=1)
    train(config, [tiny_clip()], [], tmp_path, init=begun)
    first, middle, last = (tmp_path / "checkpoints" / f"step_{step:08d}.safetensors" for step in (1, 2, 4))
    assert _statistics(_changed(first, middle))
    assert not _statistics(_changed(middle, last))
    assert _changed(middle, last)


def test_nothing_of_what_is_frozen_is_in_the_optimiser():
    run = start(tiny_config(frozen=("depth.encoder", "flow")), [tiny_clip()], None, torch.device("cpu"))
    held = {id(parameter) for part in run.frozen for parameter in part.parameters}
    assert [group["name"] for group in run.optimiser.param_groups] == ["depth", "pose"]
    given = [parameter for group in run.optimiser.param_groups for parameter in group["params"]]
    everything = list(run.networks.parameters())
    assert not held & set(map(id, given))
    assert held | set(map(id, given)) == set(map(id, everything))


def test_a_run_with_frozen_parts_is_resumed_exactly(tmp_path, begun, monkeypatch):
    config = tiny_config(frozen=("depth.encoder",), optimiser={"ema_decay": 0.5})
    clips, others = [tiny_clip()], [tiny_clip(seed=1)]
    train(config, clips, others, tmp_path / "whole", init=begun)
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        assert train(config, clips, others, tmp_path / "parts", init=begun).interrupted
    train(config, clips, others, tmp_path / "parts", resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "parts")


def test_processes_that_share_a_batch_keep_what_is_frozen(tmp_path, begun):
    run_program(tmp_path / "two", 2, f"--init={begun}", "--frozen=depth.encoder,flow")
    changed = _changed(begun, tmp_path / "two" / "checkpoints" / "last.safetensors")
    assert changed
    assert not {name for name in changed if _is_frozen(name, ("depth.encoder", "flow"))}


@pytest.mark.parametrize("preset", ["cpu-small", "kitti-640"])
def test_the_parts_of_the_presets(preset):
    networks = CoopNetworks(load_config(preset, [], {}).networks)
    found = parts(networks)
    ofpose = ["pose.encoder", "pose.decoder"] if preset == "kitti-640" else []
    assert list(found) == [
        "depth",
        "depth.encoder",
        "depth.decoder",
        "pose",
        *ofpose,
        "flow",
        "flow.features",
        "flow.decoder",
    ]
    for network in ("depth", "flow"):
        inner = [part for name, part in found.items() if name.startswith(f"{network}.")]
        assert sum(len(part.parameters) for part in inner) == len(found[network].parameters), "no parameter is lost"
    with pytest.raises(UsageError, match=r"no part 'depth.encodr'; did you mean depth.encoder\? They have depth, "):
        chosen_parts(networks, ["flow", "depth.encodr"])


def test_a_stage_is_left_what_is_not_frozen():
    networks = CoopNetworks(tiny_config().networks)
    stages = [StageConfig(name="all", share=1), StageConfig(name="two", share=1, train=("depth", "pose"))]
    left = without_frozen(stages, networks, chosen_parts(networks, ["flow.features", "flow.decoder", "depth.encoder"]))
    assert [stage.train for stage in left] == [("depth", "pose"), ("depth", "pose")]
    with pytest.raises(UsageError, match=r"stage 'two' trains \(depth, pose\) is frozen"):
        without_frozen(stages, networks, chosen_parts(networks, ["depth", "pose"]))


def test_a_start_that_nothing_beats_stays_the_best(tmp_path, begun):
    """A rate that destroys: every later validation is worse."""
    config = tiny_config(optimiser={"learning_rate": 0.05})
    result = train(config, [tiny_clip()], [tiny_clip(seed=1)], tmp_path, init=begun)
    assert same(tiny_weights(result.best), tiny_weights(begun))
    assert _changed(begun, result.last)
    assert (result.best_step, result.best_error) == (0, result.start_error)
    found = [line for line in logged(tmp_path) if line["validation"]]
    assert [line["step"] for line in found] == [0, 2, 4]
    errors = [line["rigid_unexplained"] + line["flow_unexplained"] for line in found]
    assert errors[0] == pytest.approx(result.start_error, abs=1e-6)
    assert min(errors[1:]) > errors[0]


def test_what_beats_the_start_becomes_the_best(tmp_path, begun):
    config = tiny_config(optimiser={"learning_rate": 1e-4}, steps=6)
    result = train(config, [tiny_clip()], [tiny_clip()], tmp_path, init=begun)  # what it learns is what judges it
    assert result.best_error < result.start_error
    assert result.best_step > 0
    assert not same(tiny_weights(result.best), tiny_weights(begun))


def test_all_stages_that_follow_a_start_are_judged_alike(tmp_path, begun):
    """A first stage of flow alone would win on its own terms: there the rigid error does not count."""
    stages = [
        {"name": "flow", "share": 1.0, "train": ["flow"], "posterior": "off", "sources": 1},
        {"name": "together", "share": 1.0, "sources": 1},
    ]
    config = tiny_config(fine_tuning=stages, patience=1, optimiser={"learning_rate": 0.05})
    result = train(config, [tiny_clip()], [tiny_clip(seed=1)], tmp_path, init=begun)
    found = [line for line in logged(tmp_path) if line["validation"]]
    assert [line["stage"] for line in found] == ["flow", "flow", "together"]
    assert all("rigid_unexplained" in line for line in found)
    assert result.steps == 4, "the patience begins with the last stage"
    assert result.best_step == 0


def test_a_run_from_nothing_is_not_judged_before_it_has_learnt(tmp_path):
    result = train(tiny_config(), [tiny_clip()], [tiny_clip(seed=1)], tmp_path)
    assert result.start_error is None
    assert math.isfinite(result.best_error)
    assert [line["step"] for line in logged(tmp_path) if line["validation"]] == [2, 4]


def test_stopped_before_its_first_step_it_ends_the_same(tmp_path, begun, monkeypatch):
    config, clips, others = tiny_config(), [tiny_clip()], [tiny_clip(seed=1)]
    train(config, clips, others, tmp_path / "whole", init=begun)
    for moment in ("_validate", "_loop"):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, moment, _killed)
            with pytest.raises(KeyboardInterrupt):
                train(config, clips, others, tmp_path / moment, init=begun)
        train(config, clips, others, tmp_path / moment, resume=True)
        assert same_end(tmp_path / "whole", tmp_path / moment)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt
