"""Recordings as they are trained on, decoded once and kept on disk.

CACHE/NAME-KEY/WxH/ is an entry: frames.u8 (the kept frames one after the other, (N, H, W, 3) uint8, mapped into memory
when they are trained on) and entry.json (`Recording` without its images). KEY is a hash of all that decides them, so an
entry is never out of date, only unused. Where a recording is cut into clips is no part of it. WxH.partial is an entry
that is being written; with its progress.json the next start goes on where it was broken off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, fields
from io import FileIO
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from coopnet_core.data.frame_store import FrameBlock, in_words
from coopnet_core.data.frames import Images
from coopnet_core.data.image_files import absolute
from coopnet_core.data.recording import CameraRun, Fit, Progress, Recording, Tell, Timeline, read_recording
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources import Source, SourceOptions
from coopnet_core.errors import CoopnetError
from coopnet_core.files import PARTIAL, reach_the_disk, write_whole
from coopnet_core.geometry.camera import Camera

VERSION = 1
"""Of all that is done to a recording before it is cut into clips: to be raised with every change of it that changes a
pixel, a stamp, a camera or a remark."""
FRAMES, ENTRY, PROGRESS, LOCK = "frames.u8", "entry.json", "progress.json", "lock"
_DECISIVE = [field.name for field in fields(SourceOptions) if field.name != "calibration"]
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, CoopnetError)
_SAVE_EVERY_S = 10.0
_PAUSE_S = 0.2
_LEFT_FREE = 1e9
"""Bytes of a disk, or 2 % of a small one."""
_UNUSED_DAYS = 60


def default_folder() -> Path:
    """Where prepared recordings are kept unless the user names another folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "coopnet" / "prepared"


