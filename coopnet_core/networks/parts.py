"""The named parts of the networks, for those that are to stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from coopnet_core.config import StageConfig, did_you_mean, nearest_name
from coopnet_core.errors import UsageError
from coopnet_core.networks.bundle import NETWORKS, CoopNetworks

_FEATURES = {"encoder": ("encoder",), "features": ("stages", "project")}
"""Parts that look at an image, by the children they are made of; the rest of such a network is its `decoder`."""


@dataclass(frozen=True)
class Part:
    """Some of the networks.

    Attributes:
        modules: whose running means belong to it.
        parameters: its weights.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]


def parts(networks: CoopNetworks) -> dict[str, Part]:
    """All parts by name: the networks, and what each of them is made of (`depth.encoder`, `depth.decoder`, ...)."""
    found = {}
    for name in NETWORKS:
        network = getattr(networks, name)
        found[name] = Part((network,), tuple(network.parameters()))
        children = dict(network.named_children())
        for feature, names in _FEATURES.items():
            if all(child in children for child in names):
                inside = tuple(children[child] for child in names)
                rest = tuple(module for child, module in children.items() if child not in names)
                found[f"{name}.{feature}"] = Part(inside, _parameters(inside))
                found[f"{name}.decoder"] = Part(rest, (*_parameters(rest), *network.parameters(recurse=False)))
    return found


def chosen_parts(networks: CoopNetworks, names: Iterable[str]) -> list[Part]:
    """The parts of these names.

    Raises:
        UsageError: there is none of a name; the nearest is named.
    """
    known = parts(networks)
    for name in names:
        if name not in known:
            hint = did_you_mean(nearest_name(name, known)) or "."
            raise UsageError(f"frozen: the networks have no part {name!r}{hint} They have {', '.join(known)}.")
    return [known[name] for name in names]


def learning_parameters(network: nn.Module, frozen: Iterable[Part]) -> list[nn.Parameter]:
    """The weights of a network that are in no frozen part."""
    held = {id(parameter) for part in frozen for parameter in part.parameters}
    return [parameter for parameter in network.parameters() if id(parameter) not in held]


def without_frozen(
    stages: Sequence[StageConfig], networks: CoopNetworks, frozen: Sequence[Part]
) -> tuple[StageConfig, ...]:
    """The stages with the networks that are frozen as a whole left out of what they train.

    Raises:
        UsageError: nothing is left to a stage.
    """
    whole = {name for name in NETWORKS if not learning_parameters(getattr(networks, name), frozen)}
    left = []
    for stage in stages:
        train = tuple(name for name in stage.train if name not in whole)
        if not train:
            raise UsageError(
                f"frozen: all that the stage {stage.name!r} trains ({', '.join(stage.train)}) is frozen. Freeze less, "
                "or give a schedule without that stage."
            )
        left.append(stage.model_copy(update={"train": train}))
    return tuple(left)


def _parameters(modules: Iterable[nn.Module]) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for module in modules for parameter in module.parameters())
