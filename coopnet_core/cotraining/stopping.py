"""Ending a run between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

_SAME_REQUEST_S = 2.0
"""A second SIGINT within so many seconds is the first one again: `ros2 launch` hands on what a terminal or a supervisor
has sent to the whole group already."""


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM, so that a run ends between two steps and resumes exactly.

    A second Ctrl-C, two seconds later or more, interrupts at once. Outside the main thread signals are left alone.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first: list[float] = []

    def request(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and first and now - first[0] >= _SAME_REQUEST_S:
            raise KeyboardInterrupt
        if not first:
            first.append(now)
        stop.set()

    for number in earlier:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
