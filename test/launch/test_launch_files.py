"""The launch files: read without launch, and brought to life where launch is installed."""

from __future__ import annotations

import ast
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
DOCUMENTED = {
    "image",
    "camera_info",
    "checkpoint",
    "params_file",
    "device",
    "namespace",
    "use_sim_time",
    "image_transport",
    "bag",
    "rviz",
}
PREFIX = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"


def calls(path: Path, name: str) -> list[ast.Call]:
    """All calls of a name in a file."""
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


def constant(call: ast.Call, keyword: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == keyword), None)


def test_there_are_three():
    assert [path.name for path in FILES] == ["coopnet.launch.py", "demo.launch.py", "train.launch.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_argument_is_described_and_used(path):
    declared = {ast.literal_eval(call.args[0]): call for call in calls(path, "DeclareLaunchArgument")}
    assert declared
    for name, call in declared.items():
        assert constant(call, "description"), f"{path.name}: {name} has no description"
    used = {ast.literal_eval(call.args[0]) for call in calls(path, "LaunchConfiguration") if _is_literal(call.args[0])}
    if path.name == "demo.launch.py":  # hands all of its arguments on by name
        used |= set(declared)
    assert used == set(declared)


def _is_literal(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant)


def test_the_node_has_every_documented_argument():
    declared = {ast.literal_eval(call.args[0]) for call in calls(FILES[0], "DeclareLaunchArgument")}
    assert declared >= DOCUMENTED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_executables_of_this_package_and_rviz_are_started(path):
    commands = (ROOT / "setup.py").read_text()
    for call in calls(path, "Node"):
        package, executable = constant(call, "package"), constant(call, "executable")
        assert (package, executable) == ("rviz2", "rviz2") or package == "coopnet_ros"
        assert package == "rviz2" or f'"{executable}"' in commands
    for call in calls(path, "ExecutableInPackage"):
        executable, package = (ast.literal_eval(argument) for argument in call.args)
        assert package == "coopnet_ros"
        assert f'"{executable}"' in commands


def test_the_image_profile_holds_the_measured_values():
    root = ElementTree.parse(ROOT / "config" / "fastdds_image_profile.xml").getroot()
    transports = {t.findtext(f"{PREFIX}type"): t for t in root.iter(f"{PREFIX}transport_descriptor")}
    shared, udp = transports["SHM"], transports["UDPv4"]
    assert shared.findtext(f"{PREFIX}segment_size") == "16777216"
    assert shared.findtext(f"{PREFIX}maxMessageSize") == "8388608"
    assert shared.findtext(f"{PREFIX}port_queue_capacity") == "1024"
    assert udp.findtext(f"{PREFIX}sendBufferSize") == udp.findtext(f"{PREFIX}receiveBufferSize") == "4194304"
    participant = next(root.iter(f"{PREFIX}participant"))
    assert participant.get("is_default_profile") == "true"
    assert next(participant.iter(f"{PREFIX}useBuiltinTransports")).text == "false"
    used = {element.text for element in next(participant.iter(f"{PREFIX}userTransports"))}
    assert used == {t.findtext(f"{PREFIX}transport_id") for t in transports.values()}


def test_rviz_shows_topics_that_the_node_has():
    outputs = pytest.importorskip("coopnet_ros.outputs", reason="needs rclpy")
    displays = yaml.safe_load((ROOT / "config" / "coopnet.rviz").read_text())["Visualization Manager"]["Displays"]
    shown = {display["Topic"]["Value"] for display in displays if "Topic" in display}
    assert shown
    assert shown <= {topic.replace("~", "/coopnet") for topic in outputs.OUTPUT_TOPICS}


def test_a_launched_node_is_active_in_its_namespace_and_leaves_cleanly(tmp_path):
    """The whole of coopnet.launch.py, by the real launch system; the networks are the shipped ones."""
    pytest.importorskip("launch_testing", reason="launch comes with an apt ROS, not with the wheels")
    launch = pytest.importorskip("launch")
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
    from launch.actions import IncludeLaunchDescription, RegisterEventHandler, TimerAction
    from launch.event_handlers import OnProcessExit, OnProcessIO
    from launch.events import Shutdown
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    try:
        share = Path(get_package_share_directory("coopnet_ros"))
    except PackageNotFoundError:
        pytest.skip("coopnet_ros is not installed: source install/setup.bash")
    if not (share / "models" / "small_rendered.safetensors").exists():
        pytest.skip("no shipped weights in the installation")
    heard, codes = [], []

    def listen(event):
        heard.append(event.text.decode())
        return [launch.actions.EmitEvent(event=Shutdown())] if "Active: waiting for images" in heard[-1] else None

    include = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share / "launch" / "coopnet.launch.py")),
        launch_arguments=[("namespace", "front"), ("image", "/cam/image"), ("device", "cpu")],
    )
    service = launch.LaunchService(noninteractive=True)
    service.include_launch_description(
        launch.LaunchDescription(
            [
                RegisterEventHandler(OnProcessIO(on_stdout=listen, on_stderr=listen)),
                RegisterEventHandler(OnProcessExit(on_exit=lambda event, _: codes.append(event.returncode))),
                TimerAction(period=60.0, actions=[launch.actions.EmitEvent(event=Shutdown())], cancel_on_shutdown=True),
                include,
            ]
        )
    )
    assert service.run() == 0
    text = "".join(heard)
    assert "/cam/image and /front/camera_info" in text
    assert "front.coopnet" in text
    assert codes == [0]
