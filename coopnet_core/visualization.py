"""Pictures of depth, flow and masks: pure functions from arrays to (H, W, 3) uint8 RGB images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from coopnet_core.data.frames import FrameTruth
from coopnet_core.errors import UsageError
from coopnet_core.inference.prediction import Prediction

_CAPTION_HEIGHT = 22
_MASK_TINT = np.array([255.0, 40.0, 40.0], dtype=np.float32)


def depth_range(depth: np.ndarray) -> tuple[float, float]:
    """A colour range (near, far) that fits a depth map: its 2nd and 95th percentile, in the map's unit.

    Returns (1.0, 2.0) for a map without a valid pixel, so that colouring it stays possible.

    >>> depth_range(np.array([[1.0, np.nan], [1.0, 1.0]]))
    (1.0, 2.0)
    """
    valid = depth[np.isfinite(depth) & (depth > 0)]
    if valid.size == 0:
        return 1.0, 2.0
    near, far = (float(value) for value in np.percentile(valid, [2, 95]))
    return near, max(far, 2.0 * near)


def median_ratio(truth: np.ndarray | None, depth: np.ndarray | None) -> float:
    """The median of truth / depth over the pixels where both (H, W) are known; 1 where there is none.

    >>> median_ratio(np.array([[2.0, np.nan]]), np.array([[1.0, 1.0]]))
    2.0
    """
    if truth is None or depth is None or truth.shape != depth.shape:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = truth / depth
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    return float(np.median(ratio)) if ratio.size else 1.0


def depth_to_color(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Colours by inverse depth (near bright, far dark), perceptually uniform; invalid pixels are black.

    Args:
        depth: (H, W), along the optical axis; NaN, infinite or not positive where invalid.
        near: depth drawn brightest, in the unit of `depth`; nearer pixels share its colour.
        far: depth drawn darkest; pixels beyond it share its colour.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UsageError: not 0 < near < far.

    >>> depth_to_color(np.array([[np.nan, 1.0]]), 1.0, 80.0)[0, 0].tolist()
    [0, 0, 0]
    """
    if not 0 < near < far:
        raise UsageError(f"Colour range near={near} far={far}: 0 < near < far was expected.")
    depth = np.asarray(depth, dtype=np.float32)
    valid = (depth > 0) & (depth < np.inf)
    inverse = 1.0 / np.fmin(np.fmax(depth, near), far)  # a number even where the depth is NaN
    level = np.clip((inverse - 1.0 / far) / (1.0 / near - 1.0 / far), 0.0, 1.0)
    # The lowest 5 % of the map are nearly black, the colour of "invalid": the far end starts above them.
    return _colored(0.05 + 0.95 * level, valid, cv2.COLORMAP_MAGMA)


def flow_to_color(flow: np.ndarray, max_px: float) -> np.ndarray:
    """Colour wheel: hue is the direction (red to the right), saturation the length; no motion is white.

    Args:
        flow: (H, W, 2) pixels (u right, v down); not finite where invalid.
        max_px: length drawn fully saturated; longer vectors are drawn darker.

    Returns:
        (H, W, 3) uint8 RGB; invalid pixels are black.

    Raises:
        UsageError: max_px is not positive.

    >>> flow_to_color(np.zeros((1, 1, 2)), 10.0).tolist()
    [[[255, 255, 255]]]
    """
    if not max_px > 0:
        raise UsageError(f"Colour range max_px={max_px}: a positive number of pixels was expected.")
    flow = np.asarray(flow, dtype=np.float32)
    u, v = (np.ascontiguousarray(flow[..., i]) for i in (0, 1))
    length, angle = cv2.cartToPolar(u, v, angleInDegrees=True)
    relative = length / np.float32(max_px)
    value = 1.0 - np.float32(0.25) * (relative > 1.0)
    hsv = cv2.merge([angle, np.minimum(relative, 1.0), value])
    color = cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha=255.0)
    return _black_outside(color, length < np.inf)  # NaN or infinite where u or v is


def error_to_color(error: np.ndarray, max_error: float) -> np.ndarray:
    """Colours of a non-negative error map (dark blue 0, yellow `max_error` and above); NaN is black.

    Args:
        error: (H, W), NaN where unknown.
        max_error: the error drawn brightest, in the unit of `error`.

    Raises:
        UsageError: max_error is not positive.
    """
    if not max_error > 0:
        raise UsageError(f"Colour range max_error={max_error}: a positive number was expected.")
    valid = np.isfinite(error)
    level = np.clip(np.where(valid, error, 0.0) / max_error, 0.0, 1.0)
    return _colored(level, valid, cv2.COLORMAP_CIVIDIS if hasattr(cv2, "COLORMAP_CIVIDIS") else cv2.COLORMAP_VIRIDIS)


