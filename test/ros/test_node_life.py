"""Transitions, parameters, the mounting, and the executable as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros.rig import StubPredictor

from coopnet_core.errors import CheckpointError, UsageError
from coopnet_ros.parameter_server import declare
from coopnet_ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]


def change(rig, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    return rig.call(ChangeState, "change_state", request).success


def state(rig) -> str:
    return rig.call(GetState, "get_state").current_state.label


def test_all_transitions_are_clean_and_repeatable(make_rig):
    rig = make_rig(start=False, autostart=False)
    assert state(rig) == "unconfigured"
    for round_number in range(2):
        assert change(rig, Transition.TRANSITION_CONFIGURE)
        assert change(rig, Transition.TRANSITION_ACTIVATE)
        rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
        from ros.rig import CAMERA

        rig.send_info(CAMERA)
        rig.send(1.0 + round_number)
        assert rig.counts.processed == round_number + 1
        assert change(rig, Transition.TRANSITION_DEACTIVATE)
        rig.wait(lambda: rig.images.get_subscription_count() == 0)
        assert state(rig) == "inactive"
        assert change(rig, Transition.TRANSITION_CLEANUP)
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    assert change(rig, Transition.TRANSITION_INACTIVE_SHUTDOWN)
    assert state(rig) == "finalized"


def test_a_checkpoint_that_cannot_be_loaded_leaves_the_node_unconfigured(make_rig):
    def load(request):
        raise CheckpointError("no such file")

    rig = make_rig(start=False, load=load)
    assert not change(rig, Transition.TRANSITION_CONFIGURE)
    assert state(rig) == "unconfigured"


def test_parameters_have_descriptions_and_refuse_with_a_reason(make_rig):
    rig = make_rig()
    request = DescribeParameters.Request(names=[spec.name for spec in PARAMETERS])
    descriptors = rig.call(DescribeParameters, "describe_parameters", request).descriptors
    assert all(descriptor.description for descriptor in descriptors)
    for name, value, says in (
        ("max_pair_gap", -1.0, "max_pair_gap"),
        ("scale_source", "guess", "none, fixed"),
        ("device", "cpu", "read-only"),
        ("color.depth_near", 90.0, "smaller"),
        ("motion_threshold", "high", "type"),
    ):
        result = rig.node.set_parameters([Parameter(name, value=value)])[0]
        assert not result.successful, name
        assert says in result.reason, result.reason
    assert rig.node.set_parameters([Parameter("max_pair_gap", value=2.0)])[0].successful
    rig.send(1.0)
    rig.send(2.5)
    assert rig.counts.events["gaps"] == 0


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"image_transport": "theora"}, "image_transport"),
        ({"max_pair_gap": 0.0}, "max_pair_gap"),
        ({"scale": "big"}, "scale"),
        ({"base_to_camera__rotation": [0.0, 0.0, 0.0, 0.5]}, "quaternion"),
        ({"base_to_camera__translation": [0.0, 0.0]}, "3"),
        ({"input_width": 64}, "input_height"),
    ],
)
def test_a_start_with_a_refused_parameter_says_what_was_expected(make_rig, parameters, says):
    with pytest.raises(UsageError, match=says):
        make_rig(start=False, **parameters)


def test_names_that_no_parameter_has_are_said_and_whole_numbers_taken(ros):
    given = {"max_pairgap": 1.0, "scale": 2, "base_to_camera.translation": [1, 0, 2], "use_sim_time": False}
    node = Node("declared", parameter_overrides=[Parameter(name, value=value) for name, value in given.items()])
    try:
        warnings = declare(node)
        assert len(warnings) == 1
        assert "max_pairgap" in warnings[0]
        assert "'max_pair_gap'" in warnings[0]
        assert node.get_parameter("scale").value == 2.0
        assert list(node.get_parameter("base_to_camera.translation").value) == [1.0, 0.0, 2.0]
    finally:
        node.destroy_node()


def test_an_import_that_fails_is_said_with_the_python_that_runs(make_rig, monkeypatch):
    def load(request):
        raise ModuleNotFoundError("No module named 'torch'")

    said = []
    rig = make_rig(start=False, load=load)
    monkeypatch.setattr(rig.node.get_logger(), "error", said.append)
    assert not rig.node.start()
    assert len(said) == 1
    assert "No module named 'torch'" in said[0]
    assert sys.executable in said[0]


def test_what_a_transition_raises_is_said_and_leaves_a_node_that_can_be_configured(make_rig, monkeypatch):
    said = []
    rig = make_rig(start=False, autostart=False)
    monkeypatch.setattr(rig.node.get_logger(), "error", said.append)
    with monkeypatch.context() as broken:
        broken.setattr(rig.node, "_subscribe", lambda values: {}["no such thing"])
        assert not rig.node.start()
    assert len(said) == 1
    assert "activate failed" in said[0]
    assert "no such thing" in said[0]
    assert state(rig) == "unconfigured"
    assert rig.node.start()


def test_one_topic_for_both_inputs_is_refused_with_a_sentence(ros):
    process = run_node(ros, STUBBED, "--ros-args", "-r", "image:=/camera", "-r", "camera_info:=/camera")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "both mapped to /camera" in errors
    assert "Traceback" not in errors


def test_without_tf2_the_mounting_comes_from_parameters_and_it_is_said_once(make_rig, monkeypatch):
    from coopnet_ros import mount

    monkeypatch.setattr(mount, "import_tf2_ros", lambda: None)
    said = []
    rig = make_rig(start=False, publish_tf=True)
    monkeypatch.setattr(rig.node.get_logger(), "warning", said.append)
    assert rig.node.start()
    assert len([text for text in said if "base_to_camera.translation" in text]) == 1
    assert len([text for text in said if "publish_tf" in text]) == 1


def test_the_mounting_comes_from_tf_where_there_is_tf(make_rig, monkeypatch):
    """A stand-in for tf2_ros, which the wheels do not have: first without, then with the transform."""
    import types

    import numpy as np
    from geometry_msgs.msg import TransformStamped
    from ros.rig import shift

    from coopnet_ros import mount

    known = {}

    class Buffer:
        def lookup_transform(self, target, source, _time):
            if (target, source) not in known:
                raise LookupError(f"{source} does not exist")
            return known[target, source]

    fake = types.SimpleNamespace(Buffer=Buffer, TransformListener=lambda *_: None, TransformException=LookupError)
    monkeypatch.setattr(mount, "import_tf2_ros", lambda: fake)
    rig = make_rig(StubPredictor(motion=shift(1.0, 0.0, 0.0)), topics=["odom"])
    rig.send(1.0)
    rig.send(1.1)
    assert rig.received["odom"] == []
    stamped = TransformStamped()
    stamped.transform.translation.x = 3.0
    stamped.transform.rotation.w = 1.0
    known["base_link", "camera_optical_frame"] = stamped
    position = rig.get("odom", rig.send(1.2)).pose.pose.position
    np.testing.assert_allclose((position.x, position.y, position.z), (2.0, 0.0, 0.0), atol=1e-9)


def run_node(ros: int, script: str, *arguments: str) -> subprocess.Popen:
    """The executable in a process of its own, with a stub for the networks."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")]),
        "ROS_DOMAIN_ID": str(ros),
    }
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


