"""The same computation on a device and on the CPU, and how far the answers lie apart.

`test/gpu` and `benchmarks/gpu_check.py` run these cases: networks, losses, training steps of every kind, whole runs
of the trainer, and the stream predictor. The reference is always the CPU in float32. On `cpu` itself the
float32 cases compare two implementations of the convolutions (with and without oneDNN), so that the comparison and its
tolerances are tried where there is no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from coopnet_core.checkpoint import Checkpoint, load_checkpoint
from coopnet_core.config import (
    LossConfig,
    NetworksConfig,
    StageConfig,
    TrainConfig,
    config_from_tree,
    load_config,
)
from coopnet_core.cotraining.apportionment import APPORTIONMENTS
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.families import MOVING, STATIC
from coopnet_core.cotraining.matches import Matches, matches_term
from coopnet_core.cotraining.rules import RULES
from coopnet_core.cotraining.step import step
from coopnet_core.data.augmentation import augment, to_float
from coopnet_core.data.frames import Clip, Frame
from coopnet_core.data.prefetch import Batches
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.data.triplets import Batch, TripletSampler
from coopnet_core.geometry.camera import Camera
from coopnet_core.geometry.projection import rigid_warp
from coopnet_core.geometry.refinement import MotionPrior, refine_motion
from coopnet_core.geometry.sampling import resize, sample
from coopnet_core.geometry.se3 import transform_from_vector
from coopnet_core.inference import stream
from coopnet_core.inference.prediction import REFINE_CHOICES
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.losses.consistency import charbonnier, depth_consistency
from coopnet_core.losses.photometric import photometric_error, ssim
from coopnet_core.losses.reduction import masked_mean
from coopnet_core.losses.smoothness import contact, disparity_smoothness, flow_smoothness
from coopnet_core.losses.visibility import coverage, forward_backward_visible, rigid_visible, splat_visible
from coopnet_core.networks.bundle import CoopNetworks, normalise
from coopnet_core.networks.correlation import local_correlation
from coopnet_core.resources import shipped_file

SIZE = (160, 96)
SHIPPED = "models/small_rendered.safetensors"
PRESETS = ["cpu-small", "kitti-paper"]
"""The smallest and the largest; the networks and steps of the others are of the same parts."""
PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "tf32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What the networks compute in. `tf32` is float32 as PyTorch comes: convolutions on a GPU may round to 10 bits."""
_FLIPPED_SHARE = 1e-3
"""Share of the entries of a large answer that is left out: a yes or no whose figure lies on its threshold may flip."""
_LEAST_ENTRIES = 1000
_SCALE = 1000.0
"""Factor on what is differentiated, as a scaler would put it: float16 has no numbers for the gradients of a mean."""
_SMALL_SCALAR, _SMALL = 1e-3, 1e-12
"""Scalars below this are compared absolutely: the mean of a distribution, say, which may be zero but for rounding."""