def mask_overlay(image: np.ndarray, probability: np.ndarray, strength: float = 0.75) -> np.ndarray:
    """The image in grey, tinted red in proportion to a probability.

    Args:
        image: (H, W, 3) uint8 RGB.
        probability: (H, W) in [0, 1], or bool; NaN counts as 0.
        strength: share of the tint where the probability is 1.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UsageError: the two sizes differ.
    """
    if image.shape[:2] != probability.shape:
        raise UsageError(f"Mask of {probability.shape} over an image of {image.shape[:2]}: equal sizes were expected.")
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    weight = strength * np.clip(np.nan_to_num(probability.astype(np.float32)), 0.0, 1.0)[..., None]
    return np.rint((1.0 - weight) * grey + weight * _MASK_TINT).astype(np.uint8)


def tile(pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> np.ndarray:
    """Pictures in a grid, each under its caption; all are resized to the size of the first.

    Args:
        pictures: (H, W, 3) uint8 RGB each.
        captions: one line each.
        columns: pictures per row; the last row is filled up with black.

    Raises:
        UsageError: no picture, or not one caption for each.
    """
    if not pictures or len(pictures) != len(captions) or columns < 1:
        raise UsageError(f"{len(pictures)} pictures, {len(captions)} captions, {columns} columns: nothing to tile.")
    height, width = pictures[0].shape[:2]
    cells = [_captioned(_resized(p, width, height), c) for p, c in zip(pictures, captions, strict=True)]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])


def panel(
    prediction: Prediction,
    truth: FrameTruth | None = None,
    depth_limits: tuple[float, float] | None = None,
    flow_max_px: float | None = None,
    columns: int | None = None,
    min_width: int = 320,
) -> np.ndarray:
    """Image, depth, flow and moving mask of one prediction, with the truth in a second row where it is known.

    Args:
        prediction: outputs that are None are drawn as an empty picture that says so.
        truth: on the grid of the prediction; its depth is drawn with the colours of the prediction's after the
            median of their ratio has been taken out, since the scale of a prediction may be arbitrary.
        depth_limits: (near, far) of the colours, in the prediction's unit; by default from the depth itself.
        flow_max_px: length drawn saturated; by default the 98th percentile of the flow (at least 1 px).
        columns: pictures per row; 2 without truth and 4 with it.
        min_width: smaller pictures are enlarged to this width, so that captions fit.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    near, far = depth_limits or _depth_limits(prediction)
    max_px = flow_max_px or _flow_limit(prediction.flow if prediction.flow is not None else _flow_of(truth))
    image = prediction.image
    drawn = prediction_pictures(prediction, (near, far), max_px)
    captions, pictures = list(drawn), list(drawn.values())
    if truth is not None:
        scale = median_ratio(truth.depth, prediction.depth)
        limits = (near * scale, far * scale)
        pictures += [
            image,
            _or_empty(truth.depth, image, lambda depth: depth_to_color(_thickened(depth), *limits)),
            _or_empty(truth.flow, image, lambda flow: flow_to_color(flow, max_px)),
            _or_empty(truth.moving, image, lambda mask: mask_overlay(image, mask)),
        ]
        captions += ["truth", f"depth {limits[0]:.3g}-{limits[1]:.3g} m", "flow", "moving"]
    return tile(_enlarged(pictures, min_width), captions, columns or (4 if truth is not None else 2))


def prediction_pictures(
    prediction: Prediction, depth_limits: tuple[float, float] | None = None, flow_max_px: float | None = None
) -> dict[str, np.ndarray]:
    """Image, depth, flow and moving mask of one prediction, (H, W, 3) uint8 RGB each, by their captions.

    The arguments are those of `panel`.
    """
    near, far = depth_limits or _depth_limits(prediction)
    max_px = flow_max_px or _flow_limit(prediction.flow)
    unit = "m" if prediction.metric else "units"
    image = prediction.image
    return {
        "image": image,
        f"depth {near:.3g}-{far:.3g} {unit}": _or_empty(
            prediction.depth, image, lambda depth: depth_to_color(depth, near, far)
        ),
        f"flow, saturated at {max_px:.3g} px": _or_empty(
            prediction.flow, image, lambda flow: flow_to_color(flow, max_px)
        ),
        "moving": _or_empty(prediction.motion_probability, image, lambda mask: mask_overlay(image, mask)),
    }


def error_panel(
    image: np.ndarray,
    depth_error: np.ndarray | None,
    flow_error: np.ndarray | None,
    max_depth: float,
    max_flow: float,
    min_width: int = 320,
) -> np.ndarray:
    """Image, relative depth error and flow end-point error side by side; unknown pixels are black.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth_error: (H, W) |g - p| / g, NaN where unknown, or None.
        flow_error: (H, W) pixels, NaN where unknown, or None.
        max_depth: the relative error drawn brightest.
        max_flow: the end-point error drawn brightest, pixels.
        min_width: smaller pictures are enlarged to this width, so that captions fit.
    """
    pictures = [
        image,
        _or_empty(depth_error, image, lambda error: error_to_color(_thickened(error), max_depth)),
        _or_empty(flow_error, image, lambda error: error_to_color(error, max_flow)),
    ]
    captions = ["image", f"relative depth error 0-{max_depth:.2g}", f"flow error 0-{max_flow:.2g} px"]
    return tile(_enlarged(pictures, min_width), captions, columns=3)


def write_picture(path: Path, image: np.ndarray) -> Path:
    """Write an (H, W, 3) uint8 RGB image as PNG or JPEG, by the ending of `path`.

    Raises:
        UsageError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise UsageError(f"{path} could not be written. Check the free space and the rights of its folder.")
    return path


