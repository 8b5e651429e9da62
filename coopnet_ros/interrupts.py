"""Ctrl-C and SIGTERM for commands: the first one interrupts, further ones do not disturb the clean end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM within the block into KeyboardInterrupt, and ignore those after it.

    A launch file sends SIGINT to a process whose terminal has sent it already: the second one would break into the
    saving that the first one asked for. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        if not interrupted:
            for number, handler in previous.items():
                signal.signal(number, handler)
