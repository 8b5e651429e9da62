"""Bags read back with rosbags alone equal what was written."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader

from coopnet_core.data.bag_writer import BagOptions, BagWriter, mount, quaternion_from_rotation
from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.errors import UsageError
from coopnet_core.geometry.camera import Camera

CAMERA = Camera.from_field_of_view(64, 32, 80.0)
MOUNT = mount(1.2, -0.3, 1.5)


@pytest.fixture(scope="module")
def scene():
    return list(iter_rendered(SceneConfig(4, 3, CAMERA, movers=0.2, camera_moves=True)))


def write(path, scene, **options):
    with BagWriter(path, BagOptions(T_base_camera=MOUNT, **options)) as writer:
        for frame, truth in scene:
            writer.write(frame, truth)


def messages(path) -> dict[str, list]:
    result: dict[str, list] = {}
    with AnyReader([path]) as reader:
        for connection, bag_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            result.setdefault(connection.topic, []).append((bag_ns, message))
    return result


def stamp_of(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def array_of(message, dtype, channels=1) -> np.ndarray:
    values = np.frombuffer(message.data.tobytes(), dtype)
    assert message.step == message.width * channels * np.dtype(dtype).itemsize
    shape = (message.height, message.width, channels) if channels > 1 else (message.height, message.width)
    return values.reshape(shape)


def matrix(position, orientation) -> np.ndarray:
    """A pose from its message, by the quaternion's sandwich product."""
    q = np.array([orientation.w, orientation.x, orientation.y, orientation.z])
    axis, w = q[1:], q[0]
    pose = np.eye(4)
    for i, e in enumerate(np.eye(3)):
        pose[:3, i] = e + 2 * w * np.cross(axis, e) + 2 * np.cross(axis, np.cross(axis, e))
    pose[:3, 3] = position.x, position.y, position.z
    return pose


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_bag_holds_exactly_the_images_and_their_truth(tmp_path, scene, storage):
    write(tmp_path / "bag", scene, storage=storage)
    topics = messages(tmp_path / "bag")
    assert set(topics) == {
        "/camera/image_raw",
        "/camera/camera_info",
        "/tf_static",
        *(f"/ground_truth/{name}" for name in ("depth", "odometry", "flow", "motion_mask", "occlusion")),
    }
    for k, (frame, truth) in enumerate(scene):
        read = {topic: topics[topic][k] for topic in topics if topic != "/tf_static"}
        assert {stamp_of(message) for _, message in read.values()} == {frame.stamp_ns}
        assert {bag_ns for bag_ns, _ in read.values()} == {frame.stamp_ns}
        image = read["/camera/image_raw"][1]
        assert (image.encoding, image.header.frame_id) == ("rgb8", "camera_optical_frame")
        assert np.array_equal(array_of(image, np.uint8, 3), frame.image)
        depth, flow = read["/ground_truth/depth"][1], read["/ground_truth/flow"][1]
        assert (depth.encoding, flow.encoding) == ("32FC1", "32FC2")
        assert np.array_equal(array_of(depth, "<f4"), truth.depth)
        assert np.array_equal(array_of(flow, "<f4", 2), truth.flow, equal_nan=True)
        for topic, mask in (("motion_mask", truth.moving), ("occlusion", truth.occluded)):
            message = read[f"/ground_truth/{topic}"][1]
            assert message.encoding == "mono8"
            assert np.array_equal(array_of(message, np.uint8), np.where(mask, 255, 0))


def test_camera_info_is_the_camera(tmp_path, scene):
    write(tmp_path / "bag", scene)
    info = messages(tmp_path / "bag")["/camera/camera_info"][0][1]
    assert np.array_equal(info.k.reshape(3, 3), CAMERA.matrix)
    assert np.array_equal(info.p.reshape(3, 4)[:, :3], CAMERA.matrix)
    assert (info.width, info.height, info.distortion_model) == (64, 32, "plumb_bob")


def test_distortion_and_missing_calibration_are_recorded(tmp_path):
    lens = Camera(8, 6, 5.0, 6.0, 3.5, 2.5, "plumb_bob", (0.1, -0.2, 0.0, 0.01, 0.3))
    image = np.zeros((6, 8), np.uint8)
    for name, camera in (("lens", lens), ("none", None)):
        with BagWriter(tmp_path / name) as writer:
            writer.write(Frame(image, 1, camera))
    topics = messages(tmp_path / "lens")
    assert topics["/camera/camera_info"][0][1].d.tolist() == list(lens.distortion)
    assert topics["/camera/image_raw"][0][1].encoding == "mono8"
    assert set(topics) == {"/camera/image_raw", "/camera/camera_info", "/tf_static"}
    info = messages(tmp_path / "none")["/camera/camera_info"][0][1]
    assert (info.width, info.height, info.k[0]) == (8, 6, 0.0)


