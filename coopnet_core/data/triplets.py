"""Targets with their sources, drawn from clips: what a training step consumes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coopnet_core.data.frames import Clip
from coopnet_core.distributed import Share
from coopnet_core.errors import NoUsableDataError, UsageError


@dataclass(frozen=True)
class Batch:
    """Targets and sources.

    Attributes:
        target: (B, 3, H, W) float32 in [0, 1], or uint8 before augmentation.
        sources: (B, S, 3, H, W), likewise.
        camera_matrix: (B, 3, 3) float32 of all frames of a row.
        moving: (B, 1, H, W) bool, the true moving mask of the targets, where every clip has one.
        assumed: (B,) bool, whether the row's K is a guess; None: none is.
    """

    target: Tensor
    sources: Tensor
    camera_matrix: Tensor
    moving: Tensor | None = None
    assumed: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self.tensors()))

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU can copy from while it computes."""
        return Batch(*(None if tensor is None else tensor.pin_memory() for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """All fields."""
        return self.target, self.sources, self.camera_matrix, self.moving, self.assumed


@dataclass(frozen=True)
class SamplerPosition:
    """Where a sampler is; cheap to take, as nothing in it is ever changed.

    Attributes:
        rng: state of its generator.
        orders: of the pass under way, one per group.
        positions: in them.
    """

    rng: Mapping[str, Any]
    orders: tuple[np.ndarray, ...]
    positions: tuple[int, ...]


class TripletSampler:
    """Endless shuffled passes over every target of every clip; its position can be saved and restored.

    Where the clips have weights, each recording (`Clip.source`) has passes of its own, and each target is drawn from
    one of them with a probability proportional to its weight, however many targets it has.
    """

    def __init__(self, clips: Sequence[Clip], offsets: Sequence[int], batch_size: int, seed: int) -> None:
        """Index the targets.

        Raises:
            NoUsableDataError: no frame has all its neighbours, or the clips differ in size.
            UsageError: some clips have a weight and some have none.
        """
        self._clips = list(clips)
        self._offsets = tuple(offsets)
        self._batch_size = batch_size
        self._masked = all(clip.moving is not None for clip in self._clips)
        first, last = min(0, *self._offsets), max(0, *self._offsets)
        self._targets = np.array(
            [(c, k) for c, clip in enumerate(self._clips) for k in range(-first, len(clip) - last)], dtype=np.int64
        ).reshape(-1, 2)
        sizes = {(clip.camera.width, clip.camera.height) for clip in self._clips}
        if len(self._targets) == 0:
            raise NoUsableDataError(
                f"No frame of the {len(self._clips)} clips has neighbours at {self._offsets}: a clip needs at least "
                f"{last - first + 1} frames. Give a longer recording, or loosen the filters for gaps and still frames."
            )
        if len(sizes) > 1:
            raise NoUsableDataError(f"All clips must have one size to be batched, found {sorted(sizes)}. Pass --size.")
        self._rng = np.random.default_rng(seed)
        self._groups, self._shares = _mixture(self._clips, self._targets[:, 0])
        self._orders = [np.empty(0, dtype=np.int64) for _ in self._groups]
        self._positions = [0 for _ in self._groups]

    def __len__(self) -> int:
        """The number of targets of one pass."""
        return len(self._targets)

    def next(self, sources: int, share: Share | None = None) -> Batch:
        """The next batch, uint8, with `sources` of the offsets drawn for each target.

        Args:
            sources: per target.
            share: which of the processes that share each batch this is: it gets its rows alone, but draws for all, so
                that all stay at one position.
        """
        rows = [self._targets[self._next_index()] for _ in range(self._batch_size)]
        chosen = [self._choose_offsets(sources) for _ in rows]
        own = (share or Share()).of(self._batch_size)
        return self._assemble(rows[own], chosen[own])

    def sweep(self, batches: int) -> Iterator[Batch]:
        """Up to `batches` batches evenly spread over the clips, always the same ones, all offsets."""
        count = min(len(self._targets), batches * self._batch_size)
        rows = self._targets[np.linspace(0, len(self._targets) - 1, count).astype(np.int64)]
        for start in range(0, count, self._batch_size):
            part = list(rows[start : start + self._batch_size])
            yield self._assemble(part, [self._offsets] * len(part))

    def position(self) -> SamplerPosition:
        """Where it is now."""
        return SamplerPosition(self._rng.bit_generator.state, tuple(self._orders), tuple(self._positions))

    def go_to(self, position: SamplerPosition) -> None:
        """Continue where `position` was taken, by this sampler or a twin."""
        self._rng.bit_generator.state = position.rng
        self._orders, self._positions = list(position.orders), list(position.positions)

    def twin(self) -> TripletSampler:
        """Another one over the same clips, at the same place; they move on independently."""
        other = copy.copy(self)
        other._rng = np.random.default_rng()
        other.go_to(self.position())
        return other

    def state(self) -> dict[str, object]:
        """What `restore` needs to continue exactly here, as plain values."""
        here = self.position()
        return {
            "rng": here.rng,
            "orders": [order.tolist() for order in here.orders],
            "positions": list(here.positions),
            "shares": self._shares.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            UsageError: it was taken with other weights.
        """
        if not np.array_equal(state["shares"], self._shares):
            before, now = (", ".join(f"{share:.3g}" for share in shares) for shares in (state["shares"], self._shares))
            raise UsageError(
                f"The recordings had the shares {before} of the targets, now they have {now}. Resume with the same "
                "--weights, or start a new run from the weights of this one with --init."
            )
        orders = tuple(np.array(order, dtype=np.int64) for order in state["orders"])
        self.go_to(SamplerPosition(state["rng"], orders, tuple(state["positions"])))

    def _next_index(self) -> int:
        group = 0 if len(self._groups) == 1 else int(self._rng.choice(len(self._groups), p=self._shares))
        if self._positions[group] >= len(self._orders[group]):
            self._orders[group], self._positions[group] = self._rng.permutation(len(self._groups[group])), 0
        self._positions[group] += 1
        return int(self._groups[group][self._orders[group][self._positions[group] - 1]])

    def _choose_offsets(self, sources: int) -> tuple[int, ...]:
        if sources >= len(self._offsets):
            return self._offsets
        return tuple(self._rng.choice(self._offsets, size=sources, replace=False))

    def _assemble(self, rows: Sequence[np.ndarray], offsets: Sequence[tuple[int, ...]]) -> Batch:
        targets, sources, matrices, masks, assumed = [], [], [], [], []
        for (c, k), chosen in zip(rows, offsets, strict=True):
            clip = self._clips[c]
            targets.append(clip.images[k])
            sources.append(np.stack([clip.images[k + offset] for offset in chosen]))
            matrices.append(clip.camera.matrix)
            assumed.append(clip.camera.assumed)
            if self._masked:
                masks.append(clip.moving[k])
        return Batch(
            torch.from_numpy(np.stack(targets)).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack(sources)).permute(0, 1, 4, 2, 3),
            torch.from_numpy(np.stack(matrices)).float(),
            torch.from_numpy(np.stack(masks))[:, None] if self._masked else None,
            torch.tensor(assumed),
        )


def _mixture(clips: Sequence[Clip], clip_of_target: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The targets of each recording, and the probability of each recording; one recording where there are no weights.

    Args:
        clips: the clips.
        clip_of_target: (N,) index of the clip of each target.

    Returns:
        Indices into the targets, one array per recording that has any; shares (R,) float64 that sum to 1.

    Raises:
        UsageError: some clips have a weight and some have none.
    """
    weights = {clip.source: clip.weight for clip in clips}
    if all(weight is None for weight in weights.values()):
        return [np.arange(len(clip_of_target))], np.ones(1)
    if any(weight is None for weight in weights.values()):
        raise UsageError("Some recordings have a weight and some have none: one for each was expected.")
    source_of_target = np.array([clip.source for clip in clips])[clip_of_target]
    sources = np.unique(source_of_target)
    shares = np.array([weights[source] for source in sources.tolist()], np.float64)
    return [np.flatnonzero(source_of_target == source) for source in sources], shares / shares.sum()
