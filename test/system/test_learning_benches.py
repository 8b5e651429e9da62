"""The benches that learn one thing: the tiny problem, and the camera. Both go on where they were stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import intrinsics, overfit

SMALL = ("--size", "96x64", "--steps", "4", "--set", "log_every=1")


def test_the_tiny_problem_is_judged_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["overfit.py", "--output", str(tmp_path), "--frames", "5", *SMALL])
    assert overfit.main() == 0
    figures = json.loads((tmp_path / "overfit.json").read_text())
    assert set(figures["start"]) == set(figures["end"]) == {*overfit.GOALS, *overfit.ALSO}
    assert figures["start"]["static_abs_rel"] != figures["end"]["static_abs_rel"]
    assert 0 < figures["end"]["median_error"] < figures["end"]["static_abs_rel"]
    assert (tmp_path / "panel.png").stat().st_size > 1000
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert overfit.main() == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == steps, "a finished run is not repeated"


def test_the_camera_is_learned_from_what_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = ["--output", str(tmp_path), "--scenes", "1", "--assumed", "100", "--true", "80", *SMALL]
    monkeypatch.setattr(sys, "argv", ["intrinsics.py", *arguments])
    assert intrinsics.main() == 0
    found = json.loads((tmp_path / "intrinsics.json").read_text())
    assert [step for step, _ in found["curve"]] == [1, 2, 3, 4]
    assert found["found_deg"] != pytest.approx(100, abs=1e-3)
    assert not found["settled"]
    assert (tmp_path / "intrinsics.png").stat().st_size > 1000


def test_field_of_view_follows_the_focal_length():
    assert intrinsics.field_of_view(100.0, 1.0) == pytest.approx(100.0)
    assert intrinsics.field_of_view(100.0, 1.4203) == pytest.approx(80.0, abs=0.01)
