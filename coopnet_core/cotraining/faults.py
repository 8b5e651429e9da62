"""What a run does when a step fails: words with what was seen and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from coopnet_core.config import StageConfig, TrainConfig
from coopnet_core.errors import DivergedError, UsageError

BAD_STEPS_ALLOWED = 10
"""In a row, before a run counts as diverged."""


def diverged(step: int, bad_steps: int, names: Sequence[str], last_good: str) -> DivergedError:
    """The end of a run whose steps are no longer finite.

    Args:
        step: at which it ends.
        bad_steps: rejected in a row.
        names: of what was not finite in the last one.
        last_good: checkpoint, in words.
    """
    return DivergedError(
        f"Training diverged at step {step}: {bad_steps} steps in a row without finite loss or gradient (not finite: "
        f"{', '.join(names)}). The last good checkpoint is {last_good}: go on from it with --resume and a lower "
        "--set optimiser.learning_rate=..., or check the data."
    )


@contextlib.contextmanager
def memory_explained(config: TrainConfig, stage: StageConfig, size: tuple[int, int], last_good: str) -> Iterator[None]:
    """Turn a failed allocation into words.

    Raises:
        UsageError: the memory of the device or of the machine is used up.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        width, height = size
        raise UsageError(
            f"Out of memory in stage '{stage.name}' with {config.batch_size} targets of {width}x{height} and "
            f"{min(stage.sources, len(config.frame_offsets))} sources each in a batch ({_first_line(error)}). The last "
            f"good checkpoint is {last_good}: go on from it with --resume and a smaller --batch-size. If 1 is still "
            "too much, start anew with a smaller --size, fewer sources or another --preset."
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)  # PyTorch's allocator on the CPU
