"""The distribution model of the two reconstruction errors and the posterior of motion. Everything here is detached.

Ours, after the paper's idea that movers are where the two reconstructions strongly disagree (the paper's family and
threshold are not known to us; docs/method.md):

* Delta = e_r - e_f cancels the residual that no warp can remove. Static pixels: asymmetric Laplace with scales b_r and
  b_f, in closed form. Moving pixels: a Gaussian *anchored* in each batch by the source displaced by a large random
  offset. Other families (`cotraining/families.py`) can be chosen for both.
* The disagreement |F - F_rigid| of the two warps, relative and in logarithms: Gaussian for static pixels, and for
  moving pixels a Gaussian anchored by rolling the rigid flow across the image.

Where the camera travels fast, real movers disagree less than unrelated places do. So an anchor is only the prior of the
movers' mean and spread, worth a small share of the pixels: few movers leave it, many correct it. A free fit would
collapse.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from coopnet_core.config import ErrorModelConfig
from coopnet_core.cotraining.families import (
    MOVING,
    STATIC,
    Parameters,
    anchored_moments,
    asymmetric_laplace_log_density,
    fit_asymmetric_laplace,
    gaussian_log_density,
    robust_static_moments,
    thinned_of_all,
    weighted_moments,
)
from coopnet_core.geometry.sampling import resize

_MINIMUM_SPREAD = 0.02
_MINIMUM_LOG_SPREAD = 0.3
_RELATIVE_ERROR = 0.03
_SETTLING_STEPS = 20
_LEAST_RATIO = 2.0
"""Movers' mean Delta is never fitted below this multiple of b_r."""
_LEAST_LOG_RATIO = 2.0
"""Nor their log disagreement to fewer static spreads above the static mean."""
_EVIDENCE_LIMIT = 5.0
"""One cue alone cannot say more than this (nats) in the joint posterior."""
_ABSENCE_LIMIT = 1.0
"""Delta near 0 says little against motion: a mover without texture has it too."""
_INITIAL = {
    "b_r": 0.1,
    "b_f": 0.1,
    "pi": 0.1,
    "moving_mean": 0.3,
    "moving_spread": 0.1,
    "anchor_mean": 0.3,
    "log_static_spread": 1.0,
    "log_moving_mean": 2.0,
    "log_moving_spread": 1.0,
    "log_anchor_mean": 2.0,
    "b_r_start": 0.1,
    "b_f_start": 0.1,
}
"""Figures of a state that knows nothing; those not named are 0."""
_STATIC_FIGURES = ("static_location", "static_scale", "static_shape")
_MOVING_FIGURES = ("moving_location", "moving_scale", "moving_shape")


