"""Frames kept as JPEG: the values, the indexing of an array, and the places where the bytes are."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from unit.bag_factory import picture
from unit.tiny_run import same, tiny_clip

from coopnet_core.data import compressed_frames
from coopnet_core.data.compressed_frames import CompressedFrames, FrameCompressor, to_jpeg
from coopnet_core.data.prefetch import Batches
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.data.triplets import TripletSampler
from coopnet_core.distributed import Share
from coopnet_core.geometry.camera import Camera

SIZE = (96, 64)
ORIGINALS = np.stack([picture(k) for k in range(9)])
PLENTY, NOTHING = 1 << 40, 0


def compressed(images: np.ndarray, free_memory: Callable[[], int] = lambda: PLENTY) -> CompressedFrames:
    compressor = FrameCompressor((images.shape[2], images.shape[1]), free_memory)
    for image in images:
        compressor.append(image)
    return compressor.images()


def decoded(image: np.ndarray) -> np.ndarray:
    """What OpenCV makes of an RGB image at quality 95 with colours at full resolution."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1].copy(), options)[1], cv2.IMREAD_COLOR)[..., ::-1]


EXPECTED = np.stack([decoded(image) for image in ORIGINALS])


def until(count: int) -> Callable[[], int]:
    """Memory for so many calls."""
    answers = iter([PLENTY] * count)
    return lambda: next(answers, NOTHING)


PLACES = {"memory": lambda: PLENTY, "file": lambda: NOTHING, "both": None}


@pytest.fixture(params=PLACES)
def frames(request) -> CompressedFrames:
    """The originals, compressed, at each place."""
    found = compressed(ORIGINALS, PLACES[request.param] or until(4))
    in_file = {"memory": slice(0, 0), "file": slice(0, 9), "both": slice(4, 9)}[request.param]
    assert found.nbytes_in_file == sum(map(len, map(to_jpeg, ORIGINALS[in_file])))
    return found


# Values


def test_frames_are_those_that_opencv_decodes(frames: CompressedFrames):
    assert (frames.shape, frames.dtype, len(frames)) == (EXPECTED.shape, np.uint8, 9)
    assert frames.nbytes == sum(map(len, map(to_jpeg, ORIGINALS))) < ORIGINALS.nbytes
    for k, image in enumerate(EXPECTED):
        np.testing.assert_array_equal(frames[k], image)
        assert frames[k].dtype == np.uint8
        assert frames[k].flags.c_contiguous
    np.testing.assert_array_equal(list(frames), EXPECTED)


def test_a_rendered_street_is_hardly_changed():
    (image,) = render_clip(SceneConfig(3, 1, Camera(208, 64, 120.0, 120.0, 103.5, 31.5))).clip.images
    found = compressed(image[None])[0].astype(float)
    psnr = 10 * np.log10(255**2 / np.mean((found - image) ** 2))
    assert psnr > 38.0  # 39.1 was measured
    assert abs((found - image).mean(axis=(0, 1))).max() < 0.3  # no channel is shifted, none is swapped


def test_colours_keep_their_resolution():
    """Lines of one pixel whose colours have one brightness: with halved colours they would all be grey."""
    lines = np.empty((32, 32, 3), np.uint8)
    lines[:, 0::2], lines[:, 1::2] = (200, 60, 60), (40, 130, 60)
    found = compressed(lines[None])[0].astype(float)
    assert np.abs(found - lines).mean() < 3.0


@pytest.mark.parametrize("layout", ["read-only", "strided"])
def test_images_of_any_layout(layout: str):
    image = np.repeat(ORIGINALS[0], 2, axis=1)[:, ::2] if layout == "strided" else ORIGINALS[0].copy()
    image.flags.writeable = False
    assert layout != "strided" or not image.flags.c_contiguous
    np.testing.assert_array_equal(compressed(image[None])[0], EXPECTED[0])


# Indexing


@pytest.mark.parametrize(
    "index", [slice(2, 7), slice(-3, None), slice(None, 100), slice(5, 5), slice(1, 8, 3), slice(None, None, -1)]
)
def test_slices_are_those_of_an_array(frames: CompressedFrames, index: slice):
    part, expected = frames[index], EXPECTED[index]
    assert isinstance(part, CompressedFrames)
    assert part.shape == expected.shape
    assert part.nbytes == sum(map(len, map(to_jpeg, ORIGINALS[index])))
    assert [image.tobytes() for image in part] == [image.tobytes() for image in expected]


def test_slices_of_slices(frames: CompressedFrames):
    part = frames[2:8][1:-1]
    np.testing.assert_array_equal(list(part), EXPECTED[3:7])
    np.testing.assert_array_equal(part[-1], EXPECTED[6])
    np.testing.assert_array_equal(part[np.int64(0)], EXPECTED[3])


