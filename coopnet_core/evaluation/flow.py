"""Optical flow figures: end-point error and Fl, pooled and per image, over all and over named parts of the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

OUTLIER_PIXELS = 3.0
OUTLIER_SHARE = 0.05


def resize_flow(flow: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear resize of a flow (h, w, 2) to (height, width, 2); u is scaled by width / w, v by height / h.

    >>> resize_flow(np.ones((2, 2, 2)), 6, 4)[0, 0].tolist()
    [3.0, 2.0]
    """
    factor = np.array([width / flow.shape[1], height / flow.shape[0]], dtype=np.float32)
    if flow.shape[:2] == (height, width):
        return flow.astype(np.float32)
    return cv2.resize(flow.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) * factor


def end_point_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|f - f_gt| of flows (..., 2), pixels.

    >>> float(end_point_error(np.array([3.0, 0.0]), np.array([0.0, 4.0])))
    5.0
    """
    return np.linalg.norm(flow.astype(np.float64) - truth.astype(np.float64), axis=-1)


def outliers(error: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """KITTI outliers: error (...) above 3 px **and** above 5 % of the length of the true flow (..., 2).

    >>> truth = np.array([[0.0, 0.0], [100.0, 0.0]])
    >>> outliers(np.array([3.0, 5.0]), truth).tolist(), outliers(np.array([3.1, 5.1]), truth).tolist()
    ([False, False], [True, True])
    """
    length = np.linalg.norm(truth.astype(np.float64), axis=-1)
    return (error > OUTLIER_PIXELS) & (error > OUTLIER_SHARE * length)


@dataclass
class _Part:
    """Sums over one part of the pixels."""

    pixels: int = 0
    error: float = 0.0
    outlier: int = 0
    image_means: list[float] = field(default_factory=list)
    image_shares: list[float] = field(default_factory=list)

    def update(self, error: np.ndarray, outlier: np.ndarray) -> None:
        if error.size == 0:
            return
        self.pixels += int(error.size)
        self.error += float(error.sum())
        self.outlier += int(outlier.sum())
        self.image_means.append(float(error.mean()))
        self.image_shares.append(float(outlier.mean()))

    def merge(self, other: _Part) -> _Part:
        return _Part(
            self.pixels + other.pixels,
            self.error + other.error,
            self.outlier + other.outlier,
            self.image_means + other.image_means,
            self.image_shares + other.image_shares,
        )

    def compute(self) -> dict[str, float | int]:
        return {
            "epe": self.error / self.pixels,
            "fl_pct": 100.0 * self.outlier / self.pixels,
            "epe_image_mean": float(np.mean(self.image_means)),
            "fl_pct_image_mean": 100.0 * float(np.mean(self.image_shares)),
            "pixels": self.pixels,
            "images": len(self.image_means),
        }


@dataclass
class FlowMeter:
    """Collects flow errors; two meters over parts of the images merge to the meter over all of them.

    Attributes:
        parts: sums by name of the part ("all", "noc", "occ", "static", "moving").
        missing: pixels with truth but without a prediction; they are not evaluated.
    """

    parts: dict[str, _Part] = field(default_factory=dict)
    missing: int = 0

    def update(
        self,
        truth: np.ndarray,
        flow: np.ndarray,
        masks: Mapping[str, np.ndarray] | None = None,
        within: np.ndarray | None = None,
    ) -> bool:
        """Add one image.

        Args:
            truth: (H, W, 2) pixels, not finite where unknown.
            flow: (h, w, 2) pixels of its own grid, resized to the truth; not finite where there is none.
            masks: (H, W) bool by name of the part.
            within: (H, W) bool, where to evaluate.

        Returns:
            Whether the image had a pixel to evaluate.
        """
        flow = resize_flow(flow, truth.shape[1], truth.shape[0])
        wanted = np.isfinite(truth).all(-1)
        if within is not None:
            wanted &= within
        valid = wanted & np.isfinite(flow).all(-1)
        self.missing += int(wanted.sum() - valid.sum())
        if not valid.any():
            return False
        error = end_point_error(flow[valid], truth[valid])
        outlier = outliers(error, truth[valid])
        for name, mask in {"all": np.ones_like(valid), **(masks or {})}.items():
            chosen = mask[valid]
            self.parts.setdefault(name, _Part()).update(error[chosen], outlier[chosen])
        return True

    def merge(self, other: FlowMeter) -> FlowMeter:
        """The meter over the images of both."""
        names = [*self.parts, *(name for name in other.parts if name not in self.parts)]
        parts = {name: self.parts.get(name, _Part()).merge(other.parts.get(name, _Part())) for name in names}
        return FlowMeter(parts, self.missing + other.missing)

    def compute(self) -> dict[str, object] | None:
        """The figures over all pixels, those of each part under its name, and the counts; None without a pixel."""
        if "all" not in self.parts or not self.parts["all"].pixels:
            return None
        named = {name: part.compute() for name, part in self.parts.items() if name != "all" and part.pixels}
        return {**self.parts["all"].compute(), "pixels_without_prediction": self.missing, **named}
