"""One slot for the newest frame, and the one thread that works on it."""

from __future__ import annotations

import functools
import threading
import time
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
        self._busy_since: float | None = None
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
        """Run a task in the thread, before the next item; after `stop` or `cancel_tasks` the future is cancelled."""
        future: Future = Future()
        with self._condition:
            if self._stopping:
                future.cancel()
            else:
                self._tasks.append((task, future))
                self._condition.notify()
        return future

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds since the present item or task was begun; 0 while there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def cancel_tasks(self) -> None:
        """Cancel the tasks that have not begun; whoever waits for them learns it."""
        with self._condition:
            tasks = list(self._tasks)
            self._tasks.clear()
        for _, future in tasks:
            future.cancel()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Let the present item or task end, cancel the others, and join the thread.

        Args:
            timeout_s: how long the present item or task is waited for, seconds; None without end. After it the thread
                ends when what it is busy with comes back.

        Returns:
            Whether the thread has ended.
        """
        with self._condition:
            self._stopping = True
            self._item = None
            self._condition.notify()
        self.cancel_tasks()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._take()) is not None:
            work()
            self._busy_since = None

    def _take(self) -> Callable[[], None] | None:
        """Wait for the next task or item; None when there will be no more."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._tasks or self._item is not None)
            if self._stopping:
                return None
            self._busy_since = time.monotonic()
            if self._tasks:
                return functools.partial(_fulfil, *self._tasks.popleft())
            item, self._item = self._item, None
            return functools.partial(self._work_on, item)

    def _work_on(self, item: Item) -> None:
        try:
            self._handle(item)
        except Exception as error:  # the thread's outermost frame: it must outlive any one item, and says so
            self._on_failure(error)


def run_in_thread(task: Callable[[], Result], name: str) -> Future[Result]:
    """Run one task in a thread of its own, which the end of the process does not wait for.

    Args:
        task: its result, or what it raises, is handed over.
        name: of the thread.
    """
    future: Future = Future()
    threading.Thread(target=_fulfil, args=(task, future), name=name, daemon=True).start()
    return future


def _fulfil(task: Callable[[], object], future: Future) -> None:
    """Run a task and hand its result or its exception to whoever waits."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except Exception as error:  # handed over to the caller of `submit`, not swallowed
        future.set_exception(error)
