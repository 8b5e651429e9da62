"""Prepared recordings: the same as decoded ones, whatever happens to the cache and whenever it is broken off."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from unit import bag_factory as make
from unit import recordings
from unit.bag_factory import IMAGE, IMAGE_TOPIC, INFO, INFO_TOPIC, recording, stamp, write_bag
from unit.recordings import FORMATS

from coopnet_core.data import prepared_cache
from coopnet_core.data import recording as reading
from coopnet_core.data.clips import PreparedData, PrepareOptions, prepare_clips
from coopnet_core.data.prepared_cache import ENTRY, FRAMES, PROGRESS, PreparedCache
from coopnet_core.data.sources import bags
from coopnet_core.data.sources.decoding import Decoding
from coopnet_core.errors import NoUsableDataError

SIZE = (96, 64)
_ROOT = Path(__file__).resolve().parents[3]


class Cache:
    """A cache in a folder, and what it has said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []

    def prepare(self, *specs: Path | str, size=SIZE, **options) -> PreparedData:
        chosen = PrepareOptions(**({"fov_degrees": 80.0} | options))
        return prepare_clips(specs, size, chosen, cache=PreparedCache(self.folder, self.said.append))

    def has_said(self, *words: str) -> bool:
        return any(all(word in text for word in words) for text in self.said)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per image that was really decoded."""
    found: list[int] = []
    original = Decoding.__call__

    def counted(decoding: Decoding, decode: Callable[[], np.ndarray]) -> np.ndarray:
        return original(decoding, lambda: found.append(1) or decode())

    monkeypatch.setattr(Decoding, "__call__", counted)
    return found


def plain(*specs: Path | str, size=SIZE, **options) -> PreparedData:
    return prepare_clips(specs, size, PrepareOptions(**({"fov_degrees": 80.0} | options)))


def assert_same(found: PreparedData, expected: PreparedData) -> None:
    assert (found.size, found.failed) == (expected.size, expected.failed)
    assert found.sources == expected.sources
    for part in ("train", "validation"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            for name in ("name", "camera", "source", "weight"):
                assert getattr(one, name) == getattr(other, name)
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.stamps_ns, other.stamps_ns)


def difficult_bag(path: Path) -> Path:
    """Still frames, a message that is no image, a stamp out of order, a change of size and of calibration."""
    order = [0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7, 8]
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0)))]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(p), stamp(k))) for k, p in enumerate(order)]
    messages[4] = (IMAGE_TOPIC, IMAGE, stamp(3), make.image(make.picture(3), stamp(3), data=np.zeros(30, np.uint8)))
    messages.insert(7, (IMAGE_TOPIC, IMAGE, stamp(5), make.image(make.picture(1), stamp(3))))
    for k in range(12, 18):
        focal = 160.0 if k < 15 else 170.0
        messages.append((INFO_TOPIC, INFO, stamp(k), make.camera_info(stamp(k), 192, 128, focal)))
        messages.append((IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k, 192, 128), stamp(k))))
    return write_bag(path, messages)


def damaged_folder(root: Path) -> Path:
    """Image files, one of them no image, one of another size."""
    written = recordings.folder_with_calibration(root)
    files = sorted((Path(written.path) / "images").iterdir())
    files[3].write_bytes(b"no image")
    cv2.imwrite(str(files[5]), np.full((64, 70, 3), 99, np.uint8))
    return Path(written.path)


SPECIMENS: dict[str, Callable[[Path], Path | str]] = {
    **{name: lambda root, writer=writer: writer(root).path for name, writer in FORMATS.items()},
    "difficult_bag": lambda root: difficult_bag(root / "difficult"),
    "damaged_folder": damaged_folder,
}


@pytest.fixture
def specimen(request, tmp_path: Path) -> Path | str:
    if "video" in request.param:
        pytest.importorskip("av")
    (tmp_path / "specimen").mkdir()
    return SPECIMENS[request.param](tmp_path / "specimen")


# What is read from the cache is what is decoded


@pytest.mark.parametrize("specimen", SPECIMENS, indirect=True)
def test_an_entry_is_what_decoding_gives(specimen: Path | str, cache: Cache, decoded: list[int]):
    expected = plain(specimen, validation_share=0.4)
    decoded.clear()
    assert_same(cache.prepare(specimen, validation_share=0.4), expected)
    assert decoded
    assert cache.has_said("will be kept in", "free there")
    decoded.clear()
    assert_same(cache.prepare(specimen, validation_share=0.4), expected)
    assert decoded == []
    assert cache.has_said("frames from the cache")
    assert cache.files() == [ENTRY, FRAMES, "lock"]


def test_several_recordings_share_the_size_of_the_first(tmp_path: Path, cache: Cache, decoded: list[int]):
    one = write_bag(tmp_path / "one", recording(6, width=192, height=128))
    two = write_bag(tmp_path / "two", recording(5, seed=1))
    weights = [3.0, 1.0]
    expected = prepare_clips([one, two], None, PrepareOptions(), 96 * 64, weights=weights)
    for _ in range(2):
        decoded.clear()
        found = prepare_clips(
            [one, two], None, PrepareOptions(), 96 * 64, None, weights, PreparedCache(cache.folder, cache.said.append)
        )
        assert_same(found, expected)
    assert decoded == []


@pytest.mark.parametrize(
    "options",
    [
        {"gap_factor": 1.5},
        {"validation_share": 0.5},
        {"minimum_frames": 4},
        {"validation_bags": ("other",)},
    ],
)
def test_cutting_anew_decodes_nothing(tmp_path: Path, cache: Cache, decoded: list[int], options: dict):
    times = [0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15]
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0)))]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k), stamp(k))) for k in times]
    bag = write_bag(tmp_path / "bag", messages)
    before = cache.prepare(bag)
    expected = plain(bag, **options)
    decoded.clear()
    found = cache.prepare(bag, **options)
    assert decoded == []
    assert_same(found, expected)
    if "validation_bags" not in options:
        assert [len(clip) for clip in found.train] != [len(clip) for clip in before.train]


def test_a_resume_that_knows_the_size_finds_the_entry(tmp_path: Path, cache: Cache, decoded: list[int]):
    bag = write_bag(tmp_path / "bag", recording(5, width=640, height=192))
    first = cache.prepare(bag, size=None)
    decoded.clear()
    for size in (None, first.size):
        assert_same(cache.prepare(bag, size=size), first)
    assert decoded == []
    cache.prepare(bag, size=SIZE)
    assert len(decoded) == 5
    decoded.clear()
    assert_same(cache.prepare(bag, size=None), first)
    assert decoded == []


# What decides the pixels decides the key


def _touch(path: Path) -> None:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


def _changes() -> dict[str, Callable[[Path, pytest.MonkeyPatch], dict]]:
    """What is done to a recording or to the options; gives the options."""

    def calibration(root: Path, patch: pytest.MonkeyPatch) -> dict:
        text = (root / "drive" / "camera.yaml").read_text()
        (root / "drive" / "camera.yaml").write_text(text.replace("camera_matrix", "camera_matrix  "))
        focal = text.replace(str(2 * recordings.CAMERA.fx), "161.0")
        (root / "drive" / "camera.yaml").write_text(focal)
        return {}

    def one_more(root: Path, patch: pytest.MonkeyPatch) -> dict:
        recordings.write_images(root / "drive" / "images", ["frame8.png"], [make.picture(20)])
        with (root / "drive" / "timestamps.txt").open("a") as file:
            file.write("\n1700000000900000000")
        return {}

    def stamps(root: Path, patch: pytest.MonkeyPatch) -> dict:
        path = root / "drive" / "timestamps.txt"
        path.write_text(path.read_text().replace("000000007", "000000008"))
        return {}

    def stand_in(root: Path, patch: pytest.MonkeyPatch) -> dict:
        recordings.write_meta(root / "mine.json")
        return {"calibration": root / "mine.json"}

    return {
        "an image written again": lambda root, patch: _touch(root / "drive" / "images" / "frame3.png") or {},
        "one image more": one_more,
        "the calibration": calibration,
        "the stamps": stamps,
        "a calibration named": stand_in,
        "the field of view": lambda root, patch: {"fov_degrees": 60.0},
        "the range": lambda root, patch: {"frames": (1, None)},
        "topics": lambda root, patch: {"topics": ("/other",)},
        "info": lambda root, patch: {"info": "/other"},
        "still frames": lambda root, patch: {"still_threshold": 0.0},
        "the size": lambda root, patch: {"size": (64, 64)},
        "the version": lambda root, patch: patch.setattr(prepared_cache, "VERSION", 99) or {},
        "OpenCV": lambda root, patch: patch.setattr(cv2, "__version__", "99") or {},
    }


@pytest.mark.parametrize("change", _changes())
def test_what_matters_is_decoded_anew(tmp_path: Path, cache: Cache, decoded: list[int], monkeypatch, change: str):
    path = recordings.folder_with_calibration(tmp_path).path
    cache.prepare(path)
    options = _changes()[change](tmp_path, monkeypatch)
    expected = plain(path, **options)
    decoded.clear()
    assert_same(cache.prepare(path, **options), expected)
    assert decoded, change


def test_another_content_of_the_users_calibration_is_another_key(tmp_path: Path, cache: Cache, decoded: list[int]):
    path = recordings.folder_without_calibration(tmp_path).path
    for focal in (80.0, 90.0):
        recordings.write_meta(tmp_path / "mine.json", recordings.CAMERA.__class__(96, 64, focal, focal, 45.5, 33.5))
        decoded.clear()
        assert cache.prepare(path, calibration=tmp_path / "mine.json").train[0].camera.fx == focal
        assert decoded


@pytest.mark.parametrize("name", ["metadata.yaml", "drive_0.mcap"])
def test_every_file_of_a_bag_counts(tmp_path: Path, cache: Cache, decoded: list[int], name: str):
    bag = write_bag(tmp_path / "drive", recording(5))
    if not (bag / name).exists():
        make.storage_file(bag).rename(bag / name)
    cache.prepare(bag)
    decoded.clear()
    cache.prepare(bag)
    assert decoded == []
    _touch(bag / name)
    cache.prepare(bag)
    assert len(decoded) == 5


def test_a_bag_that_is_recorded_on_is_another(tmp_path: Path, cache: Cache):
    bag = write_bag(tmp_path / "drive", recording(5))
    cache.prepare(bag)
    shutil.rmtree(bag)
    write_bag(bag, recording(7))
    assert_same(cache.prepare(bag), plain(bag))


# Broken off, and gone on with


AGAIN_AND_AGAIN = [(name, KeyboardInterrupt) for name in SPECIMENS if name != "rendered"]
AGAIN_AND_AGAIN += [("difficult_bag", RuntimeError), ("video", SystemExit)]


@pytest.mark.parametrize(("specimen", "error"), AGAIN_AND_AGAIN, indirect=["specimen"])
def test_a_reading_that_is_broken_off_goes_on(specimen: Path | str, cache: Cache, monkeypatch, error: type):
    """Again and again: the next start decodes what is left, and has everything alike."""
    expected = plain(specimen)
    original, calls, broken_off = Decoding.__call__, [], 0

    def decode(decoding: Decoding, work: Callable[[], np.ndarray]) -> np.ndarray:
        def counted() -> np.ndarray:
            if len(calls) == 2 + broken_off:
                raise error
            calls.append(1)
            return work()

        return original(decoding, counted)

    monkeypatch.setattr(Decoding, "__call__", decode)
    found = None
    while found is None:
        calls.clear()
        try:
            found = cache.prepare(specimen)
        except error:
            broken_off += 1
            assert PROGRESS in cache.files()
    assert broken_off
    assert_same(found, expected)
    assert cache.has_said("was broken off after", "not decoded again")
    assert cache.files() == [ENTRY, FRAMES, "lock"]


@pytest.mark.parametrize("place", ["decode_message", "fit_frame", "_write_all"])
def test_a_bag_can_be_broken_off_at_every_image(tmp_path: Path, decoded: list[int], monkeypatch, place: str):
    bag = difficult_bag(tmp_path / "bag")
    expected = plain(bag)
    owner = {"decode_message": bags, "fit_frame": reading, "_write_all": prepared_cache}[place]
    images, after = len(decoded), 0
    while True:
        cache = Cache(tmp_path / f"{after}")
        decoded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, _failing(getattr(owner, place), after, KeyboardInterrupt()))
            try:
                cache.prepare(bag)
                break
            except KeyboardInterrupt:
                patch.undo()
                assert_same(cache.prepare(bag), expected)
                # Again: the one that was under way, and those that failed.
                assert len(decoded) <= images + 2
        after += 1
    assert after >= 12


_KILLED = """
import os, sys
from pathlib import Path
from coopnet_core.data import clips, prepared_cache
from coopnet_core.data.sources.decoding import Decoding

