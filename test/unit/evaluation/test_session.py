import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from unit.truth_predictor import TruthPredictor

from coopnet_core.data.bag import find_camera, open_bag, read_frames
from coopnet_core.data.bag_truth import read_truth
from coopnet_core.data.bag_writer import mount
from coopnet_core.data.frames import FrameTruth
from coopnet_core.errors import NoUsableDataError
from coopnet_core.evaluation.recorded import OPTICAL_IN_BODY, RecordedPredictions
from coopnet_core.evaluation.reports import Picture, Section, Table, finite, number, write_json, write_report
from coopnet_core.evaluation.runner import BagSelection, Output, evaluate_predictor, evaluate_recorded
from coopnet_core.evaluation.session import STABLE_KEYS, EvaluationOptions, EvaluationSession

SEGMENTS = EvaluationOptions(segment_lengths=(2.0, 4.0))


def test_perfect_prediction_on_the_recorded_grid(truth_bag):
    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag), SEGMENTS)
    assert report["depth"]["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert report["depth"]["a1"] == 1
    assert report["depth"]["scale_median"] == pytest.approx(0.5, rel=1e-5)
    assert report["odometry"]["ate_7dof_m"] == pytest.approx(0, abs=1e-4)
    assert report["odometry"]["rotation_deg_per_frame"] == pytest.approx(0, abs=1e-4)
    assert report["odometry"]["t_err_pct"] == pytest.approx(0, abs=0.05)
    assert report["flow"]["epe"] == pytest.approx(0, abs=1e-5)
    assert report["flow"]["fl_pct"] == 0
    assert report["mask"]["auc"] == pytest.approx(1)
    assert report["mask"]["iou_moving"] == pytest.approx(1)
    assert not report["reasons"]
    assert report["counts"]["frames"] == 8
    assert report["counts"]["pairs"] == 7
    photometric = report["photometric"]
    assert photometric["flow"] < 0.5 * photometric["identity"]
    assert photometric["rigid"] < photometric["identity"]
    assert all(value is None or value > 1 for value in report["improvement"].values())


@pytest.mark.parametrize("claimed", [0.01, 0.005, None])
def test_the_honesty_of_a_covariance(truth_bag, claimed):
    """Rotations that are wrong by 0.01 rad about each axis."""
    axis_angle = np.array([[0.01], [0.01], [0.01]])

    def wrong(prediction):
        if prediction.T_previous_current is None:
            return prediction
        motion = prediction.T_previous_current.copy()
        motion[:3, :3] = cv2.Rodrigues(axis_angle)[0] @ motion[:3, :3]
        covariance = None if claimed is None else np.diag([1.0, 1.0, 1.0] + 3 * [claimed**2])
        return replace(prediction, T_previous_current=motion, motion_covariance=covariance)

    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, wrong=wrong), SEGMENTS)
    expected = None if claimed is None else pytest.approx((0.01 / claimed) ** 2, rel=1e-3)
    assert report["odometry"]["rotation_nees"] == expected


def test_a_cropped_smaller_grid_costs_only_the_resampling(truth_bag):
    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, (96, 64)), SEGMENTS)
    # What is left comes from the edges of objects, so it depends on the scene; test_grids checks the placing itself.
    assert report["improvement"]["depth.abs_rel / constant"] > 5
    assert report["flow"]["epe"] < 0.15
    assert report["mask"]["iou_moving"] > 0.98
    assert report["depth"]["pixels"] > 0


def test_figures_of_a_known_error(truth_bag):
    def wrong(prediction):
        if prediction.flow is None:
            return prediction
        probability = 1 - prediction.motion_probability
        return replace(prediction, flow=prediction.flow + np.float32([3, 4]), motion_probability=probability)

    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, wrong=wrong))
    assert report["flow"]["epe"] == pytest.approx(5, abs=1e-4)
    assert report["mask"]["auc"] == pytest.approx(0)
    assert report["mask"]["iou_moving"] == 0


def test_baselines_do_not_depend_on_the_prediction(truth_bag):
    wrong = lambda p: replace(p, depth=np.ones_like(p.depth), flow=None if p.flow is None else p.flow * 0)  # noqa: E731
    first = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag))["baselines"]
    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, wrong=wrong))
    assert report["baselines"]["depth"] == first["depth"]
    assert report["depth"]["abs_rel"] == pytest.approx(first["depth"]["constant"]["abs_rel"])
    assert report["flow"]["epe"] == pytest.approx(report["baselines"]["flow"]["zero"]["epe"])
    assert report["baselines"]["odometry"] == first["odometry"]


