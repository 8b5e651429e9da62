"""Errors that carry the exit code of the commands (0 ok, 2 usage, 3 no usable data, 4 diverged)."""

from __future__ import annotations


class CoopnetError(Exception):
    """Base of all errors a user can cause. The message says what was found, what was expected, what to do."""

    exit_code = 2


class UsageError(CoopnetError):
    """A wrong argument, parameter or file: exit code 2."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read or used: exit code 2."""


class NoUsableDataError(CoopnetError):
    """The data named by the user holds nothing that can be used: exit code 3."""

    exit_code = 3


class DivergedError(CoopnetError):
    """Training left the finite numbers: exit code 4."""

    exit_code = 4