folder, bag, fatal = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
moments = []

def before(original, name):
    def operation(*arguments, **options):
        moments.append(name)
        if len(moments) - 1 == fatal:
            os._exit(9)
        return original(*arguments, **options)
    return operation

prepared_cache._SAVE_EVERY_S = 0.0
prepared_cache._write_all = before(prepared_cache._write_all, "frame")
for name in ("replace", "rename", "fsync"):
    setattr(os, name, before(getattr(os, name), name))
Path.unlink = before(Path.unlink, "unlink")
decode, decoded = Decoding.__call__, []
Decoding.__call__ = lambda self, work: decode(self, lambda: decoded.append(1) or work())
clips.prepare_clips([bag], (96, 64), clips.PrepareOptions(), cache=prepared_cache.PreparedCache(folder, str))
print(len(decoded), *moments)
"""


def _prepared_apart(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _KILLED, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_killed_at_any_file_operation(tmp_path: Path, decoded: list[int]):
    bag = difficult_bag(tmp_path / "bag")
    expected = plain(bag, fov_degrees=None)
    whole = _prepared_apart(tmp_path / "whole", bag, -1)
    assert whole.returncode == 0, whole.stderr
    count, *moments = whole.stdout.split()
    # One of each kind in the middle, and all of the end.
    last = len(moments)
    chosen = {moments.index(name, last // 2) for name in ("frame", "fsync", "replace")} | set(range(last - 7, last))
    for fatal in sorted(chosen):
        cache = Cache(tmp_path / f"killed_{fatal}")
        assert _prepared_apart(cache.folder, bag, fatal).returncode == 9, moments[fatal]
        decoded.clear()
        assert_same(cache.prepare(bag, fov_degrees=None), expected)
        assert len(decoded) < 0.7 * int(count), moments[fatal]
        assert {ENTRY, FRAMES, "lock"} <= set(cache.files()) <= {ENTRY, FRAMES, "lock", PROGRESS}


@pytest.mark.parametrize("harm", ["frames shorter", "progress cut", "progress of nothing"])
def test_a_progress_that_is_not_sound_is_not_gone_on_with(tmp_path, cache: Cache, decoded, monkeypatch, harm: str):
    bag = write_bag(tmp_path / "bag", recording(8))
    with monkeypatch.context() as patch:
        patch.setattr(prepared_cache, "_write_all", _failing(prepared_cache._write_all, 5, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            cache.prepare(bag)
    (progress,) = cache.folder.rglob(PROGRESS)
    if harm == "frames shorter":
        os.truncate(progress.with_name(FRAMES), 4 * SIZE[0] * SIZE[1] * 3)
    else:
        progress.write_text(progress.read_text()[:40] if harm == "progress cut" else "[]")
    decoded.clear()
    assert_same(cache.prepare(bag), plain(bag))
    assert len(decoded) == 8 + 8


def test_a_recording_that_cannot_be_used_leaves_nothing(tmp_path: Path, cache: Cache):
    messages = recording(4)
    zero = make.camera_info(stamp(4), k=np.zeros(9))
    messages += [
        (INFO_TOPIC, INFO, stamp(4), zero),
        (IMAGE_TOPIC, IMAGE, stamp(4), make.image(make.picture(4), stamp(4))),
    ]
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(NoUsableDataError, match="not calibrated"):
        cache.prepare(bag, fov_degrees=None)
    assert cache.files() == ["lock"]


# A disk without room


def _failing(original: Callable, after: int, error: BaseException, half: bool = False) -> Callable:
    """Works so many times, then fails for ever."""
    calls: list[int] = []

    def work(*arguments, **options):
        calls.append(1)
        if len(calls) > after:
            if half:
                file, content = arguments
                file.write(content[: len(content) // 2])
            raise error
        return original(*arguments, **options)

    return work


def _room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A disk of 1 GB, of which 20 MB are to be left free."""
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - free, free)
    monkeypatch.setattr(prepared_cache.shutil, "disk_usage", lambda path: usage)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("half", [False, True])