def test_no_truth_no_figures_but_reasons(truth_bag):
    session = EvaluationSession()
    predictor = TruthPredictor(truth_bag)
    with open_bag(truth_bag) as bag:
        for frame in read_frames(bag, find_camera(bag)):
            session.add(frame, predictor.predict(frame), None)
    report = session.report()
    for part, keys in STABLE_KEYS.items():
        for key in keys:
            assert report[part][key] is None
            assert "the recording has no true" in report["reasons"][f"{part}.{key}"]
    assert report["photometric"]["pairs"] == 7
    assert session.trajectories().truth is None


def test_missing_outputs_are_named(truth_bag):
    wrong = lambda p: replace(p, depth=None, flow=None, motion_probability=None, T_previous_current=None)  # noqa: E731
    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, wrong=wrong))
    assert report["reasons"]["depth.abs_rel"] == "the predictions hold no depth"
    assert report["reasons"]["flow.epe"] == "the predictions hold no flow"
    assert "photometric" in report["reasons"]


def test_a_dropped_frame_breaks_the_trajectory_and_skips_the_flow(truth_bag):
    session, predictor = EvaluationSession(SEGMENTS), TruthPredictor(truth_bag)
    with open_bag(truth_bag) as bag, read_truth(truth_bag) as truth:
        for index, frame in enumerate(read_frames(bag, find_camera(bag))):
            if index == 2:
                predictor.reset()
            session.add(frame, None if index == 2 else predictor.predict(frame), truth.get(frame.stamp_ns))
    report = session.report()
    # Pairs 0-1, then 3 without a partner, then 3-4, 4-5, 5-6, 6-7.
    assert report["odometry"]["pairs"] == 5
    assert report["odometry"]["runs"] == 2
    assert report["flow"]["images"] == report["photometric"]["pairs"] == report["odometry"]["pairs"]
    assert report["counts"]["notes"]["frames without a prediction"] == 1
    assert len(session.trajectories().stamps_ns) == report["odometry"]["frames"] == 5
    assert report["odometry"]["ate_7dof_m"] == pytest.approx(0, abs=1e-4)


def test_a_pair_that_skipped_a_frame_is_no_pair_of_the_true_flow(truth_bag):
    session, predictor = EvaluationSession(), TruthPredictor(truth_bag)
    with open_bag(truth_bag) as bag, read_truth(truth_bag) as truth:
        for index, frame in enumerate(read_frames(bag, find_camera(bag))):
            session.add(frame, None if index == 2 else predictor.predict(frame), truth.get(frame.stamp_ns))
    report = session.report()
    assert report["counts"]["notes"]["pairs that are not of neighbouring frames: flow and mask not evaluated"] == 1
    assert report["odometry"]["rotation_deg_per_frame"] == pytest.approx(0, abs=1e-4)
    assert report["flow"]["images"] == 5


def test_a_camera_that_stands_still_has_no_ate_but_a_reason(truth_bag):
    session, predictor = EvaluationSession(), TruthPredictor(truth_bag)
    with open_bag(truth_bag) as bag:
        for frame in read_frames(bag, find_camera(bag)):
            session.add(frame, predictor.predict(frame), FrameTruth(pose=np.eye(4)))
    report = session.report()
    assert report["odometry"]["ate_7dof_m"] is None
    assert "does not move" in report["reasons"]["odometry.ate_7dof_m"]
    assert report["odometry"]["rotation_deg_per_frame"] is not None
    json.dumps(finite(report), allow_nan=False)


def save_recorded(bag, folder, T_base_camera, skip=(), metric=True):
    """What record_outputs would leave of a perfect node, which leaves the lever arm away where it knows no metre."""
    if not metric:
        T_base_camera = T_base_camera.copy()
        T_base_camera[:3, 3] = 0.0
    (folder / "frames").mkdir(parents=True)
    predictor = TruthPredictor(bag, (96, 64))
    pose = np.eye(4)
    with open_bag(bag) as opened:
        for index, frame in enumerate(read_frames(opened, find_camera(opened))):
            prediction = predictor.predict(frame)
            arrays = {"depth" if metric else "depth_relative": prediction.depth}
            if prediction.flow is not None:
                pose = pose @ T_base_camera @ prediction.T_previous_current @ np.linalg.inv(T_base_camera)
                arrays |= {"flow": prediction.flow, "probability": prediction.motion_probability}
                arrays["previous_stamp_ns"] = np.array(prediction.previous_stamp_ns)
            if index not in skip:
                np.savez(folder / "frames" / f"{frame.stamp_ns}.npz", pose=pose, **arrays)


