"""The launch files: read without launch, and brought to life where launch is installed."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from ros_domain import own_domain

from coopnet_ros.interface import TOPICS, TopicSpec
from coopnet_ros.parameters import spec_of

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
    "rectify",
    "wheel_odom",
    "scale_source",
    "scale",
    "camera_height",
    "publish_tf",
    "autostart",
    "log_level",
    "bag",
    "bag_rate",
    "bag_start",
    "bag_loop",
    "rviz",
}
OF_OTHERS = {("rviz2", "rviz2"), ("image_proc", "rectify_node")}
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


def test_arguments_that_are_parameters_have_the_choices_of_the_parameters():
    declared = {ast.literal_eval(call.args[0]): call for call in calls(FILES[0], "DeclareLaunchArgument")}
    tree = ast.parse(FILES[0].read_text())
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARAMETERS"
    )
    names = [ast.literal_eval(key) for key in table.keys]
    assert len(names) == 8
    for name in names:
        spec = spec_of(name)
        values = spec.choices or (("true", "false") if spec.type_name == "bool" else ())
        assert constant(declared[name], "choices") == (["", *values] if values else None), name
        assert constant(declared[name], "default_value") == "", name


def test_the_parameter_files_are_named_where_one_looks_for_them():
    calls_by_name = {ast.literal_eval(call.args[0]): call for call in calls(FILES[0], "DeclareLaunchArgument")}
    description = constant(calls_by_name["params_file"], "description")
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "config" / "profiles").glob("*.yaml"):
        assert path.name in description
        assert path.name in readme


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_executables_that_there_are_are_started(path):
    commands = (ROOT / "setup.py").read_text()
    for call in calls(path, "Node"):
        package, executable = constant(call, "package"), constant(call, "executable")
        assert (package, executable) in OF_OTHERS or (package == "coopnet_ros" and f'"{executable}"' in commands)
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


def displays() -> list[dict]:
    return yaml.safe_load((ROOT / "config" / "coopnet.rviz").read_text())["Visualization Manager"]["Displays"]


def shown_by_rviz() -> dict[str, str]:
    """The topics of RViz and the class of the display; a relative topic lies in the namespace that launch gives it."""
    shown = {
        "/" + display["Topic"]["Value"].lstrip("/"): display["Class"].partition("/")[2]
        for display in displays()
        if "Topic" in display
    }
    if any(display["Class"] == "rviz_default_plugins/TF" for display in displays()):  # names no topic
        shown |= {"/tf": "TF", "/tf_static": "TF"}
    return shown


def foxglove() -> dict:
    return json.loads((ROOT / "config" / "coopnet_foxglove.json").read_text())


def shown_by_foxglove() -> dict[str, str]:
    """The topics in the configuration of a panel, and the type of the panel."""
    shown = {}
    for name, config in foxglove()["configById"].items():
        topics = [config["imageMode"]["imageTopic"]] if "imageTopic" in config.get("imageMode", {}) else []
        topics += [topic for topic, settings in config.get("topics", {}).items() if settings["visible"]]
        topics += [config[key] for key in ("topicToRender", "topicPath") if key in config]
        paths = [*config.get("paths", ()), *([config["xAxisPath"]] if "xAxisPath" in config else [])]
        topics += [path["value"].partition(".")[0] for path in paths]  # a path of a message begins with its topic
        shown |= {topic: name.partition("!")[0] for topic in topics}
    return shown


RVIZ_DISPLAYS = {
    "sensor_msgs/msg/Image": "Image",
    "sensor_msgs/msg/CameraInfo": "CameraInfo",
    "sensor_msgs/msg/PointCloud2": "PointCloud2",
    "nav_msgs/msg/Odometry": "Odometry",
    "tf2_msgs/msg/TFMessage": "TF",
}
FOXGLOVE_PANELS = {
    "sensor_msgs/msg/Image": "Image",
    "sensor_msgs/msg/CameraInfo": "3D",
    "sensor_msgs/msg/PointCloud2": "3D",
    "nav_msgs/msg/Odometry": "Plot",
    "tf2_msgs/msg/TFMessage": "3D",
    "sensor_msgs/msg/TimeReference": "RawMessages",
    "diagnostic_msgs/msg/DiagnosticArray": "DiagnosticSummary",
}
CAMERA = {"/camera/image_raw": "sensor_msgs/msg/Image", "/tf_static": "tf2_msgs/msg/TFMessage"}


def resolved(spec: TopicSpec) -> str:
    return spec.name.replace("~", "/coopnet")


@pytest.mark.parametrize(
    ("shown", "kinds"), [(shown_by_rviz, RVIZ_DISPLAYS), (shown_by_foxglove, FOXGLOVE_PANELS)], ids=["rviz", "foxglove"]
)
def test_every_output_that_can_be_shown_is_shown_and_nothing_else(shown, kinds):
    """Two channels of 32 bits are no picture for either; the rest of what a viewer has no display for is by type."""
    outputs = {
        resolved(spec): spec.type_name for spec in TOPICS if spec.direction == "out" and spec.encoding != "32FC2"
    }
    expected = {topic: kinds[name] for topic, name in {**outputs, **CAMERA}.items() if name in kinds}
    assert shown() == expected


def test_the_topics_of_rviz_follow_the_namespace_and_the_image_argument():
    """The node's are relative; the image is remapped by launch from the one absolute name of the file."""
    topics = {display["Topic"]["Value"] for display in displays() if "Topic" in display}
    assert {topic for topic in topics if not topic.startswith("coopnet/")} == {"/camera/image_raw"}
    (rviz,) = (call for call in calls(FILES[0], "Node") if constant(call, "package") == "rviz2")
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in rviz.keywords}
    assert keywords["remappings"] == "[('/camera/image_raw', LaunchConfiguration('image'))]"
    assert keywords["namespace"] == "LaunchConfiguration('namespace')"


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
    assert types == {"Image", "3D", "Plot", "DiagnosticSummary", "DiagnosticStatusPanel", "RawMessages", "Tab"}


