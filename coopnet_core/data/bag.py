"""Recordings (rosbag2) as frames: find the camera, pair images with their calibration, count what is unusable."""

from __future__ import annotations

import re
import struct
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from coopnet_core.data.bag_storage import (
    STORAGE_SUFFIXES,
    ZSTD_MAGIC,
    RawMessage,
    StorageFile,
    TopicInfo,
    open_storage,
    zstd,
)
from coopnet_core.data.camera_info import camera_from_info
from coopnet_core.data.encodings import (
    MalformedImageError,
    UnsupportedEncodingError,
    decode_compressed,
    decode_image,
)
from coopnet_core.data.frames import Frame
from coopnet_core.errors import CoopnetError, NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera

IMAGE_TYPE, COMPRESSED_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"

# Reasons why a message gives no frame, as they are counted and shown.
BROKEN, MALFORMED, ENCODING = "cannot be deserialised", "malformed image", "encoding not read"
OUT_OF_ORDER, NO_STAMP, OTHER_SIZE = "stamp not increasing", "header stamp is zero", "CameraInfo of another size"

_DEPTH_ENCODINGS = ("16UC1", "32FC1", "32FC2", "64FC1")
_CLOCK_JUMP_NS = 1_000_000_000
_PENDING_IMAGES = 8
_TYPES = get_typestore(Stores.ROS2_JAZZY)
_UNDESERIALISABLE = (SerdeError, struct.error, ValueError, LookupError, TypeError, AssertionError, OverflowError)


class BrokenMessageError(CoopnetError):
    """The bytes of a message are not what its type says."""


class Bag:
    """A recording: a folder, or one of its files. Use as a context manager.

    Attributes:
        path: as given by the user.
        topics: what was recorded, by name.
        problems: what could not be read, one sentence each; grows while reading.
    """

    def __init__(self, path: Path, files: list[StorageFile], problems: list[str], scratch: _Scratch) -> None:
        self.path = path
        self._files = files
        self._problems = problems
        self._scratch = scratch
        self.topics: dict[str, TopicInfo] = {}
        for info in (info for file in files for info in file.topics):
            known = self.topics.get(info.name)
            self.topics[info.name] = TopicInfo(info.name, info.msgtype, info.count + (known.count if known else 0))

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def problems(self) -> list[str]:
        """What could not be read so far."""
        return self._problems + [problem for file in self._files for problem in file.problems]

    def close(self) -> None:
        """Release the files."""
        for file in self._files:
            file.close()
        self._scratch.close()

    def messages(self, names: Collection[str]) -> Iterator[RawMessage]:
        """The messages of the named topics in recorded order, message-level compression undone."""
        for file in self._files:
            for message in file.messages(names):
                # A CDR message starts with 00; so this cannot be one, whatever the metadata says. A broken one goes
                # on as it is, to be counted as one that cannot be deserialised.
                if message.data[:4] == ZSTD_MAGIC:
                    with suppress(zstd.ZstdError):
                        message = message._replace(data=zstd.decompress(message.data))
                yield message

    def of_type(self, msgtype: str) -> list[TopicInfo]:
        """The topics of a type that hold messages, by name."""
        return sorted(
            (info for info in self.topics.values() if info.msgtype == msgtype and info.count),
            key=lambda info: info.name,
        )


class _Scratch:
    """A folder for decompressed files, made when first needed and removed with the bag."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def decompressed(self, path: Path) -> tuple[Path, str]:
        """Unpack `name.mcap.zstd`; returns the new path and a problem ("" when all is well)."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="coopnet_bag_")
        target = Path(self._folder.name) / path.stem
        problem = ""
        with path.open("rb") as packed, target.open("wb") as plain:
            stream = zstd.ZstdDecompressor()
            try:
                while block := packed.read(1 << 20):
                    plain.write(stream.decompress(block))
                    if stream.eof:
                        break
                if not stream.eof:
                    problem = f"{path.name} is cut off"
            except (zstd.ZstdError, EOFError) as error:
                problem = f"{path.name} is damaged ({error})"
        return target, problem

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()


