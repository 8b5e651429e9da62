"""Computations recorded once as CUDA graphs, then replayed.

A prediction is thousands of small kernels. A processor that starts them one by one takes several times as long as the
GPU takes to run them (docs/results.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 2
"""Runs before a recording: libraries set themselves up in the first ones, which must not be recorded."""


@dataclass(frozen=True)
class _Recording:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    outputs: dict[str, Tensor]


class Recorded:
    """A function of tensors that waits for nothing, recorded for each shape and each manner that it is called in.

    Attributes:
        works: False once a recording has failed: then the function is called as it is.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]], device: torch.device) -> None:
        """`function`: of tensors (or None) on this GPU, and of hashable named arguments."""
        self._function, self._device = function, device
        self._recordings: dict[Hashable, _Recording] = {}
        self.works = True

    def __call__(self, *tensors: Tensor | None, **manner: Hashable) -> dict[str, Tensor]:
        """What the function returns. It is overwritten by the next call: copy it first."""
        if not self.works:
            return self._function(*tensors, **manner)
        key = (
            tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in tensors),
            tuple(sorted(manner.items())),
        )
        if key not in self._recordings:
            try:
                self._recordings[key] = self._record(tensors, manner)
            except RuntimeError as error:
                self.works = False
                warnings.warn(
                    f"The GPU's work cannot be recorded as a CUDA graph and is started kernel by kernel, which is "
                    f"slower: {error}",
                    stacklevel=2,
                )
                return self._function(*tensors, **manner)
        recording = self._recordings[key]
        for place, tensor in zip(recording.inputs, tensors, strict=True):
            if tensor is not None:
                place.copy_(tensor)
        with torch.cuda.device(self._device):
            recording.graph.replay()
        return recording.outputs

    def _record(self, tensors: tuple[Tensor | None, ...], manner: dict[str, Any]) -> _Recording:
        inputs = tuple(None if tensor is None else tensor.clone() for tensor in tensors)
        # One after the other they can share their memory.
        shared = next((recording.graph.pool() for recording in self._recordings.values()), None)
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._function(*inputs, **manner)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
                outputs = self._function(*inputs, **manner)
        return _Recording(graph, inputs, outputs)
