"""The tutorial's commands, run as they are written and in their order.

`ros2 run coopnet_ros X` needs the `ros2` command line, which is not everywhere: `python -m coopnet_ros.X` stands in.
Blocks marked `console` (recording, launching, reloading) are not run here; that their commands, launch arguments and
files exist is looked up.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
RUN = "ros2 run coopnet_ros "


def _blocks(kind: str) -> list[str]:
    """The commands in the blocks of a kind, continued lines joined."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _run(command: str, folder: Path) -> str:
    """What a command of the tutorial said; it must end well."""
    assert command.startswith(RUN), f"only the package's own commands can be run here: {command}"
    name, *arguments = shlex.split(command.removeprefix(RUN))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    line = [sys.executable, "-m", f"coopnet_ros.{name}", *arguments]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder after the whole walk, and what each command said."""
    folder = tmp_path_factory.mktemp("walk")
    return folder, {command: _run(command, folder) for command in _blocks("bash")}


def test_every_step_does_what_the_tutorial_says(walk):
    folder, said = walk
    names = [command.removeprefix(RUN).split()[0] for command in said]
    assert names == ["make_demo_bag", "inspect_bags", *["train_from_bags"] * 2, "evaluate", "train_from_bags"]
    _, inspected, planned, first, evaluated, second = said.values()
    assert "usable, but it has only" in inspected
    assert (folder / "look" / "my_drive.png").is_file()
    assert "300 steps of 4 targets" in planned
    assert "models/small_rendered.safetensors" in planned
    for output, run in ((first, "first"), (second, "tuesday")):
        assert re.search(r"^validation       (error .* before|nothing beat the weights)", output, re.MULTILINE)
        assert f"runs/{run}/checkpoints/best.safetensors" in output
        assert (folder / "runs" / run / "checkpoints" / "best.safetensors").is_file()
        assert (folder / "runs" / run / "report.html").is_file()
    assert "from runs/first/checkpoints/best.safetensors" in second
    for figure in ("depth.abs_rel", "odometry.rotation_deg_per_frame", "flow.epe", "photometric rigid"):
        assert figure in evaluated
    assert (folder / "evaluation" / "report.html").is_file()


def test_what_is_shown_was_really_said(walk):
    """The first words of every quoted line of output, but for figures, are in what the commands print."""
    _, said = walk
    everything = _plain("\n".join(said.values()))
    shown = [line for line in _blocks("text") if not line.startswith("[coopnet_node")]
    assert len(shown) > 10
    for line in shown:
        beginning = _plain(line.split("...")[0])[:40]
        assert beginning in everything, line


def _plain(text: str) -> str:
    """Without what differs from run to run: figures, and the frames of tables."""
    return " ".join(re.sub(r"[-+\d.,/│]+", " ", text).split())


def test_what_is_not_run_exists():
    commands = _blocks("console")
    assert len(commands) == 5
    launched = [command for command in commands if command.startswith("ros2 launch coopnet_ros ")]
    text = TUTORIAL.read_text()
    for command in launched:
        file, *arguments = command.removeprefix("ros2 launch coopnet_ros ").split()
        source = (ROOT / "launch" / file).read_text()
        named = {argument.split(":=")[0] for argument in arguments} | set(re.findall(r"`(\w+):=", text))
        for name in named:
            assert f'"{name}"' in source, f"{file} has no argument {name}"
    for profile in re.findall(r"`(\w+\.yaml)`", text):
        assert (ROOT / "config" / "profiles" / profile).is_file()
    assert "ros2 param set /coopnet checkpoint" in "\n".join(commands)
    for link in re.findall(r"\]\((\w+\.md)", text):
        assert (ROOT / "docs" / link).is_file()