def test_a_disk_that_is_full_amid_the_frames(tmp_path: Path, cache: Cache, monkeypatch, after: int, half: bool):
    bag = write_bag(tmp_path / "bag", recording(8))
    monkeypatch.setattr(prepared_cache, "_write_all", _failing(prepared_cache._write_all, after, FULL, half))
    assert_same(cache.prepare(bag), plain(bag))
    assert cache.has_said("not kept in the cache", "No space left on device", "goes on without it")
    assert cache.files() == ["lock"]


def test_a_disk_that_is_full_when_the_progress_or_the_entry_is_written(tmp_path: Path, cache: Cache, monkeypatch):
    bag = write_bag(tmp_path / "bag", recording(8))
    monkeypatch.setattr(prepared_cache, "_SAVE_EVERY_S", 0.0)
    for after in (0, 3, 8):  # the progress is written after every frame, the entry last
        with monkeypatch.context() as patch:
            patch.setattr(prepared_cache, "write_whole", _failing(prepared_cache.write_whole, after, FULL))
            found = cache.prepare(bag)
        assert_same(found, plain(bag))
        assert cache.has_said("not kept in the cache", "No space left on device")
        assert cache.files() == ["lock"]
        cache.said.clear()


def test_too_little_room_is_said_before_and_nothing_is_written(tmp_path: Path, cache: Cache, monkeypatch, decoded):
    bags = [write_bag(tmp_path / name, recording(count, seed=count)) for name, count in (("long", 40), ("short", 5))]
    _room(monkeypatch, 20_100_000)
    assert_same(cache.prepare(*bags), plain(*bags))
    assert cache.has_said("long", "up to 0.7 MB", "20.1 MB free there")
    assert cache.has_said("long", "too little room", "goes on without it")
    decoded.clear()
    cache.prepare(*bags)  # the one that fits was kept
    assert len(decoded) == 40


