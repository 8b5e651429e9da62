"""README.md, docs/parameters.md and config/coopnet_node.yaml are in step with the declarations."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coopnet_ros.interface import SERVICES, TOPICS, load_type
from coopnet_ros.parameters import PARAMETERS

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "write_reference.py"
WRITTEN = ("README.md", "docs/parameters.md", "config/coopnet_node.yaml")


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd="/"
    )


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in WRITTEN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_files_are_in_step():
    done = run("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "declared"),
    [
        ("README.md", "`~/motion/mask`"),
        ("docs/parameters.md", "`max_depth`"),
        ("config/coopnet_node.yaml", "max_depth"),
    ],
)
def test_a_row_that_is_missing_is_found_and_written_again(copy, name, declared):
    path, text = copy / name, (copy / name).read_text()
    path.write_text("".join(line for line in text.splitlines(keepends=True) if declared not in line))
    done = run("--check", "--root", copy)
    assert done.returncode == 1
    assert name in done.stderr
    assert "scripts/write_reference.py" in done.stderr
    assert declared not in path.read_text(), "--check writes nothing"
    assert run("--root", copy).returncode == 0
    assert path.read_text().count(declared) > 0
    assert run("--check", "--root", copy).returncode == 0


def test_a_mark_that_is_missing_is_said(copy):
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace("<!-- /topics -->", ""))
    done = run("--check", "--root", copy)
    assert done.returncode == 1
    assert "<!-- topics -->" in done.stderr


def test_every_row_of_a_table_has_the_cells_of_its_head():
    script = runpy.run_path(str(SCRIPT))
    for write, rows in (("topics_table", TOPICS), ("services_table", SERVICES), ("parameters_table", PARAMETERS)):
        lines = script[write]().splitlines()
        assert len(lines) == len(rows) + 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_names_are_unique_and_everything_is_described():
    for specs in (TOPICS, SERVICES):
        assert len({spec.name for spec in specs}) == len(specs)
        assert all(spec.description.endswith((".", ").")) for spec in specs)


def test_a_condition_is_a_value_of_a_parameter():
    specs = {spec.name: spec for spec in PARAMETERS}
    for name, values in (topic.condition.split(": ") for topic in TOPICS if topic.condition):
        for value in values.split(" or "):
            assert value in specs[name].choices or type(specs[name].default) is bool


def test_every_type_is_one():
    pytest.importorskip("rclpy", reason="ROS 2 (rclpy) is not installed")
    for spec in (*TOPICS, *SERVICES):
        if not spec.type_name.startswith("tf2_msgs/"):  # comes with tf2_ros, which may be absent
            assert load_type(spec.type_name).__name__ == spec.type_name.rpartition("/")[2]


def test_the_short_list_of_the_readme_has_the_declared_defaults():
    """That list is picked by hand; what it says of a parameter is not."""
    section = (ROOT / "README.md").read_text().partition("\n## Parameters\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    declared = {spec.name: json.dumps(spec.default).strip('"') for spec in PARAMETERS}
    said = {}
    for names, defaults in ([re.findall("`([^`]*)`", cell) for cell in row] for row in rows):
        # one default may be that of all names of the row
        said |= zip(names, defaults if len(defaults) > 1 else defaults * len(names), strict=True)
    assert len(said) > 5
    assert {name: default.strip('"') for name, default in said.items()} == {name: declared[name] for name in said}