def write_animation(path: Path, images: Iterable[np.ndarray], fps: float = 10.0, max_width: int = 960) -> Path:
    """Write images as an endless animation, WebP or GIF by the ending of `path` (needs Pillow).

    Args:
        path: ends in .webp (small, true colours) or .gif (256 colours, opens everywhere).
        images: (H, W, 3) uint8 RGB, all of one size.
        fps: pictures per second.
        max_width: wider images are reduced to this width.

    Raises:
        UsageError: no image, or another ending.
    """
    from PIL import Image

    if path.suffix not in (".webp", ".gif"):
        raise UsageError(f"Animation {path.name}: .webp or .gif was expected.")
    pages = []
    for image in images:
        scale = min(1.0, max_width / image.shape[1])
        height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
        pages.append(Image.fromarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)))
    if not pages:
        raise UsageError(f"Animation {path.name}: not one picture was given.")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 75, "method": 2} if path.suffix == ".webp" else {"optimize": False}
    duration = max(20, round(1000.0 / fps))
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=duration, loop=0, **options)
    return path


def _colored(level: np.ndarray, valid: np.ndarray, colormap: int) -> np.ndarray:
    """Map levels in [0, 1] through an OpenCV colour map; invalid pixels black. RGB."""
    color = cv2.applyColorMap(np.rint(level * 255.0).astype(np.uint8), _rgb_table(colormap))
    return _black_outside(color, valid)


@lru_cache(maxsize=4)
def _rgb_table(colormap: int) -> np.ndarray:
    """(256, 1, 3) uint8 colours of an OpenCV map, red first; OpenCV would work its own out for every picture."""
    return cv2.cvtColor(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colormap), cv2.COLOR_BGR2RGB)


def _black_outside(color: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A picture that is black where `valid` (H, W) is False (np.where takes ten times as long with three channels)."""
    return cv2.bitwise_and(color, color, mask=valid.view(np.uint8))


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = picture.shape[1] > width
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def _enlarged(pictures: Sequence[np.ndarray], min_width: int) -> list[np.ndarray]:
    """Pictures of one size, enlarged by a whole number so that a caption fits over each."""
    height, width = pictures[0].shape[:2]
    factor = max(1, -(-min_width // width))
    return [_resized(picture, factor * width, factor * height) for picture in pictures]


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    bar = np.full((_CAPTION_HEIGHT, picture.shape[1], 3), 24, dtype=np.uint8)
    cv2.putText(bar, caption, (6, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def _or_empty(array: np.ndarray | None, image: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`draw(array)`, or a dark picture that says there is nothing."""
    if array is not None:
        return draw(array)
    empty = np.full_like(image, 48)
    cv2.putText(empty, "none", (8, image.shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (160, 160, 160), 1, cv2.LINE_AA)
    return empty


def _depth_limits(prediction: Prediction) -> tuple[float, float]:
    return depth_range(prediction.depth) if prediction.depth is not None else (1.0, 2.0)


def _flow_of(truth: FrameTruth | None) -> np.ndarray | None:
    return None if truth is None else truth.flow


def _flow_limit(flow: np.ndarray | None) -> float:
    lengths = np.zeros(0) if flow is None else np.linalg.norm(flow, axis=-1)
    lengths = lengths[np.isfinite(lengths)]
    return max(1.0, float(np.percentile(lengths, 98))) if lengths.size else 1.0


def _thickened(depth: np.ndarray) -> np.ndarray:
    """Sparse maps (lidar) drawn with dots of 3 x 3 pixels, so that they can be seen; dense ones unchanged."""
    if np.isfinite(depth).mean() > 0.3:
        return depth
    largest = cv2.dilate(np.nan_to_num(depth, nan=-1.0).astype(np.float32), np.ones((3, 3), np.uint8))
    return np.where(largest > 0, largest, np.nan)
