"""Codecs of public data sets, against files packed here byte by byte."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from coopnet_core.data.truth_files import read_depth, read_flow, read_image, read_poses
from coopnet_core.errors import UsageError


def test_kitti_flow_png_holds_u_v_valid_in_its_first_second_third_channel(tmp_path):
    rgb = np.zeros((2, 3, 3), np.uint16)
    rgb[0, 1] = (32768 + 64 * 5, 32768 - 32, 1)
    cv2.imwrite(str(tmp_path / "flow.png"), rgb[..., ::-1])
    flow = read_flow(tmp_path / "flow.png")
    assert flow.dtype == np.float32
    assert flow[0, 1].tolist() == [5.0, -0.5]
    assert np.isnan(flow).sum() == 10


def test_flo_is_read_row_by_row_and_its_unknown_becomes_nan(tmp_path):
    values = [1.5, -2.0, 1e10, 1e10, 0.0, 0.25]
    (tmp_path / "a.flo").write_bytes(b"PIEH" + struct.pack("<ii6f", 3, 1, *values))
    flow = read_flow(tmp_path / "a.flo")
    assert flow.shape == (1, 3, 2)
    assert flow[0, 0].tolist() == [1.5, -2.0]
    assert np.isnan(flow[0, 1]).all()
    assert flow[0, 2].tolist() == [0.0, 0.25]


@pytest.mark.parametrize("data", [b"", b"PIEH", b"XXXX" + bytes(40), b"PIEH" + struct.pack("<iif", 3, 1, 1.0)])
def test_broken_flo_is_refused(tmp_path, data):
    (tmp_path / "a.flo").write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.flo"):
        read_flow(tmp_path / "a.flo")


def test_depth_png_is_scaled_and_zero_is_unknown(tmp_path):
    cv2.imwrite(str(tmp_path / "d.png"), np.array([[0, 256, 640]], np.uint16))
    depth = read_depth(tmp_path / "d.png", 256)
    assert np.isnan(depth[0, 0])
    assert depth[0, 1:].tolist() == [1.0, 2.5]
    assert read_depth(tmp_path / "d.png", 64)[0, 1] == 4.0


def test_depth_of_8_bits_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "d.png"), np.zeros((2, 2), np.uint8))
    with pytest.raises(UsageError, match="16-bit"):
        read_depth(tmp_path / "d.png", 256)
    with pytest.raises(UsageError, match="16-bit"):
        read_flow(tmp_path / "d.png")


def test_colour_is_rgb_and_grey_stays_grey(tmp_path):
    cv2.imwrite(str(tmp_path / "c.png"), np.full((1, 1, 3), (10, 20, 30), np.uint8))
    cv2.imwrite(str(tmp_path / "g.png"), np.full((2, 1), 7, np.uint8))
    assert read_image(tmp_path / "c.png").tolist() == [[[30, 20, 10]]]
    assert read_image(tmp_path / "g.png").tolist() == [[7], [7]]


def test_empty_and_foreign_images_are_refused_by_name(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("empty.jpg", "text.jpg", "absent.jpg"):
        with pytest.raises(UsageError, match=name):
            read_image(tmp_path / name)


def test_kitti_rows_are_camera_to_world(tmp_path):
    (tmp_path / "p.txt").write_text("1 0 0 4 0 1 0 5 0 0 1 6\n\n0 0 1 0 0 1 0 0 -1 0 0 2\n")
    times, poses = read_poses(tmp_path / "p.txt")
    assert times is None
    assert poses[0, :3, 3].tolist() == [4, 5, 6]
    # The second camera looks along the world's x.
    assert (poses[1, :3, :3] @ [0, 0, 1]).tolist() == [1, 0, 0]
    assert poses[1, 3].tolist() == [0, 0, 0, 1]


def test_tum_rows_are_time_position_quaternion(tmp_path):
    half = np.sqrt(0.5)
    (tmp_path / "p.txt").write_text(f"# timestamp tx ty tz qx qy qz qw\n12.5 1 2 3 0 {half} 0 {half}\n")
    times, poses = read_poses(tmp_path / "p.txt")
    assert times.tolist() == [12.5]
    assert poses[0, :3, 3].tolist() == [1, 2, 3]
    # A quarter turn about y takes z to x.
    assert np.allclose(poses[0, :3, :3] @ [0, 0, 1], [1, 0, 0])


@pytest.mark.parametrize("text", ["", "# only a comment\n", "1 2 3\n", "a b c\n", "1 0 0 4 0 1 0 5 0 0 1 nan\n"])
def test_other_pose_files_are_refused(tmp_path, text):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UsageError, match=r"p\.txt"):
        read_poses(tmp_path / "p.txt")
