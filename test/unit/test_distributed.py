"""Processes that share each batch train as one process does with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from unit.distributed_run import SETTINGS, run_program
from unit.tiny_run import logged, same_end, tiny_clip, tiny_config

from coopnet_core.cotraining.families import thinned, thinned_of_all
from coopnet_core.cotraining.run_state import start
from coopnet_core.distributed import Share, average_gradients, averaged, share, summed
from coopnet_core.errors import UsageError
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.networks.bundle import NETWORKS
from coopnet_core.networks.shared_norm import SharedBatchNorm2d, share_batch_norm


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The run folder of one process."""
    output = tmp_path_factory.mktemp("one")
    run_program(output, 1)
    return output


def _state(output: Path) -> dict[str, object]:
    return torch.load(output / "state.pt", weights_only=True)


def _assert_same_trajectory(one: Path, two: Path) -> None:
    """Logged figures, weights, error model and position in the data, to what is left of float32 after five steps.

    Adam makes steps of one size of gradients that are almost 0: single weights may differ, the way gone may not.
    """
    lines = list(zip(logged(one), logged(two), strict=True))
    for expected, found in lines:
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if name != "depth_median":  # a mean of medians
                assert found[name] == pytest.approx(value, rel=3e-3, abs=3e-5), (expected["step"], name)
    first, second = _state(one), _state(two)
    begin = start(tiny_config(**SETTINGS), [tiny_clip()], None, torch.device("cpu")).networks.state_dict()
    for network in NETWORKS:
        names = [name for name in begin if name.startswith(network) and begin[name].is_floating_point()]
        gone, apart = (
            sum((a["networks"][name] - b[name]).square().sum() for name in names).sqrt()
            for a, b in ((first, begin), (first, second["networks"]))
        )
        assert apart < 0.05 * gone, network
    assert second["error_model"] == pytest.approx(first["error_model"], rel=3e-3, abs=3e-5)
    assert second["focal"]["log_factor"].item() == pytest.approx(first["focal"]["log_factor"].item(), abs=1e-5)
    assert second["sampler"] == first["sampler"]
    assert torch.equal(second["generator"], first["generator"])


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The run folder of two processes."""
    output = tmp_path_factory.mktemp("two")
    run_program(output, 2)
    return output


def test_two_processes_with_half_the_batch_train_as_one(one, two):
    _assert_same_trajectory(one, two)
    assert [(two / f"rank_{rank}.txt").read_text() for rank in (0, 1)] == ["5 False 0"] * 2


def test_a_process_that_dies_is_restarted_and_the_run_resumed(two, tmp_path):
    run_program(tmp_path, 2, "--fail-at=3")
    assert [(tmp_path / f"rank_{rank}.txt").read_text() for rank in (0, 1)] == ["5 False 1"] * 2
    assert same_end(two, tmp_path)


def test_all_stop_at_the_same_step_when_one_is_asked_to(tmp_path):
    run_program(tmp_path, 2, "--stop-at=2")
    assert [(tmp_path / f"rank_{rank}.txt").read_text() for rank in (0, 1)] == ["3 True 0"] * 2
    assert _state(tmp_path)["step"] == 3


def test_all_reject_a_step_that_is_not_finite_for_one(tmp_path):
    run_program(tmp_path, 2, "--nan-at=2")
    rejected = [line["steps_rejected"] for line in logged(tmp_path) if not line["validation"]]
    assert rejected == [0, 0, 1, 1, 1]
    assert all(value.isfinite().all() for value in _state(tmp_path)["networks"].values())


def test_rows_are_dealt_out_evenly_or_not_at_all():
    assert [Share(rank, 3).of(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(UsageError, match="multiple of 3"):
        Share(0, 3).of(4)


def test_one_process_alone_changes_nothing():
    assert share() == Share(0, 1)
    value = torch.tensor([1.0, 2.0])
    assert summed(value) is value
    assert averaged(value) is value
    value.requires_grad_()
    value.sum().backward()
    average_gradients([value])
    assert torch.equal(value.grad, torch.ones(2))


class _Group:
    """Stands in for the processes of a group, one after the other: what they give to a sum is handed in beforehand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, others: list[torch.Tensor]) -> None:
        left = iter(others)

        def all_reduce(tensor: torch.Tensor) -> None:
            tensor += next(left)

        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)


def test_the_mean_over_the_processes_is_the_mean_over_the_whole_mask(monkeypatch):
    values, weights = torch.rand(2, 50), (torch.rand(2, 50) > torch.tensor([[0.9], [0.2]])).float()
    whole = masked_mean(values, weights)
    parts = []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            _Group(patch, rank, [weights[1 - rank].sum()])
            parts.append(masked_mean(values[rank], weights[rank]))
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-6)
    assert (masked_mean(values[0], weights[0]) + masked_mean(values[1], weights[1])) / 2 != pytest.approx(whole.item())


@pytest.mark.parametrize("most", [20, 10_000])
def test_thinning_takes_the_same_pixels_of_the_whole_batch(monkeypatch, most):
    maps = [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)]
    maps[0][0, 0, 0, 0] = torch.nan
    wanted = thinned(*maps, most=most)
    halves = []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            _Group(patch, rank, [torch.zeros(())])
            halves.append(thinned_of_all(*(part[2 * rank : 2 * rank + 2] for part in maps), most=most))
    for found, other, value in zip(*halves, wanted, strict=True):
        torch.testing.assert_close(found + other, value, rtol=0, atol=0, equal_nan=True)


def test_shared_normalisation_of_one_process_is_the_plain_one():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4).eval())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = list(module.parameters())
    share_batch_norm(module)
    assert isinstance(module[1][0], SharedBatchNorm2d)
    assert [layer.training for layer in (module[1][0], module[2])] == [True, False]
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(one is two for one, two in zip(parameters, module.parameters(), strict=True))


def test_shared_normalisation_is_that_of_the_whole_batch(monkeypatch):
    """Two equal halves: every sum over the processes is twice the own one."""
    monkeypatch.setattr("coopnet_core.networks.shared_norm.share", lambda: Share(0, 2))
    monkeypatch.setattr("coopnet_core.networks.shared_norm.summed", lambda value: 2 * value.detach())
    half = torch.randn(2, 3, 5, 4, dtype=torch.float32)
    plain, shared = nn.BatchNorm2d(3), SharedBatchNorm2d(3)
    for layer in (plain, shared):
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias)
    shared.load_state_dict(plain.state_dict())
    own, whole = half.clone().requires_grad_(), torch.cat([half, half]).requires_grad_()
    slope = torch.randn_like(half)
    expected, found = plain(whole), shared(own)
    expected.backward(torch.cat([slope, slope]))
    found.backward(slope)
    torch.testing.assert_close(found, expected[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own.grad, whole.grad[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(2 * shared.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(2 * shared.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(dict(shared.named_buffers())[name], value)
