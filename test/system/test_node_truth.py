"""A recording with known truth through the real node: what it publishes is the truth.

The predictor returns the truth of the recording, so that whatever differs is the node's doing: the decoding of the
image, the calibration, the undistortion, the pairs, the scale, the mounting of the camera, the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from nav_msgs.msg import Odometry
from rclpy.serialization import deserialize_message
from ros.rig import TYPES, shift, turn
from ros.test_node_values import pose_of
from sensor_msgs.msg import CompressedImage, Image
from unit.image_packing import BAYER, mosaic, pack
from unit.truth_predictor import TruthPredictor

from coopnet_core.data.bag import open_bag
from coopnet_core.data.bag_writer import BagOptions, BagWriter, mount
from coopnet_core.data.frames import Frame, FrameTruth
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import Prediction
from coopnet_ros.messages import array_of, to_nanoseconds
from coopnet_ros.odometry import quaternion_from_matrix

TOPICS = [name for name in TYPES if "_relative" not in name]
CAMERA = Camera.from_field_of_view(160, 64, 80.0)
WIDE = Camera.from_field_of_view(256, 112, 80.0)
FRAMES, PERIOD_S, FAR = 12, 0.1, 100.0
AHEAD = mount(1.2, 0.0, 1.5)
LEFT_AND_DOWN = shift(0.9, -0.3, 1.1) @ turn("z", 30) @ turn("y", 20) @ mount()
"""A camera at the right of the robot that looks 30 degrees to the left and 20 degrees down."""

Drive = list[tuple[Frame, FrameTruth]]


def rendered(camera: Camera, frames: int, noise: float | None = None) -> Drive:
    """A drive with traffic: every seventh pixel moves by itself, every fifth is farther than 100 m."""
    return list(iter_rendered(SceneConfig(3, frames, camera, movers=0.2, camera_moves=True, noise=noise)))


@pytest.fixture(scope="module")
def drive() -> Drive:
    return rendered(CAMERA, FRAMES)


@pytest.fixture(scope="module")
def wide_drive() -> Drive:
    return rendered(WIDE, 4, noise=0.0)


def write(path: Path, drive: Drive, T_base_camera: np.ndarray = AHEAD) -> Path:
    with BagWriter(path, BagOptions(T_base_camera=T_base_camera)) as writer:
        for frame, truth in drive:
            writer.write(frame, truth)
    return path


@pytest.fixture(scope="module")
def bag(drive: Drive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("truth") / "bag", drive)


def without_what_leaves(prediction: Prediction) -> Prediction:
    """Flow that leaves the image is NaN, as a predictor must say."""
    if prediction.flow is None:
        return prediction
    return replace(prediction, flow=only_inside(prediction.flow))


def only_inside(flow: np.ndarray) -> np.ndarray:
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return np.where(inside[..., None], flow, np.float32(np.nan))


def play(rig, bag: Path, change: Callable[[Image], Image | CompressedImage] = lambda image: image) -> list[int]:
    """Send the recording frame by frame, each after the fate of the one before; gives the stamps.

    Args:
        rig: the node under test.
        bag: the recording.
        change: makes of the recorded image the message that is sent.
    """
    stamps = []
    with open_bag(bag) as opened:
        infos = [bytes(message.data) for message in opened.messages(["/camera/camera_info"])]
        images = [bytes(message.data) for message in opened.messages(["/camera/image_raw"])]
    for info, image in zip(infos, images, strict=True):
        rig.infos.publish(info)
        rig.wait(lambda: rig.node._camera_source is not None, "camera_info")
        stamps.append(rig.send_message(change(deserialize_message(image, Image))))
    assert rig.counts.processed == rig.counts.received == len(stamps)
    return stamps


def true_odometry(bag: Path) -> list[Odometry]:
    with open_bag(bag) as opened:
        return [
            deserialize_message(bytes(message.data), Odometry)
            for message in opened.messages(["/ground_truth/odometry"])
        ]


def cloud(message) -> dict[str, np.ndarray]:
    """x, y, z (h, w) and rgb (h, w, 3) of the points, as the message says where they lie."""
    kinds = {field.name: "<u4" if field.name == "rgb" else "<f4" for field in message.fields}
    offsets = [field.offset for field in message.fields]
    layout = {"names": list(kinds), "formats": list(kinds.values()), "offsets": offsets, "itemsize": message.point_step}
    points = np.frombuffer(message.data, np.dtype(layout)).reshape(message.height, message.width)
    packed = points["rgb"]
    colours = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)
    return {"x": points["x"], "y": points["y"], "z": points["z"], "rgb": colours}


def assert_images_are_true(rig, drive: Drive, stamps: Sequence[int]) -> None:
    """Depth, its camera, flow, mask, probability and confidence of every frame, and where the points lie."""
    for index, (stamp, (frame, truth)) in enumerate(zip(stamps, drive, strict=True)):
        limited = np.where(truth.depth > FAR, np.nan, truth.depth)
        np.testing.assert_allclose(array_of(rig.get("depth/image", stamp)), limited, rtol=1e-5)
        np.testing.assert_allclose(rig.get("depth/camera_info", stamp).k, frame.camera.matrix.reshape(-1))
        points, matrix = cloud(rig.get("points", stamp)), frame.camera.matrix
        np.testing.assert_allclose(points["z"], limited, rtol=1e-5)
        rows, columns = np.mgrid[0 : frame.camera.height, 0 : frame.camera.width]
        for name, position, axis in (("x", columns, 0), ("y", rows, 1)):
            expected = (position - matrix[axis, 2]) / matrix[axis, axis] * limited
            np.testing.assert_allclose(points[name], expected, rtol=1e-4, atol=1e-4)
        if index == 0:  # no pair
            continue
        np.testing.assert_allclose(array_of(rig.get("flow/image", stamp)), only_inside(truth.flow), atol=1e-5)
        assert to_nanoseconds(rig.get("flow/time_reference", stamp).time_ref) == stamps[index - 1]
        np.testing.assert_array_equal(array_of(rig.get("motion/mask", stamp)), np.where(truth.moving, 255, 0))
        np.testing.assert_array_equal(array_of(rig.get("motion/probability", stamp)), truth.moving)
        np.testing.assert_array_equal(array_of(rig.get("confidence", stamp)), ~truth.moving & ~truth.occluded)
    assert len(rig.received["flow/image"]) == len(rig.received["motion/mask"]) == len(stamps) - 1


def assert_odometry_is_true(rig, expected: Sequence[Odometry], stamps: Sequence[int]) -> None:
    """Poses of base_link in odom, and the speeds whose path leads from pose to pose."""
    previous = np.eye(4)
    for index, (stamp, truth) in enumerate(zip(stamps, expected, strict=True)):
        message = rig.get("odom", stamp)
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        np.testing.assert_allclose(pose_of(message), pose_of(truth), atol=1e-6)
        if index:
            np.testing.assert_allclose(previous @ driven(message.twist.twist, PERIOD_S), pose_of(truth), atol=1e-4)
        previous = pose_of(truth)
    assert np.linalg.norm(previous[:3, 3]) > 0.5 * len(stamps)


def driven(twist, seconds: float) -> np.ndarray:
    """(4, 4) where a robot of this constant twist is after some time: very many very small steps."""
    wx, wy, wz = twist.angular.x, twist.angular.y, twist.angular.z
    rate = np.zeros((4, 4))
    rate[:3, :3] = [[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]]
    rate[:3, 3] = twist.linear.x, twist.linear.y, twist.linear.z
    steps = 2**24
    return np.linalg.matrix_power(np.eye(4) + rate * seconds / steps, steps)


def mounting(T_base_camera: np.ndarray) -> dict[str, object]:
    """The parameters that say where the camera sits."""
    return {
        "base_to_camera__source": "parameters",
        "base_to_camera__translation": T_base_camera[:3, 3].tolist(),
        "base_to_camera__rotation": quaternion_from_matrix(T_base_camera[:3, :3]).tolist(),
    }


def truth_of(bag: Path, **options) -> TruthPredictor:
    return TruthPredictor(bag, **{"wrong": without_what_leaves, "unit_m": 1.0, **options})


@pytest.mark.parametrize("T_base_camera", [mount(), AHEAD, LEFT_AND_DOWN], ids=["at base", "ahead", "left and down"])
def test_every_output_is_the_truth_wherever_the_camera_sits(make_rig, drive, tmp_path, T_base_camera):
    bag = write(tmp_path / "bag", drive, T_base_camera)
    rig = make_rig(truth_of(bag), topics=TOPICS, info=False, **mounting(T_base_camera))
    stamps = play(rig, bag)
    assert_images_are_true(rig, drive, stamps)
    assert_odometry_is_true(rig, true_odometry(bag), stamps)
    assert rig.stub.warmed == [CAMERA]


def test_networks_of_another_unit_give_metres_at_a_fixed_scale(make_rig, drive, bag):
    stub = truth_of(bag, unit_m=2.0)
    assert not stub.metric
    rig = make_rig(stub, topics=TOPICS, info=False, scale_source="fixed", scale=2.0, **mounting(AHEAD))
    stamps = play(rig, bag)
    assert_images_are_true(rig, drive, stamps)
    assert_odometry_is_true(rig, true_odometry(bag), stamps)


# ---------------------------------------------------------------------- encodings

ENCODINGS = [
    ("rgb8", 6, False),
    ("bgr8", 0, False),
    ("rgba8", 0, False),
    ("bgra8", 4, False),
    ("mono8", 0, False),
    ("mono16", 6, True),
    ("rgb16", 10, True),
    ("bgr16", 0, False),
    ("rgba16", 0, True),
    ("bayer_rggb8", 0, False),
    ("bayer_gbrg8", 10, False),
    ("bayer_grbg16", 6, True),
    ("bayer_bggr16", 0, False),
    ("yuv422", 0, False),
    ("yuv422_yuy2", 12, False),
    ("nv12", 8, False),
    ("nv21", 0, False),
    ("nv24", 0, False),
]
"""Name, bytes of padding behind each row, big endian."""


@pytest.mark.parametrize(("encoding", "padding", "bigendian"), ENCODINGS, ids=[name for name, _, _ in ENCODINGS])
def test_every_frame_of_an_encoding_is_answered_with_the_truth(make_rig, drive, bag, encoding, padding, bigendian):
    height, width = CAMERA.height, CAMERA.width
    packed = [pack(encoding, height, width, padding, bigendian, frame.image) for frame, _ in drive]
    sent = iter(packed)

    def change(image: Image) -> Image:
        new = next(sent)
        image.encoding, image.step, image.is_bigendian, image.data = encoding, new.step, new.is_bigendian, new.data
        return image

    rig = make_rig(truth_of(bag), topics=TOPICS, info=False, **mounting(AHEAD))
    stamps = play(rig, bag, change)
    assert_images_are_true(rig, drive, stamps)
    assert_odometry_is_true(rig, true_odometry(bag), stamps)
    for stamp, expected in zip(stamps, packed, strict=True):
        colours = cloud(rig.get("points", stamp))["rgb"]
        if encoding.startswith("bayer"):  # what the sensor saw is kept, the rest is interpolated
            pattern = BAYER[encoding[6:10]]
            inner = slice(1, -1), slice(1, -1)
            seen, kept = (mosaic(pattern, picture)[inner].astype(int) for picture in (expected.picture, colours))
            assert np.abs(kept - seen).max() <= expected.tolerance
            assert np.abs(colours - expected.picture.astype(int)).mean() < 6
        else:
            assert expected.difference(colours) <= expected.tolerance


@pytest.mark.parametrize(("extension", "tolerance"), [("png", 0.0), ("jpg", 4.0)])
def test_every_compressed_frame_is_answered_with_the_truth(make_rig, drive, bag, extension, tolerance):
    def change(image: Image) -> CompressedImage:
        pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
        data = cv2.imencode(f".{extension}", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        return CompressedImage(header=image.header, format=f"rgb8; {extension} compressed bgr8", data=data)

    parameters = {"image_transport": "compressed", **mounting(AHEAD)}
    rig = make_rig(truth_of(bag), topics=TOPICS, info=False, **parameters)
    stamps = play(rig, bag, change)
    assert_images_are_true(rig, drive, stamps)
    assert_odometry_is_true(rig, true_odometry(bag), stamps)
    for stamp, (frame, _) in zip(stamps, drive, strict=True):
        colours = cloud(rig.get("points", stamp))["rgb"]
        assert np.abs(colours - frame.image.astype(int)).mean() <= tolerance


# ---------------------------------------------------------------------- other grids and lenses

LENSES = [
    ("plumb_bob", (-0.25, 0.08, 0.001, -0.001, 0.0)),
    ("rational_polynomial", (0.1, -0.05, 0.002, 0.001, 0.01, 0.3, -0.02, 0.005)),
    ("equidistant", (0.05, -0.01, 0.002, 0.0)),
]


def distorted(camera: Camera, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels where a lens shows the ray (x, y, 1), by the formulas that CameraInfo refers to."""
    if camera.distortion_model == "equidistant":
        radius = np.hypot(x, y)
        angle = np.arctan(radius)
        powers = sum(k * angle ** (2 * n + 2) for n, k in enumerate(camera.distortion))
        stretch = np.where(radius > 1e-9, angle * (1 + powers) / np.maximum(radius, 1e-9), 1)
        return camera.fx * stretch * x + camera.cx, camera.fy * stretch * y + camera.cy
    k1, k2, p1, p2, k3, k4, k5, k6 = (*camera.distortion, *(0.0,) * 3)[:8]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return (
        camera.fx * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + camera.cx,
        camera.fy * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + camera.cy,
    )


