"""What is written for the Rerun viewer; a fake package records it, the real one is tried where it is installed."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from unit.tiny_run import CAMERA

from coopnet_core.data.frames import Frame
from coopnet_core.errors import UsageError
from coopnet_core.inference.prediction import Prediction
from coopnet_core.rerun_log import LoggedPredictor, log_training
from coopnet_ros.train_from_bags import main

SECOND = 10**9


class FakeRerun:
    """Stands in for the package: remembers what was logged, where and when."""

    def __init__(self):
        self.logged, self.now, self.saved, self.flushed = [], None, None, 0
        for name in ("Scalars", "Image", "DepthImage", "EncodedImage", "Transform3D", "Pinhole", "LineStrips3D"):
            setattr(self, name, self._maker(name))
        self.ViewCoordinates = SimpleNamespace(RDF="RDF")

    def RecordingStream(self, name):
        return self

    def save(self, path):
        self.saved = path

    def set_time(self, timeline, **when):
        self.now = (timeline, *when.values())

    def log(self, place, what, static=False):
        self.logged.append((None if static else self.now, place, what))

    def flush(self):
        self.flushed += 1

    def at(self, place):
        return [what for _, where, what in self.logged if where == place]

    @staticmethod
    def _maker(kind):
        def make(*values, **named):
            made = SimpleNamespace(kind=kind, values=values, **named)
            made.compress = lambda jpeg_quality: made
            return made

        return make


@pytest.fixture
def rerun(monkeypatch) -> FakeRerun:
    fake = FakeRerun()
    monkeypatch.setitem(sys.modules, "rerun", fake)
    return fake


def run_folder(output: Path) -> Path:
    lines = [
        {"step": 10, "stage": "a", "validation": False, "loss": 2.0, "e_r": None},
        {"step": 20, "stage": "a", "validation": True, "e_f": 0.5},
    ]
    output.mkdir()
    (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output / "pictures").mkdir()
    names = [f"pictures/frame_{index}_{kind}.jpg" for index in (0, 1) for kind in range(4)]
    for name in names[:-1]:
        (output / name).write_bytes(b"picture")
    (output / "report.json").write_text(json.dumps({"pictures": [[name, "caption"] for name in names]}))
    return output


def test_a_training_over_its_steps(rerun, tmp_path):
    output = run_folder(tmp_path / "run")
    assert log_training(tmp_path / "new" / "t.rrd", output) == rerun.saved
    scalars = [(when, place, what.values) for when, place, what in rerun.logged if place.startswith(("train", "val"))]
    assert scalars == [(("step", 10), "train/loss", (2.0,)), (("step", 20), "validation/e_f", (0.5,))]
    (flow,) = rerun.at("pictures/1/flow")
    assert flow.path == output / "pictures/frame_1_2.jpg"
    assert rerun.at("pictures/1/moving") == []  # its file is gone
    assert rerun.flushed == 1


def test_a_run_without_pictures_is_its_figures(rerun, tmp_path):
    (run_folder(tmp_path / "run") / "report.json").unlink()
    log_training(tmp_path / "t.rrd", tmp_path / "run")
    assert len(rerun.at("train/loss")) == 1
    assert not any(place.startswith("pictures") for _, place, _ in rerun.logged)


class Forward:
    """Predicts one unit forward per frame."""

    device = "cpu"

    def predict(self, frame, outputs=frozenset()):
        motion = np.eye(4)
        motion[2, 3] = 1.0
        first = frame.stamp_ns == 0
        size = frame.image.shape[:2]
        return Prediction(
            frame.stamp_ns, None if first else frame.stamp_ns - SECOND, CAMERA, frame.image, np.ones(size, np.float32),
            False, None if first else motion, np.zeros((*size, 2), np.float32), np.zeros(size, np.float32), None, 1.0,
        )  # fmt: skip


def test_predictions_over_their_time(rerun, tmp_path):
    predictor = LoggedPredictor(Forward(), tmp_path / "p.rrd")
    frames = [Frame(np.full((64, 64, 3), k, np.uint8), k * SECOND, CAMERA) for k in range(4)]
    given = [predictor.predict(frame) for frame in frames]
    assert [prediction.stamp_ns for prediction in given] == [0, SECOND, 2 * SECOND, 3 * SECOND]
    poses = [what.translation.tolist() for what in rerun.at("world/camera")]
    assert poses == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]]
    assert rerun.at("world/path")[-1].values[0][0].tolist() == poses
    assert [what.values[0][0, 0, 0] for what in rerun.at("world/camera/image") if what.kind == "Image"] == [0, 1, 2, 3]
    for place in ("world/camera/image/depth", "pictures/depth_color", "pictures/flow", "pictures/moving"):
        assert len(rerun.at(place)) == 4
    assert rerun.logged[-1][0] == ("stamp", np.datetime64(3 * SECOND, "ns"))


def test_creeping_counts_from_the_frame_it_began_with(rerun, tmp_path):
    creeping = Forward()
    predictor = LoggedPredictor(creeping, tmp_path / "p.rrd")
    frames = [Frame(np.zeros((64, 64, 3), np.uint8), k * SECOND, CAMERA) for k in range(3)]
    plain = creeping.predict
    creeping.predict = lambda frame, outputs: replace(
        plain(frame), reference_stamp_ns=0 if frame.stamp_ns == 2 * SECOND else None
    )
    for frame in frames:
        predictor.predict(frame)
    assert [what.translation[2] for what in rerun.at("world/camera")] == [0, 1, 1]


def test_without_the_package_it_is_said_before_anything_begins(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UsageError, match="pip install rerun-sdk"):
        log_training(tmp_path / "t.rrd", run_folder(tmp_path / "run"))
    assert main(["render:3", "--output", str(tmp_path / "new"), "--rerun", str(tmp_path / "a.rrd")]) == 2
    assert "pip install rerun-sdk" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="rerun-sdk is not installed")
def test_the_real_package_takes_it(tmp_path):
    output = run_folder(tmp_path / "run")
    assert log_training(tmp_path / "t.rrd", output).read_bytes()[:3] == b"RRF"
    predictor = LoggedPredictor(Forward(), tmp_path / "p.rrd")
    predictor.predict(Frame(np.zeros((64, 64, 3), np.uint8), 0, CAMERA))
    del predictor
    assert (tmp_path / "p.rrd").stat().st_size > 1000
