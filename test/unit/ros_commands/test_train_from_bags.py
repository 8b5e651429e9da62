"""The command: what it says, refuses, hands to the trainer, and returns."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from unit import bag_factory as make
from unit.bag_factory import IMAGE, IMAGE_TOPIC, recording, stamp, write_bag

from coopnet_core.checkpoint import load_checkpoint, read_metadata
from coopnet_core.config import load_config, preset_lines
from coopnet_core.cotraining import trainer, training_report
from coopnet_core.data.compressed_frames import FrameCompressor
from coopnet_core.data.frames import Clip
from coopnet_core.errors import DivergedError
from coopnet_core.geometry.camera import Camera
from coopnet_core.resources import shipped_file
from coopnet_ros.train_from_bags import _digest, main


@dataclass
class Calls:
    """What the trainer was given, and what it is to do."""

    made: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False
    out_of_patience: bool = False
    error: BaseException | None = None
    focal: trainer.FocalResult | None = None
    gained: tuple[float, float, int] | None = None

    def train(self, config, clips_train, clips_validation, output, **rest) -> trainer.TrainResult:
        self.made.append(
            {"config": config, "train": clips_train, "validation": clips_validation, "output": output} | rest
        )
        if self.error:
            raise self.error
        result = trainer.TrainResult(
            output / "best", output / "last", 7, self.interrupted, self.focal, self.out_of_patience
        )
        if self.gained is None:
            return result
        start_error, best_error, best_step = self.gained
        return replace(result, start_error=start_error, best_error=best_error, best_step=best_step)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stands in for the trainer."""
    found = Calls()
    monkeypatch.setattr(trainer, "train", found.train)
    monkeypatch.setenv("COLUMNS", "200")
    return found


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write_bag(tmp_path / "drive", recording(30))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_dry_run_says_what_was_found_and_writes_nothing(bag: Path, calls: Calls, capsys, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    assert run(bag, "--dry-run", "--size", "96x64") == 0
    said = capsys.readouterr().out
    for word in (
        "drive",
        "/camera/image_raw",
        "/camera/camera_info",
        "96x64 f=80",
        "the only camera topic",
        "27",
        "10.0",
    ):
        assert word in said
    assert "30 images by equal stamp" in said
    assert calls.made == []
    assert sorted(tmp_path.rglob("*")) == before


def test_everything_dropped_is_said(tmp_path: Path, calls: Calls, capsys):
    messages = recording(30)
    for index in (4, 5):
        topic, msgtype, bag_ns, _ = messages[2 * index + 1]
        short = make.image(make.picture(index), stamp(index), data=np.zeros(30, np.uint8))
        messages[2 * index + 1] = (topic, msgtype, bag_ns, short)
    bag = write_bag(tmp_path / "drive", messages)
    content = make.storage_file(bag).read_bytes()
    make.storage_file(bag).write_bytes(content[: int(0.8 * len(content))])
    assert run(bag, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 images not used, malformed image; first: Image rgb8 96x64 with step 288 needs 18432 bytes" in said
    assert "drive.mcap is damaged" in said
    assert "cut off" in said


def test_the_trainer_gets_data_and_settings(bag: Path, calls: Calls, tmp_path: Path):
    options = ["--steps", 5, "--batch-size", 2, "--seed", 9, "--device", "cpu", "--size", "96x64"]
    assert run(bag, "-o", tmp_path / "run", *options, "--set", "optimiser.learning_rate=3e-4") == 0
    (made,) = calls.made
    config = made["config"]
    assert (config.steps, config.batch_size, config.seed, config.device) == (5, 2, 9, "cpu")
    assert config.optimiser.learning_rate == pytest.approx(3e-4)
    assert [len(clip) for clip in made["train"]] == [27]
    assert [len(clip) for clip in made["validation"]] == [3]
    assert made["train"][0].images.shape == (27, 64, 96, 3)
    assert (made["output"], made["init"], made["resume"]) == (tmp_path / "run", None, False)
    facts = made["data_facts"]
    assert facts["sources"][0]["train_frames"] == 27
    assert len(facts["train_sha256"]) == 64
    json.dumps(facts)


def test_epochs_become_steps(bag: Path, calls: Calls, tmp_path: Path):
    assert run(bag, "-o", tmp_path / "run", "--epochs", 2, "--batch-size", 4, "--device", "cpu") == 0
    assert calls.made[0]["config"].steps == 13  # 25 targets have both neighbours; 2 x 25 / 4 rounded up


def test_frames_and_yaml_file(bag: Path, calls: Calls, tmp_path: Path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("steps: 11\nbatch_size: 3\n")
    options = ["--config", settings, "--frames", "5:15", "--validation-share", 0, "--batch-size", 6, "--device", "cpu"]
    assert run(bag, "-o", tmp_path / "run", *options) == 0
    made = calls.made[0]
    assert (made["config"].steps, made["config"].batch_size) == (11, 6)
    assert made["train"][0].stamps_ns.tolist() == [stamp(index) for index in range(5, 15)]


def test_trainer_interrupted_or_diverged(bag: Path, calls: Calls, tmp_path: Path, capsys):
    calls.interrupted = True
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu") == 130
    assert "--resume" in capsys.readouterr().out
    calls.error = DivergedError("the loss is not finite")
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu") == 4
    assert "the loss is not finite" in capsys.readouterr().err
    calls.error = KeyboardInterrupt()
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu") == 130


def test_the_end_of_the_patience_is_said(bag: Path, calls: Calls, tmp_path: Path, capsys):
    calls.out_of_patience = True
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu", "--set", "patience=3") == 0
    assert "ended at step 7: 3 validations in a row found nothing better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "done"),
        ({"interrupted": True}, "interrupted"),
        ({"out_of_patience": True}, "out of patience"),
        ({"error": DivergedError("the loss is not finite")}, "diverged"),
    ],
)
def test_every_end_leaves_a_report_and_its_own_exit_code(
    bag: Path, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], end: str
):
    for name, value in changes.items():
        setattr(calls, name, value)
    given: list[Any] = []
    monkeypatch.setattr(training_report, "report_of_a_training", lambda *arguments: given.append(arguments))
    codes = {"interrupted": 130, "diverged": 4}
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu", "--fov", 80) == codes.get(end, 0)
    ((output, _, data, session, rerun),) = given
    assert (output, len(data.sources), session.end, session.device) == (tmp_path / "run", 1, end, "cpu")
    assert (rerun, session.recordings) == (None, [str(bag)])
    assert session.command == list(map(str, [bag, "-o", tmp_path / "run", "--device", "cpu", "--fov", 80]))
    assert session.assumed_degrees is None  # the bag has a calibration
    assert bool(session.words) == (end != "done")


