"""What is said of a log: one story each."""

import math

import pytest
from unit.tiny_run import tiny_config

from coopnet_core.cotraining.verdict import verdict

CONFIG = tiny_config(steps=100, log_every=1)


def story(steps=100, every=20, end="together", **changes):
    """Lines of a run that goes well; `changes` replace figures of all lines, by value or by a function of the step."""
    lines = []
    for step in range(1, steps + 1):
        good = {"e_r": 0.1, "e_identity": 0.25, "e_f": 0.08, "moving_share": 0.1, "gate": 1.0}
        good |= {"rigid_unexplained": 0.2 - 0.001 * step, "flow_unexplained": 0.08}
        values = {key: value(step) if callable(value) else value for key, value in (good | changes).items()}
        line = {"step": step, "stage": end, **{key: value for key, value in values.items() if value != "left out"}}
        lines.append(line | {"validation": False})
        if step % every == 0:
            lines.append(line | {"validation": True})
    return lines


def test_a_run_that_learned():
    judged = verdict(story(), CONFIG)
    assert judged.summary.state == "good"
    assert judged.summary.text == (
        "It has learned: depth and odometry leave 40 % of the error of the unmoved image, validation 31 % better than "
        "at the start, the moving mask lives."
    )
    assert [finding.state for finding in judged.findings] == ["good", "good", "good"]
    assert "0.1800, of the first validation of the last stage (step 20) 0.2600" in judged.findings[1].text


def test_a_run_that_did_not():
    judged = verdict(story(e_r=0.26), CONFIG)
    assert judged.summary.state == "bad"
    assert judged.summary.text.startswith("It has NOT learned")
    assert "104 %" in judged.findings[0].text
    little = verdict(story(e_r=0.24), CONFIG).summary
    assert (little.state, little.text.partition(":")[0]) == ("poor", "It has learned little")


def test_the_flow_alone_is_no_verdict_on_depth():
    judged = verdict(story(end="flow", e_r="left out", e_identity="left out", moving_share="left out"), CONFIG)
    assert judged.summary.text.startswith("Depth and odometry have not been trained yet")
    assert "'flow'" in judged.findings[0].text


def started_from_weights(score: float) -> dict:
    """The validation before the first step."""
    return {"step": 0, "stage": "first", "validation": True, "rigid_unexplained": score, "e_r": 0.1, "e_identity": 0.2}


def test_validation_against_the_weights_it_started_from():
    judged = verdict([started_from_weights(0.36), *story()], CONFIG)
    assert "validation 50 % better than at the start" in judged.summary.text
    assert "(step 100) 0.1800, of the weights it started from 0.3600" in judged.findings[1].text
    judged = verdict([started_from_weights(0.17), *story()], CONFIG)
    assert "nothing beat the weights it started from" in judged.summary.text
    assert (judged.summary.state, judged.findings[1].state) == ("poor", "bad")
    assert "leave 50 %" in judged.summary.text  # those weights are the best checkpoint
    assert "as at the start" in verdict([started_from_weights(0.1801), *story()], CONFIG).summary.text


@pytest.mark.parametrize(("every", "words"), [(1000, "without validation"), (60, "validated only once")])
def test_too_little_validation_is_said(every, words):
    judged = verdict(story(every=every), CONFIG)
    assert words in judged.summary.text
    assert judged.summary.state == "poor"


def test_runs_of_before_were_chosen_by_other_figures():
    older = {"rigid_unexplained": "left out", "flow_unexplained": "left out"}
    judged = verdict(story(**older, rigid_photometric=lambda step: 0.2 - 0.001 * step), CONFIG)
    assert "validation 31 % better than at the start" in judged.summary.text


def test_stages_before_the_last_are_no_start_of_it():
    lines = [line | {"stage": "flow"} if line["step"] <= 50 else line for line in story()]
    assert "first validation of the last stage (step 60)" in verdict(lines, CONFIG).findings[1].text


@pytest.mark.parametrize(
    ("share", "gate", "words", "state"),
    [
        (0.39, 1.0, "everything is taken to move", "bad"),
        (0.0, 0.0, "the moving mask is silent", "poor"),
        (0.0, 1.0, "the moving mask is silent", "plain"),
    ],
)
def test_the_mask(share, gate, words, state):
    judged = verdict(story(moving_share=share, gate=gate), CONFIG)
    assert words in judged.summary.text
    assert judged.findings[2].state == state


def test_the_focal_length():
    judged = verdict(story(focal_factor=lambda step: 1 - step / 200), CONFIG, assumed_degrees=90.0)
    assert "the focal length has not settled" in judged.summary.text
    judged = verdict(story(focal_factor=lambda step: max(0.8, 1 - step / 100)), CONFIG, assumed_degrees=90.0)
    assert "the focal length has settled" in judged.summary.text
    # tan 45 degrees / 0.8
    assert f"({math.degrees(2 * math.atan(1.25)):.1f} degrees" in judged.findings[3].text


def test_steps_that_taught_nothing_and_a_run_cut_short():
    judged = verdict(story(steps=50, depth_skipped=2.0, steps_rejected=10.0), CONFIG)
    texts = {finding.text: finding.state for finding in judged.findings}
    assert texts["In 2 of 50 steps no pixel was left for depth and odometry."] == "plain"
    assert texts["In 10 of 50 steps something was not finite and the step was taken back."] == "poor"
    assert "50 of 100 steps were logged." in texts


def test_figures_that_are_missing_or_no_numbers():
    assert "no step was logged" in verdict([], CONFIG).summary.text
    lines = story(e_r=lambda step: None if step % 2 else 0.1, moving_share=None, e_f=math.nan)
    judged = verdict(lines, CONFIG)
    assert "leave 40 %" in judged.summary.text
    assert "mask" not in judged.summary.text
    verdict([{"step": 1}], CONFIG)
