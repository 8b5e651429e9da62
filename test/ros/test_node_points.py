"""The point cloud that the node publishes, read back by a decoder that knows only the message's own description."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rclpy.parameter import Parameter
from ros.rig import CAMERA, StubPredictor, true_depth, true_probability
from sensor_msgs.msg import PointField
from std_msgs.msg import Header

from coopnet_ros import outputs
from coopnet_ros.messages import point_cloud_message
from coopnet_ros.point_cloud import POINT_XYZ

GRID = CAMERA.scaled(32, 16)
IMAGE = np.random.default_rng(5).integers(0, 256, (CAMERA.height, CAMERA.width, 3), dtype=np.uint8)
MOVING = true_probability(GRID) >= 0.5


def read(message) -> dict[str, np.ndarray]:
    """(height, width) of every field, by its offset; rgb as an integer."""
    order = ">" if message.is_bigendian else "<"
    data, values = bytes(message.data), {}
    for field in message.fields:
        assert (field.datatype, field.count) == (PointField.FLOAT32, 1)
        code = order + ("I" if field.name == "rgb" else "f")
        starts = [
            row * message.row_step + column * message.point_step + field.offset
            for row in range(message.height)
            for column in range(message.width)
        ]
        flat = [struct.unpack_from(code, data, start)[0] for start in starts]
        values[field.name] = np.array(flat).reshape(message.height, message.width)
    return values


def expected_xyz(depth: np.ndarray) -> dict[str, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(32), np.arange(16))
    return {"x": (columns - 15.5) / 25 * depth, "y": (rows - 7.5) / 25 * depth, "z": depth}


def limited() -> np.ndarray:
    """The truth within the default range."""
    truth = true_depth(GRID)
    return np.where(truth > 100, np.nan, truth)


def assert_points(values: dict[str, np.ndarray], depth: np.ndarray) -> None:
    for name, expected in expected_xyz(depth).items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-6, err_msg=name)


def test_a_message_describes_its_points():
    points = np.zeros((3, 7), POINT_XYZ)
    points["y"][1, 4] = 2.5
    for given in (points, points.T.copy().T):  # in any memory order
        message = point_cloud_message(given, Header(frame_id="camera"))
        assert (message.height, message.width, message.point_step, message.row_step) == (3, 7, 12, 84)
        assert len(message.data) == 3 * 84
        assert [(field.name, field.offset) for field in message.fields] == [("x", 0), ("y", 4), ("z", 8)]
        assert read(message)["y"][1, 4] == 2.5
        assert sum(map(np.count_nonzero, read(message).values())) == 1
    assert message.header.frame_id == "camera"


@pytest.mark.parametrize("far_value", ["nan", "inf"])
def test_metric_points_have_the_stamp_frame_layout_positions_and_colours(make_rig, far_value):
    rig = make_rig(topics=["points", "points_relative"], max_depth=100.0, far_value=far_value)
    stamp = rig.send(1.0, IMAGE)
    message = rig.get("points", stamp)
    assert message.header.frame_id == "camera_optical_frame"
    assert (message.height, message.width) == (16, 32)
    assert (message.point_step, message.row_step, len(message.data)) == (16, 512, 8192)
    assert (message.is_bigendian, message.is_dense) == (False, False)
    assert [field.name for field in message.fields] == ["x", "y", "z", "rgb"]
    values, truth = read(message), true_depth(GRID)
    assert (truth > 100).any()
    assert_points(values, np.where(truth > 100, np.nan, truth))
    red, green, blue = np.moveaxis(IMAGE[::2, ::2].astype(int), -1, 0)
    np.testing.assert_array_equal(values["rgb"], (red << 16) + (green << 8) + blue)
    assert rig.received["points_relative"] == []


def test_without_a_scale_the_points_are_relative(make_rig):
    rig = make_rig(StubPredictor(metric=False), topics=["points", "points_relative"])
    assert_points(read(rig.get("points_relative", rig.send(1.0))), true_depth(GRID))
    assert rig.received["points"] == []


def test_a_fixed_scale_makes_the_points_metric(make_rig):
    stub = StubPredictor(metric=False)
    rig = make_rig(stub, topics=["points"], scale_source="fixed", scale=0.5, max_depth=0.0)
    assert_points(read(rig.get("points", rig.send(1.0))), 0.5 * true_depth(GRID))


def test_points_that_nobody_waits_for_are_not_computed(make_rig, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a cloud nobody wants")

    monkeypatch.setattr(outputs, "organised_cloud", refuse)
    rig = make_rig(topics=["depth/image"], always_integrate=False, points__remove_moving=True)
    for seconds in (1.0, 1.1):
        rig.get("depth/image", rig.send(seconds))
    assert [wanted for _, wanted, _ in rig.stub.calls] == [frozenset({"depth"})] * 2
    assert rig.counts.processed == 2


def test_the_points_of_the_other_scale_are_not_computed(make_rig, monkeypatch):
    rig = make_rig(topics=["points_relative"], always_integrate=False)
    monkeypatch.setattr(outputs, "organised_cloud", None)
    rig.send(1.0)
    assert rig.counts.processed == 1
    assert rig.received["points_relative"] == []


def test_points_ask_for_depth_alone_unless_what_moves_is_to_go(make_rig):
    rig = make_rig(topics=["points"], always_integrate=False)
    for seconds in (1.0, 1.1):
        assert_points(read(rig.get("points", rig.send(seconds))), limited())
    assert {wanted for _, wanted, _ in rig.stub.calls} == {frozenset({"depth"})}
    assert rig.node.set_parameters([Parameter("points.remove_moving", value=True)])[0].successful
    values = read(rig.get("points", rig.send(1.2)))
    assert rig.stub.calls[-1][1] == frozenset({"depth", "mask"})
    assert_points(values, np.where(MOVING, np.nan, limited()))


def test_what_moves_is_left_out_from_the_second_frame_on(make_rig):
    rig = make_rig(topics=["points"], points__remove_moving=True, max_depth=0.0)
    assert_points(read(rig.get("points", rig.send(1.0))), true_depth(GRID))
    assert MOVING.any()
    assert_points(read(rig.get("points", rig.send(1.1))), np.where(MOVING, np.nan, true_depth(GRID)))
    assert rig.node.set_parameters([Parameter("motion_threshold", value=0.95)])[0].successful
    assert_points(read(rig.get("points", rig.send(1.2))), true_depth(GRID))


def test_what_moves_stays_unless_it_is_to_go_even_where_the_mask_is_known(make_rig):
    rig = make_rig(topics=["points", "motion/mask"], max_depth=0.0)
    rig.send(1.0)
    stamp = rig.send(1.1)
    assert bytes(rig.get("motion/mask", stamp).data).count(255) == MOVING.sum()
    assert_points(read(rig.get("points", stamp)), true_depth(GRID))


def test_colour_and_stride_can_be_changed_while_running(make_rig):
    rig = make_rig(topics=["points"], points__stride=3, max_depth=0.0)
    message = rig.get("points", rig.send(1.0, IMAGE))
    assert (message.height, message.width, message.row_step) == (6, 11, 11 * 16)
    values = read(message)
    for name, expected in expected_xyz(true_depth(GRID)).items():
        np.testing.assert_allclose(values[name], expected[::3, ::3], rtol=1e-6)
    changes = [Parameter("points.color", value=False), Parameter("points.stride", value=1)]
    assert all(result.successful for result in rig.node.set_parameters(changes))
    message = rig.get("points", rig.send(1.1, IMAGE))
    assert [field.name for field in message.fields] == ["x", "y", "z"]
    assert (message.point_step, message.row_step, len(message.data)) == (12, 384, 6144)
    assert_points(read(message), true_depth(GRID))
    for stride in (0, 17):
        assert not rig.node.set_parameters([Parameter("points.stride", value=stride)])[0].successful
