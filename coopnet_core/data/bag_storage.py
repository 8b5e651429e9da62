"""The files of a rosbag2 recording: whole ones through `rosbags`, damaged ones by reading what is left.

rosbags needs the index at the end of an mcap file and a consistent sqlite3 database. A recording whose writer was
killed has neither, yet holds nearly all of its messages: the two salvaging readers here go through the file from its
start.
"""

from __future__ import annotations

import struct
import sys
from binascii import crc32
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote

import apsw
import lz4.frame
from rosbags.rosbag2 import Reader, ReaderError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from coopnet_core.errors import NoUsableDataError

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
STORAGE_SUFFIXES = (".mcap", ".db3")

# What rosbags and its decompressors raise on files that are cut off or overwritten (MemoryError: they believe any
# length that the damaged bytes state).
_DAMAGE = (
    ReaderError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    apsw.Error,
    zstd.ZstdError,
)
_SQLITE_SKIPS = 64


class RawMessage(NamedTuple):
    """One recorded message, still serialised.

    Attributes:
        topic: its name.
        bag_ns: when it was recorded, nanoseconds.
        data: CDR bytes, message-level compression already undone.
    """

    topic: str
    bag_ns: int
    data: bytes


@dataclass(frozen=True)
class TopicInfo:
    """A recorded topic.

    Attributes:
        name: with leading slash.
        msgtype: in the form package/msg/Name, whatever form the bag uses.
        count: recorded messages.
    """

    name: str
    msgtype: str
    count: int


class StorageFile(Protocol):
    """One file of a recording."""

    path: Path
    topics: tuple[TopicInfo, ...]
    problems: list[str]

    def messages(self, names: Collection[str]) -> Iterator[RawMessage]:
        """The messages of the named topics, in recorded order; what cannot be read is named in `problems`."""

    def close(self) -> None:
        """Release the file."""


def open_storage(path: Path) -> StorageFile:
    """Open one .mcap or .db3 file, damaged or not.

    Raises:
        NoUsableDataError: nothing can be read from it; the message says why.
    """
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise NoUsableDataError(
            f"{path} cannot be opened: {error.strerror}. Check the path and its permissions."
        ) from None
    if size == 0:
        raise NoUsableDataError(f"{path} is empty (0 bytes). Was the recording stopped before anything was written?")
    missing = _missing_of_sqlite(path) if path.suffix == ".db3" else ""
    if missing:
        return _salvage(path, missing)
    try:
        return _IndexedFile(path)
    except _DAMAGE as error:
        return _salvage(path, _reason(error))


def _salvage(path: Path, reason: str) -> StorageFile:
    """The salvaging reader for a damaged file.

    Raises:
        NoUsableDataError: it finds no message either.
    """
    try:
        found = _SalvagedMcap(path) if path.suffix == ".mcap" else _SalvagedSqlite(path)
    except _DAMAGE as error:
        raise NoUsableDataError(
            f"{path} is damaged and nothing can be read from it: {reason}; {_reason(error)}. A whole .mcap or .db3 "
            "file of rosbag2 was expected. Copy it again, or try 'ros2 bag reindex' or 'mcap recover'."
        ) from None
    total = sum(topic.count for topic in found.topics)
    if total == 0:
        raise NoUsableDataError(
            f"{path} is damaged and holds no readable message: {reason}. Copy it again, or try 'mcap recover'."
        )
    found.problems.insert(0, f"{path.name} is damaged ({reason}): {total} messages could be read from it")
    return found


def _reason(error: BaseException) -> str:
    """A one-line reason from any exception."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def normalised_type(name: str) -> str:
    """`sensor_msgs/Image` (the form before 2020) as `sensor_msgs/msg/Image`."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else name


