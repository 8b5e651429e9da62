"""Values that travel through the data path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np

from coopnet_core.geometry.camera import Camera


@dataclass(frozen=True)
class Frame:
    """One image with its camera and stamp.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        stamp_ns: acquisition time of the image, nanoseconds.
        camera: the camera of exactly this image, or None when uncalibrated.
        frame_id: the camera's optical frame (x right, y down, z forward).
        sequence: the uninterrupted part of its recording that it belongs to; frames of different ones are no
            neighbours, whatever their stamps.
    """

    image: np.ndarray
    stamp_ns: int
    camera: Camera | None
    frame_id: str = ""
    sequence: str = ""


class Images(Protocol):
    """Frames one after the other, (N, H, W, 3) uint8, RGB: an array, or `CompressedFrames`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that are held for them."""
        ...

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one camera, without a gap, at one size (normally the networks' input size).

    Attributes:
        name: where it comes from, for messages.
        images: (N, H, W, 3) uint8, RGB.
        stamps_ns: (N,) int64.
        camera: the camera at this size.
        moving: (N, H, W) bool, the true moving mask, where it is known (rendered scenes). Training without labels
            never looks at it; the rule `oracle` of experiments does.
        source: number of the recording it was cut from.
        weight: share of the training targets that this recording is to give, relative to that of the others; None:
            as many as it has.
    """

    name: str
    images: Images
    stamps_ns: np.ndarray
    camera: Camera
    moving: np.ndarray | None = None
    source: int = 0
    weight: float | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class FrameTruth:
    """What is known of one frame (index k) of a clip; each field None where unknown.

    Attributes:
        depth: (H, W) float32 metres along the optical axis, NaN where unknown.
        pose: T_world_camera, (4, 4) float64, metres, camera optical frame.
        flow: (H, W, 2) float32 pixels, on this frame's grid, towards the previous frame, NaN where unknown.
        moving: (H, W) bool, True on independently moving objects.
        occluded: (H, W) bool, True where the point is not visible in the previous frame.
    """

    depth: np.ndarray | None = None
    pose: np.ndarray | None = None
    flow: np.ndarray | None = None
    moving: np.ndarray | None = None
    occluded: np.ndarray | None = None