def test_a_broken_off_entry_is_used_where_the_room_has_gone_meanwhile(tmp_path, cache: Cache, monkeypatch, decoded):
    bag = write_bag(tmp_path / "bag", recording(8))
    with monkeypatch.context() as patch:
        patch.setattr(prepared_cache, "_write_all", _failing(prepared_cache._write_all, 5, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            cache.prepare(bag)
    expected = plain(bag)
    _room(monkeypatch, 0)
    decoded.clear()
    assert_same(cache.prepare(bag), expected)
    assert len(decoded) == 3
    assert cache.files() == ["lock"]


def test_a_folder_that_cannot_be_one(tmp_path: Path):
    (tmp_path / "file").write_text("")
    bag = write_bag(tmp_path / "bag", recording(5))
    cache = Cache(tmp_path / "file")
    assert_same(cache.prepare(bag), plain(bag))
    assert cache.has_said("without cache", str(tmp_path / "file"))


# Damaged entries


@pytest.mark.parametrize("harm", ["frames cut", "frames gone", "entry cut", "entry empty", "entry gone", "other keys"])
@pytest.mark.parametrize("size", [SIZE, None])
def test_a_damaged_entry_is_said_and_made_anew(tmp_path: Path, cache: Cache, decoded: list[int], harm: str, size):
    bag = write_bag(tmp_path / "bag", recording(8))
    cache.prepare(bag, size=size)
    (entry,) = cache.folder.rglob(ENTRY)
    frames = entry.with_name(FRAMES)
    if harm == "frames cut":
        os.truncate(frames, frames.stat().st_size - 1)
    elif harm.endswith("gone"):
        (frames if "frames" in harm else entry).unlink()
    else:
        content = entry.read_text()
        entry.write_text({"entry cut": content[:-50], "entry empty": "", "other keys": json.dumps({"size": [1]})}[harm])
    decoded.clear()
    assert_same(cache.prepare(bag, size=size), plain(bag, size=size))
    assert cache.has_said("damaged and made anew")
    assert len(decoded) == 8 + 8
    decoded.clear()
    cache.prepare(bag, size=size)
    assert decoded == []


# Several processes


def test_of_two_that_want_one_recording_the_second_waits(tmp_path: Path, cache: Cache, decoded: list[int], monkeypatch):
    bag = write_bag(tmp_path / "bag", recording(8))
    expected = plain(bag)
    decoded.clear()
    half_way, go_on = threading.Event(), threading.Event()
    original = prepared_cache._write_all

    def slow(*arguments):
        if len(decoded) == 4:
            half_way.set()
            assert go_on.wait(20)
        original(*arguments)

    monkeypatch.setattr(prepared_cache, "_write_all", slow)
    found: dict[str, PreparedData] = {}
    second, told = Cache(cache.folder), []

    def wait_for_it() -> None:
        options = PrepareOptions(fov_degrees=80.0)
        other = PreparedCache(second.folder, second.said.append)
        found["second"] = prepare_clips([bag], SIZE, options, progress=lambda *call: told.append(call[1:]), cache=other)

    threads = [
        threading.Thread(target=lambda: found.update(first=cache.prepare(bag))),
        threading.Thread(target=wait_for_it),
    ]
    threads[0].start()
    assert half_way.wait(20)
    threads[1].start()
    until = time.monotonic() + 20
    while not told and time.monotonic() < until:
        time.sleep(0.01)
    assert second.has_said("another process prepares it")
    assert told[0] == (3, 8)  # frames that lie there already
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(decoded) == 8
    assert_same(found["first"], expected)
    assert_same(found["second"], expected)
    assert second.has_said("frames from the cache")


def test_processes_that_start_together_decode_once(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(30))
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "cache"), str(bag), "-1"]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [int(process.communicate(timeout=120)[0].split()[0]) for process in running]
    assert sorted(counts) == [0, 0, 30]


