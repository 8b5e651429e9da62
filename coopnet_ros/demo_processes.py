"""The demo's steps as processes of their own: each is the command that a user would type."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from coopnet_core.errors import CoopnetError
from coopnet_ros.command import INTERRUPTED

_GRACE_S = 10
_LOG_LINES = 15


class StepError(CoopnetError):
    """A step of the demo that failed, with the exit code of its command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def command_line(command: str, arguments: Sequence[object]) -> list[str]:
    """The command as a module of the python that runs now: independent of what is on the PATH."""
    return [sys.executable, "-m", f"coopnet_ros.{command}", *(str(argument) for argument in arguments)]


def run_command(command: str, arguments: Sequence[object]) -> None:
    """Run a command to its end, its messages and progress bars on this terminal.

    Raises:
        StepError: it failed; its own message stands above.
        KeyboardInterrupt: it was interrupted.
    """
    with subprocess.Popen(command_line(command, arguments)) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reaches the whole group of processes: the command is saving and ends by itself.
            _wait_or_kill(process)
            raise
    if code in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        typed = " ".join([command, *(str(argument) for argument in arguments)])
        raise StepError(
            f"`{typed}` ended with exit code {code}; its message is above.", code if code in (2, 3, 4) else 2
        )


class Background:
    """A command that runs beside others, its output in a log file; stopped by SIGINT at the end of the block."""

    def __init__(self, command: str, arguments: Sequence[object], log: Path) -> None:
        self._command, self._log = command, log
        with log.open("wb") as output:
            # In a group of its own, so that Ctrl-C at the terminal leaves the order of stopping to this process.
            self._process = subprocess.Popen(
                command_line(command, arguments), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        died = self._process.poll()
        if died is None:
            self._process.send_signal(signal.SIGINT)
            _wait_or_kill(self._process)
        elif died != 0 and (kind is None or issubclass(kind, StepError)):
            raise StepError(
                f"{self._command} ended with exit code {died}. The end of {self._log}:\n{tail(self._log)}",
                died if died in (2, 3, 4) else 2,
            ) from error

    def wait(self, seconds: float) -> None:
        """Wait for it to end by itself, at most so long."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return


def tail(log: Path) -> str:
    """The last lines of a log file."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:]) or "(empty)"


def _wait_or_kill(process: subprocess.Popen) -> None:
    """Wait for a process that was asked to end; end it where it does not."""
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