def test_rviz_asks_for_no_more_than_is_offered():
    """A reliable display and a best-effort publisher do not meet; the outputs are reliable, a camera often is not."""
    for topic in (display["Topic"] for display in displays() if "Topic" in display):
        assert topic["Durability Policy"] == "Volatile"
        expected = "Reliable" if topic["Value"].startswith("coopnet/") else "Best Effort"
        assert topic["Reliability Policy"] == expected, topic["Value"]


# ---------------------------------------------------------------------- with launch

WAIT_S = 60.0
LAUNCH = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

arguments = [argument.split(":=", 1) for argument in sys.argv[2:]]
include = IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments)
service = LaunchService(argv=sys.argv[2:])
service.include_launch_description(LaunchDescription([include]))
sys.exit(service.run())
"""


class Launched:
    """A launch file under way, as `ros2 launch` starts it."""

    def __init__(self, path: Path, arguments: tuple[str, ...], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(path), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str) -> None:
        """Until they are said."""
        end = time.monotonic() + WAIT_S
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.1)

    def interrupt(self) -> int:
        """Ctrl-C, seen by launch alone; the code it ends with."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(WAIT_S)


@pytest.fixture
def launch_file(tmp_path) -> Iterator:
    """Starts an installed launch file; what is left of it ends with the test."""
    pytest.importorskip("launch_ros", reason="launch comes with an apt ROS, not with the wheels")
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        share = Path(get_package_share_directory("coopnet_ros"))
    except PackageNotFoundError:
        pytest.skip("coopnet_ros is not installed: source install/setup.bash")
    if not (share / "models" / "small_rendered.safetensors").exists():
        pytest.skip("no shipped weights in the installation")
    started = []

    def start(name: str, *arguments: str, **environment: str) -> Launched:
        log = tmp_path / f"launch{len(started)}.log"
        alone = {"ROS_DOMAIN_ID": domain, **environment}
        started.append(Launched(share / "launch" / name, arguments, log, alone))
        return started[-1]

    with own_domain() as number:
        domain = str(number)
        yield start
        for launched in started:
            with contextlib.suppress(ProcessLookupError):  # nothing is left, as it should be
                os.killpg(launched.process.pid, signal.SIGKILL)
            launched.process.wait()


def test_a_launched_node_is_active_in_its_namespace_and_leaves_cleanly(launch_file):
    launched = launch_file("coopnet.launch.py", "namespace:=front", "image:=/cam/image", "device:=cpu")
    launched.wait_for("Active: waiting for images on /cam/image and /front/camera_info.")
    assert "[front.coopnet]" in launched.text
    assert launched.interrupt() == 0
    assert "[coopnet_node-1]: process has finished cleanly" in launched.text
    assert "Traceback" not in launched.text


def test_arguments_win_over_the_parameter_file_and_empty_ones_leave_it(launch_file, tmp_path):
    """Even over a file that names the node, which beats one that says /**."""
    file = tmp_path / "parameters.yaml"
    file.write_text("/front/coopnet:\n  ros__parameters:\n    scale: -7.0\n    device: cpu\n")
    refused = launch_file("coopnet.launch.py", "namespace:=front", f"params_file:={file}")
    refused.wait_for("exit code 2")
    assert "-7" in refused.text
    launched = launch_file(
        "coopnet.launch.py", "namespace:=front", f"params_file:={file}", "scale:=2", "autostart:=true"
    )
    launched.wait_for("Active: waiting for images on /front/image and /front/camera_info.")
    assert launched.interrupt() == 0


