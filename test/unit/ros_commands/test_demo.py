"""The demo driver: what it refuses, how it splits a recording, what it keeps when a step fails."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from unit.bag_factory import INFO_TOPIC, recording, write_bag

from coopnet_core.errors import NoUsableDataError, UsageError
from coopnet_ros import demo
from coopnet_ros.demo_parts import split_bag
from coopnet_ros.demo_processes import Background, StepError, run_command
from coopnet_ros.demo_report import DemoFacts, comparison, write_demo_report


def test_a_recording_is_split_by_time(tmp_path):
    split = split_bag(write_bag(tmp_path / "bag", recording(30)), None, None, 0.6)
    assert (split.train, split.test) == ((0, 18), (18, 30))
    assert split.fps == pytest.approx(10.0)
    # From just before image 18 (and its CameraInfo) to just after image 29.
    assert 1.7 < split.start_s < 1.8
    assert 2.9 < split.end_s < 3.0


def test_a_long_recording_is_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr("coopnet_ros.demo_parts._LONGEST_TRAINING", 10)
    monkeypatch.setattr("coopnet_ros.demo_parts._LONGEST_LIVE", 5)
    split = split_bag(write_bag(tmp_path / "bag", recording(40)), None, None, 0.5)
    assert (split.train, split.test) == ((10, 20), (20, 25))


def test_a_recording_that_is_too_short_is_refused(tmp_path):
    with pytest.raises(NoUsableDataError, match="has 8 images"):
        split_bag(write_bag(tmp_path / "bag", recording(8)), None, None, 0.6)


def test_a_recording_without_calibration_is_refused_with_advice(tmp_path):
    with pytest.raises(NoUsableDataError, match="--camera-info"):
        split_bag(write_bag(tmp_path / "bag", recording(30, info_topic=None)), None, None, 0.6)


def test_several_cameras_need_a_choice(tmp_path):
    second = recording(30, image_topic="/rear/image_raw", info_topic="/rear/camera_info", seed=1)
    bag = write_bag(tmp_path / "bag", sorted(recording(30) + second, key=lambda message: message[2]))
    with pytest.raises(UsageError, match="/rear/image_raw"):
        split_bag(bag, None, None, 0.6)
    assert split_bag(bag, "/camera/image_raw", None, 0.6).topics.info == INFO_TOPIC


def test_a_missing_bag_is_refused_before_anything_is_written(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), "--scratch", "--bag", str(tmp_path / "none")]) == 2
    assert "There is no bag" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_refused(tmp_path, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), "--weights", str(tmp_path / "none")]) == 2
    assert "There is no checkpoint" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_touched(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert demo.main(["--output", str(tmp_path), "--scratch"]) == 2
    assert "no demo's" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_failing_step_leaves_a_report_and_its_exit_code(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"

    def fail(command, arguments):
        raise StepError(f"`{command}` ended with exit code 3; its message is above.", 3)

    monkeypatch.setattr(demo, "run_command", fail)
    assert demo.main(["--output", str(output), "--scratch"]) == 3
    report = json.loads((output / "report.json").read_text())
    assert not report["complete"]
    assert "Step 1 of 6 (render a recording) failed" in report["failure"]
    assert "NOT COMPLETE" in (output / "report.html").read_text()
    assert "is kept in" in capsys.readouterr().out.replace("\n", " ")


def test_an_interruption_leaves_a_report_too(tmp_path, monkeypatch):
    def interrupt(command, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_command", interrupt)
    assert demo.main(["--output", str(tmp_path), "--scratch"]) == 130
    assert "was interrupted" in json.loads((tmp_path / "report.json").read_text())["failure"]


def test_an_earlier_result_is_moved_aside(tmp_path, monkeypatch):
    output = tmp_path / "out"
    monkeypatch.setattr(demo, "_steps", lambda run: [])
    assert demo.main(["--output", str(output), "--scratch"]) == 0
    (output / "mark").write_text("first")
    assert demo.main(["--output", str(output), "--scratch"]) == 0
    assert (tmp_path / "out.previous" / "mark").read_text() == "first"
    assert not (output / "mark").exists()


def test_the_folder_that_colcon_ignores_counts_as_empty(tmp_path, monkeypatch):
    (tmp_path / "COLCON_IGNORE").touch()
    monkeypatch.setattr(demo, "_steps", lambda run: [])
    assert demo.main(["--output", str(tmp_path), "--scratch"]) == 0


@pytest.mark.parametrize("option", [["--share", "0.95"], ["--frames", "5"], ["--rate", "0"], ["--size", "big"]])
def test_impossible_options_are_refused(tmp_path, option, capsys):
    assert demo.main(["--output", str(tmp_path / "out"), "--scratch", *option]) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_is_named_with_its_code(tmp_path):
    with pytest.raises(StepError, match="make_demo_bag --output") as caught:
        run_command("make_demo_bag", ["--output", tmp_path / "bag", "--frames", "none"])
    assert caught.value.exit_code == 2


def test_a_background_command_that_dies_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    with (
        pytest.raises(StepError, match="unrecognized arguments") as caught,
        Background("make_demo_bag", ["--no-such-option", "--output", tmp_path / "bag"], log) as process,
    ):
        process.wait(60)
    assert caught.value.exit_code == 2


def report(abs_rel: float | None) -> dict:
    parts = {name: {} for name in ("depth", "odometry", "flow", "mask")}
    parts["depth"] = {"abs_rel": abs_rel}
    baselines = {name: {} for name in parts} | {"depth": {"constant": {"abs_rel": 0.5}}}
    return parts | {"baselines": baselines, "photometric": None, "reasons": {}}


def test_the_figures_stand_beside_the_baseline():
    (row,) = comparison({"before": report(0.4), "after": report(0.2)})
    assert row == ["depth.abs_rel (less is better)", 0.5, 0.4, 0.2, None]


def test_figures_nobody_has_are_left_out():
    assert comparison({"after": report(None)}) == []
    assert comparison({}) == []


def test_own_recordings_without_truth_show_the_photometric_figures():
    own = report(None) | {"photometric": {"identity": 0.3, "rigid": 0.2, "flow": 0.1}}
    rows = comparison({"before": own, "after": own, "live": own})
    assert [row[1:] for row in rows] == [[0.3, 0.2, 0.2, 0.2], [0.3, 0.1, 0.1, 0.1]]


def test_a_report_of_nothing_is_still_a_page(tmp_path):
    page = write_demo_report(tmp_path, DemoFacts(failure="Step 1 failed."))
    assert "Step 1 failed." in page.read_text()


@pytest.mark.parametrize(("best_step", "shown", "beaten"), [(9000, "last", False), (9150, "best", True)])
def test_what_training_did_is_shown_although_nothing_beat_the_start(tmp_path, monkeypatch, best_step, shown, beaten):
    steps = {"start": 9000, "best": best_step, "last": 9300}
    monkeypatch.setattr("coopnet_core.checkpoint.read_metadata", lambda path: SimpleNamespace(step=steps[path.stem]))
    trained, was_beaten = demo.trained_weights(tmp_path, tmp_path / "start.safetensors")
    assert (trained, was_beaten) == (tmp_path / "checkpoints" / f"{shown}.safetensors", beaten)
    facts = DemoFacts(start_was_beaten=was_beaten)
    page = write_demo_report(tmp_path, facts).read_text()
    assert ("nothing better than the weights it started from" in page) != beaten


def test_a_cold_start_is_always_beaten(tmp_path):
    assert demo.trained_weights(tmp_path, None) == (tmp_path / "checkpoints" / "best.safetensors", True)
