"""Trains, kills itself at chosen and at random moments, resumes, compares: a program of its own for test_resume.py.

Each run is a fork of this process, which itself never trains: PyTorch cannot fork once it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # the optimiser imports it: once here instead of in every fork
from unit.tiny_run import same_end, tiny_clip, tiny_config

from coopnet_core import checkpoint
from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.cotraining.metrics_file import MetricsFile
from coopnet_core.cotraining.run_state import state_path
from coopnet_core.cotraining.trainer import train

_KILLED = 9
_CONFIG = tiny_config(steps=3, validate_every=2, checkpoint_every=2)
_LONG = tiny_config(steps=8, validate_every=3, checkpoint_every=1)
_RANDOM_KILLS = 12


def _forked(work: Callable[[], object]) -> int:
    """Process id of a child that does the work and exits with 0."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def _ended(child: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(config: object, output: Path) -> None:
    train(config, [tiny_clip()], [tiny_clip(seed=1)], output, resume=state_path(output).exists())


class _Moments:
    """Counts the file operations of a run, and kills the process at one of them."""

    def __init__(self, fatal: int | None = None) -> None:
        self.names: list[str] = []
        self._fatal = fatal

    def _now(self, name: str) -> bool:
        self.names.append(name)
        return len(self.names) - 1 == self._fatal

    def _before(self, original: Callable, name: str) -> Callable:
        def operation(*arguments, **options):
            if self._now(name):
                os._exit(_KILLED)
            return original(*arguments, **options)

        return operation

    def _half(self, original: Callable) -> Callable:
        def save(content, path, *arguments, **options):
            original(content, path, *arguments, **options)
            if self._now(f"half {Path(path).name.removesuffix('.partial')}"):
                os.truncate(path, os.path.getsize(path) // 2)
                os._exit(_KILLED)

        return save

    def watch(self) -> None:
        os.replace = self._before(os.replace, "replace")
        os.fsync = self._before(os.fsync, "fsync")
        torch.save = self._half(torch.save)
        checkpoint.save_file = self._half(checkpoint.save_file)
        write = MetricsFile.write

        def half_a_line(file):
            if file._waiting and self._now("half metrics.jsonl"):
                os.pwrite(file._file.fileno(), file._waiting[: len(file._waiting) // 2], file._whole)
                os._exit(_KILLED)
            write(file)

        MetricsFile.write = half_a_line


def _watched(output: Path, fatal: int | None = None) -> None:
    moments = _Moments(fatal)
    moments.watch()
    _run(_CONFIG, output)
    (output / "moments.json").write_text(json.dumps(moments.names))


def _loadable(output: Path) -> bool:
    """What is there under its final name is whole."""
    for path in (output / "checkpoints").glob("*.safetensors"):
        load_checkpoint(path)
    torch.load(state_path(output), weights_only=True)
    return True


def _killed_in_a_save(folder: Path) -> list[dict[str, object]]:
    """One run for every moment from the validation before the second save to its end."""
    whole = folder / "whole"
    assert _ended(_forked(lambda: _watched(whole))) == 0
    names = json.loads((whole / "moments.json").read_text())
    last = [index for index, name in enumerate(names) if name == "half state.pt"][1] + 4
    first = max(index for index, name in enumerate(names[:last]) if name == "half best.safetensors") - 1
    results = []
    for fatal in range(first, last):
        output = folder / f"killed_{fatal}"
        killed = _ended(_forked(lambda output=output, fatal=fatal: _watched(output, fatal)))
        loadable = _loadable(output)
        assert _ended(_forked(lambda output=output: _run(_CONFIG, output))) == 0
        results.append(
            {
                "name": names[fatal],
                "killed": killed == _KILLED,
                "loadable": loadable,
                "same end": same_end(whole, output),
            }
        )
    return results


def _killed_at_random(folder: Path) -> dict[str, object]:
    """One run, killed many times by the system."""
    whole, output = folder / "long", folder / "long_killed"
    began = time.monotonic()
    assert _ended(_forked(lambda: _run(_LONG, whole))) == 0
    longest = 0.5 * (time.monotonic() - began)
    draw = random.Random(0)
    found: list[int] = []
    while len(found) < _RANDOM_KILLS:
        child = _forked(lambda: _run(_LONG, output))
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _ended(child)
        with contextlib.suppress(FileNotFoundError):
            found.append(torch.load(state_path(output), weights_only=True)["step"])
    assert _ended(_forked(lambda: _run(_LONG, output))) == 0
    return {"steps found": found, "same end": same_end(whole, output)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results = {"in a save": _killed_in_a_save(folder), "at random": _killed_at_random(folder)}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