def test_no_run_no_report(calls: Calls, tmp_path: Path, capsys):
    assert run("--report", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


def test_interrupted_while_reading(bag: Path, calls: Calls, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coopnet_ros.train_from_bags.prepare_clips", interrupt)
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_full_disk_is_said(bag: Path, calls: Calls, tmp_path: Path, capsys):
    calls.error = OSError(28, "No space left on device", "state.pt")
    assert run(bag, "-o", tmp_path / "run", "--device", "cpu") == 2
    assert "No space left on device" in capsys.readouterr().err


# Refusals


def refused(capsys, code: int, *arguments: object) -> str:
    assert run(*arguments) == code
    return " ".join(capsys.readouterr().err.split())


def test_missing_and_empty_bags(tmp_path: Path, calls: Calls, capsys):
    assert "No recording at" in refused(capsys, 2, tmp_path / "absent", "--dry-run")
    assert "is empty" in refused(capsys, 3, write_bag(tmp_path / "empty", []), "--dry-run")
    (tmp_path / "folder").mkdir()
    assert "it holds: nothing" in refused(capsys, 3, tmp_path / "folder", "--dry-run")
    assert "No recording was named" in refused(capsys, 2, "--dry-run")


def test_no_camera_or_several(tmp_path: Path, calls: Calls, capsys):
    infos = [message for message in recording(3) if message[0] != IMAGE_TOPIC]
    said = refused(capsys, 3, write_bag(tmp_path / "none", infos), "--dry-run")
    assert "no camera topic" in said
    assert "/camera/camera_info sensor_msgs/msg/CameraInfo 3 messages" in said
    both = write_bag(tmp_path / "both", [*recording(5), *recording(5, "/rear/image_raw", "/rear/camera_info")])
    said = refused(capsys, 2, both, "--dry-run")
    assert "--topic /camera/image_raw" in said
    assert "--topic /rear/image_raw" in said
    assert run(both, "--dry-run", "--topic", "/rear/image_raw") == 0


def test_uncalibrated(tmp_path: Path, calls: Calls, capsys):
    bag = write_bag(tmp_path / "bag", recording(10, info_topic=None))
    assert "--fov DEGREES" in refused(capsys, 3, bag, "--dry-run")
    assert run(bag, "--dry-run", "--fov", 80) == 0
    assert "centred pinhole of 80 degrees is assumed" in capsys.readouterr().out


def test_an_unknown_camera_is_learned_when_asked(tmp_path: Path, calls: Calls, capsys):
    bag = write_bag(tmp_path / "bag", recording(10, info_topic=None))
    assert run(bag, "--dry-run", "--learn-intrinsics") == 0
    said = capsys.readouterr().out
    assert "centred pinhole of 70 degrees is assumed" in said
    assert "the focal length of 1 of 1 training clips is learned" in said
    assert run(write_bag(tmp_path / "known", recording(10)), "--dry-run", "--learn-intrinsics") == 0
    assert "has nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("late_change", "advice"), [(0.003, "settled: use it with --fov 53.1"), (0.2, "go on with --init")]
)
def test_what_was_learned_of_a_camera_is_said(tmp_path: Path, calls: Calls, capsys, late_change: float, advice: str):
    bag = write_bag(tmp_path / "bag", recording(10, info_topic=None))
    calls.focal = trainer.FocalResult(2.0, late_change, settled=late_change < 0.1)
    assert run(bag, "--output", tmp_path / "run", "--learn-intrinsics", "--fov", 90) == 0
    said = capsys.readouterr().out
    assert "horizontal field of view 53.1 degrees, started from 90 (focal length x 2.000)" in said
    assert advice in said


def test_unknown_encoding(tmp_path: Path, calls: Calls, capsys):
    messages = [(IMAGE_TOPIC, IMAGE, stamp(k), make.image(make.picture(k), stamp(k), "h264")) for k in range(5)]
    said = refused(capsys, 3, write_bag(tmp_path / "bag", messages), "--dry-run", "--fov", 80)
    assert "'h264' is not read" in said
    assert "bayer_rggb8" in said


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_file_cut_before_the_first_message(tmp_path: Path, calls: Calls, capsys, storage: str):
    bag = write_bag(tmp_path / "bag", recording(5), storage)
    file = make.storage_file(bag)
    file.write_bytes(file.read_bytes()[:600])
    assert "is damaged" in refused(capsys, 3, bag, "--dry-run")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "state.pt"])
