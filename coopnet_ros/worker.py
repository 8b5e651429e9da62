"""One slot for the newest frame, and the one thread that works on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Worker(Generic[Item]):
    """A thread that takes the newest item, and runs whatever else touches the networks between two items.

    Everything that `handle` uses is used by this thread only, so that it needs no lock.
    """

    def __init__(self, handle: Callable[[Item], None], on_failure: Callable[[Exception], None]) -> None:
        """Start the thread.

        Args:
            handle: called with each item taken.
            on_failure: called with what `handle` raised; the thread lives on.
        """
        self._handle = handle
        self._on_failure = on_failure
        self._condition = threading.Condition()
        self._item: Item | None = None
        self._tasks: deque[tuple[Callable[[], object], Future]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="coopnet-worker", daemon=True)
        self._thread.start()

    def offer(self, item: Item) -> bool:
        """Make this the newest item; True when it replaced one that nobody will see."""
        with self._condition:
            replaced = self._item is not None
            self._item = item
            self._condition.notify()
            return replaced

    def discard(self) -> bool:
        """Empty the slot; True when there was an item."""
        with self._condition:
            had_one = self._item is not None
            self._item = None
            return had_one

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Run a task in the thread, before the next item; after `stop` the future is cancelled."""
        future: Future = Future()
        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._tasks.append((task, future))
                self._condition.notify()
        return future

    def stop(self) -> None:
        """Let the present item or task end, cancel the others, and join the thread."""
        with self._condition:
            self._stopping = True
            self._item = None
            while self._tasks:
                self._tasks.popleft()[1].cancel()
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._tasks or self._item is not None)
                if self._stopping:
                    return
                task, future = self._tasks.popleft() if self._tasks else (None, None)
                item = None
                if task is None:
                    item, self._item = self._item, None
            if task is not None:
                _fulfil(task, future)
            else:
                self._work_on(item)

    def _work_on(self, item: Item) -> None:
        try:
            self._handle(item)
        except Exception as error:  # the thread's outermost frame: it must outlive any one item, and says so
            self._on_failure(error)


def _fulfil(task: Callable[[], object], future: Future) -> None:
    """Run a task and hand its result or its exception to whoever waits."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except Exception as error:  # handed over to the caller of `submit`, not swallowed
        future.set_exception(error)