def open_bag(path: Path | str) -> Bag:
    """Open a recording: a bag folder (with or without metadata.yaml), an .mcap or a .db3 file.

    Damaged files are read as far as they go; what is lost is named in `Bag.problems`.

    Raises:
        UsageError: no such path, or no rosbag2 recording.
        NoUsableDataError: it holds no message at all.
    """
    path = Path(path)
    scratch = _Scratch()
    files: list[StorageFile] = []
    problems: list[str] = []
    try:
        for name in _storage_paths(path, problems):
            _open_one(name, scratch, files, problems)
        if not files:
            raise NoUsableDataError(f"Bag {path}: nothing can be read. " + "; ".join(problems))
        bag = Bag(path, files, problems, scratch)
        if not any(info.count for info in bag.topics.values()):
            raise NoUsableDataError(
                f"Bag {path} is empty: {len(bag.topics)} topics, no message. Record with the camera running "
                "(ros2 topic hz shows whether it publishes)."
            )
    except BaseException:
        for file in files:
            file.close()
        scratch.close()
        raise
    return bag


def _open_one(path: Path, scratch: _Scratch, files: list[StorageFile], problems: list[str]) -> None:
    """Open one file of the bag into `files`, or name in `problems` why not."""
    try:
        if path.suffix == ".zstd":
            path, problem = scratch.decompressed(path)
            problems += [problem] if problem else []
        files.append(open_storage(path))
    except NoUsableDataError as error:
        problems.append(str(error))


def _storage_paths(path: Path, problems: list[str]) -> list[Path]:
    """The files of a recording, in order.

    Raises:
        UsageError: no such path, or not a rosbag2 recording.
    """
    if not path.exists():
        raise UsageError(
            f"No bag at {path}: neither a folder nor a file. A rosbag2 folder, .mcap or .db3 was expected."
        )
    if path.name == "metadata.yaml":
        path = path.parent
    if path.is_file():
        if path.suffix in STORAGE_SUFFIXES or path.name.endswith(tuple(f"{end}.zstd" for end in STORAGE_SUFFIXES)):
            return [path]
        hint = ""
        if path.suffix == ".bag":
            hint = " It looks like ROS 1: convert it with 'rosbags-convert --src IN.bag --dst OUT'."
        raise UsageError(f"{path} is no rosbag2 file: .mcap, .db3 or a bag folder was expected.{hint}")
    endings = [ending for suffix in STORAGE_SUFFIXES for ending in (suffix, f"{suffix}.zstd")]
    names = [name for ending in endings for name in path.glob(f"*{ending}")]
    listed = _listed_files(path, problems)
    problems += [f"{name} is named in metadata.yaml but missing" for name in listed if not (path / name).exists()]
    order = {name: position for position, name in enumerate(listed)}
    found = sorted(names, key=lambda name: (order.get(name.name, len(order)), _natural(name.name)))
    if not found:
        raise _no_storage(path, problems)
    return found


def _no_storage(path: Path, problems: list[str]) -> CoopnetError:
    """The error for a folder without .mcap and .db3 files."""
    inside = sorted(child.name for child in path.iterdir() if child.is_dir() and any(_storage_files(child)))
    if inside:
        return UsageError(
            f"{path} is a folder of bags ({', '.join(inside)}), not a bag. Name the bags: "
            + " ".join(str(path / name) for name in inside[:4])
        )
    content = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    lost = "".join(f" {problem}." for problem in problems)
    return NoUsableDataError(f"{path} holds no .mcap or .db3 file (it holds: {content}).{lost} Is the copy complete?")


def _storage_files(folder: Path) -> Iterator[Path]:
    """The .mcap and .db3 files of a folder."""
    return (child for child in folder.iterdir() if child.suffix in STORAGE_SUFFIXES)


