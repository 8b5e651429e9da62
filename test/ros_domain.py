"""ROS domains that tests have to themselves: two at once in one domain would see each other's nodes."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DOMAINS = range(1, 101)
"""Those whose ports lie below the ones that Linux gives away."""


@contextmanager
def own_domain() -> Iterator[int]:
    """A domain that no other test on this computer uses meanwhile, whichever process it runs in."""
    folder = Path(tempfile.gettempdir()) / f"coopnet_test_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in random.sample(_DOMAINS, len(_DOMAINS)):
        with (folder / str(domain)).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield domain
            return
    raise RuntimeError(f"All {len(_DOMAINS)} ROS domains of {folder} are in use.")
