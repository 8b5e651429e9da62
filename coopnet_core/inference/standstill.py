"""Whether the camera moved between two images, or only something before it; from small grey copies, in microseconds.

Matching two images that are nearly equal can only invent motion, and a robot that stands must stay where it is. [ours]
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from coopnet_core.data.prepare import thumbnail

_SIZE = (128, 64)
_BLOCK = 8
_LEAST_GRADIENT = 1.5
"""Grey levels per pixel of the small copy, both directions together: less is no texture."""
_LEAST_BLOCKS = 4
"""Textured blocks, of 128, below which an image says nothing of motion."""
_MOST_NOISE = 0.5
"""Grey levels of difference that are taken for noise at most: more, and real motion of an even texture would be."""
_CAMERA_SHIFT = 0.04
"""Pixels of the small copy: about 0.13 of an image that is 416 wide, as the median over the texture."""
_OBJECT_SHIFT = 0.06
_OBJECT_OVER_CAMERA = 6.0
_OBJECT_DIFFERENCE = 1.3
"""A block whose shift is above the first and so many times the median, and whose difference is so many grey levels,
shows something that moves."""
_GAIN = (0.8, 1.25)
"""Changes of brightness that are taken for exposure."""


class Change(Enum):
    """What differs between two images."""

    NOTHING = "nothing"
    OBJECTS = "something moves, the camera does not"
    CAMERA = "the camera moves"
    UNKNOWN = "an image without texture: nothing can be said"


def small_view(image: np.ndarray) -> np.ndarray:
    """A grey copy, (64, 128) float32 in 0-255, of an (H, W, 3) uint8 image."""
    return thumbnail(image, _SIZE)


def compare(before: np.ndarray, now: np.ndarray) -> Change:
    """What moved between two small views.

    The difference of a block, less the noise, over its gradient is about the shift of its texture. The camera moves
    where the median shift, weighted by gradient, is not zero: one object cannot move it, a creeping camera does.

    Args:
        before, now: of `small_view`.
    """
    gain = float(np.clip(before.mean() / max(float(now.mean()), 1.0), *_GAIN))
    difference = _block_means(np.abs(gain * now - before))
    gradient_before = _gradient(before)
    gradient = np.minimum(gradient_before, _gradient(now))
    textured = gradient > _LEAST_GRADIENT
    if textured.sum() < _LEAST_BLOCKS:
        return Change.UNKNOWN
    excess = np.maximum(difference - min(float(np.percentile(difference, 10)), _MOST_NOISE), 0.0)
    shift = excess / np.maximum(gradient_before, _LEAST_GRADIENT)
    median = _weighted_median(shift[textured], gradient[textured])
    if median > _CAMERA_SHIFT:
        return Change.CAMERA
    moves = (shift > max(_OBJECT_SHIFT, _OBJECT_OVER_CAMERA * median)) & (excess > _OBJECT_DIFFERENCE)
    return Change.OBJECTS if moves.any() else Change.NOTHING


def _gradient(view: np.ndarray) -> np.ndarray:
    """(8, 16) mean absolute gradient of each block, both directions added."""
    across = np.abs(np.diff(view, axis=1, append=view[:, -1:]))
    down = np.abs(np.diff(view, axis=0, append=view[-1:]))
    return _block_means(across + down)


def _block_means(view: np.ndarray) -> np.ndarray:
    rows, columns = view.shape[0] // _BLOCK, view.shape[1] // _BLOCK
    return view.reshape(rows, _BLOCK, columns, _BLOCK).mean(axis=(1, 3))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
