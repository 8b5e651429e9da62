"""The settings of a run of `train_from_bags`: where they come from, whether they can be, and in words."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from coopnet_core.config import NetworksConfig, TrainConfig, differences, load_config
from coopnet_core.errors import UsageError
from coopnet_core.resources import shipped_file
from coopnet_ros.train_options import ADAPTATION, DEFAULT_PRESET


def configuration(arguments: argparse.Namespace) -> TrainConfig:
    """The configuration of the run: `base_configuration`, then files, overrides, options.

    Raises:
        UsageError: see `load_config`; also when the device is not there, or the weights are of other networks.
    """
    from coopnet_core.checkpoint import refuse_other_networks
    from coopnet_core.devices import resolve_device

    overrides = dict(arguments.overrides)
    for name in ("steps", "batch_size", "seed", "device"):
        if getattr(arguments, name) is not None:
            overrides[name] = str(getattr(arguments, name))
    if arguments.freeze:
        overrides["frozen"] = f"[{', '.join(arguments.freeze)}]"
    config = base_configuration(arguments, _more_files(arguments), overrides)
    if arguments.learn_intrinsics:
        config = config.model_copy(update={"learn_intrinsics": True})
    if arguments.init is not None:
        refuse_other_networks(arguments.init, _networks_of(arguments.init), config.networks)
    resolve_device(config.device)
    return config


def _more_files(arguments: argparse.Namespace) -> list[Path]:
    """The files on top of the preset; a resumed run holds the settings of --adapt already."""
    adaptation = [shipped_file(ADAPTATION)] if arguments.adapt and not arguments.resume else []
    return [*adaptation, *arguments.config]


def base_configuration(
    arguments: argparse.Namespace, files: Sequence[Path] = (), overrides: Mapping[str, str] | None = None
) -> TrainConfig:
    """The preset, or what the resumed run was told; with the networks of the weights, where no preset was named.

    Args:
        files, overrides: on top of it.

    Raises:
        UsageError: see `load_config`.
        CheckpointError: the weights cannot be read.
    """
    if arguments.resume:
        return load_config(arguments.preset, [arguments.output / "config.yaml", *files], overrides or {})
    config = load_config(arguments.preset or DEFAULT_PRESET, files, overrides or {})
    if arguments.init is not None and arguments.preset is None:
        config = config.model_copy(update={"networks": _networks_of(arguments.init)})
    return config


def check_frozen(arguments: argparse.Namespace, config: TrainConfig) -> None:
    """Refuse frozen parts that cannot be, before anything is read.

    Raises:
        UsageError: says what was found and what to do.
    """
    if arguments.resume:
        from coopnet_core.cotraining.run_folder import last_checkpoint

        before = base_configuration(arguments).frozen
        if config.frozen != before:
            raise UsageError(
                f"--resume goes on with what the run has frozen ({', '.join(before) or 'nothing'}). For other parts "
                f"start a new run from its weights: --init {last_checkpoint(arguments.output)}."
            )
    if not config.frozen:
        return
    if arguments.init is None and not arguments.resume:
        raise UsageError(
            f"Frozen parts ({', '.join(config.frozen)}) stay as they are, but without --init they are random. Name the "
            "weights to start from."
        )
    import torch

    from coopnet_core.networks.bundle import CoopNetworks
    from coopnet_core.networks.parts import chosen_parts, without_frozen

    with torch.device("meta"):  # names alone
        networks = CoopNetworks(config.networks)
    without_frozen(config.fine_tuning, networks, chosen_parts(networks, config.frozen))


def _networks_of(checkpoint: Path) -> NetworksConfig:
    """The configuration of the networks in a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    from coopnet_core.checkpoint import read_metadata

    return NetworksConfig.model_validate(read_metadata(checkpoint).networks)


def input_size(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The size the user chose, else that of the resumed run, else None (to be chosen for the first camera)."""
    from coopnet_core.checkpoint import read_metadata
    from coopnet_core.cotraining.run_folder import last_checkpoint

    if arguments.size is not None or not arguments.resume:
        return arguments.size
    metadata = read_metadata(last_checkpoint(arguments.output))
    return metadata.width, metadata.height


def settings_in_words(arguments: argparse.Namespace, config: TrainConfig) -> str:
    """Where the settings come from, and what differs from there: `key value (value there)`."""
    if arguments.resume:
        origin = f"of the run in {arguments.output}"
    else:
        origin = f"preset {arguments.preset or DEFAULT_PRESET}"
        if arguments.init is not None and arguments.preset is None:
            origin += ", networks of the checkpoint"
    changes = [
        f"{key} {_brief(value)} ({_brief(before)})"
        for key, (value, before) in differences(config, base_configuration(arguments)).items()
    ]
    return f"{origin}; differing: {', '.join(changes)}" if changes else origin


def _brief(value: Any) -> str:
    """A setting in a few letters."""
    if isinstance(value, list):
        return f"[{', '.join(str(entry.get('name')) if isinstance(entry, dict) else str(entry) for entry in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_table() -> Table:
    """Every key of --set."""
    table = Table(title="Settings (defaults before the preset)")
    for name in ("key", "default", "meaning"):
        table.add_column(name, overflow="fold")
    for key, default, meaning in _settings(TrainConfig):
        table.add_row(key, escape(default), escape(meaning))
    return table


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, description) of every leaf of the configuration tree; N stands for a place in a list."""
    for name, entry in model.model_fields.items():
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, BaseModel):
            yield from _settings(entry.annotation, f"{prefix}{name}.")
            continue
        default = "-" if entry.is_required() else str(entry.default)
        inside = [one for one in get_args(entry.annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
        yield prefix + name, "as listed below" if inside else default, entry.description or ""
        for model_inside in inside:
            yield from _settings(model_inside, f"{prefix}{name}.N.")