def test_recorded_outputs_give_the_same_figures(truth_bag, tmp_path):
    save_recorded(truth_bag, tmp_path, OPTICAL_IN_BODY)
    live = evaluate_recorded(BagSelection(truth_bag), tmp_path)
    direct = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag, (96, 64)))
    for part, keys in STABLE_KEYS.items():
        for key in keys:
            if direct[part][key] is not None:
                assert live[part][key] == pytest.approx(direct[part][key], abs=1e-4)
    assert live["photometric"]["rigid"] == pytest.approx(direct["photometric"]["rigid"], abs=1e-5)


@pytest.mark.parametrize("metric", [True, False])
def test_recorded_poses_go_through_the_mounting(truth_bag, tmp_path, metric):
    mounting = mount(1.5, 0.2, 0.7)
    save_recorded(truth_bag, tmp_path, mounting, metric=metric)
    recorded = RecordedPredictions(tmp_path, mounting)
    predictor = TruthPredictor(truth_bag, (96, 64))
    with open_bag(truth_bag) as bag:
        for frame in read_frames(bag, find_camera(bag)):
            expected, found = predictor.predict(frame), recorded.predict(frame)
            if expected.T_previous_current is not None:
                np.testing.assert_allclose(found.T_previous_current, expected.T_previous_current, atol=1e-9)


def test_frames_that_the_node_dropped_are_counted(truth_bag, tmp_path):
    save_recorded(truth_bag, tmp_path, OPTICAL_IN_BODY, skip=(0, 5))
    report = evaluate_recorded(BagSelection(truth_bag), tmp_path)
    assert report["counts"]["notes"]["frames without a prediction"] == 2


def test_empty_folder_of_predictions(truth_bag, tmp_path):
    with pytest.raises(NoUsableDataError, match="record_outputs"):
        evaluate_recorded(BagSelection(truth_bag), tmp_path)


def test_files_that_are_left_behind(truth_bag, tmp_path):
    calls = []
    report = evaluate_predictor(
        BagSelection(truth_bag, frames=(1, 6)),
        TruthPredictor(truth_bag),
        SEGMENTS,
        Output(tmp_path, pictures=2, title="A <b> title", facts={"checkpoint": "x"}),
        lambda done, total: calls.append((done, total)),
    )
    assert calls == [(k, 5) for k in range(1, 6)]
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "report.json",
        "report.html",
        "animation.webp",
        "trajectory.png",
        "panel_00001.png",
        "panel_00004.png",
    } < names
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;b&gt; title" in page
    assert 'src="data:image/' in page
    assert "http" not in page.replace("http-equiv", "")


def test_ctrl_c_keeps_what_was_evaluated(truth_bag, tmp_path):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    where = Output(tmp_path, pictures=0)
    report = evaluate_predictor(BagSelection(truth_bag), TruthPredictor(truth_bag), output=where, on_frame=stop)
    assert report["interrupted"] is True
    assert report["counts"]["frames"] == 4
    assert (tmp_path / "report.json").exists()


def test_report_page(tmp_path):
    sections = [Section("S", ["text & more"], [Table(["a", "b"], [["x", None], ["y", 0.00012345]])])]
    page = write_report(tmp_path / "r.html", "T", [*sections, Section("P", pictures=[Picture(tmp_path / "no.png")])])
    text = page.read_text()
    assert "text &amp; more" in text
    assert "<td>0.0001234</td>" in text or "<td>0.0001235</td>" in text
    assert "<td>-</td>" in text
    assert 'name="viewport"' in text
    assert "<img" not in text


def test_numbers():
    assert [number(value) for value in (1.0, float("nan"), None, 3, True, "x")] == ["1", "-", "-", "3", "True", "x"]


def test_json_has_no_nan(tmp_path):
    path = write_json(tmp_path / "new" / "r.json", {"a": float("inf"), "b": (1.0, {"c": float("nan")})})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.0, {"c": None}]}