def _listed_files(folder: Path, problems: list[str]) -> list[str]:
    """File names in the order of metadata.yaml; empty without a readable one."""
    path = folder / "metadata.yaml"
    if not path.exists():
        return []
    try:
        content = yaml.safe_load(path.read_text(errors="replace"))
        return [Path(name).name for name in content["rosbag2_bagfile_information"]["relative_file_paths"]]
    except (yaml.YAMLError, OSError, KeyError, TypeError):
        problems.append(f"{path.name} cannot be read; the files are taken in the order of their names")
        return []


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts bag_2 before bag_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def list_topics(bag: Bag, msgtypes: Collection[str] = ()) -> str:
    """The recorded topics (of these types, if any are given), one per line with type and count, for messages."""
    rows = sorted(bag.topics.values(), key=lambda info: info.name)
    rows = [info for info in rows if not msgtypes or info.msgtype in msgtypes]
    return "\n".join(f"  {info.name}  {info.msgtype}  {info.count} messages" for info in rows) or "  (none)"


def deserialize(msgtype: str, data: bytes) -> Any:
    """A message object with the fields of its ROS 2 type.

    Raises:
        BrokenMessageError: the bytes do not fit the type.
    """
    try:
        return _TYPES.deserialize_cdr(data, msgtype)
    except _UNDESERIALISABLE as error:
        raise BrokenMessageError(f"{len(data)} bytes are no {msgtype}: {error}") from None


def header_stamp(data: bytes) -> int:
    """The header stamp in nanoseconds of a serialised message that starts with a std_msgs/Header.

    Raises:
        BrokenMessageError: too short, or not CDR.
    """
    if len(data) < 12 or data[0] != 0 or data[1] not in (0, 1):
        raise BrokenMessageError(f"{len(data)} bytes are no message with a header.")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] else ">iI", data, 4)
    return seconds * 1_000_000_000 + nanoseconds


@dataclass(frozen=True)
class CameraTopics:
    """The topics of one camera.

    Attributes:
        image: Image or CompressedImage.
        info: CameraInfo, or None when the bag has none for this image.
        msgtype: the type of `image`.
        why: how the choice was made, for people.
    """

    image: str
    info: str | None
    msgtype: str
    why: str = ""

    @property
    def compressed(self) -> bool:
        """Whether the images are JPEG or PNG."""
        return self.msgtype == COMPRESSED_TYPE

    @property
    def rectified(self) -> bool:
        """Whether the name says that distortion is already undone (then CameraInfo.p holds, not k and d)."""
        return "rect" in _base_name(self.image, self.msgtype).rsplit("/", 1)[-1]


def find_camera(bag: Bag, topic: str | None = None, info: str | None = None) -> CameraTopics:
    """The image topic to use and the CameraInfo that belongs to it.

    Without `topic`: the only image topic that is no depth, flow or truth; one with CameraInfo beside it goes before
    one without, raw before compressed.

    Args:
        bag: an open bag.
        topic: image topic chosen by the user.
        info: CameraInfo topic chosen by the user.

    Raises:
        UsageError: `topic` or `info` is not there, or several cameras are; lists the choices.
        NoUsableDataError: there is no image at all; lists what is there.
    """
    if topic is not None:
        image = _named_topic(bag, topic, (IMAGE_TYPE, COMPRESSED_TYPE), "--topic")
        return CameraTopics(image.name, _info_for(bag, image, info, True), image.msgtype, "chosen by the user")
    candidates = [image for image in _image_topics(bag) if not _is_no_picture(bag, image)]
    if not candidates:
        raise NoUsableDataError(
            f"Bag {bag.path} has no camera topic: {IMAGE_TYPE} or {COMPRESSED_TYPE} with pictures was expected. "
            f"It has:\n{list_topics(bag)}"
        )
    calibrated = [image for image in candidates if _info_for(bag, image, info, len(candidates) == 1)]
    chosen = _one_per_camera(calibrated or candidates)
    if len(chosen) > 1:
        choices = "\n".join(f"  --topic {image.name}  ({image.msgtype}, {image.count} messages)" for image in chosen)
        raise UsageError(
            f"Bag {bag.path} has {len(chosen)} image topics that may be the camera; choose one:\n{choices}"
        )
    image = chosen[0]
    why = "the only camera topic" if len(candidates) == 1 else f"of {len(candidates)} image topics the one to use"
    if len(candidates) > 1:
        why += " (calibrated, raw before compressed)" if calibrated else " (raw before compressed)"
    return CameraTopics(image.name, _info_for(bag, image, info, len(candidates) == 1), image.msgtype, why)


