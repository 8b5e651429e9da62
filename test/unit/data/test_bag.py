"""Reading recordings: whole, strange and damaged ones."""

from __future__ import annotations

import shutil
import sqlite3
from binascii import crc32
from pathlib import Path

import numpy as np
import pytest
from unit import bag_factory as make
from unit.bag_factory import IMAGE, IMAGE_TOPIC, INFO, INFO_TOPIC, recording, stamp, write_bag

from coopnet_core.data.bag import (
    BROKEN,
    ENCODING,
    MALFORMED,
    NO_STAMP,
    OTHER_SIZE,
    OUT_OF_ORDER,
    find_camera,
    open_bag,
    read_frames,
)
from coopnet_core.data.bag_camera import camera_choices
from coopnet_core.data.bag_storage import zstd
from coopnet_core.data.frames import Frame
from coopnet_core.data.report import ReadReport
from coopnet_core.errors import CoopnetError, NoUsableDataError, UsageError

STORAGES = ("mcap", "sqlite3")
TF = "tf2_msgs/msg/TFMessage"


def read(path: Path, topic: str | None = None, info: str | None = None, **options) -> tuple[list[Frame], ReadReport]:
    report = ReadReport()
    with open_bag(path) as bag:
        frames = list(read_frames(bag, find_camera(bag, topic, info), report, **options))
    return frames, report


def assert_pictures(frames: list[Frame], indices: list[int]) -> None:
    assert [frame.stamp_ns for frame in frames] == [stamp(index) for index in indices]
    for frame, index in zip(frames, indices, strict=True):
        np.testing.assert_array_equal(frame.image, make.picture(index))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("as_file", [False, True])
def test_frames_come_out_as_they_went_in(tmp_path: Path, storage: str, as_file: bool):
    bag = write_bag(tmp_path / "bag", recording(5), storage)
    frames, report = read(make.storage_file(bag) if as_file else bag)
    assert_pictures(frames, [0, 1, 2, 3, 4])
    assert frames[0].camera.fx == make.FOCAL
    assert frames[0].frame_id == "camera_optical_frame"
    assert (report.messages, report.frames, sum(report.skipped.values())) == (5, 5, 0)
    assert report.unread == []
    assert any("5 images by equal stamp" in note for note in report.notes)


@pytest.mark.parametrize(
    ("storage", "compression"),
    [("mcap", "message"), ("mcap", "storage"), ("mcap", "file"), ("sqlite3", "message"), ("sqlite3", "file")],
)
@pytest.mark.parametrize("metadata", [True, False])
def test_compressed_bags(tmp_path: Path, storage: str, compression: str, metadata: bool):
    bag = write_bag(tmp_path / "bag", recording(4), storage, compression)
    if not metadata:
        (bag / "metadata.yaml").unlink()
    assert_pictures(read(bag)[0], [0, 1, 2, 3])


def test_split_bag_is_read_in_order(tmp_path: Path):
    whole = recording(12)
    folder = tmp_path / "bag"
    folder.mkdir()
    for number, part in ((10, whole[16:]), (2, whole[8:16]), (1, whole[:8])):
        part_bag = write_bag(tmp_path / f"part_{number}", part)
        shutil.copy(make.storage_file(part_bag), folder / f"bag_{number}.mcap")
    assert_pictures(read(folder)[0], list(range(12)))


def test_file_named_in_metadata_but_missing_is_named(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(4))
    metadata = bag / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("- bag.mcap", "- bag.mcap\n  - bag_1.mcap"))
    frames, report = read(bag)
    assert len(frames) == 4
    assert any("bag_1.mcap is named in metadata.yaml but missing" in problem for problem in report.unread)


def test_unreadable_metadata_is_named(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(3))
    (bag / "metadata.yaml").write_text("{ not yaml")
    frames, report = read(bag)
    assert len(frames) == 3
    assert any("metadata.yaml" in problem for problem in report.unread)


