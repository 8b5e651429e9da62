"""The command from its arguments to the bag, which is read back with rosbags."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader

from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.geometry.camera import Camera
from coopnet_ros import make_demo_bag
from coopnet_ros.make_demo_bag import main

META = {"width": 24, "height": 16, "fx": 20.0, "fy": 21.0, "cx": 11.5, "cy": 7.5, "fps": 10, "cuts": []}


def messages(path: Path) -> dict[str, list]:
    result: dict[str, list] = {}
    with AnyReader([path]) as reader:
        for connection, _, data in reader.messages():
            result.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return result


def stamps(topic: list) -> list[int]:
    return [m.header.stamp.sec * 1_000_000_000 + m.header.stamp.nanosec for m in topic]


def array_of(message, dtype="<f4", channels=1) -> np.ndarray:
    return np.frombuffer(message.data.tobytes(), dtype).reshape(message.height, message.width, channels).squeeze()


def recording(folder: Path, count: int = 4, colour: bool = True, images: str = "images", **meta) -> Path:
    """A folder as in the issue, frame k of brightness 10 k."""
    (folder / images).mkdir(parents=True)
    for k in range(count):
        shape = (16, 24, 3) if colour else (16, 24)
        cv2.imwrite(str(folder / images / f"{k:06d}.png"), np.full(shape, 10 * k, np.uint8))
    (folder / "meta.json").write_text(json.dumps({**META, **meta}))
    return folder


def run(folder: Path, bag: Path, *more: str) -> int:
    return main(["--from-folder", str(folder), "--output", str(bag), *more])


def test_rendered_bag_equals_the_rendered_scene(tmp_path):
    size = ["--width", "96", "--height", "32", "--frames", "2", "--fps", "5"]
    assert main(["--output", str(tmp_path / "bag"), "--seed", "7", *size]) == 0
    topics = messages(tmp_path / "bag")
    config = SceneConfig(7, 2, Camera.from_field_of_view(96, 32, 80.0), 5.0, camera_moves=True)
    for k, (frame, truth) in enumerate(iter_rendered(config)):
        assert np.array_equal(array_of(topics["/camera/image_raw"][k], np.uint8, 3), frame.image)
        assert np.array_equal(array_of(topics["/ground_truth/depth"][k]), truth.depth)
        assert np.array_equal(array_of(topics["/ground_truth/flow"][k], channels=2), truth.flow, equal_nan=True)
        assert np.array_equal(array_of(topics["/ground_truth/occlusion"][k], np.uint8) == 255, truth.occluded)
    assert np.diff(stamps(topics["/camera/image_raw"])).tolist() == [200_000_000]


@pytest.mark.parametrize("colour", [True, False])
def test_folder_of_a_recording(tmp_path, colour):
    folder = recording(tmp_path / "drive", colour=colour)
    assert run(folder, tmp_path / "bag", "--camera", str(folder / "meta.json")) == 0
    topics = messages(tmp_path / "bag")
    assert set(topics) == {"/camera/image_raw", "/camera/camera_info", "/tf_static"}
    images = topics["/camera/image_raw"]
    assert {m.encoding for m in images} == {"rgb8" if colour else "mono8"}
    assert [int(m.data[0]) for m in images] == [0, 10, 20, 30]
    assert np.diff(stamps(images)).tolist() == [100_000_000] * 3
    assert stamps(topics["/camera/camera_info"]) == stamps(images)
    info = topics["/camera/camera_info"][0]
    assert info.k.tolist() == [20.0, 0, 11.5, 0, 21.0, 7.5, 0, 0, 1]


def test_the_image_folder_itself_and_a_rate_of_choice(tmp_path):
    folder = recording(tmp_path / "drive", images="image_0")
    assert run(folder / "image_0", tmp_path / "bag", "--fps", "20") == 0
    topics = messages(tmp_path / "bag")
    assert np.diff(stamps(topics["/camera/image_raw"])).tolist() == [50_000_000] * 3
    assert topics["/camera/camera_info"][0].k[0] == 20.0


def test_images_are_in_natural_order(tmp_path):
    (tmp_path / "in").mkdir()
    for k in (2, 10, 1):
        cv2.imwrite(str(tmp_path / "in" / f"frame{k}.png"), np.full((16, 24), k, np.uint8))
    assert run(tmp_path / "in", tmp_path / "bag") == 0
    assert [int(m.data[0]) for m in messages(tmp_path / "bag")["/camera/image_raw"]] == [1, 2, 10]


def test_cuts_become_gaps_of_several_seconds(tmp_path):
    assert run(recording(tmp_path / "drive", cuts=[2]), tmp_path / "bag") == 0
    gaps = np.diff(stamps(messages(tmp_path / "bag")["/camera/image_raw"])) / 1e9
    assert gaps[[0, 2]].tolist() == [0.1, 0.1]
    assert gaps[1] > 3


def test_null_intrinsics_are_recorded_as_not_calibrated(tmp_path):
    folder = recording(tmp_path / "drive", fx=None, fy=None, cx=None, cy=None)
    assert run(folder, tmp_path / "bag") == 0
    info = messages(tmp_path / "bag")["/camera/camera_info"][0]
    assert not info.k.any()
    assert (info.width, info.height) == (24, 16)


def test_kitti_rows_become_odometry_with_ros_axes(tmp_path):
    folder = recording(tmp_path / "drive")
    rows = [f"1 0 0 {0.5 * k} 0 1 0 0 0 0 1 {2 * k}" for k in range(4)]
    (folder / "poses.txt").write_text("\n".join(rows))
    assert run(folder, tmp_path / "bag", "--poses", str(folder / "poses.txt")) == 0
    odometry = messages(tmp_path / "bag")["/ground_truth/odometry"]
    positions = [(m.pose.pose.position.x, m.pose.pose.position.y, m.pose.pose.position.z) for m in odometry]
    # The camera's z (ahead) is x of odom, its x (right) is -y.
    assert np.allclose(positions, [(2 * k, -0.5 * k, 0) for k in range(4)], atol=1e-12)
    assert odometry[2].twist.twist.linear.x == pytest.approx(20.0)


def test_depth_and_flow_are_matched_by_stem_and_the_rest_is_named(tmp_path, capsys):
    folder = recording(tmp_path / "drive")
    for name in ("depth", "flow"):
        (folder / name).mkdir()
    stored = np.zeros((16, 24), np.uint16)
    stored[3, 5] = 512
    cv2.imwrite(str(folder / "depth" / "000002.png"), stored)
    cv2.imwrite(str(folder / "depth" / "000099.png"), stored)
    rgb = np.zeros((16, 24, 3), np.uint16)
    rgb[1, 2] = (32768 + 64, 32768 - 128, 1)
    cv2.imwrite(str(folder / "flow" / "000001.png"), rgb[..., ::-1])
    assert run(folder, tmp_path / "bag", "--depth", str(folder / "depth"), "--flow", str(folder / "flow")) == 0
    said = capsys.readouterr().out
    assert "000099.png" in said
    assert "3 images without depth" in said
    topics = messages(tmp_path / "bag")
    image_stamps = stamps(topics["/camera/image_raw"])
    assert stamps(topics["/ground_truth/depth"]) == [image_stamps[2]]
    assert stamps(topics["/ground_truth/flow"]) == [image_stamps[1]]
    depth = array_of(topics["/ground_truth/depth"][0])
    assert depth[3, 5] == 2.0
    assert np.isnan(depth).sum() == depth.size - 1
    flow = array_of(topics["/ground_truth/flow"][0], channels=2)
    assert flow[1, 2].tolist() == [1.0, -2.0]
    assert np.isnan(flow[0, 0]).all()


def test_depth_scale_comes_from_the_option_or_from_meta(tmp_path):
    folder = recording(tmp_path / "drive", depth_scale=1000)
    (folder / "depth").mkdir()
    cv2.imwrite(str(folder / "depth" / "000000.png"), np.full((16, 24), 5000, np.uint16))
    for bag, more, metres in (("a", (), 5.0), ("b", ("--depth-scale", "5000"), 1.0)):
        assert run(folder, tmp_path / bag, "--depth", str(folder / "depth"), *more) == 0
        assert array_of(messages(tmp_path / bag)["/ground_truth/depth"][0])[0, 0] == metres


def test_flow_that_leads_to_the_next_image_reverses_the_order(tmp_path):
    folder = tmp_path / "pair"
    folder.mkdir()
    for k in (10, 11):
        cv2.imwrite(str(folder / f"frame{k}.png"), np.full((2, 3), k, np.uint8))
    (folder / "flow10.flo").write_bytes(b"PIEH" + struct.pack("<ii12f", 3, 2, *range(12)))
    assert run(folder, tmp_path / "bag", "--flow", str(folder), "--flow-towards", "next") == 0
    topics = messages(tmp_path / "bag")
    images = topics["/camera/image_raw"]
    assert [int(m.data[0]) for m in images] == [11, 10]
    assert stamps(topics["/ground_truth/flow"]) == [stamps(images)[1]]
    assert array_of(topics["/ground_truth/flow"][0], channels=2)[1, 0].tolist() == [6.0, 7.0]


def test_files_named_by_time_are_matched_by_time(tmp_path):
    folder = tmp_path / "desk"
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for k in range(3):
        cv2.imwrite(str(folder / "rgb" / f"100.{k}00000.png"), np.zeros((4, 6, 3), np.uint8))
        cv2.imwrite(str(folder / "depth" / f"100.{k}05000.png"), np.full((4, 6), 256 * (k + 1), np.uint16))
    (folder / "truth.txt").write_text("100.001 0 0 0 0 0 0 1\n100.101 0 0 1 0 0 0 1\n")
    more = ("--depth", str(folder / "depth"), "--poses", str(folder / "truth.txt"))
    assert run(folder, tmp_path / "bag", *more) == 0
    topics = messages(tmp_path / "bag")
    assert stamps(topics["/camera/image_raw"]) == [100_000_000_000, 100_100_000_000, 100_200_000_000]
    assert [array_of(m)[0, 0] for m in topics["/ground_truth/depth"]] == [1.0, 2.0, 3.0]
    assert [m.pose.pose.position.x for m in topics["/ground_truth/odometry"]] == pytest.approx([0.0, 1.0])


def test_compressed_keeps_the_image_files(tmp_path):
    folder = recording(tmp_path / "drive")
    assert run(folder, tmp_path / "bag", "--compressed") == 0
    message = messages(tmp_path / "bag")["/camera/image_raw/compressed"][1]
    assert message.data.tobytes() == (folder / "images" / "000001.png").read_bytes()


def wrong_size(folder: Path) -> list[str]:
    cv2.imwrite(str(folder / "images" / "000002.png"), np.zeros((8, 8), np.uint8))
    return []


def cut_off_image(folder: Path) -> list[str]:
    (folder / "images" / "000002.png").write_bytes(b"\x89PNG")
    return []


def too_few_poses(folder: Path) -> list[str]:
    (folder / "poses.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
    return ["--poses", str(folder / "poses.txt")]


def other_intrinsics(folder: Path) -> list[str]:
    (folder / "meta.json").write_text(json.dumps({**META, "width": 48}))
    return []


def broken_meta(folder: Path) -> list[str]:
    (folder / "meta.json").write_text("{")
    return []


def half_calibrated(folder: Path) -> list[str]:
    (folder / "meta.json").write_text(json.dumps({**META, "cy": None}))
    return []


def foreign_depth(folder: Path) -> list[str]:
    (folder / "depth").mkdir()
    cv2.imwrite(str(folder / "depth" / "left.png"), np.zeros((16, 24), np.uint16))
    return ["--depth", str(folder / "depth")]


def missing_depth(folder: Path) -> list[str]:
    return ["--depth", str(folder / "nowhere")]


def two_cameras(folder: Path) -> list[str]:
    recording(folder / "other_parent", images="rgb")
    (folder / "other_parent" / "rgb").rename(folder / "rgb")
    return []


def rendered_option(folder: Path) -> list[str]:
    return ["--seed", "3"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_size, "one size"),
        (cut_off_image, "000002.png"),
        (too_few_poses, "1 poses"),
        (other_intrinsics, "48x16"),
        (broken_meta, "meta.json"),
        (half_calibrated, "all four"),
        (foreign_depth, "left.png"),
        (missing_depth, "nowhere"),
        (two_cameras, "images, rgb"),
        (rendered_option, "--seed"),
    ],
)
def test_what_does_not_fit_is_said_with_exit_code_2(tmp_path, capsys, spoil, said):
    folder = recording(tmp_path / "drive")
    assert run(folder, tmp_path / "bag", *spoil(folder)) == 2
    captured = capsys.readouterr()
    assert said in " ".join(captured.err.split())
    assert not (tmp_path / "bag").exists()


def test_no_images_is_exit_code_3_and_no_folder_2(tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "bag") == 3
    assert run(tmp_path / "absent", tmp_path / "bag") == 2


def test_existing_output_is_refused_unless_overwritten(tmp_path, capsys):
    folder = recording(tmp_path / "drive")
    assert run(folder, tmp_path / "bag") == 0
    assert run(folder, tmp_path / "bag") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(folder, tmp_path / "bag", "--overwrite", "--frames", "2") == 0
    assert len(messages(tmp_path / "bag")["/camera/image_raw"]) == 2


def test_dry_run_writes_nothing(tmp_path):
    assert run(recording(tmp_path / "drive"), tmp_path / "bag", "--dry-run") == 0
    assert main(["--output", str(tmp_path / "bag"), "--dry-run"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_ctrl_c_is_130_and_keeps_what_was_written(tmp_path, monkeypatch):
    def interrupted(config):
        yield from list(iter_rendered(config))[:1]
        raise KeyboardInterrupt

    monkeypatch.setattr(make_demo_bag, "iter_rendered", interrupted)
    size = ["--width", "32", "--height", "16", "--frames", "2"]
    assert main(["--output", str(tmp_path / "bag"), *size]) == 130
    assert not (tmp_path / "bag").exists()
    assert len(messages(tmp_path / "bag.partial" / "bag")["/camera/image_raw"]) == 1


@pytest.mark.parametrize("arguments", [[], ["--output", "x", "--frames", "0"], ["--output", "x", "--movers", "2"]])
def test_wrong_arguments_are_exit_code_2(arguments):
    assert main(arguments) == 2


def test_real_pair_with_middlebury_flow(tmp_path, shared_data):
    folder = shared_data("flow_rubberwhale")
    assert run(folder, tmp_path / "bag", "--flow", str(folder), "--flow-towards", "next") == 0
    topics = messages(tmp_path / "bag")
    later, earlier = (array_of(m, np.uint8, 3) for m in topics["/camera/image_raw"])
    flow = array_of(topics["/ground_truth/flow"][0], channels=2)
    known = np.isfinite(flow).all(-1)
    v, u = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
    moved = np.nan_to_num(flow)
    warped = cv2.remap(later, u + moved[..., 0], v + moved[..., 1], cv2.INTER_LINEAR)
    error = np.abs(warped.astype(float) - earlier).mean(-1)[known].mean()
    assert error < 0.4 * np.abs(later.astype(float) - earlier).mean(-1)[known].mean()
