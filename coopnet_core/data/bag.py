"""Recordings (rosbag2) as frames: images paired with their calibration, what is unusable counted.

The parts: `bag_storage` (single files, damaged ones too), `bag_files` (a recording and its topics), `bag_camera` (which
topics are the camera). What callers need of them can be imported from here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coopnet_core.data.bag_camera import CAMERA_INFO_TYPE, COMPRESSED_TYPE, IMAGE_TYPE, CameraTopics, find_camera
from coopnet_core.data.bag_files import Bag, BrokenMessageError, deserialize, header_stamp, list_topics, open_bag
from coopnet_core.data.bag_storage import RawMessage, TopicInfo
from coopnet_core.data.camera_info import camera_from_info
from coopnet_core.data.encodings import (
    MalformedImageError,
    UnsupportedEncodingError,
    decode_compressed,
    decode_image,
)
from coopnet_core.data.frames import Frame
from coopnet_core.data.report import ReadReport
from coopnet_core.geometry.camera import Camera

__all__ = [
    "CAMERA_INFO_TYPE",
    "COMPRESSED_TYPE",
    "IMAGE_TYPE",
    "Bag",
    "BrokenMessageError",
    "CameraTopics",
    "RawMessage",
    "RecordedImage",
    "TopicInfo",
    "decode_message",
    "deserialize",
    "find_camera",
    "header_stamp",
    "list_topics",
    "open_bag",
    "read_frames",
    "read_images",
]

# Reasons why a message gives no frame, as they are counted and shown.
BROKEN, MALFORMED, ENCODING = "cannot be deserialised", "malformed image", "encoding not read"
OUT_OF_ORDER, NO_STAMP, OTHER_SIZE = "stamp not increasing", "header stamp is zero", "CameraInfo of another size"

Decode = Callable[[bytes, str], tuple[np.ndarray, str]]
"""From a serialised message and its type to image and frame id, as `decode_message`."""
_CLOCK_JUMP_NS = 1_000_000_000
_PENDING_IMAGES = 8
_KNOWN_CALIBRATIONS = 64
"""How many of the CameraInfo messages met last are remembered by their stamps."""


@dataclass(frozen=True)
class RecordedImage:
    """One image message and what became of it.

    Attributes:
        index: its number among the images of its topic, from 0.
        message: as recorded.
        header_ns: its header stamp, nanoseconds; None where the message is too broken to have one.
        stamp_ns: the time it counts for: the header stamp, or the recording time where all stamps are zero; None where
            the image is not used for want of a stamp.
        usable: whether it is a frame, as far as it was looked at.
        frame: the decoded image; None where it is not usable, or was not to be decoded.
    """

    index: int
    message: RawMessage
    header_ns: int | None
    stamp_ns: int | None
    usable: bool = False
    frame: Frame | None = None


@dataclass(frozen=True)
class _Calibration:
    """What a CameraInfo says, hashable, without its stamp."""

    width: int
    height: int
    k: tuple[float, ...]
    d: tuple[float, ...]
    p: tuple[float, ...]
    model: str
    binning: tuple[int, int]
    roi: tuple[int, int, int, int]

    @classmethod
    def from_message(cls, message: Any) -> _Calibration:
        """Take the fields of a sensor_msgs/CameraInfo."""
        roi = message.roi
        return cls(
            int(message.width),
            int(message.height),
            tuple(map(float, message.k)),
            tuple(map(float, message.d)),
            tuple(map(float, message.p)),
            str(message.distortion_model),
            (int(message.binning_x), int(message.binning_y)),
            (int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        )

    def camera(self, rectified: bool, width: int, height: int) -> Camera | None:
        """The camera of the images; `width` and `height` stand in where the message says 0.

        Raises:
            UsageError: from `camera_from_info`.
        """
        size = (self.width or width, self.height or height)
        if rectified and self.p[0]:
            k, d = (*self.p[0:3], *self.p[4:7], *self.p[8:11]), ()
        else:
            k, d = self.k, self.d
        return camera_from_info(*size, k, d, self.model, self.binning, self.roi)


class _Calibrations:
    """The CameraInfo messages met so far, to be looked up by image stamp."""

    def __init__(self, first: _Calibration | None) -> None:
        self._by_stamp: dict[int, _Calibration] = {}  # from the one met longest ago to the newest
        self._latest = first
        self.different: set[_Calibration] = {first} if first else set()
        self.exact, self.nearest = 0, 0

    def add(self, stamp_ns: int, calibration: _Calibration) -> None:
        """Take in the next message."""
        self._by_stamp.pop(stamp_ns, None)  # met again, it is the newest
        self._by_stamp[stamp_ns] = calibration
        if len(self._by_stamp) > _KNOWN_CALIBRATIONS:
            del self._by_stamp[next(iter(self._by_stamp))]
        self.different.add(calibration)

    def has(self, stamp_ns: int) -> bool:
        """Whether a message with exactly this stamp was met."""
        return stamp_ns in self._by_stamp

    def lookup(self, stamp_ns: int) -> _Calibration | None:
        """The one of this stamp, else the latest before it, else the first of the bag."""
        if stamp_ns in self._by_stamp:
            self.exact += 1
            self._latest = self._by_stamp[stamp_ns]
            return self._latest
        self.nearest += 1
        before = [known for known in self._by_stamp if known <= stamp_ns]
        return self._by_stamp[max(before)] if before else self._latest


def read_frames(
    bag: Bag,
    topics: CameraTopics,
    report: ReadReport | None = None,
    fov_degrees: float | None = None,
    frames: tuple[int, int | None] = (0, None),
    decode: Decode | None = None,
) -> Iterator[Frame]:
    """The usable images of a camera, decoded, each with its camera, in the order of their stamps.

    Images are paired with the CameraInfo of the same header stamp, else with the latest before. What cannot be used is
    counted in the report. Only a handful of undecoded images are held at a time.

    Args:
        bag: an open bag.
        topics: from `find_camera`.
        report: filled while reading.
        fov_degrees: horizontal field of view of the centred pinhole camera to assume where there is no calibration.
        frames: first image and the one to stop before, counting every image message of the topic from 0.
        decode: in the place of `decode_message`.

    Yields:
        Frames; their camera is None when uncalibrated and no field of view is given. Stamps increase, except where the
        clock jumped back by more than a second (a loop or a second recording).

    Raises:
        UsageError: a CameraInfo that no camera can have, or with an unknown distortion model.
    """
    for image in read_images(bag, topics, report, fov_degrees, frames, decode=decode):
        if image.frame is not None:
            yield image.frame


def read_images(
    bag: Bag,
    topics: CameraTopics,
    report: ReadReport | None = None,
    fov_degrees: float | None = None,
    frames: tuple[int, int | None] = (0, None),
    wanted: Callable[[int], bool] = lambda index: True,
    decode: Decode | None = None,
) -> Iterator[RecordedImage]:
    """All images of a camera in recorded order, the unusable ones too; `read_frames` gives the frames among them.

    Args:
        bag, topics, report, fov_degrees, frames: as in `read_frames`.
        wanted: tells by their number which images to decode. Of the others nothing but the stamp is looked at, and they
            are not counted in `report.frames`.
        decode: in the place of `decode_message`.

    Raises:
        UsageError: as in `read_frames`.
    """
    report = report if report is not None else ReadReport()
    use_bag_time = _stamps_are_all_zero(bag, topics.image)
    if use_bag_time:
        report.note("all header stamps are zero: recording times are used instead")
    known = _Calibrations(_first_calibration(bag, topics.info))
    reader = _FrameReader(topics, report, known, fov_degrees, decode or decode_message)
    for image in _paired(bag, topics, report, known, frames, use_bag_time):
        if image.stamp_ns is None or not reader.is_in_order(image.stamp_ns):
            yield image
        elif not wanted(image.index):
            reader.pass_over(image.stamp_ns)
            yield replace(image, usable=True)
        else:
            frame = reader.frame(image.message, image.stamp_ns)
            report.frames += frame is not None
            yield replace(image, usable=frame is not None, frame=frame)
    if topics.info is not None and (known.exact or known.nearest):
        changes = "it never changes" if len(known.different) == 1 else f"{len(known.different)} different ones"
        report.note(
            f"calibration: {known.exact} images by equal stamp, {known.nearest} by the latest CameraInfo before; "
            f"{changes}"
        )
    report.unread = bag.problems


def _stamps_are_all_zero(bag: Bag, topic: str) -> bool:
    """Whether no image carries a stamp; reads on only while that is so."""
    seen = False
    for message in bag.messages({topic}):
        try:
            if header_stamp(message.data) != 0:
                return False
            seen = True
        except BrokenMessageError:
            continue
    return seen


def _first_calibration(bag: Bag, topic: str | None) -> _Calibration | None:
    """The first readable CameraInfo of a topic."""
    for message in bag.messages({topic}) if topic else ():
        try:
            return _Calibration.from_message(deserialize(CAMERA_INFO_TYPE, message.data))
        except BrokenMessageError:
            continue
    return None


def _paired(
    bag: Bag,
    topics: CameraTopics,
    report: ReadReport,
    known: _Calibrations,
    frames: tuple[int, int | None],
    use_bag_time: bool,
) -> Iterator[RecordedImage]:
    """The images of the chosen range, each delayed until its CameraInfo arrived or surely will not."""
    pending: deque[RecordedImage] = deque()
    index = -1
    for message in bag.messages({topics.image, topics.info} - {None}):
        if message.topic == topics.info:
            _take_calibration(message, known)
        else:
            index += 1
            if frames[1] is not None and index >= frames[1] + _PENDING_IMAGES:
                break
            if index >= frames[0] and (frames[1] is None or index < frames[1]):
                pending.append(_stamped(index, message, report, use_bag_time))
        while pending and _is_due(pending[0], len(pending), topics, known):
            yield pending.popleft()
    yield from pending


def _is_due(image: RecordedImage, waiting: int, topics: CameraTopics, known: _Calibrations) -> bool:
    """Whether an image need not wait for its CameraInfo any longer."""
    if image.stamp_ns is None or topics.info is None or waiting > _PENDING_IMAGES:
        return True
    return known.has(image.stamp_ns)


def _take_calibration(message: RawMessage, known: _Calibrations) -> None:
    """Add a CameraInfo message; a broken one is as good as none."""
    try:
        calibration = _Calibration.from_message(deserialize(CAMERA_INFO_TYPE, message.data))
        known.add(header_stamp(message.data), calibration)
    except BrokenMessageError:
        return


def _stamped(index: int, message: RawMessage, report: ReadReport, use_bag_time: bool) -> RecordedImage:
    """An image with its time; one that has none is counted."""
    report.messages += 1
    try:
        header_ns = header_stamp(message.data)
    except BrokenMessageError as error:
        report.skip(BROKEN, str(error))
        return RecordedImage(index, message, None, None)
    if use_bag_time:
        return RecordedImage(index, message, header_ns, message.bag_ns)
    if header_ns == 0:
        report.skip(NO_STAMP, f"image recorded at {message.bag_ns} ns")
        return RecordedImage(index, message, header_ns, None)
    return RecordedImage(index, message, header_ns, header_ns)


class _FrameReader:
    """Turns image messages into frames, one after the other."""

    def __init__(
        self,
        topics: CameraTopics,
        report: ReadReport,
        known: _Calibrations,
        fov_degrees: float | None,
        decode: Decode,
    ) -> None:
        self._topics = topics
        self._decode = decode
        self._report = report
        self._known = known
        self._fov_degrees = fov_degrees
        self._cameras: dict[tuple[_Calibration | None, int, int], Camera | None] = {}
        self._last_ns: int | None = None

    def is_in_order(self, stamp_ns: int) -> bool:
        """Whether an image comes after the last frame, or the clock was set back; else it is counted."""
        if self._last_ns is not None and self._last_ns - _CLOCK_JUMP_NS < stamp_ns <= self._last_ns:
            self._report.skip(OUT_OF_ORDER, f"{stamp_ns} ns after {self._last_ns} ns")
            return False
        return True

    def pass_over(self, stamp_ns: int) -> None:
        """Take an image for a frame without looking at it."""
        self._last_ns = stamp_ns

    def frame(self, message: RawMessage, stamp_ns: int) -> Frame | None:
        """The frame of an image that is in order, or None (counted)."""
        try:
            image, frame_id = self._decode(message.data, self._topics.msgtype)
        except BrokenMessageError as error:
            self._report.skip(BROKEN, str(error))
        except MalformedImageError as error:
            self._report.skip(MALFORMED, str(error))
        except UnsupportedEncodingError as error:
            self._report.skip(ENCODING, str(error))
        else:
            return self._with_camera(image, stamp_ns, frame_id)
        return None

    def _with_camera(self, image: np.ndarray, stamp_ns: int, frame_id: str) -> Frame | None:
        """The frame with its camera at the size of the image; None (counted) when the sizes contradict."""
        height, width = image.shape[:2]
        key = (self._known.lookup(stamp_ns), width, height)
        if key not in self._cameras:
            self._cameras[key] = self._camera(*key)
        camera = self._cameras[key]
        if camera is not None and (camera.width, camera.height) != (width, height):
            self._report.skip(
                OTHER_SIZE, f"image {width}x{height}, its CameraInfo is for {camera.width}x{camera.height}"
            )
            return None
        self._last_ns = stamp_ns
        return Frame(image, stamp_ns, camera, frame_id)

    def _camera(self, calibration: _Calibration | None, width: int, height: int) -> Camera | None:
        """The camera for images of this size; of another size when it cannot be brought to it."""
        camera = calibration.camera(self._topics.rectified, width, height) if calibration else None
        if camera is None:
            if self._fov_degrees is None:
                return None
            self._report.note(f"no calibration: a centred pinhole of {self._fov_degrees:g} degrees is assumed")
            return replace(Camera.from_field_of_view(width, height, self._fov_degrees), assumed=True)
        if self._topics.rectified and calibration and any(calibration.d):
            self._report.note("rectified images: CameraInfo.p is used, d is not")
        same_aspect = abs(camera.width * height / width - camera.height) < 1.0
        if (camera.width, camera.height) != (width, height) and same_aspect:
            stated = f"{camera.width}x{camera.height}"
            self._report.note(f"images are {width}x{height}, CameraInfo says {stated}: K is scaled to the images")
            return camera.scaled(width, height)
        return camera


def decode_message(data: bytes, msgtype: str) -> tuple[np.ndarray, str]:
    """A serialised Image or CompressedImage as ((H, W, 3) uint8 RGB, frame id).

    Raises:
        BrokenMessageError: the bytes do not fit the type.
        MalformedImageError: the message contradicts itself.
        UnsupportedEncodingError: an unknown encoding.
    """
    message = deserialize(msgtype, data)
    if msgtype == COMPRESSED_TYPE:
        return decode_compressed(message.format, message.data), message.header.frame_id
    image = decode_image(
        message.encoding, message.height, message.width, message.step, message.is_bigendian, message.data
    )
    return image, message.header.frame_id