def test_an_entry_can_be_deleted_while_it_is_used(tmp_path: Path, cache: Cache):
    bag = write_bag(tmp_path / "bag", recording(8))
    cache.prepare(bag)
    found = cache.prepare(bag)
    shutil.rmtree(cache.folder)
    assert_same(found, plain(bag))


# What people are told


def test_the_size_of_the_cache_and_what_lies_there_unused(tmp_path: Path, cache: Cache):
    bags = [write_bag(tmp_path / name, recording(8, seed=seed)) for seed, name in enumerate(("old", "new"))]
    cache.prepare(bags[0])
    (entry,) = cache.folder.rglob(ENTRY)
    os.utime(entry, (0, 0))
    cache.said.clear()
    cache.prepare(bags[1])
    assert cache.has_said("0.3 MB of 2 prepared recordings", "not used for 60 days", entry.parents[1].name, "delete")
    cache.said.clear()
    cache.prepare(*bags)  # it is in use again, and nothing was added
    assert time.time() - entry.stat().st_mtime < 600
    assert not cache.has_said("prepared recordings")


def test_a_name_becomes_one_that_every_file_system_takes(tmp_path: Path, cache: Cache):
    cache.prepare(write_bag(tmp_path / "drive [1]: evening", recording(5)))
    (place,) = cache.folder.iterdir()
    assert place.name.startswith("drive__1___evening-")
