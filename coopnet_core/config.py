"""The typed configuration tree: presets and files in YAML, overrides from the command line, unknown keys refused."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from coopnet_core.errors import UsageError
from coopnet_core.resources import share_directory, shipped_file


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(_Model):
    """A residual encoder."""

    layers: tuple[int, int, int, int] = Field((2, 2, 2, 2), description="residual blocks per stage (ResNet-18)")
    widths: tuple[int, int, int, int, int] = Field(
        (64, 64, 128, 256, 512), description="channels of the stem and of the four stages"
    )


class DepthConfig(_Model):
    """The depth network."""

    encoder: EncoderConfig = EncoderConfig()
    decoder_widths: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 128, 256), description="decoder channels at 1/1, 1/2, 1/4, 1/8 and 1/16 of the size"
    )
    finest_scale: int = Field(0, ge=0, le=2, description="finest predicted disparity: size / 2^finest_scale")
    scales: int = Field(4, ge=1, le=4, description="number of predicted scales, from the finest upwards")
    minimum: float = Field(0.1, gt=0, description="nearest depth, in the networks' unit")
    maximum: float = Field(100.0, gt=0, description="farthest depth, in the networks' unit")


class PoseConfig(_Model):
    """The odometry network."""

    source: Literal["images", "flow"] = Field(
        "images", description="what it sees: the two images, or flow + inverse depth + viewing rays (both detached)"
    )
    encoder: EncoderConfig = EncoderConfig()
    width: int = Field(32, ge=8, description="base channels when source is flow")


class FlowConfig(_Model):
    """The optical-flow network."""

    widths: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 96, 128), description="feature channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size"
    )
    projected: int = Field(32, ge=8, description="channels of the features given to the decoder at every level")
    decoder_widths: tuple[int, ...] = Field((128, 96, 64, 32), description="channels of the decoder's layers")
    search_range: int = Field(4, ge=1, le=6, description="correlation range at each level, pixels of that level")


class NetworksConfig(_Model):
    """The three networks."""

    depth: DepthConfig = DepthConfig()
    pose: PoseConfig = PoseConfig()
    flow: FlowConfig = FlowConfig()


class ErrorModelConfig(_Model):
    """The distribution of Delta = e_r - e_f and the posterior of motion."""

    cue: Literal["photometric", "correspondence", "joint"] = Field(
        "joint", description="what tells movers: Delta, the disagreement |F - F_rigid| of the two warps, or both"
    )
    static_family: Literal["asymmetric_laplace", "asymmetric_laplace_free", "laplace", "student_t"] = Field(
        "asymmetric_laplace",
        description="density of Delta on static pixels: mode 0 in closed form, free mode, symmetric, or heavy tails",
    )
    moving_family: Literal["gaussian", "student_t", "exponential"] = Field(
        "gaussian",
        description="density of Delta on moving pixels, anchored: a bump, one with heavy tails, or a one-sided tail",
    )
    decay: float = Field(0.98, ge=0, lt=1, description="decay of the moving averages of the fitted figures")
    em_steps: int = Field(2, ge=1, le=10, description="EM steps per iteration")
    minimum_b: float = Field(2e-3, gt=0, description="floor of the static scales b_r and b_f")
    anchor_share: float = Field(
        0.02,
        gt=0,
        description="how much the anchor counts beside the movers that were found, as a share of the visible pixels",
    )
    minimum_pi: float = Field(0.03, gt=0, lt=0.5, description="floor of the moving share")
    maximum_pi: float = Field(0.4, gt=0, lt=1, description="cap of the moving share, fitted and flagged per image")
    gate_separation: float = Field(1.5, gt=0, description="anchored mean / b_r above which the posterior is used")
    gate_log_separation: float = Field(
        1.0, gt=0, description="distance of the means of the log disagreement over its static spread, likewise"
    )
    photometric_limit: float = Field(
        0.5, gt=0, description="static disagreement (about pixels) below which Delta speaks in the joint posterior"
    )
    caution: float = Field(
        1.0,
        gt=0,
        description="factor on the odds of motion when pixels are withheld: how many static pixels may be given up to "
        "spare depth and odometry one that moves",
    )
    ramp_steps: int = Field(200, ge=1, description="steps over which the posterior fades in once the gate is open")
    coarse_factor: int = Field(4, ge=1, le=8, description="image reduction for the posterior early in training")
    smoothing: int = Field(5, ge=1, le=9, description="box on Delta, pixels (odd)")


class RuleConfig(_Model):
    """Figures of the rules that have one."""

    soft_min_temperature: float = Field(0.05, gt=0, description="soft_min: softmax(-e / temperature)")
    consensus_distance: float = Field(
        1.0, gt=0, description="competition: static where the two warps differ by less, pixels"
    )
    withheld_share: float = Field(
        0.15, gt=0, lt=1, description="threshold: share of the pixels with the largest e_r that is withheld"
    )


class LossConfig(_Model):
    """The hybrid loss and the rules it is compared with."""

    rule: Literal["hybrid", "hybrid_hard", "sum", "min", "soft_min", "competition", "threshold", "oracle"] = Field(
        "hybrid",
        description="which pixels teach which side; hybrid: movers are withheld from depth and odometry, flow learns "
        "everywhere; the others are for comparison",
    )
    rules: RuleConfig = RuleConfig()
    apportionment: Literal["per_pixel", "relative_progress", "importance", "progress"] = Field(
        "per_pixel", description="scalar weights of the two sides on top of the per-pixel rule"
    )
    apportionment_acts_on: Literal["loss", "learning_rate"] = Field(
        "loss", description="what the scalar weights multiply: the side's photometric term, or its learning rate"
    )
    progress_alpha: float = Field(1.0, gt=0, description="progress: exponent of the relative progress")
    rigid: float = Field(1.0, ge=0, description="weight of the rigid photometric term")
    flow: float = Field(1.0, ge=0, description="weight of the flow photometric term")
    disparity_smoothness: float = Field(1e-3, ge=0, description="weight of the disparity's smoothness")
    flow_smoothness: float = Field(0.1, ge=0, description="weight of the flow's second-order smoothness")
    coarse_flow: float = Field(0.5, ge=0, description="weight of the photometric error of the coarser flows")
    auto_mask: bool = Field(True, description="drop pixels that the unmoved source explains better than the rigid warp")
    occlusion: Literal["none", "forward_backward", "splatting"] = Field(
        "forward_backward",
        description="how hidden pixels are found and dropped: not at all, by the forward-backward check of the flows, "
        "or where the backward flow, splatted, does not reach",
    )
    contact: float = Field(
        0.0,
        ge=0,
        description="weight of the tie of what is withheld to the depth of the ground below it; 0.01 holds, at 0.1 "
        "depth has collapsed",
    )
    depth_consistency: float = Field(
        0.0, ge=0, description="weight of the disagreement of the depths of target and source, on static pixels"
    )
    error_model: ErrorModelConfig = ErrorModelConfig()


class StageConfig(_Model):
    """One stage of the schedule."""

    name: str = Field(description="shown in logs")
    share: float = Field(gt=0, description="share of the steps, relative to the other stages")
    train: tuple[Literal["depth", "pose", "flow"], ...] = Field(
        ("depth", "pose", "flow"), description="networks that learn in this stage"
    )
    rate: float = Field(1.0, gt=0, description="learning rate of this stage, relative to optimiser.learning_rate")
    consistency: float = Field(0.0, ge=0, description="weight of rho(F - F_rigid), F detached, on static pixels")
    matches: float = Field(
        0.0, ge=0, description="weight of the flow's distance to matches of a classical method, pixels"
    )
    flow_photometric: bool = Field(True, description="whether the flow learns from its photometric error")
    posterior: Literal["off", "coarse", "fine"] = Field("fine", description="resolution of the motion posterior")
    sources: int = Field(2, ge=1, description="sources per target, drawn from frame_offsets")
    loss_factor: int = Field(1, ge=1, le=4, description="the losses see images reduced by this factor")
    batch_statistics: bool = Field(
        True,
        description="batch normalisation by the means of each batch, which also move the running ones; false: by the "
        "running ones, as they are",
    )


class OptimiserConfig(_Model):
    """Adam and its schedule."""

    learning_rate: float = Field(1e-4, gt=0, description="Adam's step size at its highest")
    warm_up_steps: int = Field(100, ge=0, description="linear increase from 0 at the start of each stage")
    final_factor: float = Field(0.1, gt=0, le=1, description="cosine decay to this share at the end of the run")
    intrinsics_rate: float = Field(
        2e-3, gt=0, description="Adam's step size for the logarithm of a learned focal length"
    )
    gradient_clip: float = Field(1.0, gt=0, description="largest gradient norm, per network")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay per step of a running mean of the weights, which is then validated and kept; 0: none",
    )


class AugmentationConfig(_Model):
    """Drawn once per clip and applied to all its frames."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal mirror (K follows)")
    brightness: float = Field(0.2, ge=0, lt=1, description="largest relative change")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest relative change")
    saturation: float = Field(0.2, ge=0, le=1, description="largest relative change")
    grey: float = Field(0.1, ge=0, le=1, description="probability of a grey image, so that mono cameras work too")