def test_output_of_another_run(bag: Path, calls: Calls, capsys, tmp_path: Path, name: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    said = refused(capsys, 2, bag, "-o", tmp_path / "run", "--device", "cpu")
    assert f"holds another run ({name})" in said
    assert "--resume" in said
    assert (tmp_path / "run" / name).read_text() == "precious"
    assert calls.made == []


def test_output_that_is_a_file_or_missing(bag: Path, calls: Calls, capsys, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, 2, bag, "-o", tmp_path / "file")
    assert "--output DIR is missing" in refused(capsys, 2, bag)


def test_resume_needs_a_run(bag: Path, calls: Calls, capsys, tmp_path: Path):
    assert "Nothing to resume" in refused(capsys, 2, bag, "-o", tmp_path / "run", "--resume")


def test_init_that_is_no_checkpoint(bag: Path, calls: Calls, capsys, tmp_path: Path):
    weights = tmp_path / "weights.safetensors"
    assert str(weights) in refused(capsys, 2, bag, "-o", tmp_path / "run", "--init", weights)
    weights.write_bytes(b"rubbish")
    assert str(weights) in refused(capsys, 2, bag, "-o", tmp_path / "run", "--init", weights)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "optimiser.learning_rat=1"], "optimiser.learning_rate"),
        (["--set", "steps"], "KEY=VALUE"),
        (["--set", "steps=-3"], "steps"),
        (["--device", "warp9"], "warp9"),
        (["--size", "100x100"], "multiples of 32"),
        (["--size", "64x32"], "from 64 up"),
        (["--size", "large"], "416x128"),
        (["--frames", "9:3"], "A:B"),
        (["--frames", "9"], "A:B"),
        (["--fov", "200"], "between 0 and 180"),
        (["--validation-share", "1.5"], "[0, 1)"),
        (["--steps", "5", "--epochs", "2"], "not allowed with"),
        (["--preset", "huge"], "Shipped: cityscapes, cpu-small"),
        (["--preset", "kiti-640"], "did you mean kitti-640?"),
        (["--adapt", "--preset", "edge"], "networks of another configuration"),
        (["--freeze", "flow"], "without --init they are random"),
        (["--adapt", "--freeze", "depth.encodr"], "did you mean depth.encoder?"),
        (
            ["--adapt", "--freeze", "depth,pose,flow"],
            "that the stage 'adaptation' trains (depth, pose, flow) is frozen",
        ),
        (["--adapt", "--set", "stages.0.trian=[flow]"], "did you mean stages.0.train?"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_options(bag: Path, calls: Calls, capsys, arguments: list[str], words: str):
    assert words in refused(capsys, 2, bag, "--dry-run", *arguments)


def test_brackets_in_names_are_printed_as_they_are(tmp_path: Path, calls: Calls, capsys):
    bag = write_bag(tmp_path / "drive[bold]", recording(10))
    assert run(bag, "--dry-run") == 0
    assert "drive[bold]" in capsys.readouterr().out
    assert "drive[/red]" in refused(capsys, 2, tmp_path / "drive[/red]", "--dry-run")


def test_help_and_settings(calls: Calls, capsys):
    assert run("--help") == 0
    said = capsys.readouterr().out
    for word in ("examples:", "exit codes:", "default: 2.5", "default: 0.5", "--resume", "--fov DEGREES"):
        assert word in said
    presets = [f"{name:{max(map(len, preset_lines()))}}  {line}" for name, line in preset_lines().items()]
    assert all(line in said for line in presets)
    assert run("--settings") == 0
    said = capsys.readouterr().out
    assert all(line in said for line in presets)
    for key in ("optimiser.learning_rate", "loss.error_model.em_steps", "stages.N.train", "frozen"):
        assert f" {key} " in said


def _plan(said: str) -> str:
    """What is printed of the settings."""
    return next(line for line in said.splitlines() if line.startswith("settings ")).removeprefix("settings     ")


def test_what_differs_from_the_preset_is_said(bag: Path, calls: Calls, capsys, tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("loss: {flow_smoothness: 0.1}\nfine_tuning: [{name: a, share: 1}, {name: b, share: 1}]\n")
    assert run(bag, "--dry-run") == 0
    assert _plan(capsys.readouterr().out) == "preset cpu-small"
    assert run(bag, "--dry-run", "--preset", "edge", "--config", mine, "--steps", 5, "--set", "stages.1.rate=0.5") == 0
    assert _plan(capsys.readouterr().out) == (
        "preset edge; differing: loss.flow_smoothness 0.1 (0.05), stages.1.rate 0.5 (1), fine_tuning [a, b] "
        "([together]), steps 5 (30000)"
    )


def test_adaptation_starts_from_the_shipped_weights(bag: Path, calls: Calls, capsys, tmp_path: Path):
    assert run(bag, "-o", tmp_path / "run", "--adapt", "--freeze", "flow, depth.encoder", "--steps", 7) == 0
    (made,) = calls.made
    adapted, plain = made["config"], load_config("cpu-small", [shipped_file("config/adapt.yaml")], {})
    assert made["init"] == shipped_file("models/small_rendered.safetensors")
    assert adapted == plain.model_copy(update={"frozen": ("flow", "depth.encoder"), "steps": 7})
    assert plain.steps < 1000
    assert _plan(capsys.readouterr().out).startswith("preset cpu-small, networks of the checkpoint; differing: ")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (0, "validation       nothing beat the weights it started from (error 0.2000): best.safetensors holds those"),
        (50, "validation       error 0.1500 at step 50, 0.2000 before (-25.0 %)"),
    ],
)
def test_what_was_gained_is_said(bag: Path, calls: Calls, capsys, tmp_path: Path, step: int, said: str):
    calls.gained = (0.2, 0.2 if step == 0 else 0.15, step)
    assert run(bag, "-o", tmp_path / "run", "--adapt") == 0
    assert said in capsys.readouterr().out


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, and a folder for temporary files that has no room for the frames as they are."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coopnet_core.data.frame_store.free_memory", lambda: 0)
    monkeypatch.setattr("coopnet_core.data.frame_store.os.posix_fallocate", refuse)