@dataclass(frozen=True)
class Answer:
    """What a case computes: tensors by name."""

    values: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Largest allowed distance (`distance`) of values, and of gradients."""

    values: float
    gradients: float


LIMITS: dict[str, dict[str, Limits]] = {
    "network": {
        "float32": Limits(1e-3, 1e-3),
        "tf32": Limits(0.02, 0.05),
        "bfloat16": Limits(0.05, 0.1),
        "float16": Limits(0.02, 0.1),
    },
    "network, random weights": {
        "float32": Limits(2e-3, 5e-3),
        "tf32": Limits(0.1, 0.3),
        "bfloat16": Limits(0.5, 0.8),
        "float16": Limits(0.1, 0.5),
    },
    "function": {"float32": Limits(1e-3, 5e-3)},
    "step": {"float32": Limits(5e-3, 0.02), "tf32": Limits(0.05, 0.1), "bfloat16": Limits(0.1, 0.2)},
    "step, random weights": {"float32": Limits(0.01, 0.05), "tf32": Limits(0.1, 0.4), "bfloat16": Limits(0.2, 0.8)},
    "predictor": {"float32": Limits(2e-3, 0), "tf32": Limits(0.05, 0), "bfloat16": Limits(0.1, 0)},
    "trainer": {"float32": Limits(4e-3, 0), "tf32": Limits(0.2, 0), "bfloat16": Limits(0.5, 0)},
}
"""By kind and precision. Two implementations on one CPU stay below a seventh of those for float32, and below half of
those for bfloat16 (PyTorch 2.13). A step is looser than a network: a pixel whose figure lies on a threshold may teach
or not, and its gradient with it."""
Compute = Callable[[torch.device, "torch.dtype | None"], Answer]


@dataclass(frozen=True)
class Case:
    """One computation.

    Attributes:
        kind: a key of `LIMITS`.
        name: for people.
        precision: a key of `PRECISIONS`.
        compute: on a device, with networks in a dtype (None: float32).
        reference: what to compare with, on the CPU in float32; None: the same.
    """

    kind: str
    name: str
    precision: str
    compute: Compute
    reference: Compute | None = None

    @property
    def title(self) -> str:
        """Unique among the cases."""
        return f"{self.kind}: {self.name}, {self.precision}"


@dataclass(frozen=True)
class Comparison:
    """What came out of a case.

    Attributes:
        title: of the case.
        passed: both distances are within their limits.
        value, gradient: largest distances.
        worst_value, worst_gradient: the names of the answers they belong to; empty where there are none.
        limits: that were allowed.
    """

    title: str
    passed: bool
    value: float
    gradient: float
    worst_value: str
    worst_gradient: str
    limits: Limits


def distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what was expected; NaN is equal to NaN and to nothing else.

    Of answers of a thousand entries or more, the largest thousandth of the differences is left out.
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = (answer.detach().double().cpu().flatten() for answer in (found, expected))
    unknown = found.isnan() & expected.isnan()
    difference = torch.where(unknown, 0.0, found - expected).abs()
    one_unknown = difference.isnan()
    difference = torch.where(one_unknown, expected.nan_to_num(1.0).abs() + 1.0, difference)
    dropped = int(len(difference) * _FLIPPED_SHARE) if len(difference) >= _LEAST_ENTRIES else 0
    kept = difference.sort().values[: len(difference) - dropped]
    size = expected.nan_to_num(0.0, posinf=0.0, neginf=0.0).square().mean().sqrt().item()
    return kept.square().mean().sqrt().item() / max(size, _SMALL_SCALAR if len(expected) == 1 else _SMALL)


def compare(case: Case, device: torch.device) -> Comparison:
    """Run a case on the CPU and on a device."""
    with _arithmetic("reference", torch.device("cpu")):
        expected = _reference(case.reference or case.compute)
    with _arithmetic(case.precision, device):
        found = case.compute(device, PRECISIONS[case.precision])
    value, worst_value = _worst(found.values, expected.values)
    gradient, worst_gradient = _worst(found.gradients, expected.gradients)
    limits = LIMITS[case.kind][case.precision]
    passed = value <= limits.values and gradient <= limits.gradients
    return Comparison(case.title, passed, value, gradient, worst_value, worst_gradient, limits)


@functools.lru_cache(maxsize=1)
def _reference(compute: Compute) -> Answer:
    """The last one is kept: the precisions of a case follow each other."""
    return compute(torch.device("cpu"), None)


def _worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest distance, and the name it belongs to. A distance that is no number is the largest of all."""
    if found.keys() != expected.keys():
        return math.inf, f"only one of both has {', '.join(sorted(found.keys() ^ expected.keys()))}"
    distances = [(distance(found[name], expected[name]), name) for name in expected]
    known = [(math.inf if math.isnan(value) else value, name) for value, name in distances]
    return max(known, default=(0.0, ""))


