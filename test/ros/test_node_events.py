"""Frames that are late, early, broken or of another size; services; counters: the node lives and says why."""

from __future__ import annotations

import numpy as np
import pytest
from ros.rig import CAMERA, SECOND, StubPredictor, shift
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import SetBool, Trigger

from coopnet_core.errors import CheckpointError
from coopnet_ros.messages import header_at


def adds_up(rig) -> bool:
    counts = rig.counts
    return counts.received == counts.processed + sum(counts.dropped.values()) + sum(counts.rejected.values())


def test_an_image_that_is_out_of_order_is_ignored_and_counted(make_rig):
    rig = make_rig()
    rig.send(1.0)
    rig.send(1.2)
    rig.send(1.1)
    rig.send(1.2)
    rig.send(1.3)
    assert [stamp for stamp, _, _ in rig.stub.calls] == [SECOND, 1_200_000_000, 1_300_000_000]
    assert rig.counts.rejected["out_of_order"] == 2
    assert rig.counts.events["jumps"] == 0
    assert adds_up(rig)


def test_a_loop_shorter_than_the_threshold_is_played_on(make_rig):
    rig = make_rig()
    for _ in range(3):
        for seconds in (1.0, 1.2, 1.4, 1.6):
            rig.send(seconds)
    assert rig.counts.rejected["out_of_order"] == 4
    assert rig.counts.processed == 8
    assert rig.counts.events["jumps"] == 2
    assert adds_up(rig)


def test_a_bag_that_loops_drops_the_pair_keeps_the_pose_and_is_said_once(make_rig, warnings):
    rig = make_rig(topics=["odom"])
    for seconds in (10.0, 10.1, 10.2):
        rig.send(seconds)
    before = rig.get("odom", 10_200_000_000).pose.pose.position.x
    lost = rig.get("odom", rig.send(1.0))
    assert lost.pose.pose.position.x == pytest.approx(before) == pytest.approx(2.0)
    assert lost.pose.covariance[0] == lost.twist.covariance[0] == 9999.0
    again = rig.get("odom", rig.send(1.1))
    assert again.pose.pose.position.x == pytest.approx(3.0)
    assert 0 < again.pose.covariance[0] < 9999.0
    rig.send(1.2)
    rig.send(0.05)
    assert rig.counts.events["jumps"] == 2
    assert len([text for text in warnings if "Time went back" in text]) == 1
    assert rig.stub.resets >= 2


def test_after_a_gap_a_frame_has_depth_only(make_rig, warnings):
    rig = make_rig(topics=["depth/image", "flow/image", "odom"])
    rig.send(1.0)
    rig.send(1.1)
    late = rig.send(3.0)
    rig.get("depth/image", late)
    assert rig.get("odom", late).pose.covariance[0] == 9999.0
    after = rig.send(3.1)
    rig.get("flow/image", after)
    assert [m.header.stamp.sec for m in rig.received["flow/image"]] == [1, 3]
    # the speed was 10 m/s: what it may have covered in the 1.9 s stays in the variance
    assert rig.get("odom", after).pose.covariance[0] == pytest.approx(19.0**2, rel=0.01)
    assert rig.counts.events["gaps"] == 1
    assert any("max_pair_gap" in text for text in warnings)


def test_another_size_re_derives_everything_and_drops_the_pair(make_rig):
    rig = make_rig(topics=["depth/image", "depth/camera_info", "flow/image"])
    rig.send(1.0)
    rig.send(1.1)
    larger = CAMERA.scaled(128, 64)
    big = np.zeros((64, 128, 3), np.uint8)
    rig.send(1.2, big)
    assert rig.counts.rejected["size_mismatch"] == 1
    rig.send_info(larger)
    stamp = rig.send(1.3, big)
    assert rig.get("depth/image", stamp).width == rig.get("depth/camera_info", stamp).width == 64
    assert rig.get("depth/camera_info", stamp).k[0] == pytest.approx(50.0)
    rig.get("flow/image", rig.send(1.4, big))
    assert [m.width for m in rig.received["flow/image"]] == [32, 64]
    assert rig.counts.events["camera_changes"] == 1
    assert [camera.width for camera in rig.stub.warmed] == [64, 128]


def test_another_k_of_the_same_size_drops_the_pair(make_rig):
    rig = make_rig(topics=["flow/image"])
    rig.send(1.0)
    rig.send(1.1)
    rig.send_info(None, k=[60.0, 0.0, 31.5, 0.0, 60.0, 15.5, 0.0, 0.0, 1.0])
    rig.send(1.2)
    rig.get("flow/image", rig.send(1.3))
    assert len(rig.received["flow/image"]) == 2
    assert rig.counts.events["camera_changes"] == 1