def legacy_types(path: Path) -> Path:
    """A .db3 as written in 2019: `sensor_msgs/Image`, two tables, no metadata.yaml."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)")
    database.execute(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB NOT NULL)"
    )
    names = {IMAGE_TOPIC: (1, "sensor_msgs/Image"), INFO_TOPIC: (2, "sensor_msgs/CameraInfo")}
    for name, (key, msgtype) in names.items():
        database.execute("INSERT INTO topics VALUES (?, ?, ?, 'cdr')", (key, name, msgtype))
    for topic, msgtype, bag_ns, message in recording(4):
        data = bytes(make.STORE.serialize_cdr(message, msgtype))
        database.execute(
            "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)", (names[topic][0], bag_ns, data)
        )
    database.commit()
    database.close()
    return path


def test_legacy_type_names_without_metadata(tmp_path: Path):
    frames, _ = read(legacy_types(tmp_path / "old.db3"))
    assert_pictures(frames, [0, 1, 2, 3])
    assert frames[0].camera is not None


# Pairing and stamps


def test_camera_info_of_the_same_stamp_is_used_even_when_it_comes_later(tmp_path: Path):
    messages = []
    for index in range(6):
        now = stamp(index)
        messages.append((IMAGE_TOPIC, IMAGE, now, make.image(make.picture(index), now)))
        messages.append((INFO_TOPIC, INFO, now + 10**6, make.camera_info(now, focal=80.0 + index)))
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert [frame.camera.fx for frame in frames] == [80, 81, 82, 83, 84, 85]
    assert any("6 images by equal stamp, 0 by the latest" in note and "6 different" in note for note in report.notes)


def test_without_equal_stamps_the_latest_before_is_used(tmp_path: Path):
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0) - 5, focal=80.0))]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(i) + 1, make.image(make.picture(i), stamp(i))) for i in range(20)]
    messages.insert(11, (INFO_TOPIC, INFO, stamp(9) + 2, make.camera_info(stamp(9) + 7, focal=90.0)))
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert [frame.camera.fx for frame in frames] == [80.0] * 10 + [90.0] * 10
    assert any("0 images by equal stamp, 20 by the latest" in note for note in report.notes)


def test_camera_info_that_comes_after_all_images_is_used(tmp_path: Path):
    messages = [(IMAGE_TOPIC, IMAGE, stamp(i), make.image(make.picture(i), stamp(i))) for i in range(20)]
    messages.append((INFO_TOPIC, INFO, stamp(30), make.camera_info(stamp(30))))
    frames, _ = read(write_bag(tmp_path / "bag", messages))
    assert len(frames) == 20
    assert all(frame.camera.fx == make.FOCAL for frame in frames)


def test_recording_times_only_when_all_header_stamps_are_zero(tmp_path: Path):
    messages = [(IMAGE_TOPIC, IMAGE, stamp(i), make.image(make.picture(i), 0)) for i in range(4)]
    frames, report = read(write_bag(tmp_path / "zero", messages))
    assert_pictures(frames, [0, 1, 2, 3])
    assert any("all header stamps are zero" in note for note in report.notes)
    messages[3] = (IMAGE_TOPIC, IMAGE, stamp(3), make.image(make.picture(3), stamp(3)))
    frames, report = read(write_bag(tmp_path / "mixed", messages))
    assert_pictures(frames, [3])
    assert report.skipped == {NO_STAMP: 3}


def test_stamps_that_do_not_increase_are_counted_but_a_clock_jump_goes_on(tmp_path: Path):
    order = [0, 1, 1, 3, 2, 4]
    messages = [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(i), stamp(i))) for k, i in enumerate(order)]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(50 + i), make.image(make.picture(i), stamp(i - 100))) for i in range(2)]
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert [frame.stamp_ns for frame in frames] == [stamp(i) for i in (0, 1, 3, 4, -100, -99)]
    assert report.skipped == {OUT_OF_ORDER: 2}


@pytest.mark.parametrize(
    ("chosen", "expected"), [((0, 4), [0, 1, 2, 3]), ((7, None), [7, 8, 9]), ((3, 5), [3, 4]), ((50, None), [])]
)
@pytest.mark.parametrize("calibrated", [True, False])
def test_frame_range_counts_images(tmp_path: Path, chosen: tuple, expected: list[int], calibrated: bool):
    bag = write_bag(tmp_path / "bag", recording(10, info_topic=INFO_TOPIC if calibrated else None))
    frames, report = read(bag, frames=chosen)
    assert_pictures(frames, expected)
    assert report.messages == len(expected)


# Calibration


def test_uncalibrated_cameras_have_none_or_the_assumed_field_of_view(tmp_path: Path):
    for name, messages in (
        ("none", recording(3, info_topic=None)),
        ("zero", [m for i in range(3) for m in (
            (INFO_TOPIC, INFO, stamp(i), make.camera_info(stamp(i), k=np.zeros(9))),
            (IMAGE_TOPIC, IMAGE, stamp(i), make.image(make.picture(i), stamp(i))))]),
    ):  # fmt: skip
        bag = write_bag(tmp_path / name, messages)
        assert read(bag)[0][0].camera is None
        frames, report = read(bag, fov_degrees=90.0)
        camera = frames[0].camera
        assert (camera.fx, camera.cx, camera.cy) == pytest.approx((48.0, 47.5, 31.5))
        assert any("90 degrees is assumed" in note for note in report.notes)


def test_calibration_of_another_size_is_scaled_when_the_aspect_is_the_same(tmp_path: Path):
    info = make.camera_info(stamp(0), width=192, height=128, focal=160.0)
    messages = [(INFO_TOPIC, INFO, stamp(0), info)]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(i), make.image(make.picture(i), stamp(i))) for i in range(3)]
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert (frames[0].camera.fx, frames[0].camera.cx) == (80.0, 47.5)
    assert any("K is scaled" in note for note in report.notes)


def test_calibration_of_another_aspect_is_not_used(tmp_path: Path):
    messages = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), width=192, height=192))]
    messages += [(IMAGE_TOPIC, IMAGE, stamp(i), make.image(make.picture(i), stamp(i))) for i in range(3)]
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert frames == []
    assert report.skipped == {OTHER_SIZE: 3}
    assert "192x192" in report.examples[OTHER_SIZE]


def test_rectified_topics_use_the_projection_matrix(tmp_path: Path):
    p = np.array([70.0, 0, 40, 0, 0, 71, 30, 0, 0, 0, 1, 0])
    messages = []
    for index in range(3):
        now = stamp(index)
        messages.append((INFO_TOPIC, INFO, now, make.camera_info(now, d=np.full(5, 0.1), p=p)))
        messages.append(("/camera/image_rect_color", IMAGE, now, make.image(make.picture(index), now)))
    frames, _ = read(write_bag(tmp_path / "bag", messages))
    camera = frames[0].camera
    assert (camera.fx, camera.fy, camera.cx, camera.cy, camera.is_distorted) == (70, 71, 40, 30, False)


def test_unknown_distortion_model_is_refused_with_the_way_out(tmp_path: Path):
    info = make.camera_info(stamp(0), d=np.full(5, 0.1), distortion_model="double_sphere")
    messages = [(INFO_TOPIC, INFO, stamp(0), info), *recording(3, info_topic=None)]
    with pytest.raises(UsageError, match="image_proc"):
        read(write_bag(tmp_path / "bag", messages))


# Unusable messages


@pytest.mark.parametrize("storage", STORAGES)
def test_unusable_messages_are_counted_and_named(tmp_path: Path, storage: str):
    messages = recording(10)
    positions = [k for k, message in enumerate(messages) if message[0] == IMAGE_TOPIC]

    def replace(index: int, message) -> None:
        topic, msgtype, bag_ns, _ = messages[positions[index]]
        messages[positions[index]] = (topic, msgtype, bag_ns, message)

    whole = bytes(make.STORE.serialize_cdr(make.image(make.picture(3), stamp(3)), IMAGE))
    replace(1, make.image(make.picture(1), stamp(1), data=np.zeros(30, np.uint8)))
    replace(2, make.image(make.picture(2), stamp(2), encoding="h264"))
    replace(3, whole[: len(whole) // 2])
    replace(4, whole[:7])
    replace(5, b"")
    replace(6, b"\x28\xb5\x2f\xfd" + bytes(40))
    replace(7, make.image(make.picture(7), stamp(7), step=10))
    frames, report = read(write_bag(tmp_path / "bag", messages, storage))
    assert_pictures(frames, [0, 8, 9])
    assert report.skipped == {MALFORMED: 2, ENCODING: 1, BROKEN: 4}
    assert "needs 18432 bytes, the message holds 30" in report.examples[MALFORMED]
    assert "h264" in report.examples[ENCODING]


def test_broken_camera_info_is_as_good_as_none(tmp_path: Path):
    messages = recording(3)
    messages[2] = (INFO_TOPIC, INFO, messages[2][2], b"\x00\x01\x00\x00rubbish")
    frames, report = read(write_bag(tmp_path / "bag", messages))
    assert [frame.camera.fx for frame in frames] == [make.FOCAL] * 3
    assert any("2 images by equal stamp, 1 by the latest" in note for note in report.notes)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_compressed_images(tmp_path: Path, extension: str):
    topic = "/camera/image_raw/compressed"
    messages = []
    for index in range(3):
        now = stamp(index)
        messages.append((INFO_TOPIC, INFO, now, make.camera_info(now)))
        messages.append((topic, make.COMPRESSED, now, make.compressed(make.picture(index), now, extension)))
    frames, _ = read(write_bag(tmp_path / "bag", messages))
    assert frames[0].camera is not None
    difference = np.abs(frames[2].image.astype(int) - make.picture(2)).mean()
    assert difference < (1e-9 if extension == "png" else 8)


# Choosing the camera


def test_truth_depth_and_flow_are_no_cameras(tmp_path: Path):
    messages = recording(3)
    grey = np.zeros((make.HEIGHT, make.WIDTH), np.uint8)
    for index in range(3):
        now = stamp(index)
        messages.append(("/ground_truth/motion_mask", IMAGE, now, make.image(grey, now, "mono8")))
        messages.append(("/camera/depth", IMAGE, now, make.image(grey.astype(np.float32), now, "32FC1")))
        messages.append(("/camera/raw_depth", IMAGE, now, make.image(grey.astype(np.uint16), now, "16UC1")))
    with open_bag(write_bag(tmp_path / "bag", messages)) as bag:
        topics = find_camera(bag)
    assert (topics.image, topics.info) == (IMAGE_TOPIC, INFO_TOPIC)


def test_the_outputs_of_this_project_are_no_cameras(tmp_path: Path):
    """As `ros2 bag record -a` writes them beside the camera; a colour camera may still be named so."""
    messages = recording(3)
    depth = np.ones((make.HEIGHT, make.WIDTH), np.float32)
    flow = np.zeros((make.HEIGHT, make.WIDTH, 2), np.float32)
    for index in range(3):
        now = stamp(index)
        for topic, pixels, encoding in (("depth", depth, "32FC1"), ("flow", flow, "32FC2")):
            messages.append((f"/coopnet/{topic}/image", IMAGE, now, make.image(pixels, now, encoding)))
            messages.append((f"/coopnet/{topic}/color", IMAGE, now, make.image(make.picture(index), now)))
            messages.append((f"/coopnet/{topic}/camera_info", INFO, now, make.camera_info(now)))
    with open_bag(write_bag(tmp_path / "bag", messages)) as bag:
        assert find_camera(bag).image == IMAGE_TOPIC
    camera = recording(3, "/front/color", "/front/camera_info")
    grey = [("/front/image", IMAGE, stamp(0), make.image(make.picture(0), stamp(0)))]
    for beside in ([], grey):
        with open_bag(write_bag(tmp_path / f"camera_{len(beside)}", [*camera, *beside])) as bag:
            assert "/front/color" in [choice.image for choice in camera_choices(bag)]


def test_raw_goes_before_its_compressed_twin_and_calibrated_before_not(tmp_path: Path):
    messages = recording(3)
    for index in range(3):
        now = stamp(index)
        twin = make.compressed(make.picture(index), now)
        messages.append(("/camera/image_raw/compressed", make.COMPRESSED, now, twin))
        messages.append(("/other/picture", IMAGE, now, make.image(make.picture(index), now)))
    with open_bag(write_bag(tmp_path / "bag", messages)) as bag:
        assert find_camera(bag).image == IMAGE_TOPIC
        assert find_camera(bag, "other/picture").image == "/other/picture"
        assert find_camera(bag, "/other/picture", INFO_TOPIC).info == INFO_TOPIC


def test_several_cameras_are_listed(tmp_path: Path):
    messages = [*recording(3), *recording(4, "/rear/image_raw", "/rear/camera_info")]
    with open_bag(write_bag(tmp_path / "bag", messages)) as bag:
        with pytest.raises(UsageError) as caught:
            find_camera(bag)
        assert "--topic /camera/image_raw  (sensor_msgs/msg/Image, 3 messages)" in str(caught.value)
        assert "--topic /rear/image_raw  (sensor_msgs/msg/Image, 4 messages)" in str(caught.value)
        assert find_camera(bag, "/rear/image_raw").info == "/rear/camera_info"


def test_the_only_camera_info_is_taken_wherever_it_is(tmp_path: Path):
    with open_bag(write_bag(tmp_path / "bag", recording(3, info_topic="/calibration"))) as bag:
        assert find_camera(bag).info == "/calibration"


def test_no_camera_lists_what_there_is(tmp_path: Path):
    messages = [(INFO_TOPIC, INFO, stamp(i), make.camera_info(stamp(i))) for i in range(3)]
    with (
        open_bag(write_bag(tmp_path / "bag", messages)) as bag,
        pytest.raises(
            NoUsableDataError, match=r"(?s)no camera topic.*/camera/camera_info  sensor_msgs/msg/CameraInfo  3"
        ),
    ):
        find_camera(bag)


@pytest.mark.parametrize("name", ["/nothing", INFO_TOPIC])
def test_a_topic_that_is_no_image_is_refused(tmp_path: Path, name: str):
    with open_bag(write_bag(tmp_path / "bag", recording(3))) as bag, pytest.raises(UsageError, match=IMAGE_TOPIC):
        find_camera(bag, name)


def test_a_camera_info_that_is_not_there_is_refused(tmp_path: Path):
    with open_bag(write_bag(tmp_path / "bag", recording(3))) as bag, pytest.raises(UsageError, match="--camera-info"):
        find_camera(bag, None, "/nothing")


# Paths that are no bag


def test_missing_path(tmp_path: Path):
    with pytest.raises(UsageError, match="No bag at"):
        open_bag(tmp_path / "absent")


def test_empty_folder(tmp_path: Path):
    with pytest.raises(NoUsableDataError, match=r"no \.mcap or \.db3"):
        open_bag(tmp_path)


def test_folder_of_bags_is_refused_with_their_names(tmp_path: Path):
    write_bag(tmp_path / "one", recording(1))
    write_bag(tmp_path / "two", recording(1))
    with pytest.raises(UsageError, match=r"folder of bags.*one, two"):
        open_bag(tmp_path)


def test_other_files(tmp_path: Path):
    old = tmp_path / "drive.bag"
    old.write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(UsageError, match="rosbags-convert"):
        open_bag(old)


@pytest.mark.parametrize("storage", STORAGES)
def test_bag_without_messages(tmp_path: Path, storage: str):
    with pytest.raises(NoUsableDataError, match=r"is empty|no readable message"):
        open_bag(write_bag(tmp_path / "bag", [], storage))


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000], ids=["empty", "rubbish"])
def test_files_that_are_no_storage(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"bag{suffix}"
    path.write_bytes(content)
    with pytest.raises(NoUsableDataError, match=r"is empty|is damaged"):
        open_bag(path)


# Damage


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    return path


@pytest.mark.parametrize("compression", [None, "storage", "message"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.95, 0.999])
def test_cut_off_mcap_gives_the_frames_before_the_cut(tmp_path: Path, part: float, compression: str | None):
    bag = write_bag(tmp_path / "bag", recording(60), "mcap", compression)
    cut(make.storage_file(bag), part)
    frames, report = read(bag)
    assert_pictures(frames, list(range(len(frames))))
    # A zstd chunk comes back in blocks of 128 kB, seven frames of this camera.
    assert len(frames) >= int(part * 60) - (9 if compression == "storage" else 2)
    assert any("damaged" in problem for problem in report.unread)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8, 0.95, 0.999])
def test_cut_off_sqlite_gives_most_frames_before_the_cut(tmp_path: Path, part: float):
    bag = write_bag(tmp_path / "bag", recording(40), "sqlite3")
    cut(make.storage_file(bag), part)
    frames, report = read(bag)
    numbers = [(frame.stamp_ns - make.START_NS) // make.PERIOD_NS for frame in frames]
    assert_pictures(frames, numbers)
    assert len(frames) >= int(part * 40) - 3
    assert any("damaged" in problem for problem in report.unread)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("size", [4, 100, 700])
def test_cut_before_the_first_message(tmp_path: Path, storage: str, size: int):
    bag = write_bag(tmp_path / "bag", recording(5), storage)
    path = make.storage_file(bag)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(NoUsableDataError, match="damaged"):
        open_bag(bag)


def test_overwritten_middle_of_an_mcap_costs_only_that_part(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(60), "mcap", "message")
    path = make.storage_file(bag)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    frames, report = read(bag)
    assert len(frames) >= 29
    assert_pictures(frames[:29], list(range(29)))
    assert report.unread or report.skipped


def add_checksums(path: Path) -> None:
    """Fill in the CRC of every zstd chunk of an mcap file (rosbag2 writes them, this writer leaves them 0)."""
    content = bytearray(path.read_bytes())
    at = 8
    while at < len(content) - 8:
        operation, length = content[at], int.from_bytes(content[at + 1 : at + 9], "little")
        if operation == 0x06:
            record = bytes(content[at + 9 : at + 9 + length])
            plain = zstd.decompress(record[28 + 4 + len("zstd") + 8 :])
            content[at + 9 + 24 : at + 9 + 28] = crc32(plain).to_bytes(4, "little")
        at += 9 + length
    path.write_bytes(content)


def test_a_damaged_chunk_costs_only_its_own_frames(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(170), "mcap", "storage")
    path = make.storage_file(bag)
    add_checksums(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    frames, report = read(bag)
    numbers = [(frame.stamp_ns - make.START_NS) // make.PERIOD_NS for frame in frames]
    assert_pictures(frames, numbers)
    assert numbers[0] == 0
    assert numbers[-1] == 169  # reading goes on behind the damage
    assert 100 <= len(numbers) < 170
    assert report.skipped == {}  # and nothing comes twice
    assert any("is damaged" in problem for problem in report.unread)


def test_overwritten_middle_of_a_database_loses_only_that_part(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(40), "sqlite3")
    path = make.storage_file(bag)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40000] = bytes(40000)
    path.write_bytes(content)
    frames, report = read(bag)
    assert len(frames) >= 20
    assert report.unread


@pytest.mark.parametrize("part", [0.5, 0.9])
@pytest.mark.parametrize("storage", STORAGES)
def test_cut_off_compressed_file(tmp_path: Path, storage: str, part: float):
    bag = write_bag(tmp_path / "bag", recording(60), storage, "file")
    cut(make.storage_file(bag), part)
    frames, report = read(bag)
    assert len(frames) >= int(part * 60) - 12
    assert any("is cut off" in problem for problem in report.unread)


@pytest.mark.parametrize("storage", STORAGES)
def test_compressed_file_cut_at_its_start(tmp_path: Path, storage: str):
    bag = write_bag(tmp_path / "bag", recording(60), storage, "file")
    cut(make.storage_file(bag), 0.001)
    with pytest.raises(NoUsableDataError, match="is cut off"):
        open_bag(bag)


@pytest.mark.parametrize(
    ("storage", "compression"),
    [(name, how) for name in STORAGES for how in (None, "message", "file")] + [("mcap", "storage")],
)
def test_a_bag_cut_anywhere_gives_the_images_before_the_cut(tmp_path: Path, storage: str, compression: str | None):
    """Never a picture completed with zeros, never one twice, never fewer for a longer file."""
    count = 40
    bag = write_bag(tmp_path / "bag", recording(count, width=48, height=32), storage, compression)
    path = make.storage_file(bag)
    content, found = path.read_bytes(), []
    for offset in np.linspace(0, len(content), 31).astype(int):
        path.write_bytes(content[:offset])
        try:
            frames, report = read(bag)
        except NoUsableDataError:
            found.append(0)
            continue
        assert [frame.stamp_ns for frame in frames] == [stamp(index) for index in range(len(frames))]
        for index, frame in enumerate(frames):
            np.testing.assert_array_equal(frame.image, make.picture(index, 48, 32))
        assert offset == len(content) or report.unread, "the loss is not said"
        found.append(len(frames))
    assert found == sorted(found)
    assert found[-1] == count
    # Compressed as a whole, a file this small is two or three blocks.
    blocks = compression in ("file", "storage")
    assert found[-2] >= (count // 3 if blocks else count - 3)
    assert blocks or found[15] >= count // 3


def test_a_calibration_met_twice_is_forgotten_no_earlier_than_one_met_once(tmp_path: Path):
    """The only one before the image comes twice, 63 of later stamps follow it."""
    before = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(0), focal=90.0))] * 2
    later = [(INFO_TOPIC, INFO, stamp(0), make.camera_info(stamp(number))) for number in range(1, 64)]
    image = (IMAGE_TOPIC, IMAGE, stamp(0), make.image(make.picture(0), stamp(0) + 5))
    frames, _ = read(write_bag(tmp_path / "bag", [*before, *later, image]))
    assert [frame.camera.fx for frame in frames] == [90.0]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The content with one of the ways in which files get damaged."""
    data = bytearray(content)
    at, length = int(random.integers(len(data))), int(random.integers(1, 3000))
    kind = random.integers(6)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at : at + length] = bytes(min(length, len(data) - at))
    elif kind == 2:
        data[at : at + length] = random.bytes(min(length, len(data) - at))
    elif kind == 3:
        data[at:at] = random.bytes(100)
    elif kind == 4:
        data[at % 400 : at % 400 + 4] = random.bytes(4)
    else:
        for position in random.integers(0, len(data), 20):
            data[position] ^= 1 << int(random.integers(8))
    return bytes(data)


