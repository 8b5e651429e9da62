"""What a run does when something fails beside it: the disk, the memory, a step, the one who waits."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unit.tiny_run import logged, same, same_end, tiny_clip, tiny_config, tiny_weights

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.config import TrainConfig
from coopnet_core.cotraining import run_folder, stopping, trainer
from coopnet_core.cotraining.metrics_file import MetricsFile
from coopnet_core.cotraining.run_state import start
from coopnet_core.cotraining.trainer import TrainResult, train
from coopnet_core.errors import CheckpointError, DivergedError, UsageError


def _train(config: TrainConfig, output: Path, **options) -> TrainResult:
    return train(config, [tiny_clip()], [tiny_clip(seed=1)], output, **options)


def _state(output: Path) -> dict[str, object]:
    return torch.load(output / "state.pt", weights_only=True)


def _full_disk(monkeypatch: pytest.MonkeyPatch, saves: set[int]) -> None:
    """The n-th writes of state.pt, counted from 0, end half way."""
    original, count = torch.save, [0]

    def save(content, path):
        count[0] += 1
        if count[0] - 1 in saves:
            Path(path).write_bytes(b"PK half a state")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(content, path)

    monkeypatch.setattr(run_folder.torch, "save", save)


def test_a_full_disk_amid_the_run_is_said_and_the_run_goes_on(tmp_path, monkeypatch):
    _train(tiny_config(steps=6), tmp_path / "whole")
    with monkeypatch.context() as patch:
        _full_disk(patch, {1})  # 0 is the start, 1 the save at step 2
        assert _train(tiny_config(steps=6), tmp_path / "full").steps == 6
    said = (tmp_path / "full" / "warnings.txt").read_text()
    assert said.startswith("step 2: the state could not be saved ([Errno 28] No space left on device; ")
    last = tmp_path / "full" / "checkpoints" / "last.safetensors"
    assert f"last good checkpoint is {last} (step 2; a resume starts at step 0). Training goes on" in said
    assert same_end(tmp_path / "whole", tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.partial"))


def test_a_full_disk_at_the_end_keeps_the_last_good_state(tmp_path, monkeypatch):
    _train(tiny_config(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        _full_disk(patch, {2, 3})
        with pytest.raises(
            CheckpointError, match=r"step 4 could not be saved .*No space.*\(step 4; a resume starts at step 2\)"
        ):
            _train(tiny_config(), tmp_path / "full")
    assert _state(tmp_path / "full")["step"] == 2
    load_checkpoint(tmp_path / "full" / "checkpoints" / "last.safetensors")
    _train(tiny_config(), tmp_path / "full", resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "full")


def test_a_run_that_cannot_be_saved_at_all_does_not_begin(tmp_path, monkeypatch):
    _full_disk(monkeypatch, {0})
    with pytest.raises(CheckpointError, match=r"cannot be saved in .*choose another output"):
        _train(tiny_config(), tmp_path)
    assert logged(tmp_path) == []


def test_a_best_checkpoint_that_could_not_be_written_does_not_count(tmp_path, monkeypatch):
    original, calls = run_folder.save_checkpoint, []

    def save(path, *rest):
        if path.name == "best.safetensors":
            calls.append(path)
            if len(calls) == 2:  # of the first validation; the first write is that of the start
                raise CheckpointError("full.")
        original(path, *rest)

    monkeypatch.setattr(run_folder, "save_checkpoint", save)
    _train(tiny_config(), tmp_path)
    assert (tmp_path / "warnings.txt").read_text() == "step 2: full\n"
    assert load_checkpoint(tmp_path / "checkpoints" / "best.safetensors").metadata.step == 4


def test_lines_of_metrics_wait_until_there_is_space(tmp_path, monkeypatch):
    _train(tiny_config(), tmp_path / "whole")
    write = MetricsFile.write

    def full(file):
        step_lines = file._waiting.count(b'"validation": false')
        if step_lines and file._waiting.count(b"\n") < 2:  # refused until a second line waits
            os.pwrite(file._file.fileno(), file._waiting[:20], file._whole)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file)

    monkeypatch.setattr(MetricsFile, "write", full)
    _train(tiny_config(), tmp_path / "full")
    assert same(logged(tmp_path / "whole"), logged(tmp_path / "full"))
    assert (
        "metrics.jsonl could not be written (No space left on device)"
        in (tmp_path / "full" / "warnings.txt").read_text()
    )


def test_curves_that_cannot_be_drawn_stop_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.SummaryWriter, "add_scalar", full)
    assert _train(tiny_config(), tmp_path).steps == 4
    assert (tmp_path / "warnings.txt").read_text().count("the curves in tensorboard/ end here") == 1


def _failing_step(monkeypatch: pytest.MonkeyPatch, number: int, fail) -> None:
    original, calls = trainer.step, []

    def sometimes(*arguments):
        calls.append(1)
        return fail() if len(calls) == number else original(*arguments)

    monkeypatch.setattr(trainer, "step", sometimes)


def _out_of_cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize(
    ("fail", "seen"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "can't allocate memory"),
        (_out_of_cuda_memory, r"\(CUDA out of memory. Tried to allocate 2.00 GiB.\)"),
    ],
)
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, fail, seen):
    with monkeypatch.context() as patch:
        # Two steps and a validation of three batches come first.
        _failing_step(patch, 6, fail)
        with pytest.raises(
            UsageError, match=f"(?s)2 targets of 64x64 and 1 sources each.*{seen}.*--batch-size"
        ) as error:
            _train(tiny_config(), tmp_path)
    assert "last.safetensors (step 2)" in str(error.value)
    assert _state(tmp_path)["step"] == 2
    assert _train(tiny_config(batch_size=1), tmp_path, resume=True).steps == 4


def test_out_of_memory_in_the_validation_is_said_too(tmp_path, monkeypatch):
    _failing_step(monkeypatch, 3, _out_of_cuda_memory)
    with pytest.raises(UsageError, match="2 targets of 64x64 and 2 sources each"):
        _train(tiny_config(), tmp_path)


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    def fail() -> None:
        raise RuntimeError("shapes differ")

    _failing_step(monkeypatch, 1, fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        _train(tiny_config(), tmp_path)


def _not_finite(monkeypatch: pytest.MonkeyPatch, bad_calls) -> None:
    """Training steps (counted from 1) whose rigid term is NaN."""
    original, calls = trainer.step, [0]

    def sometimes_nan(networks, *rest):
        output = original(networks, *rest)
        if not torch.is_grad_enabled():
            return output
        calls[0] += 1
        if calls[0] not in bad_calls:
            return output
        nan = torch.tensor(torch.nan)
        return replace(output, loss=output.loss * nan, terms=output.terms | {"rigid_photometric": nan})

    monkeypatch.setattr(trainer, "step", sometimes_nan)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, monkeypatch):
    config = tiny_config(steps=3, validate_every=9)
    with monkeypatch.context() as patch:
        _not_finite(patch, {3})
        _train(config, tmp_path)
    after = _state(tmp_path)
    assert after["skipped"]["steps_rejected"] == 1
    assert after["bad_steps"] == 1
    assert [line["steps_rejected"] for line in logged(tmp_path) if not line["validation"]] == [0, 0, 1]
    _signals_in_step_two(monkeypatch, [signal.SIGINT])
    _train(config, tmp_path / "two")
    two = _state(tmp_path / "two")
    for name in ("networks", "error_model"):  # the running means of batch normalisation are among the networks
        assert same(after[name], two[name])
    assert same(after["optimiser"]["state"], two["optimiser"]["state"])


def test_divergence_names_step_term_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = tiny_config(steps=40, validate_every=40)
    _not_finite(monkeypatch, range(6, 99))
    with pytest.raises(DivergedError) as error:
        _train(config, tmp_path)
    said = str(error.value)
    # Steps 0 to 4 are good; of the saves at 4, 6, ... 14, those within the bad row are left out.
    assert "diverged at step 15: 11 steps in a row" in said
    assert "not finite: rigid_photometric" in said
    assert f"{tmp_path / 'checkpoints' / 'last.safetensors'} (step 4)" in said
    assert _state(tmp_path)["step"] == load_checkpoint(tmp_path / "checkpoints" / "last.safetensors").metadata.step == 4


def test_a_gradient_that_is_not_finite_names_its_network(tmp_path, monkeypatch):
    original = trainer.step

    def infinite_gradient(networks, *rest):
        output = original(networks, *rest)
        bias = networks.flow.state_dict(keep_vars=True)
        weight = next(value for value in bias.values() if value.requires_grad)
        # A square root at zero: the value is finite, its slope is not.
        return replace(output, loss=output.loss + (weight - weight.detach()).abs().sum().sqrt())

    monkeypatch.setattr(trainer, "step", infinite_gradient)
    with pytest.raises(DivergedError, match="not finite: the gradient of flow"):
        _train(tiny_config(steps=40, validate_every=40), tmp_path)


def _scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """What the validations find, in turn."""
    found = ({"rigid_unexplained": score, "flow_unexplained": 0.0} for score in scores)
    monkeypatch.setattr(trainer, "_validation_terms", lambda *_: next(found))


def test_patience_ends_the_run_and_survives_a_resume(tmp_path, monkeypatch):
    config = tiny_config(steps=20, validate_every=1, patience=2)
    _scores(monkeypatch, [3.0, 2.0, 2.5, 1.0, 1.5])
    with monkeypatch.context() as patch:
        _failing_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(AttributeError):  # a signal gives no output: the sixth step is lost
            _train(config, tmp_path)
    # Resumed from the save at step 4, where 1.0 was the best: the fifth validation is done again.
    _scores(monkeypatch, [1.5, 1.1, 0.1])
    result = _train(config, tmp_path, resume=True)
    assert (result.steps, result.out_of_patience, result.interrupted) == (6, True, False)
    best = load_checkpoint(result.best).metadata
    assert (best.step, best.figures["rigid_unexplained"]) == (4, 1.0)
    assert load_checkpoint(result.last).metadata.step == 6
    _scores(monkeypatch, [])
    assert _train(config, tmp_path, resume=True).steps == 6, "a run that has ended stays ended"


def test_only_the_last_stage_wears_the_patience_out(tmp_path, monkeypatch):
    stages = [{"name": name, "share": 1.0, "sources": 1} for name in ("first", "second")]
    _scores(monkeypatch, [1.0, 2.0, 2.0, 2.0, 9.0, 8.0, 9.0, 9.0])
    result = _train(tiny_config(steps=8, validate_every=1, patience=2, stages=stages), tmp_path)
    assert (result.steps, result.out_of_patience) == (8, False)
    best = load_checkpoint(result.best).metadata
    assert (best.step, best.figures["rigid_unexplained"]) == (6, 8.0)


def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    _scores(monkeypatch, [float("nan"), 2.0])
    best = load_checkpoint(_train(tiny_config(), tmp_path).best).metadata
    assert (best.step, best.figures["rigid_unexplained"]) == (4, 2.0)


def test_without_validation_the_last_checkpoint_is_the_best(tmp_path):
    result = train(tiny_config(), [tiny_clip()], [], tmp_path)
    assert same(tiny_weights(result.best), tiny_weights(result.last))
    assert load_checkpoint(result.best).metadata.step == 4


def test_the_newest_checkpoints_are_kept_by_number(tmp_path):
    config = tiny_config(steps=5, checkpoint_every=1, keep_last=2)
    result = _train(config, tmp_path)
    numbered = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert [path.name for path in numbered] == ["step_00000004.safetensors", "step_00000005.safetensors"]
    assert same(tiny_weights(numbered[1]), tiny_weights(result.last))
    assert load_checkpoint(numbered[0]).metadata.step == 4
    assert not same(tiny_weights(numbered[0]), tiny_weights(numbered[1]))


def test_checkpoints_of_steps_that_are_done_again_go_away(tmp_path):
    _train(tiny_config(keep_last=9), tmp_path)
    # As if killed between the last checkpoint and its state.
    old = tmp_path / "checkpoints" / "step_00000006.safetensors"
    old.write_bytes((tmp_path / "checkpoints" / "last.safetensors").read_bytes())
    _train(tiny_config(keep_last=9), tmp_path, resume=True)
    assert not old.exists()
    assert (tmp_path / "checkpoints" / "step_00000002.safetensors").exists()


def test_the_running_mean_of_the_weights_is_what_is_kept(tmp_path, monkeypatch):
    config = tiny_config(steps=3, validate_every=9, optimiser={"ema_decay": 0.2})
    means: dict[str, torch.Tensor] = {}
    original = trainer._train_on_a_batch

    def followed(run, *rest):
        if not means:
            means.update({name: value.clone() for name, value in run.networks.state_dict().items()})
        result = original(run, *rest)
        keep = min(0.2, (1 + run.step) / (10 + run.step))
        for name, value in run.networks.state_dict().items():
            if value.is_floating_point():
                means[name] = keep * means[name] + (1 - keep) * value
        return result

    monkeypatch.setattr(trainer, "_train_on_a_batch", followed)
    result = _train(config, tmp_path)
    kept, raw = tiny_weights(result.last), _state(tmp_path)["networks"]
    for name, value in means.items():
        if value.is_floating_point():
            torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(kept[name], raw[name]) for name in raw)


def test_a_mean_can_begin_at_a_resume(tmp_path):
    _train(tiny_config(steps=2), tmp_path)
    before = tiny_weights(tmp_path / "checkpoints" / "last.safetensors")
    run = start(tiny_config(optimiser={"ema_decay": 0.5}), [tiny_clip()], None, torch.device("cpu"))
    trainer.restore(run, tmp_path)
    assert same(dict(run.averaged.state_dict()), before)


def _signals_in_step_two(monkeypatch: pytest.MonkeyPatch, numbers: list[int]) -> None:
    original, calls = trainer._train_on_a_batch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(trainer, "_train_on_a_batch", interrupted)


@pytest.mark.parametrize("numbers", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_a_signal_that_comes_twice_is_one_request(tmp_path, monkeypatch, numbers):
    _signals_in_step_two(monkeypatch, numbers)
    result = _train(tiny_config(checkpoint_every=9), tmp_path)
    assert (result.interrupted, result.steps) == (True, 2)
    assert _state(tmp_path)["step"] == 2


def test_a_second_ctrl_c_later_on_interrupts_at_once_and_saves_no_half_step(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests were started in the background
    _train(tiny_config(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "_SAME_REQUEST_S", 0.0)
        _signals_in_step_two(patch, [signal.SIGINT, signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            _train(tiny_config(), tmp_path / "parts")
    assert _state(tmp_path / "parts")["step"] == 0
    _train(tiny_config(), tmp_path / "parts", resume=True)
    assert same_end(tmp_path / "whole", tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is before