def test_region_and_binning_of_camera_info_are_honoured(make_rig):
    rig = make_rig(topics=["depth/camera_info"], info=False)
    from sensor_msgs.msg import RegionOfInterest

    roi = RegionOfInterest(x_offset=10, y_offset=4, width=128, height=64)
    rig.send_info(CAMERA.scaled(200, 80), roi=roi, binning_x=2, binning_y=2)
    info = rig.get("depth/camera_info", rig.send(1.0))
    full = CAMERA.scaled(200, 80)
    expected = full.cropped(10, 4, 128, 64).scaled(64, 32).scaled(32, 16)
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), expected.matrix)


def test_the_image_before_the_first_camera_info_is_not_lost(make_rig):
    rig = make_rig(topics=["depth/image"], info=False, max_pair_gap=20.0)
    rig.send(1.0, settle=False)
    stamp = rig.send(1.1, settle=False)
    assert rig.counts.rejected["no_camera_info"] == 1
    assert rig.counts.pending == 1
    rig.send_info(CAMERA)
    rig.get("depth/image", stamp)
    assert adds_up(rig)


def test_an_uncalibrated_camera_is_said_once_and_recovers(make_rig, warnings):
    rig = make_rig(info=False)
    rig.send_info(None, k=[0.0] * 9)
    for index in range(3):
        rig.send(1.0 + 0.1 * index)
    assert rig.counts.rejected["uncalibrated"] == 3
    assert len([text for text in warnings if "uncalibrated" in text]) == 1
    assert "uncalibrated" in rig.status()["message"]
    rig.send_info(CAMERA)
    rig.send(1.4)
    assert rig.counts.processed == 1


def test_an_unknown_distortion_model_is_refused_with_the_reason(make_rig, warnings):
    rig = make_rig(info=False)
    rig.send_info(None, distortion_model="magic", d=[0.1, 0.0])
    rig.send(1.0)
    assert rig.counts.rejected["bad_camera_info"] == 1
    assert any("magic" in text and "plumb_bob" in text for text in warnings)


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"data": b"123"}, "malformed", "3"),
        ({"step": 10}, "malformed", "step"),
        ({"width": 0}, "malformed", "0x"),
        ({"encoding": "8UC7"}, "unknown_encoding", "bgr8"),
        ({"encoding": "32FC1"}, "unknown_encoding", "depth"),
    ],
)
def test_a_broken_image_is_dropped_with_the_reason_and_the_next_one_works(make_rig, warnings, changes, reason, says):
    rig = make_rig()
    rig.send(1.0, **changes)
    assert rig.counts.rejected[reason] == 1
    assert any(says in text for text in warnings)
    rig.send(1.1)
    assert rig.counts.processed == 1
    assert adds_up(rig)


def test_a_broken_compressed_image_is_dropped(make_rig):
    rig = make_rig(image_transport="compressed")
    rig.send_message(CompressedImage(header=header_at(SECOND, "camera"), format="jpeg", data=b"\xff\xd8\xff junk"))
    assert rig.counts.rejected["malformed"] == 1


def test_padded_rows_are_read(make_rig):
    rig = make_rig()
    rows = np.full((CAMERA.height, CAMERA.width * 3 + 5), 9, np.uint8)
    rows[:, : CAMERA.width * 3] = 7
    rig.send(1.0, step=CAMERA.width * 3 + 5, data=rows.tobytes())
    assert (rig.stub.calls[0][2].image == 7).all()


def test_an_inference_error_drops_the_frame_and_the_node_recovers(make_rig, warnings):
    rig = make_rig(topics=["odom"])
    rig.send(1.0)
    rig.send(1.1)
    rig.stub.fails = True
    rig.send(1.2)
    status = rig.status()
    assert status["level"] == 2
    assert "degraded" in status["message"]
    assert any("out of memory" in text and "input_width" in text for text in warnings)
    rig.stub.fails = False
    lost = rig.get("odom", rig.send(1.3))
    assert lost.pose.covariance[0] == 9999.0
    assert rig.get("odom", rig.send(1.4)).pose.pose.position.x == pytest.approx(2.0)
    assert rig.status()["message"] == "running"
    assert rig.counts.rejected["inference_error"] == 1
    assert adds_up(rig)


