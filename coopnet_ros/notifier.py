"""Says each thing once, and again only after a while: warnings are not written per frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Notifier:
    """Throttles messages by key; safe to use from several threads."""

    def __init__(
        self, say: Callable[[str], None], every_s: float = 60.0, clock: Callable[[], float] | None = None
    ) -> None:
        """Nothing has been said yet.

        Args:
            say: writes one message, normally the logger's warning.
            every_s: a message of the same key is written again only after this time.
            clock: seconds, monotonic.
        """
        self._say = say
        self._every_s = every_s
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def notify(self, key: str, text: str) -> bool:
        """Write the message unless one of this key was written a short while ago; True when written."""
        with self._lock:
            now = self._clock()
            if key in self._last and now - self._last[key] < self._every_s:
                self._suppressed[key] = self._suppressed.get(key, 0) + 1
                return False
            self._last[key] = now
            repeats = self._suppressed.pop(key, 0)
        self._say(text + (f" ({repeats} more like it since.)" if repeats else ""))
        return True

    def once(self, key: str, text: str) -> bool:
        """Write the message unless one of this key was ever written (since `forget`); True when written."""
        with self._lock:
            if key in self._last:
                return False
            self._last[key] = self._clock()
        self._say(text)
        return True

    def forget(self, key: str) -> None:
        """The condition is over: the next message of this key is written at once."""
        with self._lock:
            self._last.pop(key, None)
            self._suppressed.pop(key, None)