def _image_topics(bag: Bag) -> list[TopicInfo]:
    """All topics of images with messages."""
    return sorted(bag.of_type(IMAGE_TYPE) + bag.of_type(COMPRESSED_TYPE), key=lambda info: info.name)


def _named_topic(bag: Bag, name: str, msgtypes: tuple[str, ...], option: str) -> TopicInfo:
    """The topic the user named, with or without the leading slash.

    Raises:
        UsageError: not there, or of another type.
    """
    found = bag.topics.get(name) or bag.topics.get(f"/{name}")
    if found is None or found.msgtype not in msgtypes or not found.count:
        state = f"is {found.msgtype} with {found.count} messages" if found else "not recorded"
        raise UsageError(
            f"{option} {name}: {state} (bag {bag.path}); a topic of {' or '.join(msgtypes)} was expected. There are:\n"
            f"{list_topics(bag, msgtypes)}"
        )
    return found


def _info_for(bag: Bag, image: TopicInfo, chosen: str | None, only_image: bool) -> str | None:
    """The CameraInfo topic of an image topic: beside it, or the only one when there is one camera only."""
    if chosen is not None:
        return _named_topic(bag, chosen, (CAMERA_INFO_TYPE,), "--camera-info").name
    infos = [info.name for info in bag.of_type(CAMERA_INFO_TYPE)]
    base = _base_name(image.name, image.msgtype)
    for name in (f"{base.rsplit('/', 1)[0]}/camera_info", f"{base}/camera_info"):
        if name in infos:
            return name
    return infos[0] if only_image and len(infos) == 1 else None


def _base_name(name: str, msgtype: str) -> str:
    """The topic without the suffix that a transport adds."""
    return name.rsplit("/", 1)[0] if msgtype == COMPRESSED_TYPE and name.count("/") > 1 else name


def _one_per_camera(images: list[TopicInfo]) -> list[TopicInfo]:
    """Leave out compressed twins of raw topics."""
    raw = {image.name for image in images if image.msgtype == IMAGE_TYPE}
    return [image for image in images if image.name in raw or _base_name(image.name, image.msgtype) not in raw]


def _is_no_picture(bag: Bag, image: TopicInfo) -> bool:
    """Whether a topic of images holds truth, depth or flow: by its name or by its first message."""
    if image.name.startswith("/ground_truth/") or image.name.endswith("/compressedDepth"):
        return True
    first = next(bag.messages({image.name}), None)
    if first is None or image.msgtype != IMAGE_TYPE:
        return False
    try:
        return deserialize(IMAGE_TYPE, first.data).encoding in _DEPTH_ENCODINGS
    except BrokenMessageError:
        return False


