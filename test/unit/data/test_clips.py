"""Clips from recordings: where they are cut, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit import bag_factory as make
from unit.bag_factory import IMAGE, IMAGE_TOPIC, INFO, INFO_TOPIC, recording, stamp, write_bag

from coopnet_core.data.bag import MALFORMED
from coopnet_core.data.clips import PreparedData, PrepareOptions, prepare_clips
from coopnet_core.errors import NoUsableDataError, UsageError

SIZE = (96, 64)


def prepare(*paths: Path, size: tuple[int, int] | None = SIZE, **options) -> PreparedData:
    return prepare_clips(paths, size, PrepareOptions(**({"validation_share": 0.0} | options)))


def indices(clip) -> list[int]:
    return [(int(value) - make.START_NS) // make.PERIOD_NS for value in clip.stamps_ns]


def frames_at(order: list[tuple[int, int]]) -> list:
    """Messages showing picture p at time k, for (k, p)."""
    messages = [(INFO_TOPIC, INFO, stamp(order[0][0]), make.camera_info(stamp(order[0][0])))]
    return messages + [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(p), stamp(k))) for k, p in order]


def test_one_clip_with_the_recorded_pictures(tmp_path: Path):
    data = prepare(write_bag(tmp_path / "drive", recording(8)))
    (clip,) = data.train
    assert data.validation == []
    assert indices(clip) == list(range(8))
    np.testing.assert_array_equal(clip.images, [make.picture(index) for index in range(8)])
    assert (clip.camera.fx, clip.camera.width, clip.camera.height) == (make.FOCAL, *SIZE)
    assert clip.name == "drive[0:8]"


def test_size_is_chosen_from_the_first_camera(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(4, width=640, height=192))
    assert prepare(bag, size=None).size == (416, 128)


@pytest.mark.parametrize(
    ("times", "factor", "expected"),
    [
        ([0, 1, 2, 3, 6, 7, 8, 9], 2.5, [[0, 1, 2, 3], [6, 7, 8, 9]]),
        ([0, 1, 2, 3, 5, 6, 7, 8], 2.5, [[0, 1, 2, 3, 5, 6, 7, 8]]),
        ([0, 1, 2, 3, 5, 6, 7, 8], 1.5, [[0, 1, 2, 3], [5, 6, 7, 8]]),
        ([0, 1, 2, 3, 6, 7, 10, 11, 12], 2.5, [[0, 1, 2, 3], [10, 11, 12]]),
    ],
)
def test_clips_end_at_gaps(tmp_path: Path, times: list[int], factor: float, expected: list[list[int]]):
    data = prepare(write_bag(tmp_path / "bag", frames_at([(k, k) for k in times])), gap_factor=factor)
    assert [indices(clip) for clip in data.train] == expected
    (bag,) = data.sources
    assert bag.short == len(times) - sum(map(len, expected))
    assert bag.rate_hz == pytest.approx(10)


def test_clock_jump_starts_a_new_clip(tmp_path: Path):
    messages = frames_at([(k, k) for k in range(4)])
    for k in range(4):
        messages.append((IMAGE_TOPIC, IMAGE, stamp(4 + k), make.image(make.picture(k), stamp(k - 100))))
    data = prepare(write_bag(tmp_path / "bag", messages))
    assert [indices(clip) for clip in data.train] == [[0, 1, 2, 3], [-100, -99, -98, -97]]
    assert data.sources[0].gaps == 1


def test_still_frames_are_dropped_and_do_not_cut(tmp_path: Path):
    order = [(k, p) for k, p in enumerate([0, 1, 2, 2, 2, 2, 2, 2, 3, 4])]
    bag = write_bag(tmp_path / "bag", frames_at(order))
    data = prepare(bag)
    assert [indices(clip) for clip in data.train] == [[0, 1, 2, 8, 9]]
    assert (data.sources[0].still, data.sources[0].gaps) == (5, 0)
    assert [len(clip) for clip in prepare(bag, still_threshold=0.0).train] == [10]


def test_a_recording_that_never_moves_is_no_data(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", frames_at([(k, 0) for k in range(10)]))
    with pytest.raises(NoUsableDataError, match="9 are still"):
        prepare(bag)


def test_slow_motion_is_compared_with_the_last_kept_frame(tmp_path: Path):
    """Steps below the threshold add up: motion that is slow is thinned out, not dropped."""
    base = make.picture(0).astype(int)
    messages = frames_at([(0, 0)])
    for k in range(1, 10):
        brighter = np.clip(base + k, 0, 255).astype(np.uint8)
        messages.append((IMAGE_TOPIC, IMAGE, stamp(k), make.image(brighter, stamp(k))))
    data = prepare(write_bag(tmp_path / "bag", messages), still_threshold=1.8)
    assert [indices(clip) for clip in data.train] == [[0, 2, 4, 6, 8]]


def test_change_of_size_starts_a_new_clip_at_the_same_network_size(tmp_path: Path):
    messages = recording(4)
    for k in range(4, 8):
        messages.append((INFO_TOPIC, INFO, stamp(k), make.camera_info(stamp(k), 192, 128, 160.0)))
        messages.append((IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k, 192, 128), stamp(k))))
    data = prepare(write_bag(tmp_path / "bag", messages))
    assert [indices(clip) for clip in data.train] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [clip.images.shape[1:] for clip in data.train] == [(64, 96, 3)] * 2
    assert data.train[1].camera.fx == pytest.approx(80.0)
    assert data.sources[0].changes == 1
    assert [text.split()[0] for text in data.sources[0].cameras] == ["96x64", "192x128"]


def test_change_of_calibration_starts_a_new_clip(tmp_path: Path):
    messages = recording(8)
    messages[8] = (INFO_TOPIC, INFO, stamp(4), make.camera_info(stamp(4), focal=90.0))
    for k in range(5, 8):
        messages[2 * k] = (INFO_TOPIC, INFO, stamp(k), make.camera_info(stamp(k), focal=90.0))
    data = prepare(write_bag(tmp_path / "bag", messages))
    assert [(indices(clip), clip.camera.fx) for clip in data.train] == [([0, 1, 2, 3], 80.0), ([4, 5, 6, 7], 90.0)]


def test_several_bags_of_different_cameras(tmp_path: Path):
    front = write_bag(tmp_path / "front", recording(5))
    rear = write_bag(
        tmp_path / "rear", recording(6, "/rear/image_raw", "/rear/camera_info", 200, 100, seed=3), "sqlite3"
    )
    data = prepare(front, rear)
    assert [len(clip) for clip in data.train] == [5, 6]
    assert all(clip.images.shape[1:] == (64, 96, 3) for clip in data.train)
    # 200x100 is cut to 150x100, the aspect of 96x64, then shrunk by 0.64.
    camera = data.train[1].camera
    assert (camera.fx, camera.cx, camera.cy) == pytest.approx((51.2, 47.5, 31.5))
    data = prepare(front, rear, topics=("/rear/image_raw", IMAGE_TOPIC))
    assert [source.camera for source in data.sources] == [IMAGE_TOPIC, "/rear/image_raw"]


def test_validation_is_the_last_block_in_time(tmp_path: Path):
    data = prepare(write_bag(tmp_path / "bag", recording(20)), validation_share=0.25)
    assert [indices(clip) for clip in data.train] == [list(range(15))]
    assert [indices(clip) for clip in data.validation] == [list(range(15, 20))]
    assert (data.sources[0].train, data.sources[0].validation) == (15, 5)


def test_validation_share_too_small_for_a_clip_is_given_to_training(tmp_path: Path):
    data = prepare(write_bag(tmp_path / "bag", recording(10)), validation_share=0.1)
    assert (data.sources[0].train, data.validation) == (10, [])


def test_whole_bags_for_validation(tmp_path: Path):
    one, two = (write_bag(tmp_path / name, recording(6, seed=k)) for k, name in enumerate(("one", "two")))
    data = prepare(one, two, validation_bags=(two,), validation_share=0.5)
    assert [clip.name for clip in data.train] == ["one[0:6]"]
    assert [clip.name for clip in data.validation] == ["two[0:6]"]
    with pytest.raises(NoUsableDataError, match="every source is for validation"):
        prepare(one, validation_bags=(one,))


def test_unusable_images_are_counted_and_do_not_stop(tmp_path: Path):
    messages = recording(10)
    messages[9] = (*messages[9][:3], make.image(make.picture(4), stamp(4), data=np.zeros(30, np.uint8)))
    data = prepare(write_bag(tmp_path / "bag", messages))
    assert [indices(clip) for clip in data.train] == [[0, 1, 2, 3, 5, 6, 7, 8, 9]]
    assert data.sources[0].report.skipped == {MALFORMED: 1}


def test_one_unusable_bag_of_several_is_named(tmp_path: Path):
    good = write_bag(tmp_path / "good", recording(5))
    empty = write_bag(tmp_path / "empty", [])
    data = prepare(empty, good)
    assert [len(clip) for clip in data.train] == [5]
    assert "empty" in data.failed[0]


@pytest.mark.parametrize("calibration", [None, np.zeros(9)])
def test_uncalibrated_recordings_say_how_to_go_on(tmp_path: Path, calibration: np.ndarray | None):
    messages = recording(5, info_topic=None)
    if calibration is not None:
        messages.insert(0, (INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), k=calibration)))
    bag = write_bag(tmp_path / "bag", messages)
    with pytest.raises(NoUsableDataError, match=r"not calibrated.*--fov DEGREES"):
        prepare(bag)
    assert prepare(bag, fov_degrees=90.0).train[0].camera.fx == pytest.approx(48)


def test_nothing_usable_gives_the_reasons(tmp_path: Path):
    messages = [
        (IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k), stamp(k), encoding="h264")) for k in range(4)
    ]
    with pytest.raises(NoUsableDataError, match=r"none of the 4 images.*4 x encoding not read.*h264"):
        prepare(write_bag(tmp_path / "bag", messages))
    with pytest.raises(NoUsableDataError, match="--frames 50: selects none of the 4"):
        prepare(tmp_path / "bag", frames=(50, None))


def test_missing_bag_stops_at_once(tmp_path: Path):
    with pytest.raises(UsageError):
        prepare(write_bag(tmp_path / "good", recording(5)), tmp_path / "absent")


def test_memory_is_the_network_size_frames_alone(tmp_path: Path):
    data = prepare(
        write_bag(tmp_path / "bag", recording(6, width=640, height=192)), size=(32, 32), validation_share=0.5
    )
    assert data.megabytes == pytest.approx(6 * 32 * 32 * 3 / 1e6)
    blocks = {id(clip.images.base) for clip in (*data.train, *data.validation)}
    assert len(blocks) == 1  # views of one block, not copies


def test_progress_is_told(tmp_path: Path):
    calls = []
    bag = write_bag(tmp_path / "bag", recording(5))
    prepare_clips([bag], SIZE, PrepareOptions(), progress=lambda *call: calls.append(call))
    assert calls[-1] == (bag, 5, 5)
