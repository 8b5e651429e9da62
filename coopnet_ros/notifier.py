"""Says each thing once, and again only after a while: warnings are not written per frame."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

_NUMBER = re.compile(r"[-+]?\b(\d[\d.]*(e[-+]?\d+)?|nan|inf)\b")
_MOST_PER_KEY = 8
"""Different messages of one key within the time: a stream of junk is not written out."""


class Notifier:
    """Throttles messages by key and wording; safe to use from several threads.

    Two messages of one key that differ in more than their numbers are two conditions, and both are written.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        every_s: float = 60.0,
        clock: Callable[[], float] | None = None,
        again_s: float = 10.0,
    ) -> None:
        """Nothing has been said yet.

        Args:
            say: writes one message, normally the logger's warning.
            every_s: a message is written again only after this time.
            clock: seconds, monotonic.
            again_s: the same where the condition was over in between (`recover`).
        """
        self._say = say
        self._every_s = every_s
        self._again_s = again_s
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._last: dict[str, dict[str, float]] = {}
        self._recovered: set[tuple[str, str]] = set()
        self._suppressed: dict[tuple[str, str], int] = {}

    def notify(self, key: str, text: str) -> bool:
        """Write the message unless it was written a short while ago; True when written."""
        wording = _NUMBER.sub("#", text)
        with self._lock:
            now = self._clock()
            said = self._last.setdefault(key, {})
            for old in [old for old, at in said.items() if old != wording and now - at >= self._every_s]:
                self._drop(key, old)
            pause = self._again_s if (key, wording) in self._recovered else self._every_s
            throttled = now - said[wording] < pause if wording in said else len(said) >= _MOST_PER_KEY
            if throttled:
                if wording in said:
                    self._suppressed[key, wording] = self._suppressed.get((key, wording), 0) + 1
                return False
            said[wording] = now
            self._recovered.discard((key, wording))
            repeats = self._suppressed.pop((key, wording), 0)
        self._say(text + (f" ({repeats} more like it since.)" if repeats else ""))
        return True

    def once(self, key: str, text: str) -> bool:
        """Write the message unless one of this key was ever written (since `forget`); True when written."""
        with self._lock:
            if key in self._last:
                return False
            self._last[key] = {text: self._clock()}
        self._say(text)
        return True

    def forget(self, key: str) -> None:
        """The condition is over: the next message of this key is written at once."""
        with self._lock:
            for wording in list(self._last.get(key, ())):
                self._drop(key, wording)
            self._last.pop(key, None)

    def recover(self, *keys: str) -> None:
        """The condition is over, but may come and go with every frame: the same message has a shorter pause."""
        with self._lock:
            for key in keys:
                self._recovered.update((key, wording) for wording in self._last.get(key, ()))

    def _drop(self, key: str, wording: str) -> None:
        """Forget one message; the lock is held."""
        self._last[key].pop(wording, None)
        self._recovered.discard((key, wording))
        self._suppressed.pop((key, wording), None)