@pytest.mark.parametrize(
    ("storage", "compression"),
    [(name, how) for name in STORAGES for how in (None, "message", "file")] + [("mcap", "storage")],
)
def test_any_damage_is_read_around_or_said(tmp_path: Path, storage: str, compression: str | None):
    bag = write_bag(tmp_path / "bag", recording(12, width=48, height=32), storage, compression)
    path = make.storage_file(bag)
    content, random = path.read_bytes(), np.random.default_rng(5)
    outcomes = []
    for _ in range(60):
        path.write_bytes(damaged(content, random))
        try:
            outcomes.append(len(read(bag, fov_degrees=60.0)[0]))
        except CoopnetError as error:
            outcomes.append(str(error))
    assert any(isinstance(outcome, int) and outcome > 0 for outcome in outcomes)
    assert all(outcome <= 12 if isinstance(outcome, int) else len(outcome) > 40 for outcome in outcomes)


def test_one_damaged_file_of_a_split_bag_is_named_and_the_others_are_read(tmp_path: Path):
    folder = tmp_path / "bag"
    folder.mkdir()
    for number in range(2):
        part = write_bag(tmp_path / f"part_{number}", recording(10)[10 * number : 10 * number + 10])
        shutil.copy(make.storage_file(part), folder / f"bag_{number}.mcap")
    (folder / "bag_0.mcap").write_bytes(b"")
    frames, report = read(folder)
    assert_pictures(frames, [5, 6, 7, 8, 9])
    assert any("bag_0.mcap is empty" in problem for problem in report.unread)