class TrainConfig(_Model):
    """Everything a training run depends on besides its data."""

    networks: NetworksConfig = NetworksConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    stages: tuple[StageConfig, ...] = Field(
        (StageConfig(name="together", share=1.0),), description="stages of a run without --init"
    )
    fine_tuning: tuple[StageConfig, ...] = Field(
        (StageConfig(name="together", share=1.0),), description="stages of a run that starts from a checkpoint"
    )
    frame_offsets: tuple[int, ...] = Field((-1, 1), min_length=1, description="sources of a target frame")
    frozen: tuple[str, ...] = Field(
        (),
        description="parts of the networks that do not learn, such as depth.encoder or flow; their weights and running "
        "means stay as they are",
    )
    pixels: int = Field(53248, gt=0, description="area of the networks' input when no size is given (416x128)")
    steps: int = Field(2000, gt=0, description="optimiser steps")
    batch_size: int = Field(4, gt=0, description="targets per step, of all processes together")
    learn_intrinsics: bool = Field(
        False, description="learn the focal length of recordings without calibration, from the assumed one"
    )
    mixed_precision: bool = Field(True, description="bfloat16 inside the networks; losses stay in float32")
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    log_every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    validate_every: int = Field(200, gt=0, description="steps between validations")
    validation_batches: int = Field(8, gt=0, description="batches of one validation")
    checkpoint_every: int = Field(200, gt=0, description="steps between writes of last.safetensors")
    keep_last: int = Field(
        0, ge=0, description="how many of the newest checkpoints stay as step_*.safetensors, beside last and best"
    )
    patience: int = Field(
        0, ge=0, description="validations of the last stage without a better one after which the run ends; 0: never"
    )


