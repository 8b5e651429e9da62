"""The report of a run: what it says, what it is made of, and what happens when it cannot be made."""

import doctest
import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from unit.tiny_run import tiny_clip, tiny_config

from coopnet_core.cotraining import training_report
from coopnet_core.cotraining.report_pictures import draw_error_model, residuals
from coopnet_core.cotraining.trainer import train
from coopnet_core.cotraining.training_report import Session, report_of_a_training, write_training_report
from coopnet_core.data.clips import PreparedData, SourceSummary
from coopnet_core.data.report import ReadReport
from coopnet_core.errors import UsageError

TYPED = ["drive one", "--init", "old.safetensors", "--output", "runs/a", "--resume", "--set", "seed=3"]
LINES = [
    {"step": 1, "stage": "flow", "validation": False, "loss": 2.0, "e_f": None},
    {"step": 2, "stage": "flow", "validation": False, "loss": float("nan"), "lr": 1e-3},
    {"step": 3, "stage": "together", "validation": False, "loss": 1.0, "e_f": 0.1, "e_r": 0.1, "e_identity": 0.2},
    {"step": 3, "stage": "together", "validation": True, "e_f": 0.1},
    {"step": 4, "loss": "no number"},
]


def prepared(**changes) -> PreparedData:
    report = ReadReport(messages=12, frames=9)
    report.skip("cut short", "image 3")
    source = SourceSummary("drive one", "rosbag2", "/front/image", "the only camera", report, still=2, train=7)
    return PreparedData(
        **{"train": [tiny_clip()], "validation": [tiny_clip(seed=1)], "size": (64, 64)}
        | {"sources": [source], "failed": ["rear: empty"]}
        | changes
    )


def session(**changes) -> Session:
    return Session(**{"command": TYPED, "recordings": ["drive one"], "seconds": 75.0, "end": "done", "words": "",
                      "device": "cpu"} | changes)  # fmt: skip


def text_of(page: Path) -> str:
    """A page without its pictures and tags."""
    shown = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", shown).replace("&#x27;", "'").replace("&quot;", '"')


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(tiny_config(), [tiny_clip()], [tiny_clip(seed=1)], output)
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run folder of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "a_run"))


