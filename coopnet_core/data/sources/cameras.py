"""From an image with its stamp to a frame: in order, and with the camera that its recording has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coopnet_core.data.calibration import Calibration, read_calibration
from coopnet_core.data.frames import Frame
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources.interface import CLOCK_JUMP_NS, FRAME_ID, OTHER_SIZE, OUT_OF_ORDER, SourceOptions
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

_NAMED = 3
"""Calibration files named before the others are summed up."""


class CameraChooser:
    """Gives each image its camera: of its own calibration, else of the user's file, else an assumed one, else none."""

    def __init__(self, options: SourceOptions, report: ReadReport) -> None:
        """Read the user's file.

        Raises:
            UsageError: it cannot be used.
        """
        self._stand_in = None if options.calibration is None else read_calibration(options.calibration)
        self._fov_degrees = options.fov_degrees
        self._report = report
        self._origins: set[str] = set()
        self._cameras: dict[tuple[Calibration | None, int, int], Camera | None] = {}

    def camera(self, own: Calibration | None, width: int, height: int) -> Camera | None:
        """The camera of an image of this size.

        Raises:
            UsageError: its calibration is for other images.
        """
        key = (own or self._stand_in, width, height)
        if key not in self._cameras:
            self._cameras[key] = self._new(*key)
        return self._cameras[key]

    def _new(self, calibration: Calibration | None, width: int, height: int) -> Camera | None:
        """As `camera`, with a note of what was done."""
        if calibration is not None:
            camera = calibration.camera(width, height)
            self._origins.add(calibration.origin)
            more = len(self._origins) > _NAMED
            self._report.note(f"calibration: {'more files of this kind' if more else calibration.origin}")
            if calibration.size not in (None, (width, height)):
                stated = "{}x{}".format(*calibration.size)
                self._report.note(f"images are {width}x{height}, the calibration is for {stated}: K is scaled to them")
            return camera
        if self._fov_degrees is None:
            return None
        self._report.note(f"no calibration: a centred pinhole of {self._fov_degrees:g} degrees is assumed")
        return replace(Camera.from_field_of_view(width, height, self._fov_degrees), assumed=True)


class FrameMaker:
    """Makes frames of the images of a recording that is no bag; those that cannot be one are counted."""

    def __init__(self, options: SourceOptions, report: ReadReport) -> None:
        """Read the user's calibration file.

        Raises:
            UsageError: it cannot be used.
        """
        self._cameras = CameraChooser(options, report)
        self._report = report
        self._sequence: str | None = None
        self._last_ns: int | None = None

    def is_in_order(self, stamp_ns: int, sequence: str, what: str) -> bool:
        """Whether an image comes after the last frame of its sequence, or the clock was set back; else it is counted.

        Args:
            stamp_ns: of the image.
            sequence: as in `Frame`.
            what: the image, for people.
        """
        if sequence != self._sequence:
            self._sequence, self._last_ns = sequence, None
        if self._last_ns is not None and self._last_ns - CLOCK_JUMP_NS < stamp_ns <= self._last_ns:
            self._report.skip(OUT_OF_ORDER, f"{what}: {stamp_ns} ns after {self._last_ns} ns")
            return False
        return True

    def frame(self, image: np.ndarray, stamp_ns: int, own: Calibration | None, what: str) -> Frame | None:
        """The frame of an image that is in order, or None (counted) where it is of another size than the calibration.

        Args:
            image: (H, W, 3) uint8, RGB.
            stamp_ns: of the image.
            own: the calibration of its recording, if there is one.
            what: the image, for people.

        Raises:
            UsageError: the calibration does not even fit the first image of the sequence.
        """
        height, width = image.shape[:2]
        try:
            camera = self._cameras.camera(own, width, height)
        except UsageError as error:
            if self._last_ns is None:  # not one image of another size among many, but a calibration that fits none
                raise
            self._report.skip(OTHER_SIZE, f"{what}: {error}")
            return None
        self._last_ns = stamp_ns
        self._report.frames += 1
        return Frame(image, stamp_ns, camera, FRAME_ID, self._sequence or "")
