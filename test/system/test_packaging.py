"""The package as others see it: colcon, ros2 run, make, pip."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import coopnet_core
from coopnet_core.resources import share_directory

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = (
    "coopnet_node",
    "train_from_bags",
    "evaluate",
    "make_demo_bag",
    "play_bag",
    "inspect_bags",
    "record_outputs",
    "demo",
)


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(REPOSITORY / "package.xml").getroot()


@pytest.fixture
def setup_arguments(monkeypatch):
    """What setup.py hands to setuptools."""
    found = {}
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("setuptools.setup", lambda **arguments: found.update(arguments))
    runpy.run_path(str(REPOSITORY / "setup.py"))
    return found


def test_the_manifest_is_valid_and_of_an_ament_python_package(manifest):
    assert (manifest.tag, manifest.get("format")) == ("package", "3")
    assert manifest.findtext("name") == "coopnet_ros"
    assert manifest.findtext("license") == "Apache-2.0"
    assert manifest.find("maintainer").get("email") == "maintainers@coopnet.dev"
    assert manifest.findtext("export/build_type") == "ament_python"


def test_catkin_pkg_accepts_the_manifest():
    package = pytest.importorskip("catkin_pkg.package")
    warnings: list[str] = []
    assert package.parse_package(str(REPOSITORY), warnings=warnings).name == "coopnet_ros"
    assert warnings == []


def test_every_ros_module_that_is_imported_is_a_dependency(manifest):
    declared = {element.text for element in manifest if element.tag.endswith("depend")}
    roots = {name.split(".")[0] for folder in ("coopnet_ros", "launch") for name in imported(REPOSITORY / folder)}
    ros = {name for name in roots if name.endswith("_msgs") or name in {"rclpy", "tf2_ros", "cv_bridge", "launch_ros"}}
    ros |= roots & {"builtin_interfaces", "std_srvs", "rosbag2_py", "sensor_msgs_py", "launch"}
    assert ros
    assert ros <= declared


def test_the_core_imports_no_ros_module():
    roots = {name.split(".")[0] for name in imported(REPOSITORY / "coopnet_core")}
    assert not {
        name for name in roots if name.endswith(("_msgs", "_srvs")) or name in {"rclpy", "coopnet_ros", "cv_bridge"}
    }


def test_the_version_is_the_same_everywhere(manifest, setup_arguments):
    version = coopnet_core.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert manifest.findtext("version") == version
    assert setup_arguments["version"] == version
    newest = re.search(r"^(\d+\.\d+\.\d+)\b", (REPOSITORY / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert newest.group(1) == version


def test_every_command_is_a_console_script_of_the_right_place(setup_arguments):
    scripts = dict(entry.split(" = ") for entry in setup_arguments["entry_points"]["console_scripts"])
    assert scripts == {name: f"coopnet_ros.{name}:main" for name in COMMANDS}
    configuration = (REPOSITORY / "setup.cfg").read_text()
    assert configuration.count("$base/lib/coopnet_ros") == 2
    assert "executable = /usr/bin/env python3" in configuration


def test_colcon_finds_the_tests(setup_arguments):
    assert setup_arguments["extras_require"]["test"] == ["pytest"]


def test_the_data_files_are_all_shipped(setup_arguments):
    shipped = {name for _, names in setup_arguments["data_files"] for name in names}
    assert {"resource/coopnet_ros", "package.xml"} <= shipped
    assert {"config/fastdds_image_profile.xml", "config/coopnet_node.yaml", "config/presets/cpu-small.yaml"} <= shipped
    assert "launch/coopnet.launch.py" in shipped
    assert {"config/coopnet.rviz", "config/coopnet_foxglove.json"} <= shipped
    assert {f"config/profiles/{name}.yaml" for name in ("laptop_cpu", "jetson", "datacenter_gpu")} <= shipped
    assert not any("__pycache__" in name for name in shipped)
    for folder, names in setup_arguments["data_files"]:
        assert not Path(folder).is_absolute()
        assert all((REPOSITORY / name).is_file() for name in names)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    if name in {"coopnet_node", "play_bag", "record_outputs"}:
        pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
    main = importlib.import_module(f"coopnet_ros.{name}").main
    try:
        code = main(["--help"])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None)
    assert "--help" in capsys.readouterr().out


def test_the_installed_commands_run_from_anywhere(tmp_path):
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    folders = [prefix / "lib" / "coopnet_ros" for prefix in prefixes if (prefix / "share" / "coopnet_ros").is_dir()]
    if not folders:
        pytest.skip("no installed package is sourced (colcon build, then source install/setup.bash)")
    assert {path.name for path in folders[0].iterdir()} >= set(COMMANDS)
    done = subprocess.run([folders[0] / "make_demo_bag", "--help"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    where = "import coopnet_core.resources as r; print(r.share_directory())"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert (Path(found.stdout.strip()) / "config" / "presets").is_dir()


def test_the_shipped_files_are_found():
    assert (share_directory() / "config" / "fastdds_image_profile.xml").is_file()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "clean", "env"])
def test_make_knows_the_target(target):
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^  make {target}\b", listed, re.MULTILINE)


def test_the_scripts_are_valid_and_executable():
    scripts = [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert script.name == "activate.sh" or os.access(script, os.X_OK), script
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()


@pytest.mark.parametrize("distribution", ["jazzy", "kilted"])
def test_everything_required_is_pinned(distribution):
    requirements = pytest.importorskip("packaging.requirements")

    def read(name: str) -> list:
        lines = [line.partition("#")[0].strip() for line in (REPOSITORY / name).read_text().splitlines()]
        return [requirements.Requirement(line) for line in lines if line]

    pins = [*read("constraints.txt"), *read(f"constraints-ros-{distribution}.txt")]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        valid = [
            normalised(pin.name) for pin in pins if not pin.marker or pin.marker.evaluate({"python_version": python})
        ]
        assert len(valid) == len(set(valid)), f"pinned twice for Python {python}"
        wanted = [*read("requirements.txt"), *read("requirements-ros-wheels.txt")]
        assert {normalised(requirement.name) for requirement in wanted} <= set(valid)


_INTERPRETER = """\
#!/bin/sh
case "$*" in
    "-m venv .venv")
        mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo "VIRTUAL_ENV=$PWD/.venv" > .venv/bin/activate ;;
    "-m pip "*)
        while [ "$1" != -c ]; do shift; done
        cp "$2" .venv/pins ;;
    *) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def make_env(tmp_path):
    """scripts/make_env.sh in a copy of what it reads, with a pip that only notes the pins (.venv/pins)."""
    for name in ("scripts/make_env.sh", "scripts/activate.sh", "scripts/needed_requirements.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for path in REPOSITORY.glob("*.txt"):
        shutil.copy(path, tmp_path)
    python = tmp_path / "python"
    python.write_text(_INTERPRETER.format(python=sys.executable))
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in {"ROS_DISTRO", "ROS_WHEELS"}}

    def run(**variables: str) -> subprocess.CompletedProcess:
        environment = {**kept, "PYTHON": str(python), **variables}
        command = ["bash", tmp_path / "scripts" / "make_env.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_the_ros_of_the_wheels_can_be_chosen(make_env, tmp_path):
    def entered() -> str:
        command = f"unset ROS_DISTRO; . {tmp_path}/scripts/activate.sh; echo $ROS_DISTRO"
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()

    def pins() -> list[str]:
        return re.findall(r"^ros-rclpy==(\d+)", (tmp_path / ".venv" / "pins").read_text(), re.MULTILINE)

    assert make_env().returncode == 0
    assert (pins(), entered()) == (["7"], "jazzy")
    (tmp_path / ".venv" / "pins").unlink()
    again = make_env(ROS_WHEELS="jazzy")
    assert "ready" in again.stdout
    assert not (tmp_path / ".venv" / "pins").exists(), "installed again"
    other = make_env(ROS_WHEELS="kilted")
    assert "making it anew" in other.stdout
    assert (pins(), entered()) == (["9"], "kilted")


def test_a_ros_without_wheels_is_refused_with_those_there_are(make_env, tmp_path):
    refused = make_env(ROS_WHEELS="humble")
    assert refused.returncode == 2
    assert "ROS_WHEELS=humble is not known: one of jazzy kilted was expected" in refused.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_sourced_ros_keeps_its_own_modules():
    script = runpy.run_path(str(REPOSITORY / "scripts" / "needed_requirements.py"))
    lines = ["# comment", "numpy  # numpy", "colcon-core  # colcon_core", "absent  # no_such_module_anywhere", ""]
    assert script["needed"](lines, leave_out_importable=False) == ["numpy", "colcon-core", "absent"]
    assert script["needed"](lines, leave_out_importable=True) == ["colcon-core", "absent"]


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: Path) -> set[str]:
    """The modules that the files of a folder import, anywhere in them."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return names
