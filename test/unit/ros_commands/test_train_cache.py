"""The cache of prepared recordings as the command train_from_bags uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from unit.bag_factory import recording, write_bag
from unit.tiny_run import same_end

from coopnet_core.data.prepared_cache import ENTRY
from coopnet_core.data.sources.decoding import Decoding
from coopnet_ros.train_from_bags import main

_ROOT = Path(__file__).resolve().parents[3]
TINY = ["--size", "96x64", "--batch-size", "2", "--device", "cpu", "--set", "checkpoint_every=1"]
TINY += ["--set", "log_every=1"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home_cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return write_bag(tmp_path / "drive", recording(30))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per image that was decoded."""
    found: list[int] = []
    original = Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda self, work: original(self, lambda: found.append(1) or work()))
    return found


def entries(folder: Path) -> int:
    return len(list(folder.rglob(ENTRY)))


def table(said: str) -> str:
    """What is said but for the lines about the cache and the progress."""
    return said[said.index("Recordings") :]


def test_the_second_start_decodes_nothing_and_says_the_same(bag: Path, decoded: list[int], tmp_path: Path, capsys):
    assert run(bag, "--dry-run", "--no-cache") == 0
    plain = table(capsys.readouterr().out)
    assert not (tmp_path / "home_cache").exists()
    assert run(bag, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "drive: up to 0.6 MB of frames will be kept in" in said
    assert "cache: " in said
    assert table(said) == plain
    assert entries(tmp_path / "home_cache" / "coopnet" / "prepared") == 1
    decoded.clear()
    assert run(bag, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "drive: 30 frames from the cache" in said
    assert table(said) == plain
    assert decoded == []


def test_the_folder_can_be_named(bag: Path, tmp_path: Path, capsys):
    assert run(bag, "--dry-run", "--cache", tmp_path / "mine") == 0
    assert entries(tmp_path / "mine") == 1
    assert not (tmp_path / "home_cache").exists()
    assert run(bag, "--dry-run", "--cache", tmp_path / "mine", "--no-cache") == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_run_ends_alike_with_and_without_the_cache(bag: Path, decoded: list[int], tmp_path: Path):
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    assert run(bag, "-o", plain, "--steps", 2, "--no-cache", *TINY) == 0
    assert run(bag, "--dry-run", *TINY) == 0
    decoded.clear()
    assert run(bag, "-o", cached, "--steps", 2, *TINY) == 0
    assert decoded == []
    assert same_end(plain, cached)
    # The frames are known to be the same ones.
    assert run(bag, "-o", plain, "--resume", "--steps", 3) == 0
    assert run(bag, "-o", cached, "--resume", "--steps", 3, "--no-cache") == 0
    assert same_end(plain, cached)


def test_a_resume_finds_the_size_that_was_chosen_at_the_first_start(tmp_path: Path, bag: Path, decoded: list[int]):
    chosen = [option for option in TINY if option not in ("--size", "96x64")]
    assert run(bag, "-o", tmp_path / "run", "--steps", 1, *chosen) == 0
    assert len(decoded) == 30
    assert run(bag, "-o", tmp_path / "run", "--resume", "--steps", 2) == 0
    assert len(decoded) == 30


def test_processes_of_torchrun_prepare_once(tmp_path: Path, bag: Path):
    """Two processes on one machine, one cache: one decodes, the other reads what that has kept."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from coopnet_core.data.sources.decoding import Decoding\n"
        "from coopnet_ros.train_from_bags import main\n"
        "decode, decoded = Decoding.__call__, []\n"
        "Decoding.__call__ = lambda self, work: decode(self, lambda: decoded.append(1) or work())\n"
        "code = main(sys.argv[1:])\n"
        f"Path({str(tmp_path)!r}, 'rank_' + os.environ['RANK']).write_text(str(len(decoded)))\n"
        "sys.exit(code)\n"
    )
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    command += [str(bag), "-o", str(tmp_path / "run"), "--steps", "1", *TINY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(int((tmp_path / f"rank_{rank}").read_text()) for rank in range(2)) == [0, 30]