def test_more_than_the_memory_and_the_disk(bag: Path, calls: Calls, capsys, monkeypatch, little_room: None):
    assert run(bag, "--dry-run", "--no-cache") == 0  # compressed, they have room
    full = partial(Path("/dev/full").open, "r+b")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full(buffering=0))
    said = refused(capsys, 2, bag, "--dry-run", "--no-cache")
    assert run(bag, "--dry-run") == 0  # what is kept in the cache needs no memory
    assert "--frames A:B" in said
    assert said.count("No space left on device") == 2


# With the real trainer

TINY = ["--size", "96x64", "--batch-size", 2, "--device", "cpu", "--set", "checkpoint_every=1", "--set", "log_every=1"]


def test_train_then_resume(bag: Path, tmp_path: Path, capsys):
    output = tmp_path / "run"
    assert run(bag, "-o", output, "--steps", 2, *TINY) == 0
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "state.pt",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
        "report.html",
    ):
        assert (output / name).stat().st_size > 0
    assert run(bag, "-o", output, "--steps", 2, *TINY) == 2  # not over another run
    capsys.readouterr()
    assert run(bag, "-o", output, "--resume", "--steps", 3) == 0
    capsys.readouterr()
    assert run(bag, "-o", output, "--resume", "--frames", "0:20") == 2  # not with other data
    assert "training frames are not those" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3
    assert [session["end"] for session in json.loads((output / "report.json").read_text())["sessions"]] == ["done"] * 2
    weights = output / "checkpoints" / "last.safetensors"
    assert run(bag, "-o", tmp_path / "next", "--init", weights, "--steps", 1, *TINY) == 0


