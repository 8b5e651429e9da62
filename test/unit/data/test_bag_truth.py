"""Truth by stamp, and poses of the camera through the recorded mounting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from unit import bag_factory as make
from unit.bag_factory import IMAGE, IMAGE_TOPIC, stamp, write_bag

from coopnet_core.data.bag_truth import BagTruth, TruthTopics, read_truth
from coopnet_core.errors import UsageError

H, W = 4, 6
ODOMETRY, TF = "nav_msgs/msg/Odometry", "tf2_msgs/msg/TFMessage"
OPTICAL = (-0.5, 0.5, -0.5, 0.5)  # x right, y down, z forward seen from x forward, y left, z up


def vector(values) -> object:
    return make.make("geometry_msgs/msg/Vector3", **dict(zip("xyz", map(float, values), strict=True)))


def quaternion(values) -> object:
    return make.make("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", map(float, values), strict=True)))


def odometry(now: int, position, rotation=(0, 0, 0, 1), child: str = "base_link") -> object:
    point = make.make("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, position), strict=True)))
    pose = make.make("geometry_msgs/msg/Pose", position=point, orientation=quaternion(rotation))
    twist = make.make("geometry_msgs/msg/Twist", linear=vector((0, 0, 0)), angular=vector((0, 0, 0)))
    return make.make(
        ODOMETRY,
        header=make.header(now, "odom"),
        child_frame_id=child,
        pose=make.make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
        twist=make.make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36)),
    )


def mounting(*links: tuple[str, str, tuple, tuple]) -> tuple:
    """A /tf_static message with (parent, child, translation, rotation) links."""
    transforms = [
        make.make(
            "geometry_msgs/msg/TransformStamped",
            header=make.header(0, parent),
            child_frame_id=child,
            transform=make.make(
                "geometry_msgs/msg/Transform", translation=vector(translation), rotation=quaternion(rotation)
            ),
        )
        for parent, child, translation, rotation in links
    ]
    return ("/tf_static", TF, stamp(0), make.make(TF, transforms=transforms))


MOUNTED = mounting(
    ("base_link", "camera_link", (1.0, 0.0, 2.0), (0, 0, 0, 1)),
    ("camera_link", "camera_optical_frame", (0.0, 0.0, 0.0), OPTICAL),
)


def depth(index: int) -> np.ndarray:
    values = np.full((H, W), 5.0 + index, np.float32)
    values[0] = (0, np.nan, np.inf, -1, 1, 2)
    return values


def flow(index: int) -> np.ndarray:
    values = np.arange(H * W * 2, dtype=np.float32).reshape(H, W, 2) + index
    values[0, 0] = np.nan
    return values


def mask(index: int) -> np.ndarray:
    values = np.zeros((H, W), np.uint8)
    values[1, index % W] = 255
    return values


def truth_of(index: int) -> list:
    now = stamp(index)
    return [
        ("/ground_truth/depth", IMAGE, now, make.image(depth(index), now, "32FC1")),
        ("/ground_truth/flow", IMAGE, now, make.image(flow(index), now, "32FC2")),
        ("/ground_truth/motion_mask", IMAGE, now, make.image(mask(index), now, "mono8")),
        ("/ground_truth/occlusion", IMAGE, now, make.image(255 - mask(index), now, "mono8")),
        ("/ground_truth/odometry", ODOMETRY, now, odometry(now, (index, 0, 0))),
        (IMAGE_TOPIC, IMAGE, now, make.image(make.picture(index), now)),
    ]


def whole_bag(path: Path, frames: int = 6, storage: str = "mcap") -> Path:
    return write_bag(path, [MOUNTED, *(message for index in range(frames) for message in truth_of(index))], storage)


def assert_truth(truth: BagTruth, index: int) -> None:
    found = truth[stamp(index)]
    np.testing.assert_array_equal(found.depth[1:], depth(index)[1:])
    np.testing.assert_array_equal(found.depth[0], [np.nan] * 4 + [1, 2])
    np.testing.assert_array_equal(found.flow, flow(index))
    assert found.moving.dtype == bool
    np.testing.assert_array_equal(found.moving, mask(index) == 255)
    np.testing.assert_array_equal(found.occluded, mask(index) == 0)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_everything_by_stamp(tmp_path: Path, storage: str):
    with read_truth(whole_bag(tmp_path / "bag", storage=storage)) as truth:
        assert list(truth) == [stamp(index) for index in range(6)]
        assert truth.fields == {"depth", "pose", "flow", "moving", "occluded"}
        for index in range(6):
            assert_truth(truth, index)
        assert truth.notes == []


def test_any_order_of_asking(tmp_path: Path):
    with read_truth(whole_bag(tmp_path / "bag")) as truth:
        for index in (3, 5, 0, 0, 4):
            assert_truth(truth, index)
        assert stamp(99) not in truth
        assert truth.get(stamp(99)) is None
        with pytest.raises(KeyError):
            truth[stamp(99)]


def test_asking_in_order_holds_only_what_is_ahead(tmp_path: Path):
    with read_truth(whole_bag(tmp_path / "bag", frames=30)) as truth:
        for index in range(30):
            assert_truth(truth, index)
            assert len(truth._window) <= 2


def test_sparse_truth_is_none_where_it_is_absent(tmp_path: Path):
    messages = [MOUNTED]
    for index in range(9):
        present = truth_of(index)
        messages += present if index % 4 == 0 else present[1:2] + present[4:]
    with read_truth(write_bag(tmp_path / "bag", messages)) as truth:
        for index in range(9):
            found = truth[stamp(index)]
            assert (found.depth is None) == (found.moving is None) == (index % 4 != 0)
            np.testing.assert_array_equal(found.flow, flow(index))


def test_a_bag_without_truth_is_empty(tmp_path: Path):
    with read_truth(write_bag(tmp_path / "bag", make.recording(3))) as truth:
        assert len(truth) == 0
        assert truth.fields == frozenset()


def test_missing_bag(tmp_path: Path):
    with pytest.raises(UsageError):
        read_truth(tmp_path / "absent")


def test_camera_pose_follows_the_mounting(tmp_path: Path):
    with read_truth(whole_bag(tmp_path / "bag")) as truth:
        T_world_camera = truth[stamp(3)].pose
    # Base 3 m ahead of the origin, camera 1 m before and 2 m above it.
    np.testing.assert_allclose(T_world_camera[:3, 3], [4, 0, 2], atol=1e-12)
    # The optical axes in a frame with x forward, y left, z up.
    np.testing.assert_allclose(T_world_camera[:3, :3].T, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-12)


def test_camera_pose_turns_with_the_base(tmp_path: Path):
    half = np.sqrt(0.5)
    messages = [MOUNTED, *truth_of(0)]
    messages[5] = ("/ground_truth/odometry", ODOMETRY, stamp(0), odometry(stamp(0), (10, 20, 0), (0, 0, half, half)))
    with read_truth(write_bag(tmp_path / "bag", messages)) as truth:
        T_world_camera = truth.poses[stamp(0)]
    np.testing.assert_allclose(T_world_camera[:3, 3], [10, 21, 2], atol=1e-12)  # turned left: ahead is +y
    np.testing.assert_allclose(T_world_camera[:3, 2], [0, 1, 0], atol=1e-12)


def test_mounting_recorded_from_the_other_end(tmp_path: Path):
    turned = mounting(("camera_optical_frame", "base_link", (0.0, 0.0, -1.0), (0, 0, 0, 1)))
    with read_truth(write_bag(tmp_path / "bag", [turned, *truth_of(2)])) as truth:
        np.testing.assert_allclose(truth[stamp(2)].pose[:3, 3], [2, 0, 1])


def test_odometry_of_the_camera_itself_needs_no_mounting(tmp_path: Path):
    messages = truth_of(1)
    own = odometry(stamp(1), (1, 2, 3), child="camera_optical_frame")
    messages[4] = ("/ground_truth/odometry", ODOMETRY, stamp(1), own)
    with read_truth(write_bag(tmp_path / "bag", messages)) as truth:
        np.testing.assert_allclose(truth[stamp(1)].pose[:3, 3], [1, 2, 3])


def test_unknown_mounting_leaves_the_pose_out_and_says_why(tmp_path: Path):
    with read_truth(write_bag(tmp_path / "bag", truth_of(0))) as truth:
        assert truth[stamp(0)].pose is None
        assert "pose" not in truth.fields
        assert any("'base_link'" in note and "'camera_optical_frame'" in note for note in truth.notes)


def test_depth_in_millimetres(tmp_path: Path):
    millimetres = np.array([[0, 1500], [65535, 1]], np.uint16)
    messages = [("/my/depth", IMAGE, stamp(0), make.image(millimetres, stamp(0), "16UC1"))]
    with read_truth(write_bag(tmp_path / "bag", messages), TruthTopics(depth="/my/depth")) as truth:
        found = truth[stamp(0)].depth
    np.testing.assert_allclose(found, [[np.nan, 1.5], [65.535, 0.001]], rtol=1e-6)


def test_broken_truth_is_noted_and_left_out(tmp_path: Path):
    messages = [MOUNTED, *truth_of(0)]
    messages[1] = (
        "/ground_truth/depth",
        IMAGE,
        stamp(0),
        make.image(depth(0), stamp(0), "32FC1", data=np.zeros(3, "u1")),
    )
    messages[2] = ("/ground_truth/flow", IMAGE, stamp(0), make.image(mask(0), stamp(0), "mono8"))
    messages[3] = ("/ground_truth/motion_mask", IMAGE, stamp(0), b"\x00\x01")
    with read_truth(write_bag(tmp_path / "bag", messages)) as truth:
        found = truth[stamp(0)]
        assert found.depth is None
        assert found.flow is None
        assert found.moving is None
        assert found.occluded is not None
        assert len(truth.notes) == 3
