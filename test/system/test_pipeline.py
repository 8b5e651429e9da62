"""The whole pipeline on a tiny rendered recording: render, train, live node, evaluate, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ros_domain import own_domain

pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = {
    "depth_relative/image": ("sensor_msgs/msg/Image", "32FC1"),
    "depth_relative/camera_info": ("sensor_msgs/msg/CameraInfo", ""),
    "depth/color": ("sensor_msgs/msg/Image", "rgb8"),
    "odom": ("nav_msgs/msg/Odometry", ""),
    "flow/image": ("sensor_msgs/msg/Image", "32FC2"),
    "flow/time_reference": ("sensor_msgs/msg/TimeReference", ""),
    "flow/color": ("sensor_msgs/msg/Image", "rgb8"),
    "motion/mask": ("sensor_msgs/msg/Image", "mono8"),
    "motion/probability": ("sensor_msgs/msg/Image", "32FC1"),
    "confidence": ("sensor_msgs/msg/Image", "32FC1"),
}
FRAMES, TESTED = 30, 12


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The result folder of a demo that is as short as can be."""
    output = tmp_path_factory.mktemp("demo") / "result"
    profile = str(REPOSITORY / "config" / "fastdds_image_profile.xml")
    environment = {
        **os.environ,
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }
    # One image per second: what is tested is what arrives, not how fast a busy machine is.
    arguments = ["--frames", FRAMES, "--size", "192x64", "--steps", 10, "--rate", 0.1, "--device", "cpu", "--scratch"]
    command = [sys.executable, "-m", "coopnet_ros.demo", "--output", output, *arguments]
    with own_domain() as domain:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=REPOSITORY,
            env=environment | {"ROS_DOMAIN_ID": str(domain)},
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return output


@pytest.fixture(scope="module")
def report(demo) -> dict:
    return json.loads((demo / "report.json").read_text())


def test_every_step_was_done(report):
    assert report["complete"]
    assert report["failure"] is None
    assert report["recording"]["train_images"] == [0, FRAMES - TESTED]
    assert report["recording"]["test_images"] == [FRAMES - TESTED, FRAMES]
    assert all(seconds >= 0 for seconds in report["seconds"].values())


def test_training_left_its_run(demo):
    for name in ("config.yaml", "metrics.jsonl", "state.pt", "checkpoints/last.safetensors"):
        assert (demo / "run" / name).is_file()


def test_the_evaluation_has_the_stable_keys_and_exact_truth(report):
    after = report["after"]
    assert after["counts"]["frames"] == TESTED
    for name in ("depth.abs_rel", "depth.a1", "odometry.rotation_deg_per_frame", "flow.epe", "flow.fl_pct"):
        part, key = name.split(".")
        assert after[part][key] is not None, name
    assert after["reasons"]["odometry.t_err_pct"]
    assert "before" in report
    assert report["before"] is None


@pytest.mark.parametrize("topic", TYPES)
def test_the_independent_subscriber_received(report, topic):
    received = report["received"]["topics"][f"/coopnet/{topic}"]
    assert received["count"] >= TESTED // 2
    assert (received["type"], received["encoding"]) == TYPES[topic]
    assert received["frame_id"] == ("odom" if topic == "odom" else "camera_optical_frame")
    if "width" in received and received["encoding"]:
        assert received["width"] % 32 == received["height"] % 32 == 0
    # Rendered images stand 0.1 s apart, from 1 s on: the stamps are those of the images, exactly.
    assert (received["last_stamp_ns"] - 1_000_000_000) % 100_000_000 == 0


def test_unknown_scale_is_not_sold_as_metres(report):
    assert report["received"]["topics"]["/coopnet/depth/image"]["count"] == 0
    assert report["received"]["diagnostics"]["metric"] == "false"


def test_live_and_offline_predictions_agree(report):
    live, offline = report["live"], report["after"]
    if report["received"]["frames"] < TESTED:
        pytest.skip(f"{report['received']['frames']} of {TESTED} frames were processed: other pairs than offline")
    assert live["depth"]["abs_rel"] == pytest.approx(offline["depth"]["abs_rel"], rel=0.1)
    assert live["flow"]["epe"] == pytest.approx(offline["flow"]["epe"], rel=0.1)


def test_the_page_holds_its_pictures(demo):
    page = (demo / "report.html").read_text()
    assert page.count("data:image/") >= 5
    assert "http://" not in page
    assert "https://" not in page
    for name in ("live_panel.png", "live.webp", "curves.png"):
        assert (demo / name).stat().st_size > 1000