def _absent(package: str) -> None:
    """Skip where the package is there."""
    from ament_index_python.packages import get_packages_with_prefixes

    if package in get_packages_with_prefixes():
        pytest.skip(f"{package} is installed")


def test_without_rviz_the_node_is_started_and_it_is_said(launch_file):
    _absent("rviz2")
    launched = launch_file("coopnet.launch.py", "rviz:=true", "device:=cpu")
    launched.wait_for("Active: waiting for images on /image and /camera_info.")
    assert "rviz2 is not installed: everything else is started without it." in launched.text
    assert launched.interrupt() == 0


def _stand_in(prefix: Path, package: str, executable: str) -> None:
    """An installed package whose executable says what it was started with."""
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / package
    program = prefix / "lib" / package / executable
    for file in (marker, program):
        file.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    program.write_text('#!/bin/sh\necho "started: $@" >&2\nexec sleep 1000\n')
    program.chmod(0o755)


def test_image_proc_and_rviz_get_the_topics_of_the_node(launch_file, tmp_path):
    """The names are those of image_proc in Jazzy: rectify_node, image, image_rect, the parameter image_transport."""
    _stand_in(tmp_path / "prefix", "image_proc", "rectify_node")
    _stand_in(tmp_path / "prefix", "rviz2", "rviz2")
    launched = launch_file(
        "coopnet.launch.py",
        *("namespace:=front", "image:=/cam/image", "camera_info:=/cam/camera_info", "image_transport:=compressed"),
        *("rectify:=true", "rviz:=true", "device:=cpu"),
        AMENT_PREFIX_PATH=os.pathsep.join([str(tmp_path / "prefix"), os.environ["AMENT_PREFIX_PATH"]]),
    )
    launched.wait_for("Active: waiting for images on /front/image_rect and /cam/camera_info.")
    starts = dict(re.findall(r"\[(\w+)-\d\] started: (.*)", launched.text))
    assert "-r __ns:=/front" in starts["rectify_node"]
    assert "-r image:=/cam/image" in starts["rectify_node"]
    (parameters,) = re.findall(r"--params-file (\S+)", starts["rectify_node"])
    (given,) = yaml.safe_load(Path(parameters).read_text()).values()
    assert given["ros__parameters"] == {"image_transport": "compressed", "use_sim_time": False}
    assert "-r __ns:=/front" in starts["rviz2"]
    assert "-r /camera/image_raw:=/cam/image" in starts["rviz2"]
    assert re.search(r"-d \S+/config/coopnet.rviz", starts["rviz2"])
    assert launched.interrupt() == 0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("coopnet.launch.py", ["params_file:=nowhere.yaml"], "params_file:=nowhere.yaml: there is no such file."),
        ("coopnet.launch.py", ["scale_source:=guess"], "'none', 'fixed', 'camera_height', 'odometry'"),
        ("coopnet.launch.py", ["rectify:=true"], "rectify:=true needs image_proc, which is not installed"),
        ("demo.launch.py", ["bag:=/dev/null/demo", "frames:=2"], "The demo bag could not be rendered"),
        ("train.launch.py", ["bag:=nowhere", "output:=/dev/null/run"], "Training ended with code 2"),
    ],
    ids=["no parameter file", "no such choice", "no image_proc", "no place for the bag", "nothing to train on"],
)
def test_what_cannot_be_done_is_said_and_ends_in_failure(launch_file, name, arguments, words):
    if "rectify:=true" in arguments:
        _absent("image_proc")
    launched = launch_file(name, *arguments)
    assert launched.process.wait(WAIT_S) == 1
    assert words in launched.text
    assert "[coopnet_node" not in launched.text
    assert "Traceback" not in launched.text


def test_the_demo_renders_a_bag_once_and_replays_it(launch_file, tmp_path):
    arguments = [f"bag:={tmp_path / 'street'}", "frames:=3", "rviz:=false", "device:=cpu", "bag_loop:=false"]
    first = launch_file("demo.launch.py", *arguments)
    first.wait_for("Camera 640x192")
    first.wait_for("Replayed")
    assert first.interrupt() == 0
    assert (tmp_path / "street" / "metadata.yaml").is_file()
    second = launch_file("demo.launch.py", *arguments)
    second.wait_for("Camera 640x192")
    assert second.interrupt() == 0
    assert "make_demo_bag" in first.text
    assert "make_demo_bag" not in second.text
