"""Transitions, parameters, and the executable as a process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.event_handler import UnsupportedEventTypeError
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros.rig import CAMERA, SECOND, StubPredictor, true_depth
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import SetBool, Trigger

from coopnet_core.errors import CheckpointError, UsageError
from coopnet_ros.coopnet_node import CoopnetNode
from coopnet_ros.messages import array_of, camera_info_message, header_at, image_message
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


UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"
LEADING_TO = {INACTIVE: Transition.TRANSITION_CONFIGURE, ACTIVE: Transition.TRANSITION_ACTIVATE}
IMPOSSIBLE = [
    (UNCONFIGURED, Transition.TRANSITION_ACTIVATE),
    (UNCONFIGURED, Transition.TRANSITION_DEACTIVATE),
    (UNCONFIGURED, Transition.TRANSITION_CLEANUP),
    (INACTIVE, Transition.TRANSITION_CONFIGURE),
    (INACTIVE, Transition.TRANSITION_DEACTIVATE),
    (ACTIVE, Transition.TRANSITION_CONFIGURE),
    (ACTIVE, Transition.TRANSITION_ACTIVATE),
    (ACTIVE, Transition.TRANSITION_CLEANUP),
    (ACTIVE, 250),
]


def test_a_transition_that_the_state_does_not_have_is_refused_without_harm(make_rig, monkeypatch):
    """In rclpy 7 it ends the process."""
    said = []
    rig = make_rig(start=False)
    monkeypatch.setattr(rig.node.get_logger(), "error", said.append)
    for before, transition in IMPOSSIBLE:
        if state(rig) != before:
            assert change(rig, LEADING_TO[before])
        said.clear()
        assert not change(rig, transition)
        assert state(rig) == before
        assert len(said) == 1
        assert f"no transition {transition} from the state {before}" in said[0]
    assert "deactivate (4)" in said[0]
    request = ChangeState.Request(transition=Transition(label="configure"))
    assert not rig.call(ChangeState, "change_state", request).success
    assert "no transition configure from the state active" in said[-1]
    request = ChangeState.Request(transition=Transition(label="deactivate"))
    assert rig.call(ChangeState, "change_state", request).success
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.send_info(CAMERA)
    rig.send(1.0)
    assert rig.counts.processed == 1


def test_services_of_a_node_that_is_not_configured_say_so(make_rig):
    rig = make_rig(start=False)
    for kind, name in ((Trigger, "reset"), (Trigger, "load_checkpoint"), (SetBool, "enable")):
        answer = rig.call(kind, name)
        assert not answer.success, name
        assert "onfigured" in answer.message, answer.message


def test_a_parameter_that_is_mended_lets_a_failed_configure_succeed(make_rig):
    def load(request):
        if request.checkpoint != "good":
            raise CheckpointError(f"{request.checkpoint} is no checkpoint.")
        return StubPredictor()

    rig = make_rig(start=False, load=load, checkpoint="bad")
    for _ in range(2):
        assert not change(rig, Transition.TRANSITION_CONFIGURE)
        assert state(rig) == "unconfigured"
    rig.node.set_parameters([Parameter("checkpoint", value="good")])
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    assert state(rig) == "active"


def test_cleanup_frees_the_networks(make_rig):
    made = []

    def load(request):
        made.append(weakref.ref(predictor := StubPredictor()))
        return predictor

    rig = make_rig(load=load)
    rig.send(1.0)
    assert made[0]() is not None
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert change(rig, Transition.TRANSITION_CLEANUP)
    gc.collect()
    assert made[0]() is None
    assert not any(thread.name == "coopnet-worker" for thread in threading.enumerate())


def test_a_destroyed_node_leaves_the_graph_at_once(ros):
    """Without the garbage collector, which in a large process may not come for minutes."""
    looker = Node("looker")
    gc.disable()
    try:
        node = CoopnetNode([Parameter("autostart", value=True)], lambda request: StubPredictor())
        assert node.start()
        assert "coopnet" in looker.get_node_names()
        node.destroy_node()
        assert "coopnet" not in looker.get_node_names()
    finally:
        gc.enable()
        looker.destroy_node()


def test_a_node_whose_parameters_are_refused_can_be_destroyed(ros):
    """From rclpy 9 (Kilted) on a context that is shut down destroys what is left of such a node."""
    node, looker = CoopnetNode.__new__(CoopnetNode), Node("looker")
    try:
        with pytest.raises(UsageError, match="far_value"):
            node.__init__([Parameter("far_value", value="far")])
        node.destroy_node()
        assert "coopnet" not in looker.get_node_names()
    finally:
        looker.destroy_node()


def test_a_pause_lasts_until_the_node_is_deactivated(make_rig):
    rig = make_rig()
    assert rig.call(SetBool, "enable", SetBool.Request(data=False)).success
    rig.send(1.0)
    assert rig.counts.dropped["disabled"] == 1
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    answer = rig.call(SetBool, "enable", SetBool.Request(data=False))
    assert not answer.success
    assert "inactive" in answer.message
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.send(1.1)
    assert rig.counts.processed == 1
    assert rig.status()["state"] == "active"


def test_images_lost_on_the_way_are_counted_apart(make_rig):
    rig = make_rig()
    images = next(iter(rig.node._subscriptions_by_topic.values()))
    (lost,) = [handler.callback for handler in images.event_handlers if "LOST" in str(handler.event_type)]
    lost(types.SimpleNamespace(total_count=2, total_count_change=2))
    lost(types.SimpleNamespace(total_count=5, total_count_change=3))
    rig.send(1.0)
    status = rig.status()
    assert (status["lost_before_arrival"], status["received"], status["rejected"]) == ("5", "1", "0")


def test_a_middleware_that_does_not_tell_what_is_lost_is_no_failure(make_rig, monkeypatch):
    listen = CoopnetNode._listen

    def without_events(self, *arguments):
        if len(arguments) > 4:
            raise UnsupportedEventTypeError("no such event")
        return listen(self, *arguments)

    monkeypatch.setattr(CoopnetNode, "_listen", without_events)
    rig = make_rig()
    rig.send(1.0)
    assert rig.counts.processed == 1
    assert rig.status()["lost_before_arrival"] == "0"


def test_two_nodes_in_two_namespaces_do_not_meet(ros):
    """Each has its images, its values and its entry in diagnostics."""
    factors = {"left": 1.0, "right": 3.0}
    peer, executor = Node("peer"), SingleThreadedExecutor()
    nodes, images, infos, depths, diagnostics = {}, {}, {}, {"left": [], "right": []}, []
    qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
    for name, factor in factors.items():
        stub = StubPredictor(depth=lambda camera, factor=factor: factor * true_depth(camera))
        unlimited = [Parameter("max_depth", value=0.0)]
        nodes[name] = CoopnetNode(unlimited, lambda request, stub=stub: stub, namespace=f"/{name}")
        executor.add_node(nodes[name])
        images[name] = peer.create_publisher(Image, f"/{name}/image", qos)
        infos[name] = peer.create_publisher(CameraInfo, f"/{name}/camera_info", qos)
        peer.create_subscription(Image, f"/{name}/coopnet/depth/image", depths[name].append, qos)
    peer.create_subscription(DiagnosticArray, "/diagnostics", diagnostics.append, qos)
    executor.add_node(peer)

    def wait(condition) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            executor.spin_once(timeout_sec=0.05)

    def last_status(name: str) -> dict[str, str]:
        found = [m.status[0] for m in diagnostics if m.status[0].name == f"{name}/coopnet"]
        return {item.key: item.value for item in found[-1].values} | {"hardware_id": found[-1].hardware_id}

    try:
        for name, node in nodes.items():
            assert node.start()
            wait(lambda name=name: images[name].get_subscription_count() and infos[name].get_subscription_count())
            wait(lambda node=node: node._outputs.is_wanted("~/depth/image"))
        cameras = {"left": CAMERA, "right": CAMERA.scaled(128, 64)}
        for number in range(1, 4):
            for name, camera in cameras.items():
                header = header_at(number * SECOND // 10, f"{name}_optical_frame")
                infos[name].publish(camera_info_message(camera, header))
                pixels = [[[0, 0, 0]] * camera.width] * camera.height
                images[name].publish(image_message(np.array(pixels, np.uint8), "rgb8", header))
            wait(lambda number=number: all(len(found) == number for found in depths.values()))
        for name, factor in factors.items():
            camera = cameras[name].scaled(cameras[name].width // 2, cameras[name].height // 2)
            for message in depths[name]:
                assert message.header.frame_id == f"{name}_optical_frame"
                np.testing.assert_allclose(array_of(message), factor * true_depth(camera), rtol=1e-6)
            diagnostics.clear()
            wait(lambda: {m.status[0].name for m in diagnostics} == {"left/coopnet", "right/coopnet"})
            status = last_status(name)
            assert (status["received"], status["processed"]) == ("3", "3")
            assert status["hardware_id"] == f"{name}_optical_frame"
            assert status["output_size"] == f"{camera.width}x{camera.height}"
        assert nodes["left"].statistics.snapshot().events["camera_changes"] == 0
    finally:
        for node in (*nodes.values(), peer):
            node.destroy_node()
        executor.shutdown()


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


SLOW = """
import os, signal, sys, threading, time
from coopnet_ros.coopnet_node import main
from ros.rig import StubPredictor

