"""Several processes that train one model together, each on its rows of every batch: who one is, sums, means.

The convention that keeps everything else plain: a process computes its part of a loss times their number, so that the
mean over the processes is the loss of the whole batch. Means over equally many pixels are that already; means over
masks need the whole batch's count (`masked_mean`). In one process, and within `alone`, all of this is the identity.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from coopnet_core.devices import resolve_device
from coopnet_core.errors import UsageError


@dataclass(frozen=True)
class Share:
    """One process among those that train together.

    Attributes:
        rank: from 0; the first one writes the run folder.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    def of(self, rows: int) -> slice:
        """The rows of a batch that are this process's, in the order of the ranks.

        Raises:
            UsageError: they cannot be dealt out evenly.
        """
        if rows % self.count:
            raise UsageError(
                f"A batch of {rows} targets cannot be dealt out evenly to {self.count} processes. Choose a multiple of "
                f"{self.count} for --batch-size: it is that of all processes together."
            )
        part = rows // self.count
        return slice(self.rank * part, (self.rank + 1) * part)


_MEETING_S = 600.0
_PAUSE_S = 0.05
_alone = False


def announced() -> Share:
    """What the environment says (torchrun sets it), before any process has been met."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def restarted(device: torch.device) -> bool:
    """Whether torchrun has started these processes anew after one of them, on whichever machine, had failed."""
    return true_anywhere(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0, device)


def share() -> Share:
    """This process among those that were joined."""
    if _alone or not dist.is_available() or not dist.is_initialized():
        return Share()
    return Share(dist.get_rank(), dist.get_world_size())


def own_device(name: str) -> torch.device:
    """The device of a name; where several processes share a machine, each has its own GPU.

    Raises:
        UsageError: as `resolve_device`, or there are fewer GPUs than processes on this machine.
    """
    device = resolve_device(name)
    if device.type != "cuda" or announced().count == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"Process {local} of this machine has no GPU of its own: PyTorch sees {torch.cuda.device_count()}. Start "
            "no more processes than GPUs (--nproc-per-node), or use --device cpu."
        )
    return torch.device("cuda", local)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Share]:
    """Meet the other processes that torchrun has started: NCCL between GPUs, gloo between CPUs. Nothing to do without.

    Raises:
        UsageError: some did not come.
    """
    if announced().count == 1 or dist.is_initialized():
        yield share()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, count = next(dist.rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_fresh_corner(store, rank, count), rank=rank, world_size=count)
    try:
        yield share()
    finally:
        dist.destroy_process_group()


def _fresh_corner(store: dist.Store, rank: int, count: int) -> dist.Store:
    """A part of the store where nothing lies yet.

    torchrun (PyTorch 2.13) keeps one store over its restarts, and a process may find there the address of one that is
    dead, and wait for it. A count of the restarts would not do: the torchruns of several machines count their own. So
    the first process greets whoever answers, until it knows of all that they are alive.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"coopnet/at/{rank}", own)
        corner = store.get(f"coopnet/to/{own}").decode()
        store.set(f"{corner}/{rank}", own)
        return dist.PrefixStore(corner, store)
    corner, missing = f"coopnet/{own}", set(range(1, count))
    until = time.monotonic() + _MEETING_S
    while missing:
        if time.monotonic() > until:
            raise UsageError(f"Of {count} processes {len(missing)} did not come within {_MEETING_S:g} s: {missing}.")
        for other in missing:
            if store.check([f"coopnet/at/{other}"]):
                store.set(f"coopnet/to/{store.get(f'coopnet/at/{other}').decode()}", corner)
        time.sleep(_PAUSE_S)
        missing = {other for other in missing if not store.check([f"{corner}/{other}"])}
    return dist.PrefixStore(corner, store)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What is done in here is done by this process alone: the others do not take part in it."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def summed(value: Tensor) -> Tensor:
    """Sum over the processes, without graph; in one process the value itself."""
    if share().count == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def true_anywhere(flag: bool, device: torch.device) -> bool:
    """Whether any of the processes says so."""
    return flag if share().count == 1 else bool(summed(torch.tensor(float(flag), device=device)) > 0)


def averaged(value: Tensor) -> Tensor:
    """Mean over the processes, without graph; in one process the value itself."""
    return value if share().count == 1 else summed(value) / share().count


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients by their means over the processes; all must have those of the same parameters.

    In one go after the backward pass: DistributedDataParallel wants one module with one forward, and the three networks
    are called in parts and learn in turns.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if share().count == 1 or not gradients:
        return
    mean = averaged(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if share().count > 1:
        for tensor in tensors:
            received = tensor.contiguous()
            dist.broadcast(received, src=0)
            tensor.copy_(received)


def numbers_from_first(numbers: Sequence[float], device: torch.device) -> list[float]:
    """The numbers that the first process has."""
    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    copy_from_first([tensor])
    return tensor.tolist()