@pytest.mark.parametrize("index", [9, -10])
def test_no_such_frame(frames: CompressedFrames, index: int):
    with pytest.raises(IndexError):
        frames[index]
    with pytest.raises(IndexError):
        frames[3:5][2]


@pytest.mark.parametrize("index", [1.0, [1, 2], np.array([1, 2]), None, (0, 1)])
def test_what_is_no_index(frames: CompressedFrames, index: object):
    with pytest.raises(TypeError):
        frames[index]


# Places


def test_a_view_stays_what_it_is_while_frames_are_added(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compressed_frames, "_FIRST_ROWS", 2)
    compressor = FrameCompressor(SIZE, until(6))
    views = []
    for image in ORIGINALS:
        compressor.append(image)
        views.append(compressor.images())
    for count, view in enumerate(views, start=1):
        np.testing.assert_array_equal(list(view), EXPECTED[:count])


def test_memory_is_used_up_to_half():
    """Of what was free before: what is held no longer is."""
    sizes = [len(to_jpeg(image)) for image in ORIGINALS]
    free = sum(sizes[:6]) + 10
    compressor = FrameCompressor(SIZE, lambda: free - held)
    held = 0
    for image, size in zip(ORIGINALS, sizes, strict=True):
        compressor.append(image)
        held += size
    frames = compressor.images()
    assert frames.nbytes - frames.nbytes_in_file == sum(sizes[:3])


def test_a_disk_that_takes_a_part_of_each_write(monkeypatch: pytest.MonkeyPatch):
    write = os.pwrite
    monkeypatch.setattr(compressed_frames.os, "pwrite", lambda file, rest, offset: write(file, rest[:999], offset))
    np.testing.assert_array_equal(list(compressed(ORIGINALS, until(4))), EXPECTED)


def test_a_full_disk_keeps_what_is_there(monkeypatch: pytest.MonkeyPatch):
    compressor = FrameCompressor(SIZE, until(4))
    full = partial(Path("/dev/full").open, "r+b")
    monkeypatch.setattr(compressed_frames.tempfile, "TemporaryFile", lambda **_: full(buffering=0))
    for image in ORIGINALS[:4]:
        compressor.append(image)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            compressor.append(ORIGINALS[4])
    np.testing.assert_array_equal(list(compressor.images()), EXPECTED[:4])


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_the_place_is_given_back_with_the_last_view():
    before = _open_files()
    view = compressed(ORIGINALS, until(4))[3:5]
    assert _open_files() == before + 2
    np.testing.assert_array_equal(list(view), EXPECTED[3:5])
    del view
    assert _open_files() == before


# Several readers


def _reads_rightly(frames: CompressedFrames, seed: int) -> bool:
    order = np.random.default_rng(seed).integers(0, len(frames), 150)
    return all(np.array_equal(frames[k], EXPECTED[k]) for k in order)


def test_threads_read_at_once(frames: CompressedFrames, monkeypatch: pytest.MonkeyPatch):
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(partial(_reads_rightly, frames), range(8)))
    monkeypatch.setattr(compressed_frames, "decode_picture", lambda content, what: content)
    expected = [to_jpeg(image) for image in ORIGINALS]

    def wrong(seed: int) -> int:
        order = np.random.default_rng(seed).integers(0, len(frames), 2000)
        return sum(frames[k] != expected[k] for k in order)

    with ThreadPoolExecutor(8) as pool:  # nothing but reading, so that many meet in it
        assert sum(pool.map(wrong, range(8))) == 0


def test_processes_read_at_once_after_a_fork(frames: CompressedFrames):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if _reads_rightly(frames, 1) else 1)
    right = _reads_rightly(frames, 2)
    assert os.waitpid(child, 0) == (child, 0)
    assert right


@pytest.mark.parametrize("ahead", [0, 3])
def test_batches_are_those_of_the_decoded_frames(ahead: int):
    clips = [replace(clip, images=compressed(clip.images, until(4))) for clip in (tiny_clip(), tiny_clip(5, seed=2))]
    plain = [replace(clip, images=np.stack(list(clip.images))) for clip in clips]
    ours, theirs = (TripletSampler(some, (-1, 1), 2, seed=4) for some in (clips, plain))
    for one, other in zip(ours.sweep(3), theirs.sweep(3), strict=True):
        assert same(one.tensors(), other.tensors())
    sources = [1, 2, 2, 1, 2]
    batches = Batches(ours, sources, Share(), torch.device("cpu"), ahead)
    for count in sources:
        assert same(batches.next().tensors(), theirs.next(count).tensors())
    batches.close()
