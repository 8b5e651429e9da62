"""Where the frames of a recording find room: in memory, in a file, compressed, or nowhere."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from unit import bag_factory as make
from unit import recordings
from unit.bag_factory import IMAGE, IMAGE_TOPIC, INFO, INFO_TOPIC, picture, recording, stamp, write_bag

from coopnet_core.data import compressed_frames, frame_store, prepared_cache
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.compressed_frames import CompressedFrames, FrameCompressor, to_jpeg
from coopnet_core.data.frame_store import FrameBlock, describe_place, is_in_file
from coopnet_core.data.frames import Images
from coopnet_core.data.prepared_cache import PreparedCache
from coopnet_core.errors import UsageError

SIZE = (96, 64)
FRAME = 96 * 64 * 3
ORIGINALS = np.stack([picture(k) for k in range(8)])
JPEG = sum(map(len, map(to_jpeg, ORIGINALS)))
FULL = OSError(errno.ENOSPC, "No space left on device")


class Room:
    """What the machine has: `memory` in bytes, and whether the folder for temporary files takes raw frames, or any."""

    memory = 1 << 40
    raw_files = True
    files = True


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    found = Room()
    fallocate, temporary_file = os.posix_fallocate, compressed_frames.tempfile.TemporaryFile

    def allocate(*arguments: int) -> None:
        if not found.raw_files:
            raise FULL
        fallocate(*arguments)

    def temporary(**options: object):
        return temporary_file(**options) if found.files else Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(frame_store, "free_memory", lambda: found.memory)
    monkeypatch.setattr(frame_store.os, "posix_fallocate", allocate)
    monkeypatch.setattr(compressed_frames.tempfile, "TemporaryFile", temporary)
    return found


def kept(images: np.ndarray = ORIGINALS, expected: int = 8) -> Images:
    block = FrameBlock(SIZE, expected)
    for image in images:
        block.append(image)
    return block.images()


def as_jpeg(images: np.ndarray) -> np.ndarray:
    """What compression makes of images."""
    compressor = FrameCompressor((images.shape[2], images.shape[1]), lambda: 1 << 40)
    for image in images:
        compressor.append(image)
    return np.stack(list(compressor.images()))


def test_enough_memory(room: Room):
    room.memory, room.raw_files = 2 * 8 * FRAME, False
    frames = kept()
    assert isinstance(frames, np.ndarray)
    assert not is_in_file(frames)
    assert describe_place(frames) == ""
    np.testing.assert_array_equal(frames, ORIGINALS)


def test_too_little_memory(room: Room):
    room.memory = 2 * 8 * FRAME - 1
    frames = kept()
    assert is_in_file(frames)
    assert "kept in a file" in describe_place(frames)
    np.testing.assert_array_equal(frames, ORIGINALS)


def test_too_little_memory_and_disk(room: Room):
    room.memory, room.raw_files, room.files = JPEG, False, False
    frames = kept()
    assert isinstance(frames, CompressedFrames)
    assert not is_in_file(frames)
    assert (frames.nbytes, frames.nbytes_in_file) == (JPEG, 0)
    np.testing.assert_array_equal(list(frames), as_jpeg(ORIGINALS))
    said = describe_place(frames)
    for words in ("0.1 MB of frames are more than half", f"compressed, {JPEG / 1e6:.1f} MB in memory. JPEG at quality"):
        assert words in said
    for words in ("95", "are JPEG already", "decodes it again", "--cache", "TMPDIR"):
        assert words in said


def test_no_memory_and_little_disk(room: Room):
    room.memory, room.raw_files = 0, False
    frames = kept()
    assert (frames.nbytes, frames.nbytes_in_file) == (JPEG, JPEG)
    np.testing.assert_array_equal(list(frames), as_jpeg(ORIGINALS))
    said = describe_place(frames)
    assert f"compressed, {JPEG / 1e6:.1f} MB in a file in {compressed_frames.tempfile.gettempdir()}. JPEG" in said
    assert "in memory" not in said


def test_memory_and_disk_together(room: Room):
    room.memory, room.raw_files = JPEG // 2, False
    frames = kept()
    assert 0 < frames.nbytes_in_file < frames.nbytes == JPEG
    assert " in memory and " in describe_place(frames)


@pytest.mark.parametrize("found_room", [0, 3])
def test_no_room_at_all(room: Room, found_room: int):
    held = sum(map(len, map(to_jpeg, ORIGINALS[:found_room])))
    room.memory, room.raw_files, room.files = held, False, False
    block = FrameBlock(SIZE, 5000)
    block.extend(ORIGINALS[:found_room])
    with pytest.raises(UsageError) as refused:
        block.append(ORIGINALS[found_room])
    said = str(refused.value)
    assert f"{found_room} of them found room, {held / 1e6:.1f} MB" in said
    assert said.count("No space left on device") == 2
    for words in ("5000 images at 96x64", "take 92.2 MB", "--frames A:B", "--size", "TMPDIR"):
        assert words in said
    rows = found_room + 1
    about = 5000 / rows * sum(map(len, map(to_jpeg, ORIGINALS[:rows])))
    assert f"Compressed they take about {about / 1e6:.1f} MB" in said


@pytest.mark.parametrize("step", [1, 3])
def test_a_block_that_cannot_grow_goes_on_compressed(room: Room, step: int):
    """A video does not always say how many images it holds."""
    room.memory, room.raw_files = 6 * FRAME, False
    block = FrameBlock(SIZE, 2)
    block.extend(ORIGINALS[:2])
    raw = block.images()
    assert isinstance(raw, np.ndarray)
    for start in range(2, 8, step):
        part = ORIGINALS[start : start + step]
        part.flags.writeable = False  # as what is mapped from the cache
        block.extend(part)
        np.testing.assert_array_equal(block.last(), part[-1])
    frames = block.images()
    assert isinstance(frames, CompressedFrames)
    np.testing.assert_array_equal(list(frames), as_jpeg(ORIGINALS))
    np.testing.assert_array_equal(raw, ORIGINALS[:2])


def test_there_is_no_room_for_what_is_there_already(room: Room):
    room.memory, room.raw_files, room.files = 2 * FRAME, False, False
    block = FrameBlock(SIZE, 1)
    block.append(ORIGINALS[0])
    room.memory = 0
    with pytest.raises(UsageError, match="0 of them found room"):
        block.append(ORIGINALS[1])


# In the preparation of recordings


def test_clips_are_views_and_their_size_is_what_is_held(room: Room, tmp_path: Path):
    room.memory, room.raw_files = 0, False
    written = recordings.folder_with_calibration(tmp_path)
    data = prepare_clips([written.path], SIZE, PrepareOptions(validation_share=0.4))
    train, validation = data.train[0].images, data.validation[0].images
    expected = as_jpeg(np.stack(written.pictures))
    np.testing.assert_array_equal([*train, *validation], expected)
    assert data.megabytes == (train.nbytes + validation.nbytes) / 1e6 < 0.5 * expected.nbytes / 1e6
    assert train._content is validation._content
    assert any("are kept compressed" in note for note in data.sources[0].report.notes)
    assert data.size == SIZE


@pytest.mark.parametrize("after", [0, 5])
def test_a_full_cache_without_other_room(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int):
    bag = write_bag(tmp_path / "bag", recording(8))
    options = PrepareOptions(validation_share=0.0)
    expected = as_jpeg(prepare_clips([bag], SIZE, options).train[0].images)
    write, calls = prepared_cache._write_all, []

    def fill(file: object, content: memoryview) -> None:
        calls.append(1)
        if len(calls) > after:
            raise FULL
        write(file, content)

    monkeypatch.setattr(prepared_cache, "_write_all", fill)
    room.memory, room.raw_files = 0, False
    said: list[str] = []
    (clip,) = prepare_clips([bag], SIZE, options, cache=PreparedCache(tmp_path / "cache", said.append)).train
    np.testing.assert_array_equal(list(clip.images), expected)
    assert any("goes on without it" in text for text in said)


def test_a_pass_that_was_broken_off_goes_on_compressed(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next frame is still, which the compressed copy of the last that was kept does not show."""
    shown = [0, 1, 2, 3, 4, 4, 4, 5, 6]
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0)))]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(picture(p), stamp(k))) for k, p in enumerate(shown)]
    bag = write_bag(tmp_path / "bag", messages)
    options = PrepareOptions(validation_share=0.0)
    (plain,) = prepare_clips([bag], SIZE, options).train

    gone_through = []

    def interrupt(*_: object) -> None:
        gone_through.append(1)
        if len(gone_through) == 5:
            raise KeyboardInterrupt

    cache = PreparedCache(tmp_path / "cache", print)
    with pytest.raises(KeyboardInterrupt):
        prepare_clips([bag], SIZE, options, progress=interrupt, cache=cache)
    disk = namedtuple("usage", "total used free")(10**9, 10**9, 0)
    monkeypatch.setattr(prepared_cache.shutil, "disk_usage", lambda path: disk)
    room.memory, room.raw_files = 0, False
    (clip,) = prepare_clips([bag], SIZE, options, cache=cache).train
    assert len(clip) == 7
    np.testing.assert_array_equal(list(clip.images), as_jpeg(plain.images))
    np.testing.assert_array_equal(clip.stamps_ns, plain.stamps_ns)
