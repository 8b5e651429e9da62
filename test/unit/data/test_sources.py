"""Recordings of every layout: what is recognised, and the frames it gives, against what was written."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from unit import bag_factory, recordings
from unit.recordings import CAMERA, FORMATS, FRAMES, PERIOD_NS, pictures, steady, write_images, write_meta

from coopnet_core.data import frame_store
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.frames import Frame
from coopnet_core.data.report import ReadReport
from coopnet_core.data.sources import SourceOptions, open_source
from coopnet_core.data.sources.interface import ABSENT, OTHER_SIZE, OUT_OF_ORDER, UNREADABLE
from coopnet_core.data.sources.video import DAMAGED, upright
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera

VIDEOS = ("video", "cut_off_video")


@pytest.fixture
def written(request, tmp_path: Path) -> recordings.Written:
    """The recording that the parameter names."""
    if request.param in VIDEOS:
        pytest.importorskip("av")
    return FORMATS[request.param](tmp_path)


def read(path: Path | str, **options) -> tuple[list[Frame], ReadReport]:
    with closing(open_source(path, SourceOptions(**options))) as source:
        return list(source.frames()), source.report


def prepare(*specs: Path | str, **options):
    return prepare_clips(specs, (96, 64), PrepareOptions(**({"validation_share": 0.0} | options)))


def same_camera(found: Camera, expected: Camera) -> bool:
    values = [[camera.fx, camera.fy, camera.cx, camera.cy] for camera in (found, expected)]
    return (found.width, found.height) == (expected.width, expected.height) and np.allclose(*values, rtol=0, atol=1e-5)


# What was written is what is read


@pytest.mark.parametrize("written", [name for name in FORMATS if name != "cut_off_video"], indirect=True)
def test_pictures_stamps_and_camera(written: recordings.Written):
    with closing(open_source(written.path)) as source:
        assert source.kind == written.kind
        assert source.count == len(written.stamps)
        frames = list(source.frames())
        assert (source.report.frames, source.report.messages) == (len(frames), len(frames))
    assert [frame.stamp_ns for frame in frames] == written.stamps
    for frame, picture in zip(frames, written.pictures, strict=True):
        np.testing.assert_array_equal(frame.image, picture)
        if written.camera is None:
            assert frame.camera is None
        else:
            assert same_camera(frame.camera, written.camera)
            assert not frame.camera.assumed


@pytest.mark.parametrize("written", list(FORMATS), indirect=True)
def test_frames_of_two_sequences_are_never_in_one_clip(written: recordings.Written):
    data = prepare(written.path, fov_degrees=80.0)
    clips = [clip.stamps_ns.tolist() for clip in data.train]
    expected = [stamps for stamps, _ in written.sequences]
    if written.path.__class__ is not str and written.path.name == "cut.mp4":
        assert len(clips) == 1
        assert clips[0] == expected[0][: len(clips[0])]
    else:
        assert clips == expected
    (source,) = data.sources
    assert (source.sequences, source.gaps, source.changes, source.still) == (len(expected), 0, 0, 0)


@pytest.mark.parametrize("written", ["kitti_raw", "video"], indirect=True)
def test_a_range_counts_the_images_of_the_whole_recording(written: recordings.Written):
    first, stop = 3, 11
    frames, report = read(written.path, frames=(first, stop))
    assert [frame.stamp_ns for frame in frames] == written.stamps[first:stop]
    assert report.messages == stop - first


def test_only_the_frame_at_hand_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A recording larger than the memory can be gone through."""
    decoded = []
    original = "coopnet_core.data.sources.images.decode_picture"
    from coopnet_core.data.encodings import decode_picture

    monkeypatch.setattr(original, lambda content, what: decoded.append(what) or decode_picture(content, what))
    frames = open_source(recordings.kitti_raw(tmp_path).path).frames()
    for count in range(1, 6):
        next(frames)
        assert len(decoded) == count