def test_odometry_through_the_static_transform_gives_the_camera_poses(tmp_path, scene):
    write(tmp_path / "bag", scene)
    topics = messages(tmp_path / "bag")
    static = topics["/tf_static"][0][1].transforms[0]
    assert (static.header.frame_id, static.child_frame_id) == ("base_link", "camera_optical_frame")
    T_base_camera = matrix(static.transform.translation, static.transform.rotation)
    assert np.allclose(T_base_camera, MOUNT, atol=1e-12)
    odometry = [message for _, message in topics["/ground_truth/odometry"]]
    assert {(m.header.frame_id, m.child_frame_id) for m in odometry} == {("odom", "base_link")}
    T_odom_base = [matrix(m.pose.pose.position, m.pose.pose.orientation) for m in odometry]
    assert np.allclose(T_odom_base[0], np.eye(4), atol=1e-9)
    for k in (1, 2):
        found = np.linalg.inv(T_odom_base[k - 1] @ T_base_camera) @ T_odom_base[k] @ T_base_camera
        expected = np.linalg.inv(scene[k - 1][1].pose) @ scene[k][1].pose
        assert np.allclose(found, expected, atol=1e-9)
    # REP 105: the car drives towards +x of odom.
    assert T_odom_base[2][0, 3] > 3 * abs(T_odom_base[2][1, 3])


def test_twist_is_the_velocity_in_base_link_and_restarts_after_a_gap(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    turned = np.eye(4)
    turned[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # the optical axis along the world's x
    ahead = turned.copy()
    ahead[:3, 3] = (1.0, 0.0, 0.0)
    far = ahead.copy()
    far[:3, 3] = (9.0, 0.0, 0.0)
    with BagWriter(tmp_path / "bag") as writer:
        for stamp, pose in ((0, turned), (100_000_000, ahead), (5_000_000_000, far)):
            writer.write(Frame(image, stamp, None), FrameTruth(pose=pose))
    twists = [m.twist.twist for _, m in messages(tmp_path / "bag")["/ground_truth/odometry"]]
    assert twists[0].linear.x == 0
    assert (twists[1].linear.x, twists[1].linear.y) == pytest.approx((10.0, 0.0), abs=1e-9)
    assert twists[1].angular.z == pytest.approx(0.0, abs=1e-9)
    assert twists[2].linear.x == 0


def test_compressed_images_are_close_and_files_are_kept_as_they_are(tmp_path, scene):
    write(tmp_path / "bag", scene, compressed=True)
    topics = messages(tmp_path / "bag")
    assert "/camera/image_raw" not in topics
    message = topics["/camera/image_raw/compressed"][1][1]
    decoded = cv2.imdecode(message.data, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
    assert message.format == "jpeg"
    assert np.abs(decoded - scene[1][0].image).mean() < 8
    file = cv2.imencode(".png", scene[0][0].image)[1].tobytes()
    with BagWriter(tmp_path / "kept", BagOptions(compressed=True)) as writer:
        writer.write(scene[0][0], encoded=("png", file))
    message = messages(tmp_path / "kept")["/camera/image_raw/compressed"][0][1]
    assert (message.format, message.data.tobytes()) == ("png", file)


def test_static_transform_is_latched(tmp_path, scene):
    write(tmp_path / "bag", scene[:1])
    with Reader(tmp_path / "bag") as reader:
        qos = next(c.ext.offered_qos_profiles for c in reader.connections if c.topic == "/tf_static")
    assert qos[0].durability.name == "TRANSIENT_LOCAL"


def test_an_existing_output_is_kept_unless_told_otherwise(tmp_path, scene):
    write(tmp_path / "bag", scene[:1])
    with pytest.raises(UsageError, match="--overwrite"):
        BagWriter(tmp_path / "bag")
    write(tmp_path / "bag", scene[:2], overwrite=True)
    assert len(messages(tmp_path / "bag")["/camera/image_raw"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag"]


def test_what_is_no_bag_is_never_deleted(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="will not be deleted"):
        BagWriter(tmp_path / "thesis", BagOptions(overwrite=True))
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_after_an_error_the_written_part_is_readable_and_the_old_bag_untouched(tmp_path, scene):
    write(tmp_path / "bag", scene[:1])
    writer = BagWriter(tmp_path / "bag", BagOptions(overwrite=True))

    def write_and_fail():
        with writer:
            writer.write(*scene[0])
            writer.write(*scene[1])
            raise RuntimeError("plug pulled")

    with pytest.raises(RuntimeError, match="pulled"):
        write_and_fail()
    assert len(messages(writer.unfinished)["/camera/image_raw"]) == 2
    assert len(messages(tmp_path / "bag")["/camera/image_raw"]) == 1


def test_unknown_storage_is_refused(tmp_path):
    with pytest.raises(UsageError, match="mcap, sqlite3"):
        BagWriter(tmp_path / "bag", BagOptions(storage="rosbag1"))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, np.pi / 2, np.pi - 1e-9, np.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, -0.48, 0.64)])
def test_quaternion_of_every_rotation(angle, axis):
    rotation = cv2.Rodrigues(np.array(axis, float) * angle)[0]
    expected = np.append(np.array(axis) * np.sin(angle / 2), np.cos(angle / 2))
    found = quaternion_from_rotation(rotation)
    assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-7
