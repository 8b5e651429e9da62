"""The batches of a run one after the other, drawn ahead of the trainer where that helps."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable

import torch

from coopnet_core.data.triplets import Batch, SamplerPosition, TripletSampler
from coopnet_core.distributed import Share

AHEAD_ON_GPU = 3
_PAUSE_S = 0.1


def batches_ahead(device: torch.device) -> int:
    """How many batches to draw ahead: none on a CPU, where the thread would take the time of a step that it saves."""
    return AHEAD_ON_GPU if device.type == "cuda" else 0


class Batches:
    """The batches of a run, on its device.

    With some ahead, a thread draws and assembles them, in pinned memory for a GPU, while the trainer computes. The
    order of the draws is the same, and the sampler's position is always that of the batches handed out, so that a run
    can be saved at any moment and does not depend on how many are ahead.

    Attributes:
        waited_s: seconds that the trainer has waited for batches so far.
    """

    def __init__(
        self, sampler: TripletSampler, sources: Iterable[int], share: Share, device: torch.device, ahead: int
    ) -> None:
        """Nothing is drawn before the first `next`.

        Args:
            sampler: moves on by the batches that are handed out.
            sources: per target, of each batch to come; there are as many batches.
            share: which of the processes that share each batch this is.
            device: of the batches.
            ahead: 0: no thread.
        """
        self._sampler, self._sources, self._share, self._device = sampler, iter(sources), share, device
        self._ready: queue.Queue[tuple[Batch, SamplerPosition] | BaseException] = queue.Queue(max(1, ahead))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw_ahead, name="batches", daemon=True) if ahead else None
        self.waited_s = 0.0

    def next(self) -> Batch:
        """The next batch, uint8.

        Raises:
            StopIteration: there is none.
            What the sampler raises, in the thread too.
        """
        began = time.monotonic()
        if self._thread is None:
            batch = self._sampler.next(next(self._sources), self._share)
        else:
            if self._thread.ident is None:
                self._thread.start()
            drawn = self._ready.get()
            if isinstance(drawn, BaseException):
                raise drawn
            batch, position = drawn
            self._sampler.go_to(position)
        batch = batch.to(self._device)
        self.waited_s += time.monotonic() - began
        return batch

    def close(self) -> None:
        """End the thread; what it has drawn ahead is forgotten."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _draw_ahead(self) -> None:
        """The thread's work."""
        sampler = self._sampler.twin()
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # of this thread; pinned memory belongs to one
            for sources in self._sources:
                batch = sampler.next(sources, self._share)
                if self._device.type == "cuda":
                    batch = batch.pinned()
                if not self._hand_over((batch, sampler.position())):
                    return
            raise StopIteration
        except BaseException as error:
            self._hand_over(error)

    def _hand_over(self, drawn: tuple[Batch, SamplerPosition] | BaseException) -> bool:
        """Wait until there is room. False: nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._ready.put(drawn, timeout=_PAUSE_S)
                return True
            except queue.Full:
                continue
        return False