def test_unmerged_write_ahead_log_is_named(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", recording(3), "sqlite3")
    log = bag / "bag.db3-wal"
    log.write_bytes(bytes(100))
    _, report = read(bag)
    assert any("wal_checkpoint" in problem for problem in report.unread)


# Real recordings


def test_real_bag_with_compressed_messages_and_legacy_types(shared_data):
    frames, report = read(shared_data("rosbag2_small") / "amber_soccer_goal_12_zstd.mcap")
    assert [frame.image.shape for frame in frames] == [(480, 640, 3)] * 2
    assert frames[0].image.mean((0, 1)) == pytest.approx([98.93, 134.0, 97.71], abs=0.1)
    assert report.skipped == {}


@pytest.mark.parametrize("suffix", ["mcap", "db3"])
def test_real_bag_with_94_types_and_malformed_images(shared_data, suffix: str):
    path = shared_data("rosbag2_small") / f"geocam_all_types.{suffix}"
    with open_bag(path) as bag:
        assert len(bag.topics) == 94
        with pytest.raises(UsageError, match="choose one"):
            find_camera(bag)
    frames, report = read(path, "/test/sensor_msgs/image")
    assert frames == []
    assert report.skipped == {MALFORMED: 2}
    frames, report = read(path, "/test/sensor_msgs/compressed_image")
    assert frames == []
    assert report.skipped == {MALFORMED: 2}


@pytest.mark.parametrize(
    ("topic", "mean"), [(None, (207.2, 182.6, 149.6)), ("/image/compressed", (138.5, 126.5, 115.0))]
)
def test_real_bag_of_2019(shared_data, topic: str | None, mean: tuple[float, float, float]):
    frames, report = read(shared_data("rosbag2_small") / "rosbag2js_sample.db3", topic)
    assert [frame.image.shape for frame in frames] == [(480, 640, 3)]
    assert frames[0].image.mean((0, 1)) == pytest.approx(mean, abs=0.2)
    assert any("all header stamps are zero" in note for note in report.notes)
