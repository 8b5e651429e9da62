"""What is found in recordings whose content is known, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit import bag_factory as make
from unit.bag_factory import HEIGHT, IMAGE, IMAGE_TOPIC, INFO, INFO_TOPIC, WIDTH, recording, stamp, write_bag

from coopnet_core.config import load_config
from coopnet_core.data.bag import ENCODING, MALFORMED, NO_STAMP, OTHER_SIZE, OUT_OF_ORDER
from coopnet_core.data.clips import PreparedData, PrepareOptions, prepare_clips
from coopnet_core.data.contact_sheet import choose_looks, contact_sheet
from coopnet_core.data.inspection import inspect_bag, stamp_facts
from coopnet_core.data.inspection_advice import BUT, READY, UNUSABLE, Verdict, judge_bag, training_cost
from coopnet_core.data.inspection_facts import (
    BRIGHT,
    DARK,
    EXPOSURE,
    STILL,
    TOO_FAST,
    BagInspection,
    CameraInspection,
    InspectionOptions,
    Look,
    Looks,
)
from coopnet_core.data.inspection_watch import match_pair, plan_looks

SIZE = (WIDTH, HEIGHT)
MS = 1_000_000


def inspect(
    path: Path, sample: int | None = None, everything: bool = False, size: tuple[int, int] = SIZE, **prepare
) -> BagInspection:
    options = InspectionOptions(PrepareOptions(**prepare), sample=sample, pairs=60, everything=everything)
    return inspect_bag(path, size, options)[0]


def camera_of(bag: BagInspection) -> CameraInspection:
    (camera,) = bag.cameras
    return camera


def kinds(verdict: Verdict) -> set[str]:
    return {remark.kind for remark in verdict.remarks if remark.serious}


def shown(order: list[tuple[int, np.ndarray]], info: bool = True) -> list:
    """Messages with these pictures at the times k."""
    first = stamp(order[0][0])
    height, width = order[0][1].shape[:2]
    messages = [(INFO_TOPIC, INFO, first, make.camera_info(first, width, height))] if info else []
    return messages + [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(pixels, stamp(k))) for k, pixels in order]


def brighter(index: int, factor: float) -> np.ndarray:
    return np.clip(make.picture(index).astype(np.float32) * factor, 0, 255).astype(np.uint8)


def assert_as_trained(found: CameraInspection, data: PreparedData) -> None:
    """The counts are those of the training itself."""
    (summary,) = data.sources
    training = found.training
    assert training.exact
    assert (training.width, training.height) == data.size
    assert (training.still, training.short, training.gaps) == (summary.still, summary.short, summary.gaps)
    assert training.changes == summary.changes
    assert (training.train_images, training.validation_images) == (summary.train, summary.validation)
    assert (training.train_clips, training.validation_clips) == (len(data.train), len(data.validation))
    assert training.targets == sum(len(clip) - 2 for clip in data.train)
    assert training.frames_mb == pytest.approx(data.megabytes)
    assert found.unusable == dict(summary.report.skipped)


# A good recording


def test_topics_calibration_and_stamps_of_a_good_recording(tmp_path: Path):
    messages = recording(300)
    messages += [
        ("/chatter", "std_msgs/msg/String", stamp(k), make.make("std_msgs/msg/String", data="x")) for k in (0, 5)
    ]
    bag = inspect(write_bag(tmp_path / "drive", messages))
    topics = {topic.name: topic for topic in bag.topics}
    assert {name: topic.count for name, topic in topics.items()} == {IMAGE_TOPIC: 300, INFO_TOPIC: 300, "/chatter": 2}
    image, info = topics[IMAGE_TOPIC], topics[INFO_TOPIC]
    assert (image.type, image.role, image.width, image.height, image.encoding) == (IMAGE, "camera", 96, 64, "rgb8")
    assert (image.frame_id, info.frame_id) == ("camera_optical_frame", "camera_optical_frame")
    assert (info.role, topics["/chatter"].role) == ("calibration", "other")
    assert image.rate_hz == pytest.approx(10)
    assert info.rate_hz == pytest.approx(10)
    camera = camera_of(bag)
    assert camera.calibration.state == "calibrated"
    assert camera.calibration.k[:3] == (make.FOCAL, 0, 47.5)
    assert camera.calibration.used == (96, 64, make.FOCAL, make.FOCAL, 47.5, 31.5)
    assert camera.calibration.fov_degrees == pytest.approx(np.degrees(2 * np.arctan(0.6)))
    assert (camera.stamps.gaps, camera.stamps.jumps_back, camera.stamps.zero) == (0, 0, 0)
    assert camera.stamps.duration_s == pytest.approx(29.9)
    assert camera.stamps.delay_ms == pytest.approx(0.001)
    verdict = judge_bag(bag, False)
    assert (verdict.state, verdict.text, verdict.options) == (READY, "ready", ())


def test_motion_of_known_length(tmp_path: Path):
    """The pictures move by 3 of 96 pixels."""
    pictures = camera_of(inspect(write_bag(tmp_path / "drive", recording(30)))).pictures
    assert pictures.pairs == 29
    assert pictures.motion == pytest.approx(3 / 96, rel=0.03)
    assert pictures.matched > 0.8
    assert pictures.too_fast_share == 0


# The counts are those of the training


def mixed_messages() -> list:
    """Still and missing images, gaps, a short part, another size, a broken, a repeated and an unstamped one."""
    order = [(k, k) for k in range(20)] + [(20, 19), (21, 19), (22, 20), (30, 21), (31, 22), (40, 23)]
    order += [(41 + k, 24 + k) for k in range(30)]
    messages = shown([(k, make.picture(p)) for k, p in order])
    short = make.image(make.picture(3), stamp(3), data=np.zeros(30, np.uint8))
    messages[4] = (*messages[4][:3], short)
    messages.insert(10, messages[9])
    messages.insert(12, (IMAGE_TOPIC, IMAGE, stamp(12), make.image(make.picture(1), 0)))
    last = stamp(80)
    messages.append((INFO_TOPIC, INFO, last, make.camera_info(last, 192, 128, 160.0)))
    for k in range(80, 90):
        messages.append((IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k, 192, 128), stamp(k))))
    return messages


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"validation_share": 0.4},
        {"gap_factor": 20.0},
        {"still_threshold": 0.0},
        {"frames": (5, 40)},
        {"minimum_frames": 6},
    ],
)
def test_counts_are_those_of_the_training(tmp_path: Path, options: dict):
    path = write_bag(tmp_path / "drive", mixed_messages())
    assert_as_trained(camera_of(inspect(path, **options)), prepare_clips([path], SIZE, PrepareOptions(**options)))


def test_counts_of_real_recordings_are_those_of_the_training(tmp_path: Path, shared_data):
    for path in sorted(shared_data("rosbag2_small").iterdir()):
        bag, sheets, _ = inspect_bag(path, None, InspectionOptions(pictures=True))
        verdict = judge_bag(bag, False)
        assert verdict.state == UNUSABLE  # one or two images each, or malformed ones
        assert all(camera.problem for camera in bag.cameras)
        assert len(sheets) == len(bag.cameras) > 0


def test_the_size_of_the_first_camera_goes_on_to_the_next_bag(tmp_path: Path):
    first = write_bag(tmp_path / "first", recording(10, width=640, height=192))
    second = write_bag(tmp_path / "second", recording(10))
    _, _, size = inspect_bag(first)
    assert size == (416, 128)
    bag, _, size = inspect_bag(second, size)
    assert (camera_of(bag).training.width, size) == (416, (416, 128))


def test_a_sample_estimates_what_all_images_say(tmp_path: Path):
    """400 images, the second quarter still; one gap of 2 s, known from the stamps alone."""
    order = [(k + (20 if k >= 300 else 0), k if k < 100 else max(100, k - 99)) for k in range(400)]
    path = write_bag(tmp_path / "long", shown([(k, make.picture(p)) for k, p in order]))
    exact, sampled = (camera_of(inspect(path, sample=count)) for count in (None, 100))
    assert exact.training.exact
    assert exact.training.still == 99
    assert not sampled.training.exact
    assert sampled.pictures.looked_at == 100
    assert sampled.pictures.still_share == pytest.approx(0.25, abs=0.05)
    assert sampled.training.still == pytest.approx(100, abs=15)
    assert sampled.training.targets == pytest.approx(exact.training.targets, abs=15)
    assert (sampled.training.usable, sampled.training.gaps) == (400, 1)
    assert sampled.stamps == exact.stamps
    assert camera_of(inspect(path, everything=True)).training == exact.training


def test_stamps_are_judged_where_images_are_not_looked_at(tmp_path: Path):
    messages = recording(100)
    messages.insert(101, messages[101])  # the image of number 50 once more
    camera = camera_of(inspect(write_bag(tmp_path / "bag", messages), sample=10))
    assert camera.pictures.looked_at == 10
    assert camera.unusable == {OUT_OF_ORDER: 1}
    assert (camera.training.usable, camera.stamps.repeated) == (100, 1)


@pytest.mark.parametrize(("count", "wished"), [(1000, 100), (101, 100), (12, 7), (5, 1), (100, 5)])
def test_sampled_blocks_are_whole_apart_and_inside(count: int, wished: int):
    plan = plan_looks(7, count, wished)
    looked = [index for index in range(7, 7 + count) if plan.wants(index)]
    assert len(looked) == plan.images == 5 * len(plan.blocks)
    assert plan.images <= max(5, wished)
    assert {index for start, stop in plan.blocks for index in range(start, stop)} == set(looked)
    assert not plan.wants(6)
    assert not plan.wants(7 + count)


# Stamps


def test_gaps_jitter_and_missing_images():
    periods = [100, 104, 96, 100, 200, 100, 100, 1000, 98, 102]
    times = np.concatenate([[0], np.cumsum(periods)]) * MS + stamp(0)
    facts = stamp_facts(times.tolist(), (times + 30 * MS).tolist(), 2.5)
    assert (facts.period_ms, facts.rate_hz) == (100, 10)
    assert facts.jitter_ms == pytest.approx(np.percentile([0, 4, 4, 0, 0, 0, 2, 2], 95))
    assert (facts.gaps, facts.missing, facts.longest_pause_s) == (1, 1, 1)
    assert (facts.delay_ms, facts.delay_spread_ms) == (30, 0)
    assert stamp_facts(times.tolist(), times.tolist(), 12.0).gaps == 0


def test_jumps_repetitions_zeros_and_broken_stamps():
    header = [stamp(5), stamp(6), stamp(7), stamp(6), stamp(7), stamp(7), 0, None, stamp(8)]
    facts = stamp_facts(header, [stamp(k) for k in range(9)], 2.5)
    assert (facts.jumps_back, facts.repeated, facts.zero, facts.recording_times) == (1, 1, 1, False)
    assert facts.duration_s == pytest.approx(0.4)


def test_without_stamps_the_times_of_recording_count():
    facts = stamp_facts([0, 0, 0], [stamp(0), stamp(2), stamp(4)], 2.5)
    assert (facts.zero, facts.recording_times, facts.delay_ms) == (3, True, None)
    assert (facts.rate_hz, facts.duration_s) == (5, 0.4)
    assert stamp_facts([], [], 2.5).rate_hz == 0


def test_stamps_of_a_bag_with_zero_stamps(tmp_path: Path):
    messages = [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k), 0)) for k in range(250)]
    messages.insert(0, (INFO_TOPIC, INFO, stamp(0), make.camera_info(0)))
    bag = inspect(write_bag(tmp_path / "bag", messages))
    assert camera_of(bag).stamps.recording_times
    assert kinds(judge_bag(bag, False)) == {"zero stamps"}


# Pictures


def test_exposure_jumps_are_found_where_they_are(tmp_path: Path):
    factors = [0.9] * 10 + [0.6] * 10 + [0.64] * 10
    path = write_bag(tmp_path / "bag", shown([(k, brighter(k, factor)) for k, factor in enumerate(factors)]))
    bag = inspect(path)
    pictures = camera_of(bag).pictures
    assert pictures.marked["exposure_jump"] == [(10, 11)]
    assert pictures.exposure_jump_share == pytest.approx(1 / 29)
    assert "exposure jumps" in kinds(judge_bag(bag, False))


def test_a_change_of_brightness_across_a_gap_is_no_jump(tmp_path: Path):
    order = [(k if k < 10 else k + 50, brighter(k, 0.9 if k < 10 else 0.5)) for k in range(20)]
    pictures = camera_of(inspect(write_bag(tmp_path / "bag", shown(order)))).pictures
    assert pictures.marked["exposure_jump"] == []


def test_dark_and_bright_images(tmp_path: Path):
    factors = [0.1] * 6 + [1.0] * 20
    order = [(k, brighter(k, factor)) for k, factor in enumerate(factors)]
    order += [(26 + k, np.maximum(make.picture(26 + k), 235)) for k in range(4)]
    bag = inspect(write_bag(tmp_path / "bag", shown(order)))
    pictures = camera_of(bag).pictures
    assert pictures.marked["dark"] == [(0, 6)]
    assert pictures.marked["bright"] == [(26, 30)]
    assert (pictures.dark_share, pictures.bright_share) == (6 / 30, 4 / 30)
    assert "dark" in kinds(judge_bag(bag, False))


def test_still_images_are_found_and_cut_off_by_advice(tmp_path: Path):
    order = [0] * 30 + list(range(1, 21)) + [20] * 10
    path = write_bag(tmp_path / "bag", shown([(k, make.picture(p)) for k, p in enumerate(order)]))
    bag = inspect(path)
    pictures = camera_of(bag).pictures
    assert pictures.marked["still"] == [(1, 30), (50, 60)]
    assert pictures.still_share == pytest.approx(39 / 60)
    verdict = judge_bag(bag, False)
    (remark,) = [remark for remark in verdict.remarks if remark.kind == "still"]
    assert remark.serious
    assert "65 %" in remark.text
    assert "--frames 29:50" in remark.advice


def slow_then_fast(slow: int, fast: int) -> list[tuple[int, np.ndarray]]:
    """Times and pictures: a texture that moves, then another texture each time."""
    return [(k, make.picture(k, 192, 128, seed=0 if k < slow else k)) for k in range(slow + fast)]


def test_images_too_far_apart(tmp_path: Path):
    """In the second half nothing of an image is seen in the next."""
    path = write_bag(tmp_path / "bag", shown(slow_then_fast(20, 20)))
    bag = inspect(path, size=(192, 128))
    pictures = camera_of(bag).pictures
    assert pictures.marked["too_fast"] == [(20, 40)]
    assert pictures.too_fast_share == pytest.approx(20 / 39)
    assert pictures.best == (0, 20)
    assert "too fast" in kinds(judge_bag(bag, False))


def test_a_long_good_part_is_named(tmp_path: Path):
    path = write_bag(tmp_path / "bag", shown(slow_then_fast(110, 40)))
    verdict = judge_bag(inspect(path, everything=True, size=(192, 128)), False)
    (remark,) = [remark for remark in verdict.remarks if remark.kind == "too fast"]
    assert "--frames 0:110" in remark.advice


def test_pairs_across_a_gap_are_not_too_fast(tmp_path: Path):
    order = [(k if k < 10 else k + 50, make.picture(k if k < 10 else k + 23)) for k in range(20)]
    pictures = camera_of(inspect(write_bag(tmp_path / "bag", shown(order)))).pictures
    assert pictures.marked["too_fast"] == []


def test_matches_of_two_images():
    one, moved, other = make.picture(0, 192, 128), make.picture(2, 192, 128), make.picture(0, 192, 128, seed=5)
    motion, matched = match_pair(one, moved)
    assert motion == pytest.approx(6 / 192, rel=0.02)
    assert matched > 0.85
    assert match_pair(one, other)[1] < 0.2
    assert match_pair(one, one) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=0.01))


# Calibration


def test_without_calibration(tmp_path: Path):
    path = write_bag(tmp_path / "bag", recording(250, info_topic=None))
    bag = inspect(path)
    calibration = camera_of(bag).calibration
    assert (calibration.state, calibration.topic, calibration.assumed) == ("missing", None, True)
    assert calibration.fov_degrees == pytest.approx(70)
    verdict = judge_bag(bag, False)
    assert (verdict.state, verdict.options) == (BUT, ("--learn-intrinsics",))
    assert kinds(verdict) == {"not calibrated"}
    assert "--fov DEGREES" in verdict.remarks[0].advice
    bag = inspect(path, fov_degrees=90.0)
    assert camera_of(bag).calibration.used[2] == pytest.approx(48)
    assert judge_bag(bag, True).state == READY


def test_zero_k_is_uncalibrated(tmp_path: Path):
    messages = recording(250, info_topic=None)
    messages.insert(0, (INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), k=np.zeros(9))))
    bag = inspect(write_bag(tmp_path / "bag", messages))
    assert camera_of(bag).calibration.state == "uncalibrated"
    verdict = judge_bag(bag, False)
    assert verdict.text == f"usable, but the camera is not calibrated ({INFO_TOPIC} says K[0] = 0)"


def with_info(count: int = 250, **changes) -> list:
    messages = recording(count, info_topic=None)
    return [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), **changes)), *messages]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"k": np.array([160, 0, 95.5, 0, 160, 63.5, 0, 0, 1.0])}, "principal point"),
        ({"k": np.array([80, 0, 47.5, 0, 92, 31.5, 0, 0, 1.0])}, "focal lengths"),
        ({"focal": 2.0}, "field of view"),
    ],
)
def test_k_that_cannot_be_right(tmp_path: Path, changes: dict, kind: str):
    verdict = judge_bag(inspect(write_bag(tmp_path / "bag", with_info(**changes))), False)
    assert kinds(verdict) == {kind}


def test_camera_info_of_another_size(tmp_path: Path):
    bag = inspect(write_bag(tmp_path / "bag", with_info(20, width=128, height=64)))
    camera = camera_of(bag)
    assert camera.unusable == {OTHER_SIZE: 20}
    assert (camera.calibration.width, camera.calibration.height) == (128, 64)
    verdict = judge_bag(bag, False)
    assert verdict.state == UNUSABLE
    assert "its CameraInfo is for 128x64" in verdict.text


def test_camera_info_of_twice_the_size_is_scaled(tmp_path: Path):
    bag = inspect(write_bag(tmp_path / "bag", with_info(width=192, height=128, focal=160.0)))
    camera = camera_of(bag)
    assert camera.calibration.used == (96, 64, 80, 80, 47.5, 31.5)
    assert any("K is scaled" in note for note in camera.notes)
    assert judge_bag(bag, False).state == READY


def test_rectified_images_take_p(tmp_path: Path):
    p = np.array([70, 0, 47.5, 0, 0, 70, 31.5, 0, 0, 0, 1, 0.0])
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), d=np.array([-0.3, 0.1, 0, 0, 0]), p=p))]
    messages += recording(30, "/camera/image_rect", info_topic=None)
    bag = inspect(write_bag(tmp_path / "bag", messages))
    calibration = camera_of(bag).calibration
    assert calibration.rectified
    assert calibration.used[2:4] == (70, 70)
    assert "rectified" in {remark.kind for remark in judge_bag(bag, False).remarks}


@pytest.mark.parametrize("changes", [{"distortion_model": "wobbly"}, {"d": np.array([90.0, 0, 0, 0, 0])}])
def test_distortion_that_cannot_be_used(tmp_path: Path, changes: dict):
    messages = with_info(10, **({"d": np.array([-0.3, 0.1, 0, 0, 0])} | changes))
    bag = inspect(write_bag(tmp_path / "bag", messages))
    verdict = judge_bag(bag, False)
    assert verdict.state == UNUSABLE
    assert "istortion" in verdict.text


# What cannot be used


def test_malformed_messages_by_kind(tmp_path: Path):
    messages = recording(40)
    for index, changes in (
        (3, {"data": np.zeros(30, np.uint8)}),
        (6, {"encoding": "h264"}),
        (9, {"header": make.header(0)}),
    ):
        messages[2 * index + 1] = (
            IMAGE_TOPIC,
            IMAGE,
            stamp(index),
            make.image(make.picture(index), stamp(index), **changes),
        )
    camera = camera_of(inspect(write_bag(tmp_path / "bag", messages)))
    assert camera.unusable == {MALFORMED: 1, ENCODING: 1, NO_STAMP: 1}
    assert "the message holds 30" in camera.examples[MALFORMED]
    assert camera.training.usable == 37


def test_several_cameras_are_all_looked_at(tmp_path: Path):
    messages = [*recording(10), *recording(260, "/rear/image_raw", "/rear/camera_info", seed=2)]
    bag, _, size = inspect_bag(write_bag(tmp_path / "bag", messages))
    assert [camera.training.targets for camera in bag.cameras] == [8, 232]
    verdict = judge_bag(bag, False)
    assert verdict.options == ("--topic", "/rear/image_raw")
    assert verdict.remarks[0].kind == "several cameras"
    assert size == (96, 64)
    bag = inspect(tmp_path / "bag", topics=("/rear/image_raw",))
    assert [camera.topic for camera in bag.cameras] == ["/rear/image_raw"]
    assert {topic.name for topic in bag.topics if topic.role == "image"} == {IMAGE_TOPIC}


def test_no_bag_no_camera_no_message_never_moving(tmp_path: Path):
    assert inspect(tmp_path / "absent").wrong_path
    empty = inspect(write_bag(tmp_path / "empty", []))
    assert not empty.wrong_path
    assert judge_bag(empty, False).state == UNUSABLE
    infos = [message for message in recording(3) if message[0] == INFO_TOPIC]
    blind = inspect(write_bag(tmp_path / "blind", infos))
    assert "no camera topic" in judge_bag(blind, False).text
    assert [topic.name for topic in blind.topics] == [INFO_TOPIC]
    still = write_bag(tmp_path / "still", shown([(k, make.picture(0)) for k in range(10)]))
    verdict = judge_bag(inspect(still), False)
    assert verdict.state == UNUSABLE
    assert "9 are still" in verdict.text
    assert "still" in kinds(verdict)


def test_a_damaged_file_is_usable_as_far_as_it_goes(tmp_path: Path):
    path = write_bag(tmp_path / "bag", recording(300))
    file = make.storage_file(path)
    file.write_bytes(file.read_bytes()[: int(0.9 * file.stat().st_size)])
    verdict = judge_bag(inspect(path), False)
    assert verdict.state == BUT
    assert "damaged file" in kinds(verdict)


def test_few_targets_and_the_cost_of_a_run(tmp_path: Path):
    bag = inspect(write_bag(tmp_path / "bag", recording(30)))
    assert kinds(judge_bag(bag, False)) == {"few targets"}
    config = load_config("cpu-small", [], {})
    cost = training_cost(config, [camera_of(bag).training] * 2)
    assert cost.targets == 50
    assert cost.passes == config.steps * config.batch_size / 50
    assert cost.frames_mb == pytest.approx(2 * 30 * 96 * 64 * 3 / 1e6)
    full = training_cost(config, [])
    # 36000 targets of .115 s at 416x128; the input here has 6144 pixels instead of 53248.
    assert full.minutes_from_weights == pytest.approx(36000 * 0.115 / 60)
    assert cost.minutes_from_weights == pytest.approx(full.minutes_from_weights * 6144 / 53248)


# The contact sheet


def look(index: int, *marks: str, picture: bool = True) -> Look:
    return Look(index, 0.1 * index, marks, np.full((40, 320, 3), 90, np.uint8) if picture else None)


def test_the_sheet_shows_some_of_all_and_more_of_the_marked():
    looks = [look(k, *([TOO_FAST] if k in (31, 32) else [STILL] if k > 80 else [])) for k in range(100)]
    chosen = [shown.index for shown in choose_looks(looks, evenly=10, marked=5)]
    assert chosen == sorted({*range(0, 100, 11), 31, 32})
    assert choose_looks([look(3, picture=False)], 10, 5) == []
    # A mark that is seldom is not lost among one that is frequent.
    looks = [look(k, EXPOSURE if k == 55 else DARK) for k in range(100)]
    assert 55 in [shown.index for shown in choose_looks(looks, evenly=2, marked=6)]


@pytest.mark.parametrize(
    ("mark", "color"), [(TOO_FAST, (235, 60, 60)), (EXPOSURE, (255, 165, 0)), (STILL, (90, 140, 255))]
)
def test_frames_have_the_colour_of_the_worst_mark(mark: str, color: tuple[int, int, int]):
    looks = Looks(IMAGE_TOPIC, 3, (look(0), look(1, *{mark, STILL}), look(2, DARK, BRIGHT)), cuts=(2,))
    sheet = contact_sheet(looks, "drivé", "usable, but " + "long " * 100)
    assert sheet.shape[1] == 6 * 320
    assert tuple(sheet[-1, 320 + 100]) == color
    assert tuple(sheet[-1, 100]) == (70, 170, 90)
    assert tuple(sheet[-20, 320 + 100]) == (90, 90, 90)
    # The band: a third for each, white where the clip begins.
    row = sheet[3 * 24 + 10 + 14]
    assert [tuple(row[x]) for x in (200, 900, 1700)] == [(70, 170, 90), color, (160, 90, 210)]
    assert tuple(row[10 + 2 * 1900 // 3]) == (255, 255, 255)


def test_one_bad_image_of_many_is_seen_in_the_band():
    looks = tuple(look(k, *([EXPOSURE] if k == 2000 else []), picture=k % 500 == 0) for k in range(4000))
    sheet = contact_sheet(Looks(IMAGE_TOPIC, 4000, looks), "", "")
    assert tuple(sheet[3 * 24 + 10 + 14, 10 + 1900 // 2]) == (255, 165, 0)


def test_no_picture_no_sheet():
    assert contact_sheet(Looks(IMAGE_TOPIC, 0, ()), "", "") is None