def test_compressed_frames_are_trained_on_and_resumed(
    bag: Path, tmp_path: Path, capsys, little_room: None, monkeypatch
):
    output = tmp_path / "run"
    assert run(bag, "-o", output, "--steps", 2, "--no-cache", *TINY) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0.6 MB of frames are more than half of the free memory" in said
    assert f"kept compressed, 0.2 MB in a file in {tempfile.gettempdir()}" in said
    pictures = json.loads((output / "report.json").read_text())["pictures"]
    assert pictures
    assert all((output / path).stat().st_size for path, _ in pictures)
    assert run(bag, "-o", output, "--resume", "--steps", 3, "--no-cache") == 0
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert max(record["step"] for record in records) == 3
    monkeypatch.undo()  # there is room again, and the frames are not quite the same
    capsys.readouterr()
    assert run(bag, "-o", output, "--resume", "--steps", 4, "--no-cache") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "were kept compressed, for want of room, and now they are not. Resume with as much free memory" in said


def test_the_hash_of_clips_is_that_of_their_bytes(tmp_path: Path):
    images = np.stack([make.picture(k) for k in range(7)])
    images.tofile(tmp_path / "frames.u8")
    mapped = np.asarray(np.memmap(tmp_path / "frames.u8", np.uint8, "r", shape=images.shape))
    compressor = FrameCompressor((96, 64), lambda: 1 << 40)
    for image in images:
        compressor.append(image)
    compressed = compressor.images()
    camera = Camera(96, 64, 80.0, 80.0, 47.5, 31.5)
    for kept, expected in ((images, images), (mapped, images), (compressed, np.stack(list(compressed)))):
        clips = [Clip("", kept[start:stop], np.arange(start, stop), camera) for start, stop in ((0, 4), (4, 7))]
        assert _digest(clips) == hashlib.sha256(expected.tobytes()).hexdigest()