@dataclass
class BagReport:
    """What became of the images of one bag; filled while reading.

    Attributes:
        messages: images gone through (within the chosen range).
        frames: images that became frames.
        skipped: images that did not, by reason.
        examples: the first case of each reason, in words.
        notes: how pairing and stamps were settled.
        unread: what of the bag cannot be read.
    """

    messages: int = 0
    frames: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def skip(self, reason: str, detail: str) -> None:
        """Count an image that gives no frame."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, detail)

    def note(self, text: str) -> None:
        """Remember a decision once."""
        if text not in self.notes:
            self.notes.append(text)


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
        self._by_stamp: dict[int, _Calibration] = {}
        self._order: deque[int] = deque(maxlen=64)
        self._latest = first
        self.different: set[_Calibration] = {first} if first else set()
        self.exact, self.nearest = 0, 0

    def add(self, stamp_ns: int, calibration: _Calibration) -> None:
        """Take in the next message."""
        if len(self._order) == self._order.maxlen:
            self._by_stamp.pop(self._order[0], None)
        self._order.append(stamp_ns)
        self._by_stamp[stamp_ns] = calibration
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
        before = [known for known in self._order if known <= stamp_ns]
        return self._by_stamp[max(before)] if before else self._latest


def read_frames(
    bag: Bag,
    topics: CameraTopics,
    report: BagReport | None = None,
    fov_degrees: float | None = None,
    frames: tuple[int, int | None] = (0, None),
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

    Yields:
        Frames; their camera is None when uncalibrated and no field of view is given. Stamps increase, except where the
        clock jumped back by more than a second (a loop or a second recording).

    Raises:
        UsageError: a CameraInfo that no camera can have, or with an unknown distortion model.
    """
    report = report if report is not None else BagReport()
    use_bag_time = _stamps_are_all_zero(bag, topics.image)
    if use_bag_time:
        report.note("all header stamps are zero: recording times are used instead")
    known = _Calibrations(_first_calibration(bag, topics.info))
    reader = _FrameReader(topics, report, known, fov_degrees)
    for message, stamp_ns in _paired(bag, topics, report, known, frames, use_bag_time):
        frame = reader.frame(message, stamp_ns)
        if frame is not None:
            report.frames += 1
            yield frame
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
    report: BagReport,
    known: _Calibrations,
    frames: tuple[int, int | None],
    use_bag_time: bool,
) -> Iterator[tuple[RawMessage, int]]:
    """(image message, stamp) of the chosen range, each delayed until its CameraInfo arrived or surely will not."""
    pending: deque[tuple[RawMessage, int]] = deque()
    index = -1
    for message in bag.messages({topics.image, topics.info} - {None}):
        if message.topic == topics.info:
            _take_calibration(message, known)
        else:
            index += 1
            if frames[1] is not None and index >= frames[1] + _PENDING_IMAGES:
                break
            if index >= frames[0] and (frames[1] is None or index < frames[1]):
                stamp_ns = _stamp_of(message, report, use_bag_time)
                pending += [(message, stamp_ns)] if stamp_ns is not None else []
        while pending and (known.has(pending[0][1]) or len(pending) > _PENDING_IMAGES or topics.info is None):
            yield pending.popleft()
    yield from pending


def _take_calibration(message: RawMessage, known: _Calibrations) -> None:
    """Add a CameraInfo message; a broken one is as good as none."""
    try:
        calibration = _Calibration.from_message(deserialize(CAMERA_INFO_TYPE, message.data))
        known.add(header_stamp(message.data), calibration)
    except BrokenMessageError:
        return


def _stamp_of(message: RawMessage, report: BagReport, use_bag_time: bool) -> int | None:
    """The time of an image, or None (counted) when it has none."""
    report.messages += 1
    try:
        stamp_ns = header_stamp(message.data)
    except BrokenMessageError as error:
        report.skip(BROKEN, str(error))
        return None
    if use_bag_time:
        return message.bag_ns
    if stamp_ns == 0:
        report.skip(NO_STAMP, f"image recorded at {message.bag_ns} ns")
        return None
    return stamp_ns


class _FrameReader:
    """Turns image messages into frames, one after the other."""

    def __init__(
        self, topics: CameraTopics, report: BagReport, known: _Calibrations, fov_degrees: float | None
    ) -> None:
        self._topics = topics
        self._report = report
        self._known = known
        self._fov_degrees = fov_degrees
        self._cameras: dict[tuple[_Calibration | None, int, int], Camera | None] = {}
        self._last_ns: int | None = None

    def frame(self, message: RawMessage, stamp_ns: int) -> Frame | None:
        """The frame, or None (counted)."""
        if self._last_ns is not None and self._last_ns - _CLOCK_JUMP_NS < stamp_ns <= self._last_ns:
            self._report.skip(OUT_OF_ORDER, f"{stamp_ns} ns after {self._last_ns} ns")
            return None
        try:
            image, frame_id = decode_message(message.data, self._topics.msgtype)
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
            return Camera.from_field_of_view(width, height, self._fov_degrees)
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
