"""Trivial predictions that every network has to beat."""

from __future__ import annotations

import cv2
import numpy as np

from coopnet_core.geometry.camera import Camera

ROAD_REACH = 48.0
FRAME_DIFFERENCE_FULL = 0.2
DESCRIPTIONS = {
    "constant": "one depth everywhere, scaled by the median of each image's truth",
    "road_plane": "a flat road with its horizon in the row of cy, 48 camera heights far at most, scaled by the median",
    "straight_line": "constant speed straight ahead, never turning; ATE is the least that any similarity reaches, the "
    "segments' scale is fitted",
    "zero": "no flow anywhere",
    "all_static": "nothing moves",
    "frame_difference": "|I_t - I_t-1| (grey); threshold 0.1",
    "flow_length": "|predicted flow|, above its median in the image",
}


def constant_disparity(height: int, width: int) -> np.ndarray:
    """(height, width) ones."""
    return np.ones((height, width), dtype=np.float32)


def road_plane_disparity(camera: Camera) -> np.ndarray:
    """(H, W) disparity of a level road, in camera heights: (y - cy) / fy below the horizon, 1 / 48 at the least."""
    rows = (np.arange(camera.height, dtype=np.float32) - camera.cy) / camera.fy
    return np.repeat(np.maximum(rows, 1.0 / ROAD_REACH)[:, None], camera.width, axis=1).astype(np.float32)


def frame_difference_score(image: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1]: the absolute grey difference of two (H, W, 3) uint8 images, full at 0.2 of the range."""
    grey, earlier = (
        cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for picture in (image, previous)
    )
    return np.minimum(np.abs(grey - earlier) / FRAME_DIFFERENCE_FULL, 1.0)


def flow_length_score(flow: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1): |f| / (|f| + median |f|) of a flow (H, W, 2); NaN where the flow is."""
    length = np.linalg.norm(flow, axis=-1)
    known = length[np.isfinite(length)]
    median = float(np.median(known)) if known.size else 1.0
    return length / (length + max(median, 1e-6))
