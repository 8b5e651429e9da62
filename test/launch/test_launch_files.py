"""The launch files: read without launch, and brought to life where launch is installed."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from coopnet_ros.interface import TOPICS, TopicSpec

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


def test_the_parameter_files_are_named_where_one_looks_for_them():
    calls_by_name = {ast.literal_eval(call.args[0]): call for call in calls(FILES[0], "DeclareLaunchArgument")}
    description = constant(calls_by_name["params_file"], "description")
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "config" / "profiles").glob("*.yaml"):
        assert path.name in description
        assert path.name in readme


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


def shown_by_rviz() -> set[str]:
    displays = yaml.safe_load((ROOT / "config" / "coopnet.rviz").read_text())["Visualization Manager"]["Displays"]
    return {display["Topic"]["Value"] for display in displays if "Topic" in display}


def foxglove() -> dict:
    return json.loads((ROOT / "config" / "coopnet_foxglove.json").read_text())


def shown_by_foxglove() -> set[str]:
    """Every topic in the configuration of a panel; a path of a message begins with its topic."""
    topics = set()
    for config in foxglove()["configById"].values():
        topics |= {config["imageMode"]["imageTopic"]} if "imageTopic" in config.get("imageMode", {}) else set()
        topics |= {topic for topic, settings in config.get("topics", {}).items() if settings["visible"]}
        topics |= {config["topicToRender"]} if "topicToRender" in config else set()
        paths = [*config.get("paths", ()), *([config["xAxisPath"]] if "xAxisPath" in config else [])]
        topics |= {path["value"].partition(".")[0] for path in paths}
    return topics


def resolved(spec: TopicSpec) -> str:
    return spec.name.replace("~", "/coopnet")


@pytest.mark.parametrize("shown", [shown_by_rviz, shown_by_foxglove])
def test_what_is_shown_is_published_and_what_is_for_people_is_shown(shown):
    published = {resolved(spec) for spec in TOPICS if spec.direction == "out"}
    # the camera's own topics, as the README and the demo have them
    camera = {"/camera/image_raw", "/tf_static"}
    assert "/camera/image_raw" in (ROOT / "launch" / "demo.launch.py").read_text()
    assert shown() <= published | camera
    assert shown() >= {resolved(spec) for spec in TOPICS if spec.for_people} | {"/camera/image_raw"}


def test_foxglove_shows_the_diagnostics_that_rviz_cannot():
    assert "/diagnostics" in shown_by_foxglove()


def test_every_panel_of_foxglove_has_its_place():
    layout = foxglove()

    def panels(tree: object) -> list[str]:
        if isinstance(tree, str):
            tabs = layout["configById"][tree].get("tabs", ())
            return [tree, *(name for tab in tabs for name in panels(tab["layout"]))]
        assert tree["direction"] in ("row", "column")
        return [*panels(tree["first"]), *panels(tree["second"])]

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])
    types = {name.partition("!")[0] for name in layout["configById"]}
    assert types == {"Image", "3D", "Plot", "DiagnosticSummary", "DiagnosticStatusPanel", "Tab"}


def test_rviz_asks_for_no_more_than_is_offered():
    """A reliable display and a best-effort publisher do not meet; the outputs are reliable, a camera often is not."""
    displays = yaml.safe_load((ROOT / "config" / "coopnet.rviz").read_text())["Visualization Manager"]["Displays"]
    for topic in (display["Topic"] for display in displays if "Topic" in display):
        assert topic["Durability Policy"] == "Volatile"
        expected = "Reliable" if topic["Value"].startswith("/coopnet/") else "Best Effort"
        assert topic["Reliability Policy"] == expected, topic["Value"]


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
