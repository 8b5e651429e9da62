"""Checkpoints: safetensors with JSON metadata. Loading one never runs code.

The file holds the weights and everything that using them needs. What an exact resume needs besides (optimiser, random
state, position in the data) lies beside it in `state.pt`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from coopnet_core import __version__
from coopnet_core.config import NetworksConfig
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.errors import CheckpointError, UsageError
from coopnet_core.files import write_whole
from coopnet_core.networks.bundle import CoopNetworks

_KEY = "coopnet"
FORMAT = 1


@dataclass(frozen=True)
class CheckpointMetadata:
    """Facts that travel with the weights.

    Attributes:
        networks: the configuration the networks are built from, as plain data.
        width, height: input size in training, pixels.
        camera_matrix: K of the first training clip at that size (3x3 rows).
        error_model: the fitted figures of the error model.
        error_model_config: how they are turned into a posterior, as plain data.
        step: optimiser steps so far, all runs added up.
        scale: statement about the unit of depth: "relative" (unknown) or "metric".
        data: what it was trained on (names, hashes, counts).
        figures: figures reached on the validation part.
        licence: terms of the weights.
        version: of coopnet_core that wrote it.
        format: of this metadata.
    """

    networks: dict[str, Any]
    width: int
    height: int
    camera_matrix: list[list[float]]
    error_model: dict[str, float]
    error_model_config: dict[str, Any]
    step: int
    scale: str = "relative"
    data: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    licence: str = ""
    version: str = __version__
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """Networks in evaluation mode with their metadata and error model."""

    networks: CoopNetworks
    metadata: CheckpointMetadata
    error_model: ErrorModelState


def save_checkpoint(path: Path, networks: CoopNetworks, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint; the old file stays whole until the new one is complete.

    Raises:
        CheckpointError: the disk refuses (full, read-only).
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in networks.state_dict().items()}

    def write(partial: Path) -> None:
        save_file(tensors, partial, metadata={_KEY: json.dumps(asdict(metadata))})
        partial.chmod(0o644)  # safetensors writes files that only their owner can read

    try:
        write_whole(path, write)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Checkpoint {path} could not be written: {error}. Free disk space or choose another output."
        ) from None


def read_metadata(path: Path) -> CheckpointMetadata:
    """The metadata alone.

    Raises:
        CheckpointError: missing file, not a safetensors file, not written by coopnet, or of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"Checkpoint {path} does not exist. Expected a .safetensors file written by coopnet.")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be read ({error}). Expected a whole .safetensors file: was it cut off by a copy?"
        ) from None
    if raw is None:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of coopnet (no '{_KEY}' metadata).")
    try:
        metadata = CheckpointMetadata(**json.loads(raw))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The metadata of checkpoint {path} is not understood: {error}.") from None
    if metadata.format > FORMAT:
        raise CheckpointError(
            f"Checkpoint {path} has format {metadata.format}, this version reads up to {FORMAT}: update coopnet."
        )
    return metadata


def refuse_other_networks(path: Path, found: NetworksConfig, chosen: NetworksConfig) -> None:
    """Whether the networks of a checkpoint are those that a configuration describes.

    Raises:
        UsageError: they are not.
    """
    if found != chosen:
        raise UsageError(
            f"Checkpoint {path} holds networks of another configuration than the one chosen. Leave the preset away to "
            "train those, choose the preset they were trained with, or start without these weights."
        )


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Networks, metadata and error model, ready to use.

    Raises:
        CheckpointError: as `read_metadata`, or weights that do not fit the stated networks or are not finite.
    """
    metadata = read_metadata(path)
    try:
        networks = CoopNetworks(NetworksConfig.model_validate(metadata.networks))
        error_model = ErrorModelState.from_floats(metadata.error_model, device)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        networks.load_state_dict(tensors)
    except (RuntimeError, SafetensorError, ValueError, KeyError, UsageError) as error:
        raise CheckpointError(f"The weights of checkpoint {path} do not fit the networks it states: {error}") from None
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"Checkpoint {path} holds values that are not finite, first in {bad[0]}: use another one."
        )
    return Checkpoint(networks.to(device).eval(), metadata, error_model)
