"""Depth figures: the KITTI Eigen protocol with its switches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import cv2
import numpy as np

from coopnet_core.errors import UsageError

CROPS = {
    "none": (0.0, 1.0, 0.0, 1.0),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
SCALINGS = ("median", "none", "fixed")


@dataclass(frozen=True)
class DepthProtocol:
    """What public codes differ in; printed with every result.

    Attributes:
        cap: depths beyond it are not evaluated, predictions are clamped to it, metres.
        minimum: the same at the near end, metres.
        crop: none, garg or eigen: the part of the image that is evaluated.
        scaling: median (per image), none (the prediction is in metres) or fixed (one factor for all images).
        fixed_scale: the factor of `fixed`.
    """

    cap: float = 80.0
    minimum: float = 1e-3
    crop: str = "garg"
    scaling: str = "median"
    fixed_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.crop not in CROPS or self.scaling not in SCALINGS:
            raise UsageError(
                f"Crop {self.crop!r}, scaling {self.scaling!r}: one of {', '.join(CROPS)} and one of "
                f"{', '.join(SCALINGS)} were expected."
            )
        if not 0 < self.minimum < self.cap:
            raise UsageError(f"Depth range {self.minimum} to {self.cap} m: 0 < minimum < cap was expected.")


@dataclass(frozen=True)
class DepthErrors:
    """The figures of one image, or their means over several."""

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    silog: float
    a1: float
    a2: float
    a3: float


def resize_disparity(disparity: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a disparity (h, w) to (height, width), without antialiasing."""
    if disparity.shape == (height, width):
        return disparity
    return cv2.resize(disparity.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def crop_mask(height: int, width: int, crop: str) -> np.ndarray:
    """(height, width) bool, True inside the named crop; its bounds are shares of the size, truncated.

    >>> int(crop_mask(375, 1242, "garg").sum())
    251354
    """
    top, bottom, left, right = CROPS[crop]
    mask = np.zeros((height, width), dtype=bool)
    mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask


def valid_pixels(truth: np.ndarray, protocol: DepthProtocol) -> np.ndarray:
    """(H, W) bool: pixels of the truth (H, W) that the protocol evaluates."""
    with np.errstate(invalid="ignore"):
        inside = (truth > protocol.minimum) & (truth < protocol.cap)
    return inside & crop_mask(*truth.shape, protocol.crop)


def depth_errors(truth: np.ndarray, prediction: np.ndarray) -> DepthErrors:
    """The figures of matching depths (N,), both positive, in metres.

    >>> errors = depth_errors(np.array([2.0, 4.0]), np.array([1.0, 4.0]))
    >>> errors.abs_rel, errors.a1
    (0.25, 0.5)
    """
    g, p = truth.astype(np.float64), prediction.astype(np.float64)
    log_error = np.log(p) - np.log(g)
    ratio = np.maximum(g / p, p / g)
    return DepthErrors(
        abs_rel=float((np.abs(g - p) / g).mean()),
        sq_rel=float(((g - p) ** 2 / g).mean()),
        rmse=float(np.sqrt(((g - p) ** 2).mean())),
        rmse_log=float(np.sqrt((log_error**2).mean())),
        silog=float(100.0 * np.sqrt(max(0.0, (log_error**2).mean() - log_error.mean() ** 2))),
        a1=float((ratio < 1.25).mean()),
        a2=float((ratio < 1.25**2).mean()),
        a3=float((ratio < 1.25**3).mean()),
    )


def scaled_prediction(truth: np.ndarray, prediction: np.ndarray, protocol: DepthProtocol) -> tuple[np.ndarray, float]:
    """Scale matching depths (N,) as the protocol says, then clamp them: (prediction (N,), scale)."""
    scale = {"none": 1.0, "fixed": protocol.fixed_scale}.get(protocol.scaling)
    if scale is None:
        scale = float(np.median(truth) / np.median(prediction))
    return np.clip(prediction.astype(np.float64) * scale, protocol.minimum, protocol.cap), scale


@dataclass
class DepthMeter:
    """Collects per-image figures; two meters over parts of the images merge to the meter over all of them.

    Attributes:
        protocol: what is evaluated, and how.
        images: the figures of each image.
        scales: the factor of each image.
        pixels: evaluated pixels.
        missing: pixels with truth but without a prediction (not finite or not positive); they are not evaluated.
    """

    protocol: DepthProtocol = field(default_factory=DepthProtocol)
    images: list[DepthErrors] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    pixels: int = 0
    missing: int = 0

    def update(self, truth: np.ndarray, disparity: np.ndarray, within: np.ndarray | None = None) -> bool:
        """Add one image.

        Args:
            truth: (H, W) depth, metres, not finite or not positive where unknown.
            disparity: (h, w) predicted 1 / depth, resized bilinearly to the truth.
            within: (H, W) bool, where to evaluate, beside the protocol's own limits.

        Returns:
            Whether the image had a pixel to evaluate.
        """
        disparity = resize_disparity(disparity, truth.shape[1], truth.shape[0])
        wanted = valid_pixels(truth, self.protocol)
        if within is not None:
            wanted &= within
        with np.errstate(invalid="ignore"):
            valid = wanted & np.isfinite(disparity) & (disparity > 0)
        self.missing += int(wanted.sum() - valid.sum())
        if not valid.any():
            return False
        depth, scale = scaled_prediction(truth[valid], 1.0 / disparity[valid].astype(np.float64), self.protocol)
        self.images.append(depth_errors(truth[valid], depth))
        self.scales.append(scale)
        self.pixels += int(valid.sum())
        return True

    def merge(self, other: DepthMeter) -> DepthMeter:
        """The meter over the images of both.

        Raises:
            UsageError: the protocols differ.
        """
        if self.protocol != other.protocol:
            raise UsageError(f"Depth figures of two protocols cannot be merged: {self.protocol} and {other.protocol}.")
        return DepthMeter(
            self.protocol,
            self.images + other.images,
            self.scales + other.scales,
            self.pixels + other.pixels,
            self.missing + other.missing,
        )

    def compute(self) -> dict[str, float | int] | None:
        """Means over the images of the per-image figures, the scales and the counts; None without an image."""
        if not self.images:
            return None
        rows = np.array([list(asdict(errors).values()) for errors in self.images])
        figures: dict[str, float | int] = dict(zip(asdict(self.images[0]), rows.mean(0).tolist(), strict=True))
        median = float(np.median(self.scales))
        figures |= {"scale_median": median, "scale_spread": float(np.std(self.scales) / median)}
        return figures | {"images": len(self.images), "pixels": self.pixels, "pixels_without_prediction": self.missing}