Place = tuple[str | int, ...]
"""Where a value stands in the tree: keys, and positions in lists."""


def load_config(preset: str | None, files: Sequence[Path], overrides: Mapping[str, str]) -> TrainConfig:
    """A configuration from a preset, then files, then dotted overrides such as {"optimiser.learning_rate": "1e-4"}.

    Files replace lists whole; an override may also name an entry of one, as in {"stages.0.share": "0.5"}.

    Raises:
        UsageError: unknown preset, unreadable file, unknown key (the nearest valid one is named) or value out of range;
            it says where each wrong value came from.
    """
    tree = TrainConfig().model_dump(mode="json")
    origins: dict[str, dict[str, Any]] = {}
    paths = {} if preset is None else {f"preset {preset}": preset_file(preset)}
    for origin, path in (paths | {str(path): path for path in files}).items():
        origins[origin] = _read_yaml(path)
        _merge(tree, origins[origin])
    set_here: dict[Place, str] = {}
    for key, text in overrides.items():
        set_here[_set_dotted(tree, key, _parse_value(key, text))] = f"{key}={text}"
    return _validated(tree, lambda place: _origin(place, origins, set_here))


def config_from_tree(tree: dict[str, Any]) -> TrainConfig:
    """Validate a nested dictionary.

    Raises:
        UsageError: every problem in one message.
    """
    return _validated(tree, lambda _: "")


def preset_names() -> list[str]:
    """The presets shipped in config/presets."""
    return sorted(path.stem for path in (share_directory() / "config" / "presets").glob("*.yaml"))


def preset_lines() -> dict[str, str]:
    """What each preset is, in a line: the first of its file."""
    return {name: preset_file(name).read_text().splitlines()[0].lstrip("# ") for name in preset_names()}


def preset_file(name: str) -> Path:
    """The file of a preset.

    Raises:
        UsageError: there is none of that name; the nearest is named.
    """
    names = preset_names()
    if name not in names:
        hint = did_you_mean(nearest_name(name, names)) or "."
        raise UsageError(
            f"There is no preset {name!r}{hint} Shipped: {', '.join(names)}. A file of your own: --config."
        )
    return shipped_file(f"config/presets/{name}.yaml")


