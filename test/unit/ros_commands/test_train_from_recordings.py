"""Training through the one command, on recordings of every layout and on mixtures of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit import recordings
from unit.recordings import FORMATS

from coopnet_core.checkpoint import read_metadata
from coopnet_core.data.frames import Clip
from coopnet_core.data.triplets import TripletSampler
from coopnet_ros.train_from_bags import main

TINY = ["--size", "96x64", "--batch-size", 2, "--device", "cpu", "--set", "log_every=1", "--validation-share", 0]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_layout_is_recognised_said_and_trained_on(tmp_path: Path, capsys, name: str):
    if "video" in name:
        pytest.importorskip("av")
    written = FORMATS[name](tmp_path)
    guess = ["--fov", 80] if written.camera is None else []
    assert run(written.path, "-o", tmp_path / "run", "--steps", 2, *TINY, *guess) == 0
    said = capsys.readouterr().out
    assert f"{written.kind}: " in said
    assert ("announces 40 images" in said) == (name == "cut_off_video")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps if "step" in line) == 2
    (facts,) = read_metadata(tmp_path / "run" / "checkpoints" / "last.safetensors").data["sources"]
    assert facts["kind"] == written.kind
    if name != "cut_off_video":
        assert facts["train_frames"] == len(written.stamps)


def test_a_mixture_reaches_the_trainer_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from coopnet_core.cotraining import trainer

    made: list[list[Clip]] = []

    def train(config, clips, validation, output, **rest):
        made.append(list(clips))
        return trainer.TrainResult(output, output, 1, False, None)

    monkeypatch.setattr(trainer, "train", train)
    raw, bare = recordings.kitti_raw(tmp_path / "raw"), recordings.folder_without_calibration(tmp_path / "bare")
    data = [raw.path, bare.path, "render:3:4", "--fov", 80, *TINY]
    assert run(*data, "--weights", "1,2,5", "-o", tmp_path / "run") == 0
    (clips,) = made
    assert [(clip.source, clip.weight) for clip in clips] == [(0, 1.0), (0, 1.0), (1, 2.0), (2, 5.0)]
    said = capsys.readouterr().out
    for share in ("12 % of the targets", "25 % of the targets", "62 % of the targets"):
        assert share in said
    batch = TripletSampler(clips, (-1, 1), 800, seed=0).next(1)
    assert batch.assumed.float().mean().item() == pytest.approx(0.25, abs=4 * 0.0153)  # the bare folder's share
    assert run(*data, "-o", tmp_path / "other") == 0
    assert {clip.weight for clip in made[1]} == {None}


def test_validation_by_another_kind_of_recording(tmp_path: Path, capsys):
    raw = recordings.kitti_raw(tmp_path / "raw")
    options = ["--validation-bag", "render:3:4", "--weights", 1, "--dry-run", "--size", "96x64"]
    assert run(raw.path, *options) == 0
    assert "2 for training (12 targets), 1 for validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "1,2"], "2 numbers for 1 recordings"),
        (["--weights", "0"], "positive numbers"),
        (["--weights", "a,b"], "positive numbers"),
        (["--calibration", "absent.json"], "absent.json"),
    ],
)
def test_wrong_options(tmp_path: Path, capsys, options: list[str], words: str):
    folder = recordings.folder_without_calibration(tmp_path)
    assert run(folder.path, "--dry-run", "--fov", 80, *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_calibration_file_that_is_wrong_is_exit_code_2(tmp_path: Path, capsys):
    odometry = recordings.kitti_odometry(tmp_path).path
    calibration = odometry / "sequences" / "03" / "calib.txt"
    calibration.write_text(calibration.read_text().replace("P2", "P9"))
    assert run(odometry, "--dry-run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{calibration}: no row 'P2:'" in said
    assert "found P0, P9" in said


def test_nothing_usable_is_exit_code_3(tmp_path: Path, capsys):
    folder = recordings.folder_without_calibration(tmp_path).path
    assert run(folder, "--dry-run") == 3
    assert "--learn-intrinsics" in capsys.readouterr().err
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    assert run(folder, "--dry-run", "--fov", 80) == 3
    assert "8 x the file is no readable image" in " ".join(capsys.readouterr().err.split())
    assert run(folder, "--dry-run", "--learn-intrinsics") == 3


def test_a_focal_length_is_learned_from_a_folder_without_calibration(tmp_path: Path, capsys):
    folder = recordings.folder_without_calibration(tmp_path).path
    assert run(folder, "--dry-run", "--learn-intrinsics", "--size", "96x64") == 0
    assert "the focal length of 1 of 1 training clips is learned" in capsys.readouterr().out