def rays_of(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z of every pixel of a camera with a lens: the inverse of `distorted`."""
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width].astype(float)
    pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
    coefficients = np.array(camera.distortion)
    undistort = cv2.fisheye.undistortPoints if camera.distortion_model == "equidistant" else cv2.undistortPoints
    x, y = undistort(pixels, camera.matrix, coefficients).reshape(camera.height, camera.width, 2).transpose(2, 0, 1)
    return x, y


def seen_at(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The colours of an image at pixels that need not be whole, bilinear."""
    return cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)


def assert_points_are_where_the_scene_is(
    points: dict[str, np.ndarray], frame: Frame, truth: FrameTruth, grey_levels: float
) -> None:
    """Every point has the depth and the colour that the rendered camera sees in its direction.

    Args:
        points: as published; their grid is of no account here.
        frame, truth: of the rendered camera, in whose view all of them lie.
        grey_levels: mean difference of the colours that resampling explains.
    """
    known, camera = np.isfinite(points["z"]), frame.camera
    x, y = (np.nan_to_num(points[name] / points["z"]) for name in ("x", "y"))
    u, v = camera.fx * x + camera.cx, camera.fy * y + camera.cy
    assert (u[known].min(), v[known].min()) > (0, 0)
    assert (u[known].max() < camera.width - 1) & (v[known].max() < camera.height - 1)
    true_depth = truth.depth[np.rint(v).astype(int), np.rint(u).astype(int)]
    wrong = np.abs(points["z"] / true_depth - 1)[known] > 0.02
    assert known.mean() > 0.5
    assert wrong.mean() < 0.03  # at the edges of things either side may be hit
    difference = np.abs(seen_at(frame.image, u, v).astype(float) - points["rgb"])[known]
    assert difference.mean() < grey_levels