def key_of(source: Source, options: SourceOptions, fit: Fit) -> str:
    """A hash of all that decides the frames of a recording besides their size."""
    calibration = options.calibration
    facts = [
        f"version {VERSION}, OpenCV {cv2.__version__}",
        f"{source.kind} {source.name} {source.camera}",
        *source.identity(),
        *(f"{name} {getattr(options, name)}" for name in _DECISIVE),
        "" if calibration is None else f"{absolute(calibration)} {calibration.read_bytes()!r}",
        f"still threshold {fit.still_threshold}",
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class PreparedCache:
    """A folder of prepared recordings. What cannot be kept there is kept as without a cache, and that is said.

    Several processes may use one folder: of those that want the same recording one prepares it, the others wait.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """`say` tells the user, one sentence at a time, what is read, written and needed."""
        self._folder = folder
        self._say = say
        self._has_written = False

    def recording(
        self, source: Source, fit: Fit, options: SourceOptions, expected: int, tell: Tell
    ) -> Recording | None:
        """The recording from its entry, else by reading it, as `read_recording`; what was read becomes an entry.

        Args:
            source: not read yet.
            fit: how to make the frames ready.
            options: that the source was opened with.
            expected: images that a reading goes through.
            tell: of a reading, this process's or another's.

        Raises:
            NoUsableDataError, UsageError: as `read_recording`.
        """
        place = self._folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)}-{key_of(source, options, fit)}"
        with suppress(*_DAMAGED):
            return self._found(place, source.name, fit)
        with ExitStack() as stack:
            try:
                stack.enter_context(_locked(place, self._waiting(place, source.name, expected, tell)))
            except OSError as error:
                self._say(f"{source.name}: without cache: {self._folder} cannot be used ({error.strerror or error})")
                return read_recording(source, fit, expected, FrameBlock, tell)
            self._remove_damaged(place, source.name)
            with suppress(FileNotFoundError):  # perhaps another process has made it meanwhile
                return self._found(place, source.name, fit)
            return self._prepare(place, source, fit, expected, tell)

    def say_size(self) -> None:
        """How large the cache has become, and what of it was long not used; nothing where nothing was added."""
        if not self._has_written:
            return
        sizes: dict[Path, int] = {}
        unused = []
        for place in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            files = [file for file in place.rglob("*") if file.is_file()]
            sizes[place] = sum(file.stat().st_size for file in files)
            used = max((file.stat().st_mtime for file in files if file.name in (ENTRY, PROGRESS)), default=0.0)
            if time.time() - used > _UNUSED_DAYS * 86400:
                unused.append(place)
        text = f"cache: {in_words(sum(sizes.values()))} of {len(sizes)} prepared recordings in {self._folder}"
        if unused:
            names, size = ", ".join(place.name for place in unused), sum(sizes[place] for place in unused)
            text += f", {in_words(size)} of it not used for {_UNUSED_DAYS} days ({names})"
        self._say(f"{text}; delete any folder in it, or all, to free the space")

    def _found(self, place: Path, name: str, fit: Fit) -> Recording:
        """The recording of an entry that is whole.

        Raises:
            FileNotFoundError: there is no entry of this size.
            one of _DAMAGED: there is, but it is damaged.
        """
        size = _known_size(place, fit)
        if size is None or not (folder := _entry(place, size)).is_dir():
            raise FileNotFoundError(place)
        recording = read_entry(folder)
        with suppress(OSError):
            os.utime(folder / ENTRY)
        self._say(f"{name}: {len(recording.images)} frames from the cache ({folder})")
        return recording

    def _remove_damaged(self, place: Path, name: str) -> None:
        """Make room for new entries."""
        for folder in (path for path in place.iterdir() if path.is_dir() and path.suffix != PARTIAL):
            try:
                read_entry(folder)
            except _DAMAGED as error:
                self._say(f"{name}: its entry in the cache is damaged and made anew ({folder}: {error})")
                shutil.rmtree(folder, ignore_errors=True)

    def _prepare(self, place: Path, source: Source, fit: Fit, expected: int, tell: Tell) -> Recording | None:
        """Read the source into a new entry, or go on with one that was broken off."""
        size = _known_size(place, fit)
        earlier = None if size is None else _earlier_progress(place, size)
        if earlier is not None:
            self._say(
                f"{source.name}: an earlier preparation was broken off after {earlier.met} frames: they are not "
                "decoded again"
            )
        writers: list[_EntryWriter] = []

        def open_store(size: tuple[int, int], expected: int) -> _EntryWriter:
            done = (earlier.met, len(earlier.kept)) if earlier else (0, 0)
            writers.append(_EntryWriter(_entry(place, size), size, expected, done, source.name, self._say))
            return writers[0]

        try:
            recording = read_recording(source, fit, expected, open_store, tell, earlier)
        except CoopnetError:  # nothing to go on with: the recording itself is the reason
            for writer in writers:
                writer.discard()
            raise
        if recording is not None and writers[0].finish(recording):
            self._has_written = True
        return recording

    def _waiting(self, place: Path, name: str, expected: int, tell: Tell) -> Callable[[], None]:
        """Something to be called again and again while another process prepares the recording."""
        said = False

        def waiting() -> None:
            nonlocal said
            if not said:
                self._say(f"{name}: another process prepares it; waiting until it is done")
                said = True
            for frames in place.glob(f"*{PARTIAL}/{FRAMES}"):
                with suppress(*_DAMAGED):  # it may be renamed at any moment
                    width, height = map(int, frames.parent.name.removesuffix(PARTIAL).split("x"))
                    tell(min(expected, frames.stat().st_size // (width * height * 3)), expected)

        return waiting


class _EntryWriter:
    """Writes an entry; a `FrameStore`. Where the disk refuses, the frames go on in memory, and that is said."""

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        expected: int,
        done: tuple[int, int],
        name: str,
        say: Callable[[str], None],
    ) -> None:
        """Begin an entry, or go on with one.

        Args:
            folder: of the entry.
            size: (width, height) of the frames, pixels.
            expected: frames there will be, at most, as far as is known.
            done: of them, how many were met and how many were kept before.
            name: of the recording, for people.
            say: tells the user.

        Raises:
            UsageError: neither the disk nor the memory has the room.
        """
        self._folder, self._partial = folder, _partial(folder)
        self._size, self._expected, self._count = size, expected, done[1]
        self._name, self._say = name, say
        self._block: FrameBlock | None = None
        self._file: FileIO | None = None
        self._next_save = time.monotonic() + _SAVE_EVERY_S
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            self._file = (self._partial / FRAMES).open("r+b" if self._count else "w+b", buffering=0)
            self._file.truncate(self._count * self._frame_bytes)
            self._file.seek(0, os.SEEK_END)
            disk = shutil.disk_usage(self._partial)
        except OSError as error:
            self._leave_the_disk(error.strerror or str(error))
            return
        needed = max(0, expected - done[0]) * self._frame_bytes
        self._say(
            f"{name}: up to {in_words(needed)} of frames will be kept in {folder.parent.parent} "
            f"({in_words(disk.free)} free there)"
        )
        if needed > disk.free - min(_LEFT_FREE, 0.02 * disk.total):
            self._leave_the_disk("that is too little room")

    @property
    def _frame_bytes(self) -> int:
        return self._size[0] * self._size[1] * 3

    def append(self, image: np.ndarray) -> None:
        """Keep one more (H, W, 3) uint8 image."""
        if self._block is None:
            try:
                _write_all(self._file, memoryview(image).cast("B"))
                self._count += 1
                return
            except OSError as error:
                self._leave_the_disk(error.strerror or str(error))
        self._block.append(image)

    def images(self) -> Images:
        """All so far, (N, H, W, 3) uint8; on disk read-only."""
        if self._block is not None:
            return self._block.images()
        return _mapped(self._partial / FRAMES, self._count, self._size)

    def last(self) -> np.ndarray:
        """The last of them as it was given, (H, W, 3) uint8."""
        return self.images()[-1] if self._block is None else self._block.last()

    def progress(self, so_far: Callable[[], Progress], broken_off: bool) -> None:
        """Keep every now and then what the next start needs to go on."""
        if self._block is not None or (time.monotonic() < self._next_save and not broken_off):
            return
        try:
            os.fsync(self._file.fileno())  # a progress must not be ahead of its frames
            _write_json(self._partial / PROGRESS, _progress_as_json(so_far()))
            self._next_save = time.monotonic() + _SAVE_EVERY_S
        except OSError as error:
            if not broken_off:
                self._leave_the_disk(error.strerror or str(error))

    def finish(self, recording: Recording) -> bool:
        """Make a whole entry of what was written. Whether there is one now."""
        if self._block is not None:
            return False
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            _write_json(self._partial / ENTRY, _recording_as_json(recording))
            os.rename(self._partial, self._folder)
            for name in (PROGRESS, PROGRESS + PARTIAL):
                (self._folder / name).unlink(missing_ok=True)
            reach_the_disk(self._folder.parent)
        except OSError as error:
            self._say(f"{self._name}: not kept in the cache ({error.strerror or error}); this run is not affected")
            self.discard()  # the frames stay mapped until the end of the process
            return False
        return True

    def discard(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _leave_the_disk(self, reason: str) -> None:
        """Go on in memory, with what is on disk already.

        Raises:
            UsageError: there is no room either; what is on disk stays there.
        """
        self._say(f"{self._name}: not kept in the cache ({self._folder.parent.parent}: {reason}); goes on without it")
        block = FrameBlock(self._size, self._expected)
        if self._count:
            block.extend(_mapped(self._partial / FRAMES, self._count, self._size))
        self._block = block
        self.discard()


@contextmanager
def _locked(place: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Alone among all processes at a place.

    Args:
        place: a folder; it is made.
        waiting: called again and again until it is free. A process that dies frees it.

    Raises:
        OSError: the file system refuses.
    """
    place.mkdir(parents=True, exist_ok=True)
    with (place / LOCK).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_PAUSE_S)
        yield


