"""The check of a GPU, as far as a CPU can try it: the whole script, its limits, and what its comparisons notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import DONE, FAILED, OUT_OF_TIME, Outcome, exit_code, run_part
from benchmarks.gpu_comparisons import LIMITS, PRECISIONS, Answer, Case, cases, compare, distance
from coopnet_core.cotraining import run_state
from coopnet_core.cotraining.apportionment import APPORTIONMENTS
from coopnet_core.cotraining.rules import RULES

REPOSITORY = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EQUAL = {"title": "a", "passed": True, "problem": ""}


def test_the_script_runs_whole_on_a_cpu(tmp_path: Path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(REPOSITORY / "benchmarks" / "gpu_check.sh"), "--device", "cpu", "--quick"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == gpu_check.PASSED, run.stdout + run.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["exit_code"] == gpu_check.PASSED
    assert {name: part["state"] for name, part in found["parts"].items()} == dict.fromkeys(gpu_check.PARTS, DONE)
    results = {name: part["results"] for name, part in found["parts"].items()}
    assert results["facts"][0]["torch"] == torch.__version__
    assert [result["title"] for result in results["comparisons"]] == [case.title for case in cases(CPU, quick=True)]
    assert all(result["value"] <= result["limits"]["values"] for result in results["comparisons"])
    assert any(result["value"] > 0 for result in results["comparisons"]), "two implementations differ somewhere"
    assert {result["preset"] for result in results["training"]} == {"cpu-small", "kitti-paper"}
    for result in results["training"]:
        assert result["triplets_per_s"] > 0
        assert 0 < result["data_share"] < 0.5
        assert (result["matches_share"] > 0) == (result["preset"] == "cpu-small"), "only that one learns from matches"
    assert all(0 < result["p50_ms"] <= result["p95_ms"] for result in results["inference"])


def test_what_is_missing_is_said_before_anything_is_imported():
    code = "import sys, benchmarks.gpu_check as check; print('torch' in sys.modules, check.missing_modules())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.split(maxsplit=1) == ["False", "[]\n"]


def test_a_missing_package_ends_it_with_advice(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.MODULES, "no_such_module", "some-package")
    assert gpu_check.main(["--output", str(tmp_path / "never"), "--device", "cpu"]) == gpu_check.NOTHING_RUN
    said = capsys.readouterr().err
    assert "Missing in" in said
    assert "pip install --no-index --find-links wheels some-package" in said
    assert not (tmp_path / "never").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_the_device_nothing_else_is_run(tmp_path, capfd):
    assert gpu_check.main(["--output", str(tmp_path)]) == gpu_check.NOTHING_RUN
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert list(found["parts"]) == ["facts"]
    assert "no CUDA device" in found["parts"]["facts"]["problem"]
    assert found["exit_code"] == gpu_check.NOTHING_RUN


def test_a_part_that_runs_out_of_time_is_recorded(tmp_path):
    (tmp_path / "inference.json").write_text(json.dumps({"results": [{"of": "an earlier run"}], "problem": ""}))
    outcome = run_part("inference", tmp_path, ["--device", "cpu", "--quick"], 0.2)
    assert outcome.state == OUT_OF_TIME
    assert outcome.results == []
    assert "ended after 0 s" in outcome.problem


def test_results_before_a_failure_are_kept(tmp_path, monkeypatch):
    def fails(recorder, device, quick):
        recorder.add("one", {"one": 1})
        raise RuntimeError("the device is gone")

    monkeypatch.setitem(gpu_check.PARTS, "inference", fails)
    with pytest.raises(RuntimeError):
        gpu_check.main(["--output", str(tmp_path), "--device", "cpu", "--part", "inference"])
    written = json.loads((tmp_path / "inference.json").read_text())
    assert written == {"results": [{"one": 1}], "problem": "RuntimeError: the device is gone"}


def test_the_exit_code_is_that_of_the_comparisons():
    done = Outcome(DONE, 1.0, "", [])
    good, bad = (Outcome(DONE, 1.0, "", [EQUAL, EQUAL | {"passed": passed}]) for passed in (True, False))
    assert exit_code({"facts": done, "comparisons": good, "training": done}) == gpu_check.PASSED
    assert exit_code({"facts": done, "comparisons": bad, "training": done}) == gpu_check.NOT_PASSED
    late = Outcome(OUT_OF_TIME, 1.0, "It was ended.", [EQUAL])
    assert exit_code({"facts": done, "comparisons": late}) == gpu_check.NOT_PASSED
    for incomplete in (late, Outcome(FAILED, 1.0, "It broke.", []), Outcome(DONE, 1.0, "", [{"problem": "no memory"}])):
        assert exit_code({"facts": done, "comparisons": good, "training": incomplete}) == gpu_check.INCOMPLETE


def test_every_kind_of_step_and_precision_is_compared():
    found = {case.title for case in cases(CUDA)}
    assert len(found) == len(cases(CUDA))
    for name in [*RULES, *APPORTIONMENTS]:
        assert name in {"hybrid", "per_pixel"} or any(f" {name}," in title for title in found), name
    for stage in ("flow", "rigid", "together coarse", "together"):
        assert {f"step: cpu-small, stage {stage}, {name}" for name in ("float32", "tf32", "bfloat16")} <= found
    assert {f"network: flow of cpu-small, {name}" for name in PRECISIONS} <= found
    assert {f"predictor: refine {name}, float32" for name in ("static", "all", "off")} <= found
    assert all(case.precision in LIMITS[case.kind] for case in cases(CUDA))


def test_distance():
    expected = torch.tensor([3.0, 4.0])
    assert distance(expected, expected) == 0
    assert distance(torch.tensor([3.3, 4.0]), expected) == pytest.approx(0.3 / 5)
    assert distance(expected[:1], expected) == float("inf")
    unknown = torch.tensor([torch.nan, 4.0])
    assert distance(unknown, unknown) == 0
    assert distance(unknown, expected) > 0.5
    assert distance(torch.tensor(2e-4), torch.tensor(1e-4)) == pytest.approx(0.1), "a scalar near zero"
    many = torch.ones(2000)
    assert distance(torch.cat([many[2:], torch.full((2,), 9.0)]), many) == 0, "a thousandth may flip"
    assert distance(torch.cat([many[3:], torch.full((3,), 9.0)]), many) > 0.1


@pytest.mark.parametrize("part", ["values", "gradients"])
def test_a_wrong_answer_is_noticed(part):
    calls = []

    def compute(device, half):
        calls.append(1)
        wrong = 1.02 if len(calls) == 2 else 1.0  # the second one is the device's
        factors = {"values": 1.0, "gradients": 1.0} | {part: wrong}
        return Answer({"v": torch.ones(9) * factors["values"]}, {"g": torch.ones(9) * factors["gradients"]})

    comparison = compare(Case("step", "wrong", "float32", compute), CPU)
    assert comparison.passed == (part == "gradients"), "2 % is too much for a value, and just allowed for a gradient"
    assert comparison.value == pytest.approx(0.02 if part == "values" else 0.0, abs=1e-6)
    assert comparison.gradient == pytest.approx(0.02 if part == "gradients" else 0.0, abs=1e-6)


def test_an_answer_that_is_not_there_or_no_number_is_noticed():
    for found in ({}, {"v": torch.tensor([torch.nan])}, {"v": torch.ones(1), "w": torch.ones(1)}):
        answers = iter([Answer({"v": torch.ones(1)}), Answer(found)])
        case = Case("step", "wrong", "float32", lambda device, half, answers=answers: next(answers))
        assert not compare(case, CPU).passed


def test_a_resume_that_forgets_the_optimiser_is_noticed(monkeypatch):
    case = next(case for case in cases(CPU) if case.name == "stopped and resumed")
    restore = run_state.restore

    def forgetful(run, output):
        restore(run, output)
        run.optimiser.state.clear()

    monkeypatch.setattr("coopnet_core.cotraining.trainer.restore", forgetful)
    comparison = compare(case, CPU)
    assert not comparison.passed
