"""Figures of the moving-object mask: area under the ROC curve and intersection over union."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096


def auc(probability: np.ndarray, moving: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a moving pixel has a higher probability than a static one.

    Ties count one half. NaN where one of the two classes is absent.

    Args:
        probability: (N,) any scores.
        moving: (N,) bool.

    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    values, inverse = np.unique(probability, return_inverse=True)
    positive = np.bincount(inverse[moving], minlength=len(values))
    negative = np.bincount(inverse[~moving], minlength=len(values))
    return _auc_of_counts(positive, negative)


def iou(predicted: np.ndarray, moving: np.ndarray) -> tuple[float, float]:
    """Intersection over union of background and foreground, for bool arrays of one shape; NaN for an empty union.

    >>> iou(np.array([True, True, False, False]), np.array([True, False, False, False]))
    (0.6666666666666666, 0.5)
    """
    return _iou_of_counts(_confusion(predicted, moving))


@dataclass
class MaskMeter:
    """Pools pixels of many images; two meters over parts of the images merge to the meter over all of them.

    The AUC is taken from histograms of 4096 bins, so that the state has one size whatever the number of pixels: scores
    closer than 1/4096 count as ties.

    Attributes:
        threshold: a pixel is called moving above it; fixed beforehand, never fitted to the truth.
        positive, negative: (4096,) histograms of the scores of moving and static pixels.
        counts: (2, 2) pixels by [truth, prediction].
        images: images seen.
    """

    threshold: float = 0.5
    positive: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    negative: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, 2), dtype=np.int64))
    images: int = 0

    def update(self, moving: np.ndarray, probability: np.ndarray, within: np.ndarray | None = None) -> bool:
        """Add one image.

        Args:
            moving: (H, W) bool.
            probability: (H, W) in [0, 1]; NaN where there is none (not evaluated).
            within: (H, W) bool, where to evaluate.

        Returns:
            Whether the image had a pixel to evaluate.
        """
        valid = np.isfinite(probability)
        if within is not None:
            valid &= within
        if not valid.any():
            return False
        score, truth = probability[valid], moving[valid].astype(bool)
        bins = np.clip((score * BINS).astype(np.int64), 0, BINS - 1)
        self.positive += np.bincount(bins[truth], minlength=BINS)
        self.negative += np.bincount(bins[~truth], minlength=BINS)
        self.counts += _confusion(score > self.threshold, truth)
        self.images += 1
        return True

    def merge(self, other: MaskMeter) -> MaskMeter:
        """The meter over the images of both (they must share the threshold)."""
        return MaskMeter(
            self.threshold,
            self.positive + other.positive,
            self.negative + other.negative,
            self.counts + other.counts,
            self.images + other.images,
        )

    def compute(self) -> dict[str, float | int | None] | None:
        """The pooled figures and counts; None without an image, figures that are undefined None."""
        if not self.images:
            return None
        background, foreground = _iou_of_counts(self.counts)
        moving = int(self.counts[1].sum())
        figures: dict[str, float | int | None] = {
            "auc": _known(_auc_of_counts(self.positive, self.negative)),
            "iou_moving": _known(foreground) if moving else None,
            "iou_static": _known(background),
            "iou_mean": _known((background + foreground) / 2) if moving else None,
            "threshold": self.threshold,
        }
        return figures | {"pixels": int(self.counts.sum()), "moving_pixels": moving, "images": self.images}


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _auc_of_counts(positive: np.ndarray, negative: np.ndarray) -> float:
    """AUC from the counts (K,) of both classes at ascending scores."""
    pairs = float(positive.sum()) * float(negative.sum())
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + 0.5 * negative)).sum() / pairs)


def _confusion(predicted: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """(2, 2) pixels by [truth, prediction]."""
    return np.bincount(2 * moving.astype(np.int64).ravel() + predicted.ravel(), minlength=4).reshape(2, 2)


def _iou_of_counts(counts: np.ndarray) -> tuple[float, float]:
    total = counts.sum()
    unions = (total - counts[1, 1], total - counts[0, 0])
    hits = (counts[0, 0], counts[1, 1])
    background, foreground = (float(h / u) if u else float("nan") for h, u in zip(hits, unions, strict=True))
    return background, foreground