def _entry(place: Path, size: tuple[int, int]) -> Path:
    return place / f"{size[0]}x{size[1]}"


def _partial(entry: Path) -> Path:
    return entry.with_name(entry.name + PARTIAL)


def _known_size(place: Path, fit: Fit) -> tuple[int, int] | None:
    """(width, height) that the frames will have; None where that needs the first camera, which no file here tells."""
    if fit.size is not None:
        return fit.size
    for path in chain(place.glob(f"*/{ENTRY}"), place.glob(f"*/{PROGRESS}")):
        with suppress(*_DAMAGED):
            return fit.size_for(_camera(json.loads(path.read_text())["first_camera"]))
    return None


def read_entry(folder: Path) -> Recording:
    """The recording in the folder of an entry; its images are mapped from disk.

    Raises:
        one of _DAMAGED: it is not whole.
    """
    content = json.loads((folder / ENTRY).read_text())
    width, height = content["size"]
    timeline = Timeline(**{name: list(map(int, values)) for name, values in content["timeline"].items()})
    images = _mapped(folder / FRAMES, len(timeline.kept), (width, height))
    return Recording(
        images,
        timeline,
        _cameras(content["cameras"]),
        _camera(content["first_camera"]),
        list(map(str, content["camera_texts"])),
        ReadReport(**content["report"] | {"skipped": Counter(content["report"]["skipped"])}),
    )


