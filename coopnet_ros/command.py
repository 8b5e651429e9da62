"""What all commands do alike: errors become one message on stderr and an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from coopnet_core.errors import CoopnetError, UsageError

INTERRUPTED = 130


def image_size(text: str) -> tuple[int, int]:
    """The (width, height) of an argument such as 416x128, pixels; for argparse."""
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 416x128") from None
    return width, height


def run_guarded(work: Callable[[], int], interrupted: str) -> int:
    """Run the work of a command; gives its exit code (0 ok, 2 usage, 3 no usable data, 4 diverged, 130 interrupted).

    Args:
        work: returns an exit code; may raise `CoopnetError`, `OSError`, `SystemExit` (argparse) and Ctrl-C.
        interrupted: what to say after Ctrl-C about what was kept.
    """
    complaints = Console(stderr=True)
    try:
        return work()
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    except CoopnetError as error:
        complaints.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return error.exit_code
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}. Is there space, and may you read and write there?"
        complaints.print(f"[bold red]error:[/] {escape(reason)}", soft_wrap=True)
        return UsageError.exit_code
    except KeyboardInterrupt:
        complaints.print(interrupted)
        return INTERRUPTED
