"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from coopnet_core.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto takes CUDA when there is one. A GPU always has its number: threads must be told one.

    Raises:
        UsageError: CUDA was asked for and is not there, or the name is unknown.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"Device {name!r} is unknown. Use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"Device {name} was asked for, but this PyTorch sees no CUDA device. Use --device cpu, or install a CUDA "
            "build of torch that fits the driver."
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def half_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware computes in it, else None (emulation is slower than float32)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else None