def test_the_newest_frame_wins_while_the_networks_are_busy(make_rig):
    rig = make_rig(StubPredictor(delay_s=0.3))
    for index in range(5):
        rig.send(1.0 + 0.1 * index, settle=False)
    rig.wait(lambda: rig.counts.pending == 0)
    stamps = [stamp for stamp, _, _ in rig.stub.calls]
    assert stamps[-1] == 1_400_000_000
    assert len(stamps) < 5
    assert rig.counts.dropped["newer_frame"] == 5 - len(stamps)
    assert adds_up(rig)


def test_diagnostics_hold_the_counters_and_latencies(make_rig):
    rig = make_rig(topics=["depth/image"])
    for index in range(3):
        rig.send(1.0 + 0.1 * index)
    rig.send(1.0)
    rig.wait(lambda: rig.counts.rejected["out_of_order"] == 1)
    status = rig.status()
    assert (status["received"], status["processed"], status["rejected"], status["dropped"]) == ("4", "3", "1", "0")
    assert status["infer_ms.p50"] == "1.5"
    assert float(status["total_ms.p95"]) > 0
    assert status["state"] == "active"
    assert status["metric"] == "true"
    assert float(status["memory_mb"]) > 10


def test_reset_drops_the_pair_and_keeps_the_pose(make_rig):
    rig = make_rig(topics=["odom"])
    rig.send(1.0)
    rig.send(1.1)
    assert rig.call(Trigger, "reset").success
    assert rig.get("odom", rig.send(1.2)).pose.pose.position.x == pytest.approx(1.0)
    assert rig.get("odom", rig.send(1.3)).pose.pose.position.x == pytest.approx(2.0)
    assert rig.counts.events["resets"] == 1


def test_disabled_frames_are_dropped_and_counted(make_rig):
    rig = make_rig()
    rig.send(1.0)
    assert rig.call(SetBool, "enable", SetBool.Request(data=False)).success
    rig.send(1.1)
    assert rig.counts.dropped["disabled"] == 1
    assert rig.status()["state"] == "disabled"
    rig.call(SetBool, "enable", SetBool.Request(data=True))
    rig.send(1.2)
    assert rig.counts.processed == 2


def test_a_checkpoint_that_cannot_be_read_does_not_replace_the_old_one(make_rig):
    good, better = StubPredictor(), StubPredictor(motion=shift(0.0, 0.0, 5.0))

    def load(request):
        if request.checkpoint == "bad.safetensors":
            raise CheckpointError("bad.safetensors holds no networks of this package.")
        return better if request.checkpoint == "better.safetensors" else good

    from rclpy.parameter import Parameter

    rig = make_rig(load=load, topics=["odom"])
    rig.send(1.0)
    rig.node.set_parameters([Parameter("checkpoint", value="bad.safetensors")])
    answer = rig.call(Trigger, "load_checkpoint")
    assert not answer.success
    assert "holds no networks" in answer.message
    assert "kept" in answer.message
    rig.send(1.1)
    assert len(good.calls) == 2
    rig.node.set_parameters([Parameter("checkpoint", value="better.safetensors")])
    answer = rig.call(Trigger, "load_checkpoint")
    assert answer.success
    assert "better.safetensors" in answer.message
    rig.send(1.2)
    position = rig.get("odom", rig.send(1.3)).pose.pose.position.x
    assert position == pytest.approx(6.0)
    assert [stamp for stamp, _, _ in better.calls][-2:] == [1_200_000_000, 1_300_000_000]
    assert rig.status()["checkpoint"] == "better.safetensors"


def test_silence_is_explained_once_with_topics_publishers_and_qos(make_rig, warnings):
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    rig = make_rig(image_reliability="reliable", no_data_timeout=1.0, start=False)
    rig.peer.destroy_publisher(rig.images)
    rig.peer.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    rig.wait(lambda: rig.node.get_publishers_info_by_topic("/image"))
    assert rig.node.start()
    rig.wait(lambda: any("QoS mismatch" in text for text in warnings), "the warning")
    text = next(text for text in warnings if "QoS mismatch" in text)
    assert "/image" in text
    assert "/peer" in text
    rig.status()
    rig.status()
    assert len([text for text in warnings if "QoS mismatch" in text]) == 1
    assert len([text for text in warnings if "/camera_info" in text]) == 1


def test_images_without_stamps_are_refused_with_the_reason(make_rig, warnings):
    rig = make_rig()
    rig.send(0.0)
    rig.send(0.0)
    assert rig.counts.rejected["out_of_order"] == 2
    assert rig.stub.calls == []
    assert len([text for text in warnings if "header.stamp" in text]) == 1
