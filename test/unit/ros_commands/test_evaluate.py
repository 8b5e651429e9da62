import json

import numpy as np
import pytest
from unit.truth_predictor import TruthPredictor

from coopnet_core.data.bag_writer import BagWriter
from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import SceneConfig, iter_rendered
from coopnet_core.geometry.camera import Camera
from coopnet_ros import evaluate

CAMERA = Camera.from_field_of_view(160, 64, 80)
STABLE = (
    "depth.abs_rel",
    "depth.a1",
    "odometry.ate_7dof_m",
    "odometry.t_err_pct",
    "odometry.rotation_deg_per_frame",
    "flow.epe",
    "flow.fl_pct",
    "mask.auc",
    "mask.iou_moving",
)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluate") / "bag"
    with BagWriter(path) as writer:
        config = SceneConfig(4, 6, CAMERA, movers=0.25, camera_moves=True, supersampling=1)
        for frame, truth in iter_rendered(config):
            writer.write(frame, truth)
    return path


@pytest.fixture
def checkpoint(bag, tmp_path, monkeypatch):
    """A file that stands for networks which know the truth."""
    from coopnet_core.inference import stream

    monkeypatch.setattr(stream, "StreamPredictor", lambda path, device, refine: TruthPredictor(bag))
    return tmp_path / "truth.safetensors"


def run(*arguments):
    return evaluate.main([str(argument) for argument in arguments])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def value(report, name):
    part, key = name.split(".")
    return report[part][key]