@pytest.mark.parametrize(("model", "coefficients"), LENSES, ids=[model for model, _ in LENSES])
def test_through_a_lens_points_lie_where_the_scene_is(make_rig, wide_drive, tmp_path, model, coefficients):
    """The rendered images, as a camera with this lens would take them."""
    lens = Camera(160, 64, 120.0, 121.0, 81.0, 30.0, model, coefficients)
    x, y = rays_of(lens)
    rows, columns = np.mgrid[0 : lens.height, 0 : lens.width]
    assert np.abs(np.stack(distorted(lens, x, y)) - (columns, rows)).max() < 0.01
    assert np.hypot(lens.fx * x + lens.cx - columns, lens.fy * y + lens.cy - rows).max() > 3  # it bends indeed
    taken = [
        (replace(frame, image=seen_at(frame.image, WIDE.fx * x + WIDE.cx, WIDE.fy * y + WIDE.cy), camera=lens), truth)
        for frame, truth in wide_drive
    ]
    bag = write(tmp_path / "bag", taken)
    rig = make_rig(truth_of(bag, truth_camera=WIDE), topics=TOPICS, info=False, **mounting(AHEAD))
    stamps = play(rig, bag)
    assert_odometry_is_true(rig, true_odometry(bag), stamps)
    for index, (stamp, (frame, truth)) in enumerate(zip(stamps, wide_drive, strict=True)):
        points = cloud(rig.get("points", stamp))
        assert_points_are_where_the_scene_is(points, frame, truth, grey_levels=4)
        assert_points_are_where_the_lens_shows_them(points, taken[index][0], grey_levels=4)
        info = rig.get("depth/camera_info", stamp)
        assert not any(info.d)
        if index:
            assert_flow_leads_to_the_same_place(rig.get("flow/image", stamp), info, truth)