def test_ctrl_c_saves_and_can_be_resumed(bag: Path, tmp_path: Path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "coopnet_ros.train_from_bags", bag, "-o", output, "--steps", 5000, *TINY]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (output / "metrics.jsonl").exists() or not (output / "metrics.jsonl").read_bytes():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in said
    report = json.loads((output / "report.json").read_text())
    assert [session["end"] for session in report["sessions"]] == ["interrupted"]
    assert report["sessions"][0]["command"][1:3] == ["-o", str(output)]
    # Written again, from the recordings: the same, with new pictures.
    picture = output / report["pictures"][0][0]
    picture.unlink()
    assert run("--report", output, bag) == 0
    assert picture.stat().st_size > 0
    assert json.loads((output / "report.json").read_text()) == report
    done = read_metadata(output / "checkpoints" / "last.safetensors").step
    assert 1 <= done < 5000
    assert run(bag, "-o", output, "--resume", "--steps", done + 1) == 0


def test_two_processes_of_torchrun_are_one_run(bag: Path, tmp_path: Path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "coopnet_ros.train_from_bags", bag, "-o", output, "--steps", 2, *TINY]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("last checkpoint") == 1
    assert done.stdout.count("report  ") == 1
    assert len(json.loads((output / "report.json").read_text())["sessions"]) == 1
    assert max(json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()) == 2
    # Their run folder is that of one process, and so is what a single one does with it.
    assert run(bag, "-o", output, "--resume", "--steps", 3) == 0


def test_an_adaptation_keeps_what_is_frozen_and_is_resumed(bag: Path, tmp_path: Path, capsys):
    output = tmp_path / "run"
    options = [*TINY, "--validation-share", 0.3]
    assert run(bag, "-o", output, "--adapt", "--freeze", "depth.encoder", "--steps", 1, *options) == 0
    assert "\nvalidation       " in capsys.readouterr().out, "held against the weights it started from"
    assert load_config(None, [output / "config.yaml"], {}).frozen == ("depth.encoder",)
    said = refused(capsys, 2, bag, "-o", output, "--resume", "--freeze", "flow", *options)
    assert "goes on with what the run has frozen (depth.encoder)" in said
    assert run(bag, "-o", output, "--adapt", "--resume", "--steps", 2, *options) == 0
    start, end = (
        load_checkpoint(path).networks.depth.state_dict()
        for path in (shipped_file("models/small_rendered.safetensors"), output / "checkpoints" / "last.safetensors")
    )
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert {name for name in start if name.startswith("encoder.")} <= same
    assert len(same) < len(start)