STUBBED = (
    "import sys; from coopnet_ros.coopnet_node import main; from ros.rig import StubPredictor; "
    "sys.exit(main(sys.argv[1:], lambda request: StubPredictor()))"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_executable_publishes_and_leaves_cleanly_on_a_signal(ros, number):
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node

    arguments = ["--ros-args", "--params-file", str(ROOT / "config" / "coopnet_node.yaml")]
    arguments += ["-r", "image:=/front/image", "-r", "camera_info:=/front/camera_info", "-r", "__ns:=/front"]
    process = run_node(ros, STUBBED, *arguments)
    peer, executor, seen = Node("listener"), SingleThreadedExecutor(), []
    peer.create_subscription(DiagnosticArray, "/diagnostics", seen.append, 10)
    executor.add_node(peer)
    try:
        end = time.monotonic() + 20
        while not any(m.status[0].name == "front/coopnet" for m in seen) and time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            executor.spin_once(timeout_sec=0.1)
        topics = dict(peer.get_topic_names_and_types())
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)  # an impatient launch: still a clean end
        assert process.wait(20) == 0
    finally:
        process.kill()
        executor.shutdown()
        peer.destroy_node()
    assert seen
    assert "/front/coopnet/depth/image" in topics
    assert "/front/image" in topics
    errors = process.stderr.read()
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize("profile", ["laptop_cpu", "jetson", "datacenter_gpu"])
def test_the_executable_starts_with_each_profile(ros, profile):
    path = ROOT / "config" / "profiles" / f"{profile}.yaml"
    process = run_node(ros, STUBBED, "--ros-args", "--params-file", str(path))
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    said = []
    for line in process.stderr:
        said.append(line)
        if "Active: waiting for images" in line:
            process.send_signal(signal.SIGINT)
    watchdog.cancel()
    assert process.wait(20) == 0, said
    assert any("Active" in line for line in said), said
    assert not any("There is no parameter" in line for line in said), said


def test_the_executable_with_a_missing_checkpoint_says_so_and_leaves_with_code_2(ros, tmp_path):
    script = "import sys; from coopnet_ros.coopnet_node import main; sys.exit(main(sys.argv[1:]))"
    process = run_node(ros, script, "--checkpoint", str(tmp_path / "none.safetensors"))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "none.safetensors" in errors
    assert "Traceback" not in errors


def test_a_mistyped_choice_in_the_parameter_file_leaves_with_code_2(ros, tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("/**:\n  ros__parameters:\n    far_value: far\n")
    process = run_node(ros, STUBBED, "--ros-args", "--params-file", str(path))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "far_value" in errors
    assert "nan, inf" in errors