def test_all_stable_keys_have_values(bag, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--bag", bag, "--checkpoint", checkpoint, "--output", out, "--segments", "1,2", "--pictures", 1) == 0
    report = report_of(out)
    assert all(value(report, name) is not None for name in STABLE)
    assert value(report, "depth.abs_rel") < 1e-4
    assert report["source"]["checkpoint"] == str(checkpoint)
    assert report["protocol"]["depth"]["crop"] == "garg"
    assert report["counts"]["frames"] == 6
    assert (out / "report.html").is_file()
    assert list(out.glob("panel_*.png"))
    assert "depth.abs_rel" in capsys.readouterr().out
    # The same evaluation may be repeated in its folder; nothing of the first stays open.
    assert run("--bag", bag, "--checkpoint", checkpoint, "--output", out, "--pictures", 0) == 0
    assert value(report_of(out), "odometry.t_err_pct") is None
    assert "shortest segment" in report_of(out)["reasons"]["odometry.t_err_pct"]


def test_a_bag_without_truth_gives_null_with_reasons(bag, checkpoint, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    with BagWriter(plain) as writer:
        for frame, _ in iter_rendered(SceneConfig(4, 6, CAMERA, movers=0.25, camera_moves=True, supersampling=1)):
            writer.write(frame)
    assert run("--bag", plain, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--pictures", 1) == 0
    report = report_of(tmp_path / "out")
    for name in STABLE:
        assert value(report, name) is None
        assert "no true" in report["reasons"][name]
    assert report["photometric"]["pairs"] == 5


def test_frames_and_protocol_options(bag, checkpoint, tmp_path):
    out = tmp_path / "out"
    options = ("--frames", "2:5", "--cap", 30, "--crop", "none", "--scaling", "none", "--align", "scale")
    assert run("--bag", bag, "--checkpoint", checkpoint, "--output", out, "--pictures", 0, *options) == 0
    report = report_of(out)
    assert report["counts"]["frames"] == 3
    assert report["protocol"]["depth"]["cap"] == 30
    assert report["protocol"]["odometry"]["alignment"] == "scale"
    # The predictor's unit is half a metre: without scaling the depth is twice the truth.
    assert value(report, "depth.abs_rel") > 0.5


def test_recorded_predictions(bag, tmp_path):
    folder = tmp_path / "recorded"
    (folder / "frames").mkdir(parents=True)
    for index in range(6):
        stamp = 1_000_000_000 + index * 100_000_000
        np.savez(folder / "frames" / f"{stamp}.npz", depth=np.full((32, 80), 5.0, np.float32))
    assert run("--bag", bag, "--predictions", folder, "--output", tmp_path / "out", "--pictures", 1) == 0
    report = report_of(tmp_path / "out")
    constant = report["baselines"]["depth"]["constant"]["abs_rel"]
    assert value(report, "depth.abs_rel") == pytest.approx(constant)
    assert report["reasons"]["flow.epe"] == "the predictions hold no flow"


def test_trajectories(tmp_path):
    angle = np.linspace(0, 1.5, 60)
    rows = [[np.cos(a), 0, np.sin(a), 90 * np.sin(a), 0, 1, 0, 0.01 * k, -np.sin(a), 0, np.cos(a), 90 * (1 - np.cos(a))]
            for k, a in enumerate(angle)]  # fmt: skip
    np.savetxt(tmp_path / "truth.txt", rows)
    np.savetxt(tmp_path / "estimate.txt", np.column_stack([np.arange(60), rows])[3:])
    files = ("--trajectory", tmp_path / "estimate.txt", "--truth", tmp_path / "truth.txt")
    assert run(*files, "--align", "7dof", "--output", tmp_path / "out") == 0
    report = report_of(tmp_path / "out")
    for key in ("t_err_pct", "r_err_deg_per_100m", "ate_m", "rpe_m", "rpe_deg"):
        assert report["odometry"][key] == pytest.approx(0, abs=1e-4)
    assert (tmp_path / "out" / "trajectory.png").is_file()


def test_degenerate_alignment_is_an_error_with_its_reason(tmp_path, capsys):
    rows = [[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, k] for k in range(20)]
    np.savetxt(tmp_path / "line.txt", rows)
    files = ("--trajectory", tmp_path / "line.txt", "--truth", tmp_path / "line.txt", "--output", tmp_path / "out")
    assert run(*files, "--align", "7dof") == 3
    assert "on one line" in capsys.readouterr().err
    assert run(*files, "--align", "scale") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--bag and one of"),
        (("--bag", "b"), "--bag and one of"),
        (("--bag", "b", "--checkpoint", "c", "--predictions", "p"), "--bag and one of"),
        (("--trajectory", "t"), "belong together"),
        (("--trajectory", "t", "--truth", "g", "--bag", "b"), "Give either"),
        (("--bag", "b", "--checkpoint", "c", "--pictures", "-1"), "0 or more"),
        (("--bag", "b", "--checkpoint", "c", "--frames", "5:2"), "A:B"),
        (("--bag", "b", "--checkpoint", "c", "--segments", "0"), "positive lengths"),
        (("--bag", "b", "--checkpoint", "c", "--cap", "0"), "minimum < cap"),
        (("--trajectory", "none.txt", "--truth", "none.txt"), "cannot be read"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, capsys):
    assert run(*arguments, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_bag_and_unreadable_checkpoint(bag, checkpoint, tmp_path, capsys, monkeypatch):
    assert run("--bag", tmp_path / "no", "--checkpoint", checkpoint, "--output", tmp_path / "out") == 2
    assert "no" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    assert run("--bag", bag, "--checkpoint", tmp_path / "bad.safetensors", "--output", tmp_path / "out") == 2
    assert "bad.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_uncalibrated_bag_says_what_to_do(checkpoint, tmp_path, capsys):
    plain = tmp_path / "plain"
    with BagWriter(plain) as writer:
        writer.write(Frame(np.zeros((64, 96, 3), np.uint8), 10**9, None))
    assert run("--bag", plain, "--checkpoint", checkpoint, "--output", tmp_path / "out") == 2
    assert "--fov" in capsys.readouterr().err


def test_range_without_images(bag, checkpoint, tmp_path, capsys):
    arguments = ("--bag", bag, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--frames", "100:")
    assert run(*arguments) == 3
    assert "Choose another range" in capsys.readouterr().err


def test_folder_of_another_run_is_left_alone(bag, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text("precious")
    arguments = ("--bag", bag, "--checkpoint", checkpoint, "--output", out, "--pictures", 0)
    assert run(*arguments) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    assert (out / "metrics.jsonl").read_text() == "precious"
    assert run("--bag", bag, "--checkpoint", tmp_path / "other", "--output", out) == 2
    assert "holds the report of" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert run("--bag", bag, "--checkpoint", checkpoint, "--output", tmp_path / "file") == 2


def test_help_names_the_exit_codes(capsys):
    assert run("--help") == 0
    assert "exit codes" in capsys.readouterr().out