def reach(what):
    print("REACHED", what, file=sys.stderr, flush=True)

def hang(what):
    reach(what)
    time.sleep(60)

class Slow(StubPredictor):
    def predict(self, frame, outputs):
        hang("predict")

def load(request):
    if request.checkpoint == "hang":
        hang("load")
    if request.checkpoint == "early":
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return Slow()

sys.exit(main(sys.argv[2:], load))
"""


class Lines:
    """What a process writes to stderr, read in the background."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.text = ""
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stderr:
            self.text += line

    def wait_for(self, words: str) -> None:
        end = time.monotonic() + 20
        while words not in self.text:
            assert time.monotonic() < end, self.text
            time.sleep(0.01)

    def all(self) -> str:
        self._thread.join(10)
        return self.text


def publish_until(peer: Node, lines: Lines, words: str) -> None:
    """Images with their camera_info until the process says the words."""
    qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
    images, infos = peer.create_publisher(Image, "image", qos), peer.create_publisher(CameraInfo, "camera_info", qos)
    end, number = time.monotonic() + 20, 0
    while words not in lines.text:
        assert time.monotonic() < end, lines.text
        number += 1
        header = header_at(number * SECOND // 10, "camera")
        infos.publish(camera_info_message(CAMERA, header))
        images.publish(image_message(np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8), "rgb8", header))
        time.sleep(0.05)