def test_kept_frames_that_are_too_many_for_the_memory_are_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = recordings.kitti_raw(tmp_path).path
    in_memory = prepare(path)
    monkeypatch.setattr(frame_store, "free_memory", lambda: 2 * in_memory.train[0].images.nbytes)
    in_file = prepare(path)
    assert frame_store.is_in_file(in_file.train[0].images)
    assert not frame_store.is_in_file(in_memory.train[0].images)
    assert any("kept in a file" in note for note in in_file.sources[0].report.notes)
    for one, other in zip(in_memory.train, in_file.train, strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_more_images_than_announced_find_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A video does not always say how many images it holds."""
    path = recordings.folder_with_calibration(tmp_path).path
    monkeypatch.setattr("coopnet_core.data.clips.PrepareOptions.selected", lambda self, count: 1)
    (clip,) = prepare(path).train
    np.testing.assert_array_equal(clip.images, pictures())


# Where a path leads


def test_parts_of_data_sets_can_be_named(tmp_path: Path):
    raw = recordings.kitti_raw(tmp_path / "raw")
    drive = raw.path / "2011_09_26_drive_0002_sync"
    for path in (drive, drive / "image_02"):
        assert [frame.stamp_ns for frame in read(path)[0]] == raw.sequences[1][0]
    assert len(read(tmp_path / "raw")[0]) == 2 * FRAMES  # the folder of all days
    (grey,), _ = read(drive / "image_00")
    np.testing.assert_array_equal(grey.image, pictures(1)[0])
    assert grey.camera.fx == pytest.approx(recordings.OTHER.fx)
    assert [frame.stamp_ns for frame in read(drive / "image_02" / "data")[0]] == raw.sequences[1][0]
    odometry = recordings.kitti_odometry(tmp_path / "odometry")
    assert [f.stamp_ns for f in read(odometry.path / "sequences" / "10")[0]] == odometry.sequences[1][0]
    assert len(read(odometry.path / "sequences")[0]) == 2 * FRAMES
    sequence = odometry.path / "sequences" / "03"
    (sequence / "image_0").symlink_to(sequence.parent / "10" / "image_2")  # on another disk, as large data sets are
    frames, _ = read(sequence / "image_0")
    np.testing.assert_array_equal(frames[0].image, odometry.sequences[1][1][0])
    assert (len(frames), frames[0].camera.fx) == (FRAMES, pytest.approx(recordings.OTHER.fx))
    assert read(sequence)[0][0].camera.fx == pytest.approx(CAMERA.fx)
    city = recordings.cityscapes(tmp_path / "cityscapes")
    frames, _ = read(city.path / "leftImg8bit_sequence" / "train" / "bochum")
    assert [frame.stamp_ns for frame in frames] == city.sequences[2][0] + city.sequences[3][0]


def test_unrectified_kitti_drives_have_the_camera_with_its_distortion(tmp_path: Path):
    path = recordings.kitti_raw(tmp_path).path
    drive = path / "2011_09_26_drive_0001_extract"
    (path / "2011_09_26_drive_0001_sync").rename(drive)
    calibration = path / "calib_cam_to_cam.txt"
    calibration.write_text(calibration.read_text().replace("S_02: 139 51", "S_02: 96 64"))
    camera = read(drive)[0][0].camera
    assert (camera.fx, camera.cx) == (recordings.OTHER.fx, recordings.OTHER.cx)
    assert (camera.distortion_model, camera.distortion) == ("plumb_bob", (-0.3, 0.1, 0.001, 0.001, -0.05))


def test_associations_in_both_orders(tmp_path: Path):
    written = recordings.tum(tmp_path)
    rows = [line for line in (written.path / "rgb.txt").read_text().splitlines() if not line.startswith("#")]
    (written.path / "rgb.txt").unlink()
    for order in ("{0} 1305031100.1 depth/x.png", "1305031100.1 depth/x.png {0}"):
        (written.path / "associations.txt").write_text("\n".join(order.format(row) for row in rows))
        assert [frame.stamp_ns for frame in read(written.path)[0]] == written.stamps


def test_the_camera_of_freiburg_1_is_distorted(tmp_path: Path):
    written = recordings.tum(tmp_path)
    path = written.path.rename(tmp_path / "rgbd_dataset_freiburg1_desk")
    camera = read(path)[0][0].camera
    assert camera.fx == pytest.approx(517.3 * 0.15)
    assert camera.distortion == (0.2624, -0.9531, -0.0054, 0.0026, 1.1633)


def test_videos_in_a_folder_are_sequences(tmp_path: Path):
    pytest.importorskip("av")
    for number in (2, 10):
        recordings.write_video(tmp_path / f"part{number}.mp4", pictures(6, seed=number), range(0, 600, 100))
    write_meta(tmp_path / "meta.json", cuts=[3])
    data = prepare(tmp_path)
    assert [clip.stamps_ns.tolist() for clip in data.train] == 2 * [steady(3), steady(3, 3 * PERIOD_NS)]
    np.testing.assert_array_equal(data.train[0].images[0], pictures(1, seed=2)[0])  # part2 before part10
    assert data.sources[0].kind == "2 videos"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path / "absent", "No recording at"),
        (lambda path: path, "it holds: notes.txt"),
        (lambda path: path / "notes.txt", "notes.txt is no recording"),
        (lambda path: "render:x", "render:SEED"),
        (lambda path: "render:3:0", "render:SEED"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_formats_that_are_known(tmp_path: Path, make, words: str):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises((UsageError, NoUsableDataError), match=words) as caught:
        open_source(make(tmp_path))
    assert "Expected" in str(caught.value) or "was expected" in str(caught.value)


def test_one_image_and_a_folder_of_bags_are_refused_with_what_to_name(tmp_path: Path):
    folder = recordings.folder_without_calibration(tmp_path / "a").path
    with pytest.raises(UsageError, match="name its folder"):
        open_source(folder / "img_0.png")
    recordings.bag(tmp_path / "bags")
    with pytest.raises(UsageError, match=r"Name the bags: .*bags/bag"):
        open_source(tmp_path / "bags")
    write_images(tmp_path / "two" / "left", ["0.png"], pictures(1))
    write_images(tmp_path / "two" / "right", ["0.png"], pictures(1))
    with pytest.raises(UsageError, match="several folders of images: left, right"):
        open_source(tmp_path / "two")
    (tmp_path / "a" / "drive.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds videos \(drive.mp4, 1 in all\) and images \(bare\)"):
        open_source(tmp_path / "a")


# Stamps


def test_times_in_names_and_numbers_that_jump(tmp_path: Path):
    names = [f"{1_403_636_579_763_555_584 + k * PERIOD_NS}.png" for k in range(4)]
    write_images(tmp_path / "euroc", names, pictures(4))
    assert [frame.stamp_ns for frame in read(tmp_path / "euroc")[0]] == [int(Path(name).stem) for name in names]
    numbers = [0, 2, 4, 6, 40, 42, 44, 46]  # every second image, and a piece is missing
    write_images(tmp_path / "thinned", [f"f{number}.png" for number in numbers], pictures(8))
    data = prepare(tmp_path / "thinned", fov_degrees=80.0)
    assert [clip.stamps_ns.tolist() for clip in data.train] == [steady(4), steady(4, 20 * PERIOD_NS)]
    assert "jump 1 times" in " ".join(data.sources[0].report.notes)


def test_rate_and_cuts_of_meta_json(tmp_path: Path):
    folder = recordings.folder_without_calibration(tmp_path).path
    write_meta(folder / "meta.json", fps=20, cuts=[5])
    data = prepare(folder)
    times = [k * PERIOD_NS // 2 for k in range(FRAMES)]
    assert [clip.stamps_ns.tolist() for clip in data.train] == [times[:5], times[5:]]
    assert data.train[0].camera == CAMERA


def test_stamps_that_go_back_are_skipped_and_a_second_start_is_a_new_clip(tmp_path: Path):
    write_images(tmp_path, [f"{k}.png" for k in range(9)], pictures(9))
    seconds = [100.0, 100.1, 100.05, 100.2, 100.3, 50.0, 50.1, 50.2, 50.3]
    (tmp_path / "times.txt").write_text("\n".join(map(str, seconds)))
    data = prepare(tmp_path, fov_degrees=80.0)
    expected = [[100.0, 100.1, 100.2, 100.3], [50.0, 50.1, 50.2, 50.3]]
    assert [[stamp / 1e9 for stamp in clip.stamps_ns] for clip in data.train] == expected
    assert data.sources[0].report.skipped == {OUT_OF_ORDER: 1}


def test_still_frames_are_dropped(tmp_path: Path):
    shown = pictures(4)
    write_images(tmp_path, [f"{k}.png" for k in range(7)], [*shown, shown[3], shown[3], make_picture(4)])
    data = prepare(tmp_path, fov_degrees=80.0)
    assert data.sources[0].still == 2
    assert data.train[0].stamps_ns.tolist() == [0, PERIOD_NS, 2 * PERIOD_NS, 3 * PERIOD_NS, 6 * PERIOD_NS]


def make_picture(index: int) -> np.ndarray:
    return bag_factory.picture(index)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0.0\n0.1\nlater\n", r"times\.txt, line 3: found 'later'; one time per image was expected"),
        ("0.0\n0.1\n", r"times\.txt has 2 rows, there are 8 images \(img_0\.png"),
        ("# nothing\n", r"times\.txt: no time in it"),
    ],
)
def test_wrong_files_of_times(tmp_path: Path, rows: str, words: str):
    folder = recordings.folder_without_calibration(tmp_path).path
    (folder / "times.txt").write_text(rows)
    with pytest.raises(UsageError, match=words):
        open_source(folder)


# What cannot be read


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_unreadable_images_are_skipped_counted_and_named(tmp_path: Path):
    path = recordings.folder_with_calibration(tmp_path).path / "images"
    for name in ("frame2.png", "frame5.png"):
        damage(path / name)
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(pictures()[4][..., ::-1]))[1].tobytes()
    (path / "frame4.png").write_bytes(jpeg[:-200])  # half a JPEG, which decoders complete with grey
    (path / "frame6.png").write_bytes(b"")
    frames, report = read(path.parent)
    assert [int(frame.stamp_ns - 7) % 10**9 // PERIOD_NS for frame in frames] == [0, 1, 3, 7]
    assert report.skipped == {UNREADABLE: 4}
    assert "frame2.png" in report.examples[UNREADABLE]
    assert report.messages == FRAMES


def test_listed_images_that_are_missing_are_counted(tmp_path: Path):
    written = recordings.tum(tmp_path)
    missing = sorted((written.path / "rgb").iterdir())[3]
    missing.unlink()
    frames, report = read(written.path)
    assert [frame.stamp_ns for frame in frames] == written.stamps[:3] + written.stamps[4:]
    assert report.skipped == {ABSENT: 1}
    assert missing.name in report.examples[ABSENT]


def test_nothing_left_is_no_data(tmp_path: Path):
    folder = recordings.folder_without_calibration(tmp_path).path
    for file in folder.iterdir():
        damage(file)
    with pytest.raises(NoUsableDataError, match=r"none of the 8 images .* 8 x the file is no readable image .*img_0"):
        prepare(folder, fov_degrees=80.0)
    with pytest.raises(NoUsableDataError, match="--frames 100: selects none of the 8 images"):
        prepare(folder, fov_degrees=80.0, frames=(100, None))


def test_one_bad_source_of_two_is_passed_over(tmp_path: Path):
    bad = recordings.folder_without_calibration(tmp_path / "bad").path
    for file in bad.iterdir():
        damage(file)
    data = prepare(bad, recordings.folder_with_calibration(tmp_path / "good").path)
    assert [source.name for source in data.sources] == ["drive"]
    assert len(data.failed) == 1
    assert str(bad) in data.failed[0]


def test_an_image_of_another_size_is_skipped(tmp_path: Path):
    folder = recordings.folder_with_calibration(tmp_path).path
    write_images(folder / "images", ["frame3.png"], [make_picture(3)[:, :60]])
    frames, report = read(folder)
    assert len(frames) == FRAMES - 1
    assert report.skipped == {OTHER_SIZE: 1}
    assert "frame3.png" in report.examples[OTHER_SIZE]


def test_a_video_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path):
    pytest.importorskip("av")
    written = recordings.cut_off_video(tmp_path)
    frames, report = read(written.path)
    assert 15 <= len(frames) <= 30
    for frame, picture, stamp in zip(frames, written.pictures, written.stamps, strict=False):
        np.testing.assert_array_equal(frame.image, picture)
        assert frame.stamp_ns == stamp
    (lost,) = report.unread
    assert f"cut.mp4 announces 40 images, {len(frames)} could be read" in lost


def test_a_video_without_its_index_is_no_data(tmp_path: Path):
    pytest.importorskip("av")
    path = recordings.video(tmp_path).path
    damage(path)
    with pytest.raises(NoUsableDataError, match=r"drive\.mp4 is no video that can be read, or is cut off"):
        open_source(path)
    path.write_bytes(b"")
    with pytest.raises(NoUsableDataError, match=r"drive\.mp4"):
        open_source(path)


def test_a_hole_in_a_video_costs_the_pictures_that_depend_on_it(tmp_path: Path):
    pytest.importorskip("av")
    shown = pictures(30)
    path = tmp_path / "hole.mp4"
    recordings.write_video(path, shown, range(0, 3000, 100), key_every=5, faststart=True)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)
    frames, report = read(path, fov_degrees=80.0)
    numbers = [frame.stamp_ns // PERIOD_NS for frame in frames]
    assert 15 <= len(frames) < 30
    assert numbers[:10] == list(range(10))
    assert numbers[-10:] == list(range(20, 30))
    for number, frame in zip(numbers, frames, strict=True):
        np.testing.assert_array_equal(frame.image, shown[number])  # none is invented
    assert report.skipped[DAMAGED] >= 1


def test_without_pyav_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "drive.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"drive\.mp4 is a video.*pip install av"):
        open_source(tmp_path / "drive.mp4")


def test_a_telephone_held_upright():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = upright(image, 90.0)
    assert turned.shape == (3, 2, 3)
    np.testing.assert_array_equal(turned[0, 0], image[0, 2])  # counterclockwise: the right end of the top row
    np.testing.assert_array_equal(upright(image, -90.0)[0, 0], image[1, 0])
    np.testing.assert_array_equal(upright(image, 0.0), image)


# Calibration


def test_the_file_of_the_user_is_for_those_that_carry_none(tmp_path: Path):
    write_meta(tmp_path / "mine.json", Camera(192, 128, 300.0, 300.0, 95.5, 63.5))
    bare = recordings.folder_without_calibration(tmp_path / "a").path
    frames, report = read(bare, calibration=tmp_path / "mine.json", fov_degrees=80.0)
    assert same_camera(frames[0].camera, Camera(96, 64, 150.0, 150.0, 47.5, 31.5))
    assert "K is scaled" in " ".join(report.notes)
    known = recordings.folder_with_calibration(tmp_path / "b").path
    assert same_camera(read(known, calibration=tmp_path / "mine.json")[0][0].camera, CAMERA)
    bag_factory.write_bag(tmp_path / "bag", bag_factory.recording(5, info_topic=None))
    assert read(tmp_path / "bag", calibration=tmp_path / "mine.json")[0][0].camera.fx == pytest.approx(150.0)


def test_a_guess_is_marked_and_none_is_refused(tmp_path: Path):
    folder = recordings.folder_without_calibration(tmp_path).path
    camera = read(folder, fov_degrees=90.0)[0][0].camera
    assert camera.assumed
    assert camera.fx == pytest.approx(48.0)
    with pytest.raises(NoUsableDataError, match=r"not calibrated .*meta\.json.* --calibration, or pass --fov DEGREES"):
        prepare(folder)


def replace_in(name: str, old: str, new: str):
    """A function that changes a file of a recording."""

    def change(path: Path) -> None:
        file = next(path.rglob(name))
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    return change


WRONG = {
    "a row is missing (raw)": ("kitti_raw", replace_in("calib_cam*", "P_rect_02", "P_rect_03"), "no row 'P_rect_02:'"),
    "a word among the numbers": (
        "kitti_raw",
        replace_in("calib_cam*", "S_rect_02: 9.600000e+01", "S_rect_02: wide"),
        r"calib_cam_to_cam\.txt, S_rect_02: found 'wide 6.4.*2 numbers were expected: width and height",
    ),
    "other images": (
        "kitti_raw",
        replace_in("calib_cam*", "S_rect_02: 9.600000e+01", "S_rect_02: 200"),
        r"calib_cam_to_cam\.txt, P_rect_02: width and height are 200x64, the images have 96x64",
    ),
    "a row is missing (odometry)": ("kitti_odometry", replace_in("calib.txt", "P2", "P3"), r"calib\.txt: no row 'P2:'"),
    "numbers are missing": (
        "kitti_odometry",
        replace_in("calib.txt", " 3.000000e-03", ""),
        r"calib\.txt, P2: found .*12 numbers were expected: the 3x4 projection",
    ),
    "for larger images": (
        "kitti_odometry",
        replace_in("calib.txt", "4.550000e+01", "6.0e+02"),
        r"calib\.txt, P2: the principal point cx, cy = 600, 33\.5 lies outside the images of 96x64",
    ),
    "a value is missing": (
        "cityscapes",
        replace_in("*_camera.json", '"u0"', '"cx"'),
        r"_camera\.json: intrinsic\.u0 is None; a number of pixels was expected",
    ),
    "no JSON": ("cityscapes", replace_in("*_camera.json", "{", "["), r"_camera\.json: not readable as JSON"),
    "no focal length": (
        "folder_with_calibration",
        replace_in("camera.yaml", "[160.0", "[-160.0"),
        r"camera\.yaml: fx, fy, cx, cy = -160, .*positive numbers of pixels were expected",
    ),
    "no matrix": (
        "folder_with_calibration",
        replace_in("camera.yaml", "camera_matrix", "matrix"),
        r"camera\.yaml: camera_matrix\.data is None; a list of 9 numbers was expected",
    ),
    "no size": (
        "folder_with_calibration",
        replace_in("camera.yaml", "image_width: 192", "image_width: wide"),
        r"camera\.yaml: image_width is 'wide'; a number of pixels was expected",
    ),
    "an unknown distortion": (
        "folder_with_calibration",
        replace_in(
            "camera.yaml",
            "plumb_bob\ndistortion_coefficients: {rows: 1, cols: 5, data: [0",
            "ftheta\ndistortion_coefficients: {rows: 1, cols: 5, data: [1",
        ),
        r"camera\.yaml: .*'ftheta' is not known; known: plumb_bob",
    ),
    "a list that is none": (
        "tum",
        replace_in("rgb.txt", "1305031100.175304 rgb", "noon rgb"),
        r"rgb\.txt, line 4: found 'noon rgb.*'time rgb/file' was expected",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_calibration_is_refused_with_file_key_and_what_was_expected(tmp_path: Path, case: str):
    name, change, words = WRONG[case]
    path = FORMATS[name](tmp_path).path
    change(Path(path))
    with pytest.raises(UsageError, match=words):
        prepare(path)


def test_calibration_files_of_no_known_kind(tmp_path: Path):
    folder = recordings.folder_without_calibration(tmp_path).path
    for name, content, words in (
        ("mine.xml", "<k/>", "of no known kind. Understood are meta.json"),
        ("mine.txt", "f 80", "of no known kind"),
        ("mine.yaml", "[1, 2", "not readable as YAML"),
        ("mine.json", json.dumps({"fx": 80}), "all four numbers, or four nulls"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=words) as caught:
            open_source(folder, SourceOptions(calibration=tmp_path / name))
        assert name in str(caught.value)


def test_without_the_calibration_file_of_the_layout(tmp_path: Path):
    raw = recordings.kitti_raw(tmp_path / "raw").path
    (raw / "calib_cam_to_cam.txt").unlink()
    with pytest.raises(NoUsableDataError, match=r"KITTI raw .*calib_cam_to_cam\.txt in the drive or beside it"):
        prepare(raw)
    city = recordings.cityscapes(tmp_path / "city").path
    shutil.rmtree(city / "camera")
    assert read(city)[0][0].camera is None