@dataclass(frozen=True)
class ErrorModelState:
    """Moving averages of the fitted figures, each a scalar tensor.

    Attributes:
        b_r, b_f: scales of Delta on static pixels, rigid and flow side.
        pi: share of moving pixels.
        moving_mean, moving_spread: Gaussian of Delta on moving pixels.
        anchor_mean: mean of the anchor of Delta.
        log_static_mean, log_static_spread: `log_disagreement` on static pixels.
        log_moving_mean, log_moving_spread: the same on moving pixels.
        log_anchor_mean: mean of its anchor.
        b_r_start, b_f_start: b_r and b_f when their averages had settled, from which progress is measured.
        open_steps: steps since the gate opened, for the ramp.
        steps: updates so far.
        static_location, static_scale, static_shape: `Parameters` of a static family other than the default, whose
            figures are b_r and b_f; a scale of 0 says that none has been fitted yet.
        moving_location, moving_scale, moving_shape: likewise, of a moving family other than the anchored Gaussian.
    """

    b_r: Tensor
    b_f: Tensor
    pi: Tensor
    moving_mean: Tensor
    moving_spread: Tensor
    anchor_mean: Tensor
    log_static_mean: Tensor
    log_static_spread: Tensor
    log_moving_mean: Tensor
    log_moving_spread: Tensor
    log_anchor_mean: Tensor
    b_r_start: Tensor
    b_f_start: Tensor
    open_steps: Tensor
    steps: Tensor
    static_location: Tensor
    static_scale: Tensor
    static_shape: Tensor
    moving_location: Tensor
    moving_scale: Tensor
    moving_shape: Tensor

    @classmethod
    def initial(cls, device: torch.device | str = "cpu") -> ErrorModelState:
        """A state that knows nothing: the first update replaces it."""
        return cls(**{f.name: torch.tensor(_INITIAL.get(f.name, 0.0), device=device) for f in fields(cls)})

    def to(self, device: torch.device | str) -> ErrorModelState:
        """The same state on a device."""
        return ErrorModelState(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def as_floats(self) -> dict[str, float]:
        """Plain numbers, for logs and checkpoints."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_floats(cls, values: dict[str, float], device: torch.device | str = "cpu") -> ErrorModelState:
        """The inverse of `as_floats`. What an older checkpoint did not know yet starts from here.

        One without `log_anchor_mean` measured the disagreement in other units: it says nothing about this model.
        """
        known = cls.initial().as_floats()
        values = values if "log_anchor_mean" in values else {}
        known |= {f"{side}_start": values[side] for side in ("b_r", "b_f") if side in values} | values
        return cls(**{field.name: torch.tensor(known[field.name], device=device) for field in fields(cls)})

    def separation(self) -> Tensor:
        """Mean of the anchor of Delta over b_r: the gate of the photometric cue."""
        return self.anchor_mean / self.b_r

    def log_separation(self) -> Tensor:
        """Distance of anchor and static pixels in log |F - F_rigid| over the static spread: the gate of that cue."""
        return (self.log_anchor_mean - self.log_static_mean) / self.log_static_spread


@dataclass(frozen=True)
class Evidence:
    """What the two reconstructions of a batch of pairs say.

    Attributes:
        delta: (B, 1, H, W) e_r - e_f, smoothed.
        log_disagreement: (B, 1, H, W) `log_disagreement` of the two warps.
        visible: (B, 1, H, W) float, 1 where both warps can be judged.
    """

    delta: Tensor
    log_disagreement: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Anchor:
    """What the rigid side would say if it had nothing to do with the pixel, as on a moving object.

    Attributes:
        delta: (B, 1, H, W) with the source displaced at random instead of warped rigidly.
        log_disagreement: (B, 1, H, W) with the rigid flow displaced at random.
    """

    delta: Tensor
    log_disagreement: Tensor


def log_disagreement(flow: Tensor, rigid_flow: Tensor) -> Tensor:
    """log((|F - F_rigid| + 0.05) / (1 + 0.03 |(F, F_rigid)|)) of two flows (B, 2, H, W) in pixels: (B, 1, H, W).

    Both warps err in proportion to their length: a mover stands out against that, not against a pixel count.
    """
    difference, length = (
        vector.square().sum(1, keepdim=True).sqrt() for vector in (flow - rigid_flow, torch.cat([flow, rigid_flow], 1))
    )
    return ((difference + 0.05) / (1 + _RELATIVE_ERROR * length)).log()


def smoothed(difference: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """A difference of errors (B, 1, h, w) averaged over a box of odd side `window`, at `size` (H, W)."""
    return resize(_box_mean(difference, window), *size)


def _box_mean(values: Tensor, side: int) -> Tensor:
    """Means over boxes of odd side around each pixel, over what of them lies inside: (B, C, H, W) to the same.

    On a CPU by sums of shifted copies, which take a fifth of the time of pooling there.
    """
    reach = side // 2
    if values.is_cuda:
        return F.avg_pool2d(values, side, stride=1, padding=reach, count_include_pad=False)
    for dim in (-2, -1):
        length = values.shape[dim]
        padded = F.pad(values, (0, 0, reach, reach) if dim == -2 else (reach, reach))
        sums = sum((padded.narrow(dim, k, length) for k in range(1, side)), padded.narrow(dim, 0, length))
        index = torch.arange(length, device=values.device)
        count = (index + reach).clamp(max=length - 1) - (index - reach).clamp(min=0) + 1
        values = sums / (count[:, None] if dim == -2 else count)
    return values


def static_log_density(delta: Tensor, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Log p(Delta | static); the closed-form asymmetric Laplace until another family has been fitted."""
    closed = Parameters(torch.zeros_like(state.b_r), state.b_r, state.b_f)
    default = asymmetric_laplace_log_density(delta, closed)
    if config.static_family == "asymmetric_laplace":
        return default
    parameters = Parameters(*(getattr(state, name) for name in _STATIC_FIGURES))
    return torch.where(parameters.scale > 0, STATIC[config.static_family].log_density(delta, parameters), default)


def moving_log_density(delta: Tensor, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Log p(Delta | moving); the anchored Gaussian until another family has been fitted."""
    default = gaussian_log_density(delta, state.moving_mean, state.moving_spread)
    if config.moving_family == "gaussian":
        return default
    parameters = Parameters(*(getattr(state, name) for name in _MOVING_FIGURES))
    return torch.where(parameters.scale > 0, MOVING[config.moving_family].log_density(delta, parameters), default)


def fitted_shares(edges: Tensor, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Shares (N,) of the pixels whose Delta the model expects between neighbouring `edges` (N + 1,)."""
    centres, widths = (edges[1:] + edges[:-1]) / 2, edges.diff()
    static, moving = static_log_density(centres, state, config).exp(), moving_log_density(centres, state, config).exp()
    return widths * ((1 - state.pi) * static + state.pi * moving)


def log_likelihood_ratio(evidence: Evidence, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Log p(evidence | moving) - log p(evidence | static), (B, 1, H, W); a cue whose gate is shut says nothing."""
    photometric_open, correspondence_open = (gate.float() for gate in gates(state, config))
    if config.cue == "photometric":
        return _photometric_ratio(evidence.delta, state, config) * photometric_open
    if config.cue == "correspondence":
        return _correspondence_ratio(evidence.log_disagreement, state) * correspondence_open
    photometric = _photometric_ratio(evidence.delta, state, config).clamp(-_ABSENCE_LIMIT, _EVIDENCE_LIMIT)
    correspondence = _correspondence_ratio(evidence.log_disagreement, state).clamp(-_EVIDENCE_LIMIT, _EVIDENCE_LIMIT)
    return photometric * photometric_open + correspondence * correspondence_open


def _photometric_ratio(delta: Tensor, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    return moving_log_density(delta, state, config) - static_log_density(delta, state, config)


def _correspondence_ratio(disagreement: Tensor, state: ErrorModelState) -> Tensor:
    return gaussian_log_density(
        disagreement.clamp(max=state.log_moving_mean), state.log_moving_mean, state.log_moving_spread
    ) - gaussian_log_density(
        disagreement.clamp(min=state.log_static_mean), state.log_static_mean, state.log_static_spread
    )


def gates(state: ErrorModelState, config: ErrorModelConfig) -> tuple[Tensor, Tensor]:
    """Whether each cue may speak, two scalar bools: photometric, correspondence.

    Delta tells movers only while the rigid warp of static pixels is right to a fraction of the texture's correlation
    length; beside the other cue it waits until the static disagreement is that small.
    """
    photometric = state.separation() > config.gate_separation
    if config.cue == "photometric":
        return photometric, torch.zeros_like(photometric)
    correspondence = state.log_separation() > config.gate_log_separation
    if config.cue == "correspondence":
        return torch.zeros_like(correspondence), correspondence
    return photometric & (state.log_static_mean.exp() < config.photometric_limit), correspondence


def gate_is_open(state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Scalar bool: at least one cue in use separates movers."""
    photometric, correspondence = gates(state, config)
    return photometric | correspondence


def posterior(evidence: Evidence, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """Gamma = P(moving | evidence) without gate and ramp: (B, 1, H, W), 0 where not visible.

    With the photometric cue alone, a pixel whose flow reconstruction is the worse one (D < 0) is never moving.
    """
    prior = (state.pi / (1 - state.pi)).log()
    gamma = torch.sigmoid(log_likelihood_ratio(evidence, state, config) + prior)
    if config.cue == "photometric":
        gamma = gamma * (evidence.delta >= 0)
    return gamma * evidence.visible


def posterior_of_hidden(disagreement: Tensor, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """P(moving) where no error can be compared, because a warp leaves the image or the point is hidden: (B, 1, H, W).

    Where the flow points and where the rigid motion points can be compared there too; while that cue does not separate,
    nothing is known beyond the share of movers.

    Args:
        disagreement: (B, 1, H, W) `log_disagreement`.
        state, config: as for `posterior`.
    """
    evidence = Evidence(torch.zeros_like(disagreement), disagreement, torch.ones_like(disagreement))
    return posterior(evidence, state, _with_cue(config, "correspondence"))


def _with_cue(config: ErrorModelConfig, cue: str) -> ErrorModelConfig:
    return config.model_copy(update={"cue": cue})


def _responsibility(evidence: Evidence, state: ErrorModelState, config: ErrorModelConfig) -> Tensor:
    """P(moving) that weighs the pixels of a fit, 0 while no cue separates.

    The disagreement alone where it is in use and separates: fitted to their joint posterior, the two cues confirm each
    other until everything moves.
    """
    photometric_open, correspondence_open = gates(state, config)
    photometric = posterior(evidence, state, _with_cue(config, "photometric")) * photometric_open
    if config.cue == "photometric":
        return photometric
    correspondence = posterior(evidence, state, _with_cue(config, "correspondence"))
    return torch.where(correspondence_open, correspondence, photometric)


@torch.no_grad()
def update(state: ErrorModelState, evidence: Evidence, anchor: Anchor, config: ErrorModelConfig) -> ErrorModelState:
    """EM steps on one batch, blended into the moving averages. A batch without usable pixels changes nothing.

    A sample of the pixels is enough for a dozen figures, and keeps this cheap. Processes that share a batch take it
    from the whole batch, so that all have the same state.
    """
    pixels = thinned_of_all(
        evidence.delta, evidence.log_disagreement, evidence.visible, anchor.delta, anchor.log_disagreement
    )
    evidence, anchor = Evidence(*pixels[:3]), Anchor(*pixels[3:])
    visible = evidence.visible
    count = visible.sum().clamp(min=1e-6)
    delta_anchor = weighted_moments(anchor.delta, visible, _MINIMUM_SPREAD)
    log_anchor = weighted_moments(anchor.log_disagreement, visible, _MINIMUM_LOG_SPREAD)
    # The movers of the batches before, not the anchor, tell which pixels of this one move.
    fitted = replace(
        state,
        anchor_mean=delta_anchor.mean,
        log_anchor_mean=log_anchor.mean,
        **_moving_figures(anchor.delta, visible, config),
    )
    for _ in range(config.em_steps):
        gamma = _responsibility(evidence, fitted, config)
        static = (1 - gamma) * visible
        b_r, b_f = fit_asymmetric_laplace(evidence.delta, static, config.minimum_b)
        pi = (gamma.sum() / count).clamp(config.minimum_pi, config.maximum_pi)
        static_mean, static_spread = robust_static_moments(evidence.log_disagreement, visible, pi, _MINIMUM_LOG_SPREAD)
        prior = config.anchor_share * count
        moving = anchored_moments(evidence.delta, gamma, delta_anchor, prior, _LEAST_RATIO * b_r, _MINIMUM_SPREAD)
        least = static_mean + _LEAST_LOG_RATIO * static_spread
        log_moving = anchored_moments(evidence.log_disagreement, gamma, log_anchor, prior, least, _MINIMUM_LOG_SPREAD)
        fitted = replace(
            fitted,
            b_r=b_r,
            b_f=b_f,
            pi=pi,
            moving_mean=moving.mean,
            moving_spread=moving.spread,
            log_static_mean=static_mean,
            log_static_spread=static_spread,
            log_moving_mean=log_moving.mean,
            log_moving_spread=log_moving.spread,
            **_static_figures(evidence.delta, static, config),
        )
    usable = ((visible > 0) & evidence.delta.isfinite()).any()
    result = _blended(state, fitted, config.decay, usable)
    is_open = gate_is_open(result, config)
    return replace(
        result,
        open_steps=torch.where(is_open, state.open_steps + 1, torch.zeros_like(state.open_steps)),
        steps=state.steps + 1,
    )


def _static_figures(delta: Tensor, weights: Tensor, config: ErrorModelConfig) -> dict[str, Tensor]:
    """The figures of the chosen static family by name; none for the default, which has b_r and b_f."""
    if config.static_family == "asymmetric_laplace":
        return {}
    fitted = STATIC[config.static_family].fit(delta, weights, config.minimum_b)
    return dict(zip(_STATIC_FIGURES, fitted, strict=True))


def _moving_figures(delta: Tensor, weights: Tensor, config: ErrorModelConfig) -> dict[str, Tensor]:
    """The figures of the chosen moving family, fitted to the anchor; none for the default, which has the moments."""
    if config.moving_family == "gaussian":
        return {}
    fitted = MOVING[config.moving_family].fit(delta, weights, _MINIMUM_SPREAD)
    return dict(zip(_MOVING_FIGURES, fitted, strict=True))


def _blended(state: ErrorModelState, fitted: ErrorModelState, longest: float, usable: Tensor) -> ErrorModelState:
    """The moving averages with a decay of at most `longest`; not `usable` (scalar bool): the state as it was."""
    # Early averages forget faster, so that the first batches count as much as they should.
    decay = torch.minimum(torch.full_like(state.steps, longest), (1 + state.steps) / (10 + state.steps))
    decay = torch.where(state.steps == 0, torch.zeros_like(decay), decay)
    # A family that this state has not seen starts from its first fit, not from an average with nothing.
    decays = dict.fromkeys(_STATIC_FIGURES, decay * (state.static_scale > 0))
    decays |= dict.fromkeys(_MOVING_FIGURES, decay * (state.moving_scale > 0))
    blended = {}
    for field in fields(state):
        old, new = getattr(state, field.name), getattr(fitted, field.name)
        kept = decays.get(field.name, decay)
        mixed = kept * old + (1 - kept) * new
        blended[field.name] = torch.where(usable & mixed.isfinite(), mixed, old)
    settling = state.steps < _SETTLING_STEPS
    blended["b_r_start"] = torch.where(settling, blended["b_r"], state.b_r_start)
    blended["b_f_start"] = torch.where(settling, blended["b_f"], state.b_f_start)
    return ErrorModelState(**blended)


@torch.no_grad()
def training_mask(
    evidence: Evidence, state: ErrorModelState, config: ErrorModelConfig, rigid_error: Tensor, identity_error: Tensor
) -> Tensor:
    """Gamma as it is used to withhold pixels: gated, ramped, capped per pair, dropped for pairs that make no sense.

    Args:
        evidence: of (B, 1, H, W) pairs.
        state: the fitted model.
        config: gates and caps.
        rigid_error, identity_error: (B, 1, H, W) photometric errors of the rigid warp and of the unmoved source. A pair
            that the rigid warp explains worse than no motion at all has no usable mask.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    gamma = posterior(evidence, state, config)
    # To withhold a static pixel costs a little data, to keep a moving one teaches wrong depth: the odds are not even.
    gamma = config.caution * gamma / (config.caution * gamma + 1 - gamma)
    ramp = (state.open_steps / config.ramp_steps).clamp(max=1) * gate_is_open(state, config)
    visible = evidence.visible.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    share = gamma.sum((1, 2, 3), keepdim=True) / visible
    cap = (config.maximum_pi / share.clamp(min=1e-6)).clamp(max=1)
    rigid = (rigid_error * evidence.visible).sum((1, 2, 3), keepdim=True)
    still = (identity_error * evidence.visible).sum((1, 2, 3), keepdim=True)
    return gamma * ramp * cap * (rigid <= still)
