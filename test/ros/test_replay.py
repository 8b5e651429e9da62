"""Replay of a bag into the node, and the independent subscriber, as processes and in parts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from rclpy.node import Node
from ros.rig import WAIT_S, StubPredictor, true_depth, true_flow, true_probability
from unit.bag_factory import (
    FOCAL,
    HEIGHT,
    IMAGE,
    IMAGE_TOPIC,
    INFO,
    INFO_TOPIC,
    PERIOD_NS,
    START_NS,
    WIDTH,
    camera_info,
    image,
    picture,
    write_bag,
)

from coopnet_core.data.bag import open_bag
from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_core.geometry.camera import Camera
from coopnet_ros import record_outputs
from coopnet_ros.play_bag import Player, Replay, choose_topics

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 12


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """Twelve frames at 10 Hz with their calibration, and one topic of a type nobody has."""
    messages = []
    for index in range(FRAMES):
        stamp = START_NS + index * PERIOD_NS
        messages.append((INFO_TOPIC, INFO, stamp, camera_info(stamp)))
        messages.append((IMAGE_TOPIC, IMAGE, stamp, image(picture(index), stamp)))
    path = tmp_path_factory.mktemp("replay") / "bag"
    write_bag(path, messages)
    return path


def command(ros: int, module: str, *arguments: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")]),
        "ROS_DOMAIN_ID": str(ros),
    }
    start = f"import sys; from coopnet_ros.{module} import main; sys.exit(main(sys.argv[1:]))"
    if module == "coopnet_node":
        start = (
            "import sys; from coopnet_ros.coopnet_node import main; from ros.rig import StubPredictor; "
            "sys.exit(main(sys.argv[1:], lambda request: StubPredictor()))"
        )
    return subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_replayed_bag_reaches_an_independent_subscriber_with_every_value(ros, bag, tmp_path):
    remap = ["--ros-args", "-r", f"image:={IMAGE_TOPIC}", "-r", f"camera_info:={INFO_TOPIC}"]
    node = command(ros, "coopnet_node", *remap)
    recorder = command(
        ros, "record_outputs", "--output", str(tmp_path / "out"), "--expect-frames", str(FRAMES), "--timeout", "40"
    )
    try:
        assert "Connected" in recorder.stdout.readline()  # before the replay: the first frame counts
        topics = ["--topics", IMAGE_TOPIC, INFO_TOPIC]
        player = command(ros, "play_bag", str(bag), *topics, "--wait-for-subscribers", "2", "--rate", "0.2")
        played = player.communicate(timeout=40)
        recorded = recorder.communicate(timeout=40)
    finally:
        for process in (node, recorder):
            process.terminate()
    assert player.returncode == 0, played
    assert recorder.returncode == 0, recorded
    assert node.wait(10) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["frames"] == FRAMES
    depth = summary["topics"]["/coopnet/depth/image"]
    assert (depth["type"], depth["encoding"], depth["count"]) == ("sensor_msgs/msg/Image", "32FC1", FRAMES)
    assert (depth["frame_id"], depth["width"], depth["height"]) == ("camera_optical_frame", WIDTH // 2, HEIGHT // 2)
    assert (depth["first_stamp_ns"], depth["last_stamp_ns"]) == (START_NS, START_NS + (FRAMES - 1) * PERIOD_NS)
    assert depth["rate_hz"] == pytest.approx(2.0, rel=0.3)
    assert summary["topics"]["/coopnet/depth_relative/image"]["count"] == 0
    assert summary["topics"]["/coopnet/flow/image"]["count"] == FRAMES - 1
    assert summary["topics"]["/coopnet/odom"]["child_frame_id"] == "base_link"
    diagnostics = summary["diagnostics"]
    assert (diagnostics["received"], diagnostics["processed"]) == (str(FRAMES), str(FRAMES))
    assert float(diagnostics["input_hz"]) == pytest.approx(2.0, rel=0.3)
    camera = Camera(WIDTH, HEIGHT, FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2).scaled(WIDTH // 2, HEIGHT // 2)
    for index in range(1, FRAMES):
        stamp = START_NS + index * PERIOD_NS
        with np.load(tmp_path / "out" / "frames" / f"{stamp}.npz") as saved:
            np.testing.assert_allclose(saved["depth"], np.where(true_depth(camera) > 100, np.nan, true_depth(camera)))
            np.testing.assert_allclose(saved["flow"], true_flow(camera))
            np.testing.assert_allclose(saved["probability"], true_probability(camera))
            assert saved["mask"].max() == 255
            assert saved["previous_stamp_ns"] == stamp - PERIOD_NS
            assert saved["pose"][0, 3] == pytest.approx(index)
            np.testing.assert_allclose(saved["twist"], [10, 0, 0, 0, 0, 0], atol=1e-9)


def test_a_part_is_replayed_at_its_rate_with_the_clock(make_rig, bag):
    from rosgraph_msgs.msg import Clock

    rig = make_rig(StubPredictor(), info=False)
    clocks = []
    rig.peer.create_subscription(Clock, "/clock", clocks.append, 100)
    images, infos = [], []
    from sensor_msgs.msg import CameraInfo, Image

    rig.peer.create_subscription(Image, IMAGE_TOPIC, images.append, 10)
    rig.peer.create_subscription(CameraInfo, INFO_TOPIC, infos.append, 10)
    with open_bag(bag) as opened:
        chosen, skipped = choose_topics(opened, [])
        assert skipped == []
        player = Player(rig.peer, chosen, Replay(start_s=0.3, end_s=0.9, rate=2.0, clock_hz=50.0))
        player.wait_for_subscribers(2, WAIT_S)
        began = time.monotonic()
        sent = player.play(opened)
        took = time.monotonic() - began
        player.finish()
    assert sent == 12
    assert 0.2 < took < 1.0
    rig.wait(lambda: len(images) == 6 and len(infos) == 6)
    assert images[0].header.stamp.nanosec == 300_000_000
    np.testing.assert_array_equal(np.frombuffer(images[2].data, np.uint8).reshape(HEIGHT, WIDTH, 3), picture(5))
    rig.wait(lambda: clocks)
    times = [c.clock.sec * 10**9 + c.clock.nanosec for c in clocks]
    assert times == sorted(times)
    assert times[-1] == START_NS + 8 * PERIOD_NS


def test_waiting_for_nobody_ends_with_the_topics_named(make_rig, bag):
    rig = make_rig(start=False)
    with open_bag(bag) as opened:
        player = Player(rig.peer, choose_topics(opened, [])[0], Replay())
        with pytest.raises(UsageError, match=f"0 of 1.*{IMAGE_TOPIC}"):
            player.wait_for_subscribers(1, 0.2)


def test_subscribers_that_were_found_are_given_time_to_find_the_player(make_rig, bag, monkeypatch):
    """One side may know of the other first: what is sent in between is lost to a best-effort subscriber."""
    slept = []
    rig = make_rig(start=False)
    with open_bag(bag) as opened:
        player = Player(rig.peer, choose_topics(opened, [])[0], Replay())
        monkeypatch.setattr(player, "_subscriptions", iter([1, 2]).__next__)
        clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
        monkeypatch.setattr("coopnet_ros.play_bag.time", clock)
        player.wait_for_subscribers(2, WAIT_S)
    assert len(slept) == 2
    assert slept[-1] == 0.5


def test_a_topic_that_is_not_there_is_answered_with_those_that_are(bag):
    with open_bag(bag) as opened, pytest.raises(UsageError, match=IMAGE_TOPIC):
        choose_topics(opened, ["/other"])


@pytest.mark.parametrize(("option", "loops"), [("--loop", True), ("--no-loop", False)])
def test_a_launch_file_can_say_whether_to_loop(ros, bag, option, loops):
    """The options that coopnet.launch.py gives, together with --dry-run."""
    options = ["--clock", "--wait-for-subscribers=2", "--rate=2.0", "--start=0.5", option]
    output, errors = command(ros, "play_bag", str(bag), *options, "--dry-run", "--ros-args").communicate(timeout=WAIT_S)
    title = " ".join(output.split())
    assert errors == ""
    assert "0.5 s to the end, at 2 x" in title
    assert ("in a loop" in title) == loops


def test_a_type_that_is_not_installed_is_skipped_and_named(tmp_path):
    from coopnet_core.data.bag_storage import TopicInfo

    foreign, known = TopicInfo("/tf", "none_such_msgs/msg/Thing", 3), TopicInfo("/image", IMAGE, 3)
    fake = types.SimpleNamespace(path=tmp_path, topics={"/tf": foreign, "/image": known})
    assert choose_topics(fake, []) == ([known], [foreign])
    with pytest.raises(UsageError, match="none_such_msgs"):
        choose_topics(fake, ["/tf"])


def test_the_recordings_with_malformed_images_do_not_end_the_node(make_rig, shared_data):
    """Images of 30 bytes that claim 640x480 among sound ones, sent as they were recorded."""
    folder = shared_data("rosbag2_small")
    rig = make_rig(info=False)
    rig.send_info(Camera(640, 480, 500.0, 500.0, 319.5, 239.5))
    found = 0
    for path in sorted(item for item in folder.rglob("*") if item.suffix in (".mcap", ".db3")):
        try:
            opened = open_bag(path)
        except (UsageError, NoUsableDataError):
            continue
        with opened:
            for info in opened.of_type(IMAGE):
                for message in opened.messages([info.name]):
                    before = rig.counts.received
                    rig.images.publish(bytes(message.data))
                    rig.wait(lambda before=before: rig.counts.received > before, "the image", 3.0)
                    found += 1
    assert found
    rig.wait(lambda: rig.counts.pending == 0)
    counts = rig.counts
    assert counts.rejected["malformed"] >= 1
    assert counts.processed + sum(counts.rejected.values()) + sum(counts.dropped.values()) == found


def test_bytes_that_are_no_message_do_not_end_the_node(make_rig):
    rig = make_rig()
    rig.images.publish(b"\x00\x01\x00\x00" + b"\xff" * 20)
    time.sleep(0.3)
    rig.send(1.0)
    assert rig.counts.processed == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_ends_with_code_130_however_often_it_is_asked(ros, bag, number):
    process = command(ros, "play_bag", str(bag), "--loop")
    while "messages" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_a_recording_of_so_many_frames_ends_though_more_are_coming(make_rig, monkeypatch, tmp_path):
    monkeypatch.setattr(record_outputs, "_LONGEST_END_S", 60.0)
    rig = make_rig()
    listener = Node("listener")
    recorder = record_outputs.Recorder(listener, "coopnet", tmp_path)
    options = argparse.Namespace(node_name="coopnet", timeout=60.0, idle=40.0, expect_frames=3)
    thread = threading.Thread(
        target=record_outputs._spin, args=(listener, recorder, options, lambda text: None), daemon=True
    )
    thread.start()
    rig.wait(lambda: rig.node._outputs.is_wanted("~/depth/image"))
    index, end = 0, time.monotonic() + 40.0
    while thread.is_alive() and time.monotonic() < end:
        index += 1
        rig.send(0.1 * index)
    assert not thread.is_alive(), f"still recording after {recorder.frames} frames"
    assert 3 <= recorder.frames <= index
    assert int(recorder.diagnostics["processed"]) >= 3
    listener.destroy_node()


def test_an_interrupted_recording_saves_what_arrived(make_rig, ros, tmp_path):
    rig = make_rig()
    recorder = command(ros, "record_outputs", "--output", str(tmp_path / "out"), "--timeout", "40", "--idle", "40")
    assert "Connected" in recorder.stdout.readline()
    rig.wait(lambda: rig.node._outputs.is_wanted("~/depth/image"))
    rig.send(1.0)
    time.sleep(1.0)
    recorder.send_signal(signal.SIGINT)
    output = recorder.communicate(timeout=20)
    assert recorder.returncode == 130, output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["frames"] == 1


def test_a_recording_does_not_mix_with_an_older_one(ros, tmp_path):
    (tmp_path / "old.txt").write_text("precious")
    recorder = command(ros, "record_outputs", "--output", str(tmp_path))
    _, errors = recorder.communicate(timeout=30)
    assert recorder.returncode == 2
    assert "not empty" in errors