@contextlib.contextmanager
def _arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products as the precision says; see the docstring of this module for `cpu`."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    plain = precision == "float32" and device.type == "cpu"
    try:
        if precision != "tf32":
            matmul.allow_tf32 = cudnn.allow_tf32 = False
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # said of every change of a flag
            if plain:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that a device is compared in: a CPU knows no TF32, and float16 is of no use to it."""
    return ("float32", "bfloat16") if device.type == "cpu" else tuple(PRECISIONS)


# --- what the cases work on


@functools.cache
def _clip() -> Clip:
    """Four frames of a street with movers, and their true mask."""
    camera = Camera.from_field_of_view(*SIZE, 80.0)
    return render_clip(SceneConfig(seed=3, frames=4, camera=camera, movers=0.2, camera_moves=True)).clip


@functools.cache
def _shipped() -> Checkpoint:
    return load_checkpoint(shipped_file(SHIPPED))


@functools.cache
def _preset(name: str) -> TrainConfig:
    return load_config(name, [], {})


def _networks(config: NetworksConfig, device: torch.device) -> CoopNetworks:
    """The shipped weights where they fit, else random ones; in training mode."""
    torch.manual_seed(0)
    networks = CoopNetworks(config)
    if config == _shipped().networks.config:
        networks.load_state_dict(_shipped().networks.state_dict())
    return networks.to(device).train()


def _batch(sources: int, device: torch.device) -> Batch:
    sampler = TripletSampler([_clip()], (-1, 1), 2, 0)
    return to_float(sampler.next(sources).to(device))


def _random(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _smooth(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random values that change over some sixteen pixels."""
    coarse = _random(*shape[:2], shape[2] // 16 + 2, shape[3] // 16 + 2, seed=seed, low=low, high=high)
    return resize(coarse, *shape[2:])


# --- networks


def _network_cases(device: torch.device, quick: bool) -> Iterator[Case]:
    for preset in _presets(quick):
        for network in ("depth", "flow", "odometry"):
            compute = functools.partial(_network_answer, preset, network)
            kind = _kind("network", _preset(preset).networks)
            yield from (Case(kind, f"{network} of {preset}", name, compute) for name in precisions(device))


def _presets(quick: bool) -> list[str]:
    return PRESETS[:1] if quick else PRESETS


def _kind(kind: str, config: NetworksConfig) -> str:
    """Random networks amplify rounding: what they match are features that mean nothing."""
    return kind if config == _shipped().networks.config else f"{kind}, random weights"


def _network_answer(preset: str, network: str, device: torch.device, half: torch.dtype | None) -> Answer:
    """Outputs, and gradients of their sum under fixed random weights, in the weights of the network."""
    networks = _networks(_preset(preset).networks, device)
    batch = _batch(1, device)
    target, source = batch.target, batch.sources[:, 0]
    height, width = target.shape[-2:]
    with torch.autocast(device.type, dtype=half, enabled=half is not None):
        if network == "depth":
            outputs = networks.depths(target)[0]
        elif network == "flow":
            outputs = [flow for pair in networks.flow.both_ways(normalise(target), normalise(source)) for flow in pair]
        else:
            flow = _smooth(2, 2, height // 4, width // 4, seed=1, low=-2.0, high=2.0).to(device)
            depth = _smooth(2, 1, height, width, seed=2, low=4.0, high=20.0).to(device)
            motion = networks.motion(target, source, flow, depth, batch.camera_matrix)
            outputs = [motion[:, :3, 3], motion[:, :3, :3] - torch.eye(3, device=device)]
    weighed = [(output * _random(*output.shape, seed=k).to(device)).mean() for k, output in enumerate(outputs)]
    (_SCALE * torch.stack(weighed).sum()).backward()
    values = {f"output {k}": output for k, output in enumerate(outputs)}
    return Answer(values, _gradients_of(networks, ("depth", "pose", "flow")))


def _gradients_of(networks: CoopNetworks, names: tuple[str, ...]) -> dict[str, Tensor]:
    """All gradients of a network as one vector, by its name, of those that have any."""
    gradients = {
        name: [p.grad.flatten() for p in getattr(networks, name).parameters() if p.grad is not None] for name in names
    }
    return {name: torch.cat(parts) for name, parts in gradients.items() if parts}


# --- losses and geometry: functions of tensors

_MATRIX = torch.tensor([[100.0, 0, 79.5], [0, 100.0, 47.5], [0, 0, 1]])


def _function_cases() -> Iterator[Case]:
    height, width = SIZE[1], SIZE[0]
    image, other = (
        _smooth(2, 3, height, width, seed=seed) + _random(2, 3, height, width, seed=seed) for seed in (1, 2)
    )
    image, other = image / 2, other / 2
    disparity = _smooth(2, 1, height, width, seed=3, low=0.05, high=0.3)
    depth, source_depth = (_smooth(2, 1, height, width, seed=seed, low=4.0, high=20.0) for seed in (4, 5))
    flow, back = (_smooth(2, 2, height, width, seed=seed, low=low, high=-low) for seed, low in ((6, -3.0), (7, -2.0)))
    vector = torch.tensor([[0.1, -0.05, -0.6, 0.002, 0.01, -0.003], [-0.2, 0.0, -0.3, 0.0, -0.01, 0.004]])
    matrix = _MATRIX.expand(2, 3, 3)
    withheld = (_smooth(2, 1, height, width, seed=8) > 0.6).float()
    weights = torch.ones(2, 1, height, width)
    agree = (_smooth(2, 1, height, width, seed=9) > 0.4).float()
    holes = torch.where(withheld > 0, torch.nan, disparity)

    def warped(image: Tensor, depth: Tensor, vector: Tensor, matrix: Tensor) -> Tensor:
        return sample(image, rigid_warp(depth, transform_from_vector(vector), matrix).coordinates)

    def refined(vector: Tensor, depth: Tensor, flow: Tensor, weights: Tensor, matrix: Tensor) -> dict[str, Tensor]:
        found = refine_motion(transform_from_vector(vector), depth, flow, weights, matrix, MotionPrior())
        return {"motion": found.T_source_target, "covariance": found.covariance}

    def consistent(depth: Tensor, source_depth: Tensor, vector: Tensor, matrix: Tensor) -> Tensor:
        found = depth_consistency(depth, source_depth, transform_from_vector(vector), matrix)
        return masked_mean(found.error, found.valid)

    def near_matches(flow: Tensor, back: Tensor, matched: Tensor, agree: Tensor) -> Tensor:
        return matches_term([(flow[:1], back[:1])], Matches(matched, agree))

    yield _function("ssim", ssim, (image, other))
    yield _function("photometric error", photometric_error, (image, other))
    yield _function("disparity smoothness", disparity_smoothness, (disparity,), (image,))
    yield _function("flow smoothness", flow_smoothness, (flow,), (image,))
    yield _function("contact", contact, (depth,), (withheld,))
    yield _function("charbonnier", charbonnier, (flow,))
    yield _function("masked mean over unknown values", masked_mean, (holes,), (1 - withheld,))
    yield _function("depth consistency", consistent, (depth, source_depth, vector), (matrix,))
    yield _function("distance to matches", near_matches, (flow, back), (0.5 * flow, agree))
    yield _function("rigid warp", warped, (image, depth, vector), (matrix,))
    yield _function("local correlation", lambda a, b: local_correlation(a, b, 3), (image, other))
    yield _function("forward-backward check", forward_backward_visible, (), (flow, back))
    yield _function("coverage", coverage, (), (back,))
    yield _function("visibility by splatting", splat_visible, (), (flow, back))
    yield _function(
        "visibility by depth",
        lambda d, v, k: rigid_visible(d, transform_from_vector(v), k),
        (),
        (depth, vector, matrix),
    )
    yield _function("refinement of the motion", refined, (), (vector, depth, flow, weights, matrix))


def _function(
    name: str, function: Callable[..., Tensor | dict[str, Tensor]], leaves: tuple[Tensor, ...], rest: tuple = ()
) -> Case:
    """A function of `leaves`, which get gradients, and of `rest`."""

    def compute(device: torch.device, half: torch.dtype | None) -> Answer:
        placed = [leaf.detach().clone().to(device).requires_grad_() for leaf in leaves]
        answer = function(*placed, *(tensor.to(device) for tensor in rest))
        answers = answer if isinstance(answer, dict) else {"value": answer}
        if not placed:
            return Answer(answers)
        value = answers["value"]
        (value * (_random(*value.shape, seed=0).to(device) if value.ndim else 1)).sum().backward()
        return Answer(answers, {f"argument {k}": leaf.grad for k, leaf in enumerate(placed)})

    return Case("function", name, "float32", compute)


# --- training steps

_VARIANTS: dict[str, dict[str, object]] = {
    **{f"rule {name}": {"rule": name} for name in RULES if name != "hybrid"},
    **{f"apportionment {name}": {"apportionment": name} for name in APPORTIONMENTS if name != "per_pixel"},
    "occlusion none": {"occlusion": "none"},
    "occlusion splatting": {"occlusion": "splatting"},
    "without auto mask": {"auto_mask": False},
    "contact": {"contact": 0.01},
    "depth consistency": {"depth_consistency": 0.1},
    "cue photometric": {"error_model": {"cue": "photometric"}},
    "cue correspondence": {"error_model": {"cue": "correspondence"}},
    **{f"static {name}": {"error_model": {"static_family": name}} for name in STATIC if name != "asymmetric_laplace"},
    **{f"moving {name}": {"error_model": {"moving_family": name}} for name in MOVING if name != "gaussian"},
}
"""What differs from the loss of the preset cpu-small, each in its last stage."""


def _step_cases(device: torch.device, quick: bool) -> Iterator[Case]:
    halves = [name for name in precisions(device) if name != "float16"]  # training has no scaler for it
    small = _preset("cpu-small")
    kinds: list[tuple[str, NetworksConfig, LossConfig, StageConfig]] = []
    for preset in _presets(quick):
        config = _preset(preset)
        seen: list[StageConfig] = []
        for stage in (*config.stages, *config.fine_tuning):
            # What the trainer alone attends to does not make another step.
            kind = stage.model_copy(update={"name": "", "share": 1.0, "rate": 1.0, "batch_statistics": True})
            if kind not in seen:  # the last stage from nothing is often the only one of fine-tuning
                seen.append(kind)
                kinds.append((f"{preset}, stage {stage.name}", config.networks, config.loss, stage))
    both = small.stages[-1].model_copy(update={"sources": 2})
    kinds.append(("cpu-small, two sources", small.networks, small.loss, both))
    for name, networks, loss, stage in kinds:
        compute = functools.partial(_step_answer, networks, loss, stage)
        yield from (Case(_kind("step", networks), name, half, compute) for half in halves)
    for name, change in () if quick else _VARIANTS.items():
        loss = LossConfig.model_validate(small.loss.model_dump() | change)
        compute = functools.partial(_step_answer, small.networks, loss, small.stages[-1])
        yield Case("step", f"cpu-small, {name}", "float32", compute)


def _step_answer(
    networks_config: NetworksConfig,
    loss: LossConfig,
    stage: StageConfig,
    device: torch.device,
    half: torch.dtype | None,
) -> Answer:
    """One augmented batch through `step` and back: all terms, the error model after it, gamma, and the gradients."""
    networks = _networks(networks_config, device)
    for name in ("depth", "pose", "flow"):
        getattr(networks, name).train(name in stage.train).requires_grad_(name in stage.train)
    state = _shipped().error_model.to(device)
    batch = _batch(stage.sources, device)
    batch = augment(batch, _preset("cpu-small").augmentation, torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    output = step(networks, batch, state, loss, stage, half)
    output.loss.backward()
    values = {"loss": output.loss, **output.terms, **_figures_of(output.error_model)}
    if output.gamma is not None:
        values["gamma"] = output.gamma
    return Answer(values, _gradients_of(networks, stage.train))


def _figures_of(state: ErrorModelState) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in state.as_floats().items()}


# --- runs of the trainer

_ENCODER = {"layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16, 16]}
_TINY = {
    "networks": {
        "depth": {"encoder": _ENCODER, "decoder_widths": [8, 8, 8, 16, 16], "finest_scale": 1, "scales": 1},
        "pose": {"source": "flow", "width": 8},
        "flow": {"widths": [8, 8, 8, 16, 16], "projected": 8, "decoder_widths": [16, 8], "search_range": 1},
    },
    "optimiser": {"learning_rate": 1e-3, "warm_up_steps": 0},
    "batch_size": 2,
    "steps": 8,
    "log_every": 1,
    "checkpoint_every": 4,
    "validate_every": 4,
}


def _trainer_cases(device: torch.device) -> Iterator[Case]:
    run = functools.partial(_trainer_answer, False)
    stopped = functools.partial(_trainer_answer, True)
    yield from (Case("trainer", "all stages", half, run) for half in precisions(device) if half != "float16")
    yield Case("trainer", "stopped and resumed", "float32", stopped, run)


def _trainer_answer(stops: bool, device: torch.device, half: torch.dtype | None) -> Answer:
    """A run of eight steps over all stages of the preset cpu-small, which may be stopped in a step and resumed.

    The precision is the trainer's own choice for the device, where `half` allows it one.
    """
    from coopnet_core.cotraining.trainer import train  # it needs tensorboard, which the other cases do without

    stages = [stage.model_dump() for stage in _preset("cpu-small").stages]
    config = config_from_tree(_TINY | {"device": str(device), "mixed_precision": half is not None, "stages": stages})
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)
        with _stopped_in_step(3) if stops else contextlib.nullcontext():
            result = train(config, [_clip()], [_clip()], output)
        if stops:
            if not result.interrupted:
                raise RuntimeError("The run was told to stop in its third step and went on to the end.")
            train(config, [_clip()], [_clip()], output, resume=True)
        weights = load_checkpoint(output / "checkpoints" / "last.safetensors").networks
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if not line["validation"]]
    parameters = torch.cat([parameter.detach().flatten() for parameter in weights.parameters()])
    return Answer({"losses": torch.tensor(losses), "weights": parameters})


@contextlib.contextmanager
def _stopped_in_step(number: int) -> Iterator[None]:
    """SIGTERM while so many-th batch is waited for: a run ends after that step, with its state saved."""
    original, taken = Batches.next, []

    def next_batch(batches: Batches) -> Batch:
        taken.append(1)
        if len(taken) == number:
            signal.raise_signal(signal.SIGTERM)
        return original(batches)

    with mock.patch.object(Batches, "next", next_batch):
        yield


# --- the stream predictor


def _predictor_cases(device: torch.device) -> Iterator[Case]:
    for refine in REFINE_CHOICES:
        compute = functools.partial(_predictor_answer, refine)
        halves = [name for name in precisions(device) if name != "float16"]
        yield from (Case("predictor", f"refine {refine}", half, compute) for half in halves)


def _predictor_answer(refine: str, device: torch.device, half: torch.dtype | None) -> Answer:
    """All outputs for four frames of a street."""
    clip = _clip()
    with mock.patch.object(stream, "half_dtype", return_value=half):
        predictor = StreamPredictor(shipped_file(SHIPPED), str(device), SIZE, refine)
    frames = [Frame(image, int(stamp), clip.camera) for image, stamp in zip(clip.images, clip.stamps_ns, strict=True)]
    predictions = [predictor.predict(frame) for frame in frames]
    motions = np.stack([prediction.T_previous_current for prediction in predictions[1:]])
    arrays = {
        "depth": np.stack([prediction.depth for prediction in predictions]),
        "translation": motions[:, :3, 3],
        "rotation": motions[:, :3, :3] - np.eye(3),
    }
    for name in ("flow", "motion_probability", "confidence"):
        arrays[name] = np.stack([getattr(prediction, name) for prediction in predictions[1:]])
    if refine != "off":
        # standard deviations: they span fewer orders of magnitude than their squares
        covariances = np.stack([prediction.motion_covariance for prediction in predictions[1:]])
        arrays["standard deviations"] = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    return Answer({name: torch.from_numpy(array) for name, array in arrays.items()})


def cases(device: torch.device, quick: bool = False) -> list[Case]:
    """All that are compared on a device, the parts before the whole; `quick` leaves out large networks and variants."""
    return [
        *_network_cases(device, quick),
        *_function_cases(),
        *_step_cases(device, quick),
        *_predictor_cases(device),
        *_trainer_cases(device),
    ]
