"""A recording as a whole: its files in order, its topics, its messages."""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

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
from coopnet_core.errors import CoopnetError, NoUsableDataError, UsageError

METADATA = "metadata.yaml"
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


def recorded_files(path: Path) -> list[Path]:
    """The files that make up a recording, without opening them; also those that are named in it but missing.

    Raises:
        UsageError, NoUsableDataError: as `open_bag`.
    """
    files = _storage_paths(path, [])
    folder = files[0].parent
    listed = [folder / name for name in _listed_files(folder, [])] if path.is_dir() or path.name == METADATA else []
    return [*files, *(file for file in listed if file not in files), folder / METADATA]


def _storage_paths(path: Path, problems: list[str]) -> list[Path]:
    """The files of a recording, in order.

    Raises:
        UsageError: no such path, or not a rosbag2 recording.
    """
    if not path.exists():
        raise UsageError(
            f"No bag at {path}: neither a folder nor a file. A rosbag2 folder, .mcap or .db3 was expected."
        )
    if path.name == METADATA:
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
    path = folder / METADATA
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
