"""metrics.jsonl, the log of a run: one JSON object a line, whole lines only, each step once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coopnet_core.errors import NoUsableDataError
from coopnet_core.files import write_whole


def read_metrics(metrics: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by an interruption is left out.

    Raises:
        NoUsableDataError: it is missing, or holds no line.
    """
    try:
        text = metrics.read_text()
    except OSError as error:
        raise NoUsableDataError(
            f"{metrics} cannot be read ({error.strerror}). A run folder of a training has one."
        ) from None
    lines = [line for line in map(_parsed, text.splitlines()) if line is not None]
    if not lines:
        raise NoUsableDataError(f"{metrics} holds no line of figures.")
    return lines


def _parsed(row: str) -> dict[str, Any] | None:
    try:
        line = json.loads(row)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and "step" in line else None


class MetricsFile:
    """Appends lines. What a full disk refuses is kept, and written before the next line."""

    def __init__(self, path: Path, last_step: int | None) -> None:
        """Open the file.

        Args:
            path: of the file.
            last_step: lines of later steps are dropped (they will be logged again), and so is a half-written one;
                None: a new file.
        """
        self._path = path
        kept: list[str] = []
        if last_step is not None and path.exists():
            rows = path.read_text().splitlines()
            kept = [row for row in rows if (line := _parsed(row)) is not None and line["step"] <= last_step]
        text = "".join(f"{row}\n" for row in kept).encode()
        write_whole(path, lambda partial: partial.write_bytes(text))
        self._file = path.open("r+b", buffering=0)
        self._whole = len(text)
        self._waiting = b""

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; numbers that are not finite become null, as JSON knows none.

        Raises:
            OSError: the disk refuses; the line is not lost while this object lives.
        """
        self._waiting += (json.dumps({name: _as_json(value) for name, value in line.items()}) + "\n").encode()
        self.write()

    def write(self) -> None:
        """Write what waits, whole or not at all.

        Raises:
            OSError: the disk refuses.
        """
        try:
            self._file.seek(self._whole)
            written = 0
            while written < len(self._waiting):
                written += self._file.write(self._waiting[written:])
        except OSError:
            self._file.truncate(self._whole)
            raise
        self._whole += written
        self._waiting = b""

    def sync(self) -> None:
        """Write what waits and wait until it is on the disk.

        Raises:
            OSError: the disk refuses.
        """
        self.write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _as_json(value: object) -> object:
    if not isinstance(value, float):
        return value
    return round(value, 7) if math.isfinite(value) else None