@pytest.fixture
def bare(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for tests that read words: nothing is drawn, which takes seconds."""
    monkeypatch.setattr(training_report, "_curves", lambda *arguments: [])
    monkeypatch.setattr(training_report, "_drawn", lambda *arguments: {})
    return run


def test_the_page_holds_everything_a_reader_asks_for(run):
    page, missing = write_training_report(run, prepared(), session())
    assert missing == []
    text = text_of(page)
    for words in (
        "Training a_run",
        "It has",
        "validation images",
        "drive one",
        "/front/image",
        "cut short",
        "rear: empty",
        "the only camera",
        "checkpoint:=" + str(run.resolve() / "checkpoints" / "best.safetensors") + " image:=/front/image",
        "evaluate --bag 'drive one'",
        "together (first logged at step 1)",
        "steps logged 4 of 4",
        "duration 1 min 15 s",
        "networks.flow.search_range",
    ):
        assert words in text, words
    content = page.read_text()
    assert len(content) < 2_000_000
    assert "<script" not in content
    assert not re.search(r'(src|href)="(?!data:)', content)
    pictures = re.findall(r'<img src="data:image/([a-z+]+);base64,[^"]+" alt="([^"]+)"', content)
    assert len([caption for kind, caption in pictures if kind == "jpeg"]) == 16
    assert {"image: image 1 of clouds 1", "moving"} < {caption for _, caption in pictures}
    assert any(caption.startswith("Mean photometric error.") and "e_r 0." in caption for _, caption in pictures)
    assert any(caption.startswith("Delta of the visible pixels of validation images") for _, caption in pictures)
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"] in text
    assert report["sources"][0]["unusable"] == {"cut short": 1}


def test_what_differs_from_the_preset_comes_first(bare):
    text = text_of(write_training_report(bare)[0])
    different, everything = text.split("All settings")
    assert re.search(r"Against the preset (\S+), the nearest one.* batch_size 2 \d+ ", different)
    assert "gradient_clip" not in different
    assert "optimiser.gradient_clip 1.0" in everything
    assert "batch_size 2 differs" in everything


def test_written_again_it_keeps_what_the_run_folder_does_not_tell(run):
    first = write_training_report(run, prepared(), session(assumed_degrees=70.0))[0].read_text()
    assert write_training_report(run)[0].read_text() == first


def test_a_resumed_run_adds_up(bare):
    write_training_report(bare, prepared(), session(end="interrupted", words="interrupted at step 2"))
    assert "Interrupted at step 2." in text_of(bare / "report.html")
    write_training_report(bare, prepared(), session(seconds=3600.0))
    text = text_of(bare / "report.html")
    assert "Interrupted" not in text
    assert "duration 1 h 1 min" in text
    assert text.count("train_from_bags 'drive one'") == 2


@pytest.mark.parametrize(
    ("end", "option"),
    [
        ("interrupted", ""),
        ("out of patience", " --set patience=0"),
        ("diverged", " --set optimiser.learning_rate=0.0005"),
    ],
)
def test_a_run_that_ended_early_says_how_to_go_on(bare, end, option):
    (bare / "metrics.jsonl").write_text("".join((bare / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]))
    text = text_of(write_training_report(bare, prepared(), session(end=end, words="it ended"))[0])
    assert f"train_from_bags 'drive one' --output runs/a --set seed=3 --resume{option} " in text
    assert "It ended." in text


def test_residuals_are_those_of_the_networks_and_the_camera(run):
    best, clips = run / "checkpoints" / "best.safetensors", [tiny_clip(seed=1, assumed=True)]
    delta = residuals(best, clips, tiny_config())
    assert 1000 < len(delta) <= 10 * 64 * 64
    # e_r and e_f differ by no more than the errors themselves.
    assert np.abs(delta).max() < 1
    assert np.array_equal(delta, residuals(best, clips, tiny_config()))
    assert not np.array_equal(delta, residuals(best, clips, tiny_config(), 2.0))
    alone = tiny_config(stages=[{"name": "flow", "share": 1.0, "train": ["flow"], "sources": 1}])
    assert len(residuals(best, clips, alone)) == 0


def test_lines_that_lack_figures_are_drawn_as_far_as_they_go(run):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 5, "lo')
    page, missing = write_training_report(run)
    assert missing == []
    text = text_of(page)
    assert "flow (first logged at step 1), together (first logged at step 3)" in text
    assert "depth and odometry leave 50 % of the error" in text


def test_a_run_without_one_logged_step(run):
    (run / "metrics.jsonl").write_text("")
    page, missing = write_training_report(run, prepared(), session())
    assert missing == []
    assert "no step was logged" in text_of(page)


def test_a_run_from_before_there_were_reports(bare):
    text = text_of(write_training_report(bare)[0])
    assert "made before there were reports" in text
    assert "Pictures" not in text


def test_warnings_are_in_it(bare):
    (bare / "warnings.txt").write_text("step 50: depth has collapsed to one value\n")
    assert "Warnings during the run" in text_of(write_training_report(bare)[0])
    assert "Step 50: depth has collapsed to one value." in text_of(bare / "report.html")


def test_without_matplotlib_the_rest_is_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "coopnet_core.plots", None)
    page, missing = write_training_report(run, prepared(), session())
    assert [text.split(":")[0] for text in missing] == ["The error model", "Curves"]
    text = text_of(page)
    assert "Not in this report" in text
    assert "image: image 1 of clouds 1" in text


def test_a_broken_checkpoint_costs_the_pictures_alone(run):
    (run / "checkpoints" / "best.safetensors").write_bytes(b"cut off")
    page, missing = write_training_report(run, prepared(), session())
    assert [text.split(":")[0] for text in missing] == ["The error model", "Pictures"]
    assert all("best.safetensors" in text for text in missing)
    assert "Mean photometric error." in text_of(page)


@pytest.mark.parametrize("data", [prepared(), None])
def test_a_full_disk_is_a_sentence(run, monkeypatch, data):
    def refuse(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in ("coopnet_core.plots", "coopnet_core.evaluation.reports"):
        monkeypatch.setattr(f"{module}.write_whole", refuse)
    said = Console(file=io.StringIO(), width=500)
    assert not report_of_a_training(run, said, data, session())
    assert "could not be written (No space left on device)" in said.file.getvalue()
    assert f"--report {run}" in said.file.getvalue()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_nothing_that_goes_wrong_is_the_loss_of_a_run(run, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(training_report, "verdict", fail)
    said = Console(file=io.StringIO(), width=500)
    assert not report_of_a_training(run, said)
    assert ("interrupted" if isinstance(error, KeyboardInterrupt) else "ValueError: a bug") in said.file.getvalue()


def test_no_run_no_report(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        write_training_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_training_images_stand_in_where_there_is_no_validation(run):
    text = text_of(write_training_report(run, prepared(validation=[]), session())[0])
    assert "Images of the training part" in text
    assert "image: image 1 of clouds 0" in text


def test_an_error_model_that_saw_nothing_is_not_drawn(run, tmp_path):
    best = run / "checkpoints" / "best.safetensors"
    delta = np.random.default_rng(0).laplace(0, 0.05, 1000)
    assert draw_error_model(tmp_path / "m.svg", best, delta).read_text().startswith("<svg")
    assert draw_error_model(tmp_path / "n.svg", best, np.zeros(10)) is None
    assert draw_error_model(tmp_path / "n.svg", best, np.full(3, np.nan)) is None
    assert not (tmp_path / "n.svg").exists()


def test_doctests():
    assert doctest.testmod(training_report).failed == 0