def differences(config: TrainConfig, base: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Where a configuration differs from another one: dotted key to (its value, that of `base`).

    Lists of equal length are compared entry by entry (`stages.0.share`), others are given whole.
    """
    return dict(_differences(config.model_dump(mode="json"), base.model_dump(mode="json"), ""))


def _differences(value: Any, base: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if value == base:
        return
    prefix = f"{key}." if key else ""
    if isinstance(value, dict) and isinstance(base, dict):
        for name in value.keys() | base.keys() if value.keys() != base.keys() else value:
            yield from _differences(value.get(name), base.get(name), prefix + name)
    elif _of_groups(value) and _of_groups(base) and len(value) == len(base):
        for index, pair in enumerate(zip(value, base, strict=True)):
            yield from _differences(*pair, f"{prefix}{index}")
    else:
        yield key, (value, base)


def _of_groups(value: Any) -> bool:
    """Whether it is a list of groups of keys, as the stages are."""
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Configuration file {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"Configuration file {path} must hold a mapping of keys, found {type(content).__name__}.")
    return content


def _parse_value(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"Value {text!r} of {key} is not valid YAML: {error}") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _set_dotted(tree: Any, key: str, value: Any) -> Place:
    """Put a value where a dotted key says; a number in it is a position in a list."""
    *parents, last = place = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    for depth, part in enumerate(parents):
        if isinstance(tree, dict):
            tree = tree.setdefault(part, {})
        else:
            _check_position(tree, place, depth)
            tree = tree[part]
    if not isinstance(tree, dict):
        _check_position(tree, place, len(parents))
    tree[last] = value
    return place


def _check_position(entries: Any, place: Place, depth: int) -> None:
    """Whether `place[depth]` is a position in a list.

    Raises:
        UsageError: it is not, or there is no list.
    """
    key, parent, part = _dotted(place), _dotted(place[:depth]), place[depth]
    if not isinstance(entries, list):
        raise UsageError(f"{key}: {parent} is a value, not a group of keys.")
    if not isinstance(part, int) or part >= len(entries):
        last = len(entries) - 1
        raise UsageError(f"{key}: {parent} is a list; expected its position from 0 to {last}, found {part!r}.")


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = copy.deepcopy(value)


def _validated(tree: dict[str, Any], origin: Callable[[Place], str]) -> TrainConfig:
    """The tree as a configuration; `origin` says where a value came from."""
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            place = tuple(problem["loc"])
            source = origin(place[:-1] if problem["type"] == "missing" else place)
            problems.append(f"  {_dotted(place)}{f' (in {source})' if source else ''}: {_explain(problem, place)}")
        raise UsageError("The configuration is not valid:\n" + "\n".join(dict.fromkeys(problems))) from None


def _origin(place: Place, files: dict[str, dict[str, Any]], set_here: dict[Place, str]) -> str:
    """The override or the file that had the last word on a place."""
    for key, text in reversed(set_here.items()):
        if key == place[: len(key)] or place == key[: len(place)]:
            return f"the setting {text}"
    return next((name for name, content in reversed(files.items()) if _has(content, place)), "")


def _has(content: Any, place: Place) -> bool:
    """Whether a file says something of a place: all of it, or a value where groups of keys were to follow."""
    for part in place:
        if isinstance(content, dict):
            if part not in content:
                return False
        elif not (isinstance(content, list) and isinstance(part, int) and part < len(content)):
            return True
        content = content[part]
    return True


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _explain(problem: Any, place: Place) -> str:
    """What is wrong with a value, and what was expected."""
    known = _schema()
    entry = known.get(_schema_key(place))
    if problem["type"] == "extra_forbidden":
        return f"unknown key{did_you_mean(_nearest_key(place, known))}"
    meaning = f" ({entry.description})" if entry is not None and entry.description else ""
    if problem["type"] == "missing":
        return f"missing{meaning}"
    found = problem["input"]
    if problem["type"] in {"model_type", "model_attributes_type"}:
        return f"expected a group of keys, found {found!r}"
    expected = problem["msg"].removeprefix("Input should be ")
    if problem["type"] == "literal_error":
        nearest = nearest_name(str(found), re.findall("'([^']*)'", expected))
        return f"expected {expected}, found {found!r}{did_you_mean(nearest)}"
    plain = {"a valid boolean": "true or false", "a valid tuple": "a list", "a valid integer": "a whole number"}
    expected = expected.partition(", ")[0]
    return f"expected {plain.get(expected, expected)}{meaning}, found {found!r}"


def _nearest_key(place: Place, known: Mapping[str, FieldInfo]) -> str | None:
    """The valid key that was most likely meant: one of the same group, else one of that name, else the most alike."""
    *group, name = place
    if name in known and "." in str(name):  # a file nests what the command line writes with dots
        *groups, last = str(name).split(".")
        return f"{': {'.join(groups)}: {{{last}: ...{'}' * len(groups)}"
    prefix = f"{_schema_key(tuple(group))}." if group else ""
    beside = [key.removeprefix(prefix) for key in known if key.startswith(prefix) and "." not in key[len(prefix) :]]
    nearest = nearest_name(str(name), beside)
    if nearest:
        return _dotted((*group, nearest))
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    return elsewhere[0] if elsewhere else nearest_name(_schema_key(place), known)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most like a wrong one; None where none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str | None) -> str:
    """The end of a message that names what was probably meant; "" where nothing was found."""
    return f"; did you mean {name}?" if name else ""


def _schema_key(place: Place) -> str:
    """A place without positions in lists."""
    return _dotted(tuple(part for part in place if isinstance(part, str)))


def _schema(model: type[BaseModel] = TrainConfig, prefix: str = "") -> dict[str, FieldInfo]:
    """Every valid key, groups and entries of lists included."""
    known = {}
    for name, field in model.model_fields.items():
        known[prefix + name] = field
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                known |= _schema(candidate, f"{prefix}{name}.")
    return known
