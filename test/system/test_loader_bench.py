"""The bench of the data path, at a size that shows only that it works."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import loader
from coopnet_core.data.clips import PrepareOptions, prepare_clips
from coopnet_core.data.sources.decoding import Decoding


def test_every_kind_of_recording_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = ["--frames", "6", "--recorded-size", "128x96", "--repeats", "1", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["loader.py", "--output", str(tmp_path), *small])
    monkeypatch.setattr(loader, "_BATCHES", 3)
    images = []
    original = Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda self, work: images.append(1) or original(self, work))
    assert loader.main() == 0
    figures = json.loads((tmp_path / "loader.json").read_text())
    kinds = {"raw_bag", "jpeg_bag", "images"} | ({"video.mp4"} if find_spec("av") else set())
    assert {Path(path).name for path in figures["images_per_s"]} == kinds
    for path, found in figures["images_per_s"].items():
        assert found["images"] == loader.decode_bare(Path(path)) == 6
        assert all(rate > 0 for rate in found.values())
    # To make them, then each without and into a new cache; the first once more for sampler and training.
    assert len(images) == 6 + 2 * 6 * len(kinds) + 2 * 6
    assert set(figures["training"]) == {"0 ahead", "3 ahead"}
    assert all(0 < found["data_wait_share"] < 1 for found in figures["training"].values())
    assert not (tmp_path / "cache").exists()
    recordings = [Path(path) for path in figures["images_per_s"]]
    assert len({prepare_clips([path], (64, 64), PrepareOptions()).train[0].images.shape for path in recordings}) == 1