def assert_points_are_where_the_lens_shows_them(points: dict, taken: Frame, grey_levels: float) -> None:
    """The colours of the points are those of the image that was sent, at the pixels where the lens shows them."""
    x, y = (np.nan_to_num(points[name] / points["z"]) for name in ("x", "y"))
    u, v = distorted(taken.camera, x, y)
    known = np.isfinite(points["z"])
    assert np.abs(seen_at(taken.image, u, v).astype(float) - points["rgb"])[known].mean() < grey_levels


def assert_flow_leads_to_the_same_place(message, info, truth: FrameTruth) -> None:
    """The flow is the rendered camera's, in the pixels of the published one."""
    flow = array_of(message)
    focal, centre = np.array([info.k[0], info.k[4]]), np.array([info.k[2], info.k[5]])
    pixels = np.stack(np.mgrid[0 : message.height, 0 : message.width][::-1], axis=-1)
    zoom = focal / (WIDE.fx, WIDE.fy)
    columns, rows = np.moveaxis(np.rint((pixels - centre) / zoom + (WIDE.cx, WIDE.cy)).astype(int), -1, 0)
    known = np.isfinite(flow).all(axis=-1)
    assert known.mean() > 0.7
    assert np.median(np.abs(flow[known])) > 0.3
    wrong = np.abs(flow - zoom * truth.flow[rows, columns]).max(axis=-1) > 0.05
    assert wrong[known].mean() < 0.02


def test_networks_of_another_size_see_a_part_and_camera_info_says_which(make_rig, wide_drive, tmp_path):
    bag = write(tmp_path / "bag", wide_drive)
    stub = truth_of(bag, size=(120, 40), truth_camera=WIDE)
    rig = make_rig(stub, topics=TOPICS, info=False, **mounting(AHEAD))
    stamps = play(rig, bag)
    for index, (stamp, (frame, truth)) in enumerate(zip(stamps, wide_drive, strict=True)):
        info = rig.get("depth/camera_info", stamp)
        assert (info.width, info.height) == (120, 40)
        points = cloud(rig.get("points", stamp))
        assert points["z"].shape == (40, 120)
        assert_points_are_where_the_scene_is(points, frame, truth, grey_levels=4)
        if index:
            assert_flow_leads_to_the_same_place(rig.get("flow/image", stamp), info, truth)