def request(peer: Node, kind: type, name: str, content, wait: bool = True) -> None:
    """Ask a service of the process; again where it had not been discovered both ways yet."""
    client, executor = peer.create_client(kind, f"/coopnet/{name}"), SingleThreadedExecutor()
    assert client.wait_for_service(20)
    future = client.call_async(content)
    executor.add_node(peer)
    end = time.monotonic() + 20
    while wait and not future.done():
        assert time.monotonic() < end, f"{name} does not answer"
        executor.spin_until_future_complete(future, 1.0)
        future = future if future.done() else client.call_async(content)
    executor.remove_node(peer)
    executor.shutdown()


MOMENTS = ["loading", "before the first spin", "unconfigured", "inactive", "inference", "reloading"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_executable_whatever_it_does(ros, moment, name):
    checkpoint = {"loading": "hang", "before the first spin": "early"}.get(moment, "")
    arguments = ["--checkpoint", checkpoint] if checkpoint else []
    if moment in ("unconfigured", "inactive"):
        arguments += ["--ros-args", "-p", "autostart:=false"]
    process = run_node(ros, SLOW, name, *arguments)
    lines, peer = Lines(process), Node("listener")
    try:
        if moment == "loading":
            lines.wait_for("REACHED load")
        elif moment == "unconfigured":
            request(peer, GetState, "get_state", GetState.Request())
        elif moment == "inactive":
            configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
            request(peer, ChangeState, "change_state", configure)
        elif moment == "inference":
            publish_until(peer, lines, "REACHED predict")
        elif moment == "reloading":
            lines.wait_for("Active")
            hang = [Parameter("checkpoint", value="hang").to_parameter_msg()]
            request(peer, SetParameters, "set_parameters", SetParameters.Request(parameters=hang))
            request(peer, Trigger, "load_checkpoint", Trigger.Request(), wait=False)
            lines.wait_for("REACHED load")
        if moment != "before the first spin":
            process.send_signal(getattr(signal, name))
        assert process.wait(20) == 0, lines.all()
    finally:
        process.kill()
        peer.destroy_node()
    text = lines.all()
    assert "Traceback" not in text, text
    assert "terminate" not in text, text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_executable_publishes_and_leaves_cleanly_on_a_signal(ros, number):
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
    assert "Traceback" not in errors
