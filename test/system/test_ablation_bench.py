"""The ablation runner: every run once, a table and curves of all, resumable."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import ablation

SMALL = ("--steps", "2", "--clips", "1", "--test-scenes", "1", "--frames", "4", "--size", "96x64", "--seeds", "0", "1")
SMALL += ("--start-steps", "2")


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *more: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--output", str(output), *SMALL, *more])
    return ablation.main()


def test_runs_are_made_once_and_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rules = ("--rules", "sum", "oracle", "--also", "splatting:loss.occlusion=splatting,stage.consistency=0.1")
    assert run(monkeypatch, tmp_path, *rules) == 0
    results = sorted(tmp_path.glob("runs/plain/*/seed*/result.json"))
    assert [path.parent.parent.name for path in results] == ["oracle"] * 2 + ["splatting"] * 2 + ["sum"] * 2
    figures = json.loads(results[0].read_text())
    assert (tmp_path / "start" / "checkpoints" / "last.safetensors").is_file()
    assert 0 < figures["seen_static_abs_rel"] < 2
    assert figures["curve"][-1][0] == 2
    config = (results[2].parent / "config.yaml").read_text()
    assert "occlusion: splatting" in config
    assert "consistency: 0.1" in config
    table = (tmp_path / "plain.md").read_text()
    assert table.splitlines()[0] == "| figure | start | sum | oracle | splatting |"
    assert "static_abs_rel" in table
    assert (tmp_path / "plain.png").stat().st_size > 1000

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train", refuse)
    assert run(monkeypatch, tmp_path, *rules) == 0


@pytest.mark.parametrize("treatment", ["exposure", "poor"])
def test_treatments_change_the_images_and_not_their_shape(treatment: str):
    scene = next(ablation.rendered(ablation.Scenario(treatment=treatment), [1], 2, (96, 64)))
    plain = next(ablation.rendered(ablation.Scenario(), [1], 2, (96, 64)))
    assert scene.clip.images.shape == plain.clip.images.shape
    assert scene.clip.images.dtype == plain.clip.images.dtype
    contrast, usual = scene.clip.images[0].std(), plain.clip.images[0].std()
    assert contrast != usual
    assert treatment != "poor" or contrast < 0.5 * usual