def _recording_as_json(recording: Recording) -> dict[str, Any]:
    timeline = recording.timeline
    return {
        "size": recording.size,
        "timeline": {name: getattr(timeline, name) for name in ("met_ns", "kept", "changes", "starts")},
        "cameras": [[first, asdict(camera)] for first, camera in recording.cameras],
        "first_camera": asdict(recording.first_camera),
        "camera_texts": recording.camera_texts,
        "report": vars(recording.report),
    }


def _earlier_progress(place: Path, size: tuple[int, int]) -> Progress | None:
    """How far an entry had come whose writing was broken off; None where there is nothing sound to go on with."""
    folder = _partial(_entry(place, size))
    try:
        content = json.loads((folder / PROGRESS).read_text())
        account = [tuple(size) if size else None for count, size in content["account"] for _ in range(count)]
        progress = Progress(
            account,
            int(content["met"]),
            list(map(int, content["kept"])),
            _cameras(content["cameras"]),
            _camera(content["first_camera"]),
        )
        _mapped(folder / FRAMES, len(progress.kept), size)
        return progress
    except _DAMAGED:
        return None


def _progress_as_json(progress: Progress) -> dict[str, Any]:
    return {
        "account": [[len(list(same)), size] for size, same in groupby(progress.account)],
        "met": progress.met,
        "kept": progress.kept,
        "cameras": [[first, asdict(camera)] for first, camera in progress.cameras],
        "first_camera": asdict(progress.first_camera),
    }


def _camera(content: dict[str, Any]) -> Camera:
    return Camera(**content | {"distortion": tuple(content["distortion"])})


def _cameras(content: list[list[Any]]) -> list[CameraRun]:
    return [(int(first), _camera(camera)) for first, camera in content]


def _mapped(file: Path, count: int, size: tuple[int, int]) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 of a file, read-only.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is shorter, or there are no frames.
    """
    if not count:
        raise ValueError("there is no frame")
    return np.asarray(np.memmap(file, np.uint8, "r", shape=(count, size[1], size[0], 3)))


def _write_all(file: FileIO, content: memoryview) -> None:
    """Write everything; a nearly full disk takes a part first."""
    while content:
        content = content[file.write(content) :]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, lambda partial: partial.write_text(json.dumps(content)))
