"""Batches drawn ahead by a thread: the same ones, in the same order, from a position that can be saved."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.tiny_run import logged, same, same_end, tiny_clip, tiny_config

from coopnet_core.cotraining import trainer
from coopnet_core.data.prefetch import Batches, batches_ahead
from coopnet_core.data.triplets import Batch, TripletSampler
from coopnet_core.distributed import Share

CPU = torch.device("cpu")
_MIXTURE = [replace(tiny_clip(), weight=3.0), replace(tiny_clip(5, seed=2), source=1, weight=1.0)]
_SOURCES = [1, 1, 2, 1, 2, 2, 1, 1, 1]


def _sampler() -> TripletSampler:
    return TripletSampler(_MIXTURE, (-1, 1), 2, seed=4)


def _batches(sampler: TripletSampler, ahead: int, share: Share | None = None, sources=tuple(_SOURCES)) -> Batches:
    return Batches(sampler, sources, share or Share(), CPU, ahead)


def _same(one: Batch, other: Batch) -> bool:
    return same(one.tensors(), other.tensors())


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
@pytest.mark.parametrize("share", [Share(), Share(1, 2)])
def test_batches_and_positions_are_those_of_the_sampler(ahead: int, share: Share):
    plain, sampler = _sampler(), _sampler()
    batches = _batches(sampler, ahead, share)
    for sources in _SOURCES:
        assert _same(batches.next(), plain.next(sources, share))
        assert json.dumps(sampler.state()) == json.dumps(plain.state())
    with pytest.raises(StopIteration):
        batches.next()
    batches.close()
    assert batches.waited_s > 0


def test_a_state_taken_amid_the_run_is_that_of_the_batches_handed_out():
    sampler = _sampler()
    batches = _batches(sampler, 3)
    for _ in range(4):
        batches.next()
    state = json.loads(json.dumps(sampler.state()))
    batches.close()
    other, plain = _sampler(), _sampler()
    other.restore(state)
    for sources in _SOURCES[:4]:
        plain.next(sources)
    assert all(_same(other.next(sources), plain.next(sources)) for sources in _SOURCES[4:])


def test_a_position_is_not_changed_by_moving_on():
    sampler = _sampler()
    sampler.next(1)
    position, before = sampler.position(), json.dumps(sampler.state())
    for _ in range(30):
        sampler.next(1)
    assert json.dumps(sampler.state()) != before
    sampler.go_to(position)
    assert json.dumps(sampler.state()) == before


def test_nothing_is_drawn_before_the_first_batch_is_wanted(monkeypatch):
    monkeypatch.setattr(TripletSampler, "next", lambda *_: pytest.fail("drawn"))
    batches = _batches(_sampler(), 3)
    batches.close()


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("error", [OSError("the disk is gone"), MemoryError()])
def test_an_error_of_the_thread_reaches_the_trainer_in_its_place(monkeypatch, ahead: int, error: Exception):
    original, drawn = TripletSampler.next, []

    def failing(sampler: TripletSampler, *arguments: object) -> Batch:
        drawn.append(1)
        if len(drawn) == 3:
            raise error
        return original(sampler, *arguments)

    monkeypatch.setattr(TripletSampler, "next", failing)
    batches = _batches(_sampler(), ahead)
    batches.next()
    batches.next()
    with pytest.raises(type(error)):
        batches.next()
    batches.close()


def test_closing_ends_a_thread_that_waits_for_room():
    sampler = _sampler()
    batches = _batches(sampler, 1, sources=[1] * 1000)
    batches.next()
    thread = batches._thread
    assert thread.is_alive()
    batches.close()
    assert not thread.is_alive()


def test_on_a_cpu_none_are_ahead():
    assert batches_ahead(CPU) == 0
    assert batches_ahead(torch.device("cuda", 1)) > 1


# With the trainer


def test_a_run_does_not_depend_on_what_is_drawn_ahead(tmp_path, monkeypatch):
    together = {"share": 1.0, "consistency": 0.02}
    stages = [together | {"name": "one", "sources": 1}, together | {"name": "two", "sources": 2}]
    config = tiny_config(stages=stages, validate_every=3)
    trainer.train(config, _MIXTURE, [tiny_clip(seed=1)], tmp_path / "plain")
    monkeypatch.setattr(trainer, "batches_ahead", lambda device: 3)
    trainer.train(config, _MIXTURE, [tiny_clip(seed=1)], tmp_path / "ahead")
    assert same_end(tmp_path / "plain", tmp_path / "ahead")

    original, steps = trainer._train_on_a_batch, []

    def interrupted(*arguments):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_train_on_a_batch", interrupted)
        assert trainer.train(config, _MIXTURE, [tiny_clip(seed=1)], tmp_path / "parts").interrupted
    state = torch.load(tmp_path / "parts" / "state.pt", weights_only=True)
    assert sum(json.loads(state["sampler"])["positions"]) == 4
    trainer.train(config, _MIXTURE, [tiny_clip(seed=1)], tmp_path / "parts", resume=True)
    assert same_end(tmp_path / "plain", tmp_path / "parts")


def test_the_share_of_the_time_that_is_waited_for_data_is_logged(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock[0])
    original, step = TripletSampler.next, trainer.step

    def slow_draw(sampler: TripletSampler, *arguments: object) -> Batch:
        clock[0] += 1.0
        return original(sampler, *arguments)

    def slow_step(*arguments: object) -> object:
        clock[0] += 3.0
        return step(*arguments)

    monkeypatch.setattr(TripletSampler, "next", slow_draw)
    monkeypatch.setattr(trainer, "step", slow_step)
    trainer.train(tiny_config(log_every=2), [tiny_clip()], [], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["data_wait_share"] for line in lines] == [0.25, 0.25]
    assert np.isfinite(logged(tmp_path)[0]["loss"])
