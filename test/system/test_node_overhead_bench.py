"""The benchmark of the node's overhead: every case is measured, and its parts make the whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import node_overhead


def test_every_case_is_measured_and_its_parts_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = ("--sizes", "160x64", "--encodings", "rgb8", "jpeg", "--listeners", "odom", "all", "--frames", "8")
    monkeypatch.setattr(sys, "argv", ["node_overhead.py", "--output", str(tmp_path), *small])
    assert node_overhead.main() == 0
    report = json.loads((tmp_path / "node_overhead.json").read_text())
    assert report["cores"] >= 1
    cases = report["cases"]
    named = [(case["encoding"], case["listeners"]) for case in cases]
    assert named == [("rgb8", "odom"), ("rgb8", "all"), ("jpeg", "odom"), ("jpeg", "all")]
    for case in cases:
        assert case["sent"] == 8
        assert 4 <= case["answered"] <= 8  # a busy computer may lose some
        assert case["network_size"] == case["size"] == [160, 64]
        for stage in node_overhead.STAGES:
            assert 0 < case[stage]["p50_ms"] <= case[stage]["p95_ms"], stage
        parts = [case[stage]["p50_ms"] for stage in ("decode", "fit", "publish", "rest")]
        assert max(parts) < case["overhead"]["p50_ms"]


def test_the_table_has_a_row_for_each_case():
    stages = {stage: {"p50_ms": 1.0, "p95_ms": 2.5} for stage in node_overhead.STAGES}
    case = {"size": [640, 480], "encoding": "rgb8", "listeners": "odom", "sent": 9, "answered": 8, **stages}
    table = node_overhead.results_table([case, case])
    assert table.row_count == 2
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["640x480", "rgb8", "odom", *["1.00/2.50"] * len(stages), "8 of 9"]


def test_the_last_result_that_has_a_listener_is_the_answer():
    answers = {name: node_overhead.Case(64, 64, "rgb8", name, 1, 30.0).answer for name in node_overhead.LISTENERS}
    assert answers == {"odom": "~/odom", "depth": "~/depth/image", "all": "~/odom"}