class _IndexedFile:
    """A whole file, read by rosbags; when it breaks on the way, the salvaging reader goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        self._reader = Reader(path)
        self._reader.open()
        counts: dict[str, TopicInfo] = {}
        for connection in self._reader.connections:
            known = counts.get(connection.topic)
            count = connection.msgcount + (known.count if known else 0)
            counts[connection.topic] = TopicInfo(connection.topic, normalised_type(connection.msgtype), count)
        self.topics = tuple(counts.values())
        _note_write_ahead_log(path, self.problems)

    def messages(self, names: Collection[str]) -> Iterator[RawMessage]:
        """See `StorageFile`."""
        connections = [connection for connection in self._reader.connections if connection.topic in names]
        if not connections:
            return
        seen: set[tuple[str, int]] = set()
        try:
            for connection, bag_ns, data in self._reader.messages(connections):
                seen.add((connection.topic, bag_ns))
                yield RawMessage(connection.topic, bag_ns, data)
        except _DAMAGE as error:
            yield from self._rest(names, seen, _reason(error))

    def _rest(self, names: Collection[str], seen: set[tuple[str, int]], reason: str) -> Iterator[RawMessage]:
        """What the salvaging reader finds besides the messages already seen."""
        try:
            rest = _salvage(self.path, reason)
        except NoUsableDataError as error:
            self.problems.append(str(error))
            return
        yield from (message for message in rest.messages(names) if (message.topic, message.bag_ns) not in seen)
        self.problems += [problem for problem in rest.problems if problem not in self.problems]
        rest.close()

    def close(self) -> None:
        """See `StorageFile`."""
        self._reader.close()


def _note_write_ahead_log(path: Path, problems: list[str]) -> None:
    """Say so when a database has messages in a side file that a read-only reader does not see."""
    log = path.with_name(path.name + "-wal")
    if path.suffix == ".db3" and log.exists() and log.stat().st_size > 0:
        problems.append(
            f"{log.name} holds {log.stat().st_size} bytes that were never merged into {path.name} and are not read; "
            f"merge them with: sqlite3 {path} 'PRAGMA wal_checkpoint(TRUNCATE);'"
        )


class _SalvagedMcap:
    """An mcap file without a usable index, read record by record from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        counts: dict[str, TopicInfo] = {}
        for topic, msgtype, _, _ in self._scan():
            count = counts[topic].count + 1 if topic in counts else 1
            counts[topic] = TopicInfo(topic, normalised_type(msgtype), count)
        self.topics = tuple(counts.values())

    def messages(self, names: Collection[str]) -> Iterator[RawMessage]:
        """See `StorageFile`."""
        for topic, _, bag_ns, data in self._scan():
            if topic in names:
                yield RawMessage(topic, bag_ns, data)

    def close(self) -> None:
        """See `StorageFile`: nothing is held open."""

    def _scan(self) -> Iterator[tuple[str, str, int, bytes]]:
        """(topic, type, bag_ns, data) of every message that is whole.

        Raises:
            ReaderError: the file does not even start like an mcap file.
        """
        schemas: dict[int, str] = {}
        channels: dict[int, tuple[str, str]] = {}
        size = self.path.stat().st_size
        with self.path.open("rb") as stream:
            if stream.read(8) != b"\x89MCAP0\r\n":
                raise ReaderError("it does not start like an mcap file")
            for operation, content, whole in self._top_level(stream, size):
                if operation != _CHUNK and not whole:
                    continue
                inner = self._chunk_records(content, whole) if operation == _CHUNK else [(operation, content)]
                for inner_operation, record in inner:
                    message = _interpret(inner_operation, record, schemas, channels)
                    if message is not None:
                        yield message

    def _top_level(self, stream: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
        """(operation, content, whole) of the records up to the data end; notes where the file is cut off."""
        while (header := stream.read(9)) and header[0] != _DATA_END:
            offset = stream.tell()
            length = struct.unpack("<Q", header[1:])[0] if len(header) == 9 else size
            content = stream.read(min(length, size - offset))
            whole = len(content) == length
            if not whole:
                self._note(f"{self.path.name} is cut off: its record at byte {offset} is not whole")
            yield header[0], content, whole

    def _chunk_records(self, content: bytes, whole: bool) -> Iterator[tuple[int, bytes]]:
        """(operation, content) of the whole records in a chunk, also when its end is missing."""
        try:
            data = _chunk_data(content) if whole else _start_of_chunk(content)
        except _DAMAGE as error:
            # Nothing of it can be trusted: decompressors give wrong bytes long before they notice.
            self._note(f"{self.path.name}: a chunk of {len(content)} bytes is damaged ({_reason(error)}) and left out")
            return
        stream = BytesIO(data)
        while len(header := stream.read(9)) == 9:
            length = struct.unpack("<Q", header[1:])[0]
            record = stream.read(min(length, len(data)))
            if len(record) < length:
                return
            yield header[0], record

    def _note(self, problem: str) -> None:
        """Remember a problem once, however often the file is gone through."""
        if problem not in self.problems:
            self.problems.append(problem)


_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0F


def _interpret(
    operation: int, record: bytes, schemas: dict[int, str], channels: dict[int, tuple[str, str]]
) -> tuple[str, str, int, bytes] | None:
    """Take in a schema or channel record; return a message record as (topic, type, bag_ns, data)."""
    try:
        if operation == _SCHEMA:
            schemas[struct.unpack_from("<H", record)[0]] = _string(record, 2)[0]
        elif operation == _CHANNEL:
            channel, schema = struct.unpack_from("<HH", record)
            channels[channel] = (_string(record, 4)[0], schemas.get(schema, ""))
        elif operation == _MESSAGE:
            channel, _, log_ns, _ = struct.unpack_from("<HIQQ", record)
            if channel in channels:
                return (*channels[channel], log_ns, record[22:])
    except (struct.error, UnicodeDecodeError):
        return None
    return None


def _string(record: bytes, offset: int) -> tuple[str, int]:
    """A length-prefixed string and the offset behind it."""
    (length,) = struct.unpack_from("<I", record, offset)
    end = offset + 4 + length
    return record[offset + 4 : end].decode(), end


def _chunk_data(content: bytes) -> bytes:
    """The records of a chunk, decompressed and checked.

    Raises:
        ReaderError: the checksum does not fit, or the compression is unknown.
        Exception: one of _DAMAGE, from the decompressor.
    """
    checksum = struct.unpack_from("<I", content, 24)[0]
    compression, packed = _packed(content)
    if compression not in _DECOMPRESSORS:
        raise ReaderError(f"unknown compression {compression!r}")
    data = _DECOMPRESSORS[compression][0](packed)
    if checksum and crc32(data) != checksum:
        raise ReaderError("checksum does not fit")
    return data


def _start_of_chunk(content: bytes) -> bytes:
    """What can be decompressed from a chunk whose end is missing; may be empty."""
    pieces = []
    try:
        compression, packed = _packed(content)
        decompress = _DECOMPRESSORS[compression][1]()
        for offset in range(0, len(packed), _PIECE):
            pieces.append(decompress(packed[offset : offset + _PIECE]))
    except _DAMAGE:
        pass  # what came before is kept
    return b"".join(pieces)


def _packed(content: bytes) -> tuple[str, bytes]:
    """Name of the compression and compressed bytes of a chunk record."""
    compression, offset = _string(content, 28)
    return compression, content[offset + 8 :]


_PIECE = 4096
_DECOMPRESSORS: dict[str, tuple[Callable[[bytes], bytes], Callable[[], Callable[[bytes], bytes]]]] = {
    # name: (a whole block, a new stream that takes piece after piece)
    "": (bytes, lambda: bytes),
    "zstd": (zstd.decompress, lambda: zstd.ZstdDecompressor().decompress),
    "lz4": (lz4.frame.decompress, lambda: lz4.frame.LZ4FrameDecompressor().decompress),
}


def _missing_of_sqlite(path: Path) -> str:
    """How much of a sqlite3 file is cut off, by its own header; "" where all is there or the header cannot be believed.

    Source: sqlite.org/fileformat.html, 1.3: page size at byte 16, number of pages at 28, valid if 24 and 92 agree.
    """
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or header[24:28] != header[92:96]:
        return ""
    page = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    size = path.stat().st_size
    return f"cut off: {size} of {expected} bytes" if size < expected else ""


class _FileWithoutInventedPages(apsw.VFSFile):
    """A file behind whose end there is an error: SQLite takes what is missing there for zeros, in pictures too."""

    def xRead(self, amount: int, offset: int) -> bytes:
        """As `apsw.VFSFile.xRead`.

        Raises:
            apsw.IOError: the file ends before.
        """
        data = super().xRead(amount, offset)
        if len(data) < amount:
            raise apsw.IOError(f"the file ends at byte {offset + len(data)}")
        return data


_VFS_NAME = "coopnet_without_invented_pages"


class _VfsWithoutInventedPages(apsw.VFS):
    """The system's files, as `_FileWithoutInventedPages`."""

    def __init__(self) -> None:
        super().__init__(_VFS_NAME, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """As `apsw.VFS.xOpen`."""
        return _FileWithoutInventedPages("", name, flags)


_VFS = _VfsWithoutInventedPages()
"""Known to SQLite by its name as long as this lives."""


class _SalvagedSqlite:
    """A damaged sqlite3 file, its messages read row by row, passing over the lost pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        address = f"file:{quote(path.resolve().as_posix())}?immutable=1"
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        self._database = apsw.Connection(address, flags=flags, vfs=_VFS_NAME)
        try:
            # Without this SQLite refuses a file that is shorter than its header says.
            self._database.execute("PRAGMA writable_schema=ON")
            self._names = {
                row[0]: (str(row[1]), normalised_type(str(row[2])))
                for row in self._database.execute("SELECT id, name, type FROM topics")
            }
            counts = dict.fromkeys(self._names, 0)
            for topic, _, _ in self._rows("length(data)"):
                if topic in counts:
                    counts[topic] += 1
        except BaseException:
            self._database.close()
            raise
        self.topics = tuple(TopicInfo(*self._names[key], count) for key, count in counts.items())
        _note_write_ahead_log(path, self.problems)

    def messages(self, names: Collection[str]) -> Iterator[RawMessage]:
        """See `StorageFile`."""
        wanted = {key: name for key, (name, _) in self._names.items() if name in names}
        for topic, bag_ns, data in self._rows("data"):
            if topic in wanted and isinstance(bag_ns, int) and isinstance(data, bytes):
                yield RawMessage(wanted[topic], bag_ns, data)

    def close(self) -> None:
        """See `StorageFile`."""
        self._database.close()

    def _rows(self, column: str) -> Iterator[tuple[int, int, object]]:
        """(topic id, bag_ns, column) in order of row id; unreadable stretches are jumped in doubling steps."""
        last, step, failures = -1, 1, 0
        query = f"SELECT id, topic_id, timestamp, {column} FROM messages WHERE id >= ? ORDER BY id"
        while failures < _SQLITE_SKIPS:
            try:
                for row, topic, bag_ns, value in self._database.execute(query, (last + step,)):
                    if row <= last:
                        raise apsw.CorruptError("the rows of messages run in a circle")
                    yield topic, bag_ns, value
                    last, step = row, 1
                return
            except (apsw.Error, OverflowError):
                failures += 1
                step *= 2
                problem = f"{self.path.name}: part of the database is lost"
                if problem not in self.problems:
                    self.problems.append(problem)
