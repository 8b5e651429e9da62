"""The pipeline alone: scale, range, pairs, failures; over thousands of frames."""

from __future__ import annotations

import numpy as np
import pytest
from ros.rig_truth import CAMERA, StubPredictor, shift, true_depth

from coopnet_core.data.frames import Frame
from coopnet_core.inference.prediction import ALL_OUTPUTS
from coopnet_ros.diagnostics import Statistics
from coopnet_ros.pipeline import FrameRejectedError, Pipeline, PipelineSettings
from coopnet_ros.sequence import Link

PERIOD = 100_000_000
IMAGE = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)


def frame(index: float) -> Frame:
    return Frame(IMAGE, round(index * PERIOD), CAMERA, "camera")


def make(stub=None, **settings):
    statistics = Statistics()
    return Pipeline(stub or StubPredictor(), statistics, PipelineSettings(**settings)), statistics


def test_a_fixed_scale_multiplies_depth_and_motion_and_makes_them_metric():
    pipeline, _ = make(StubPredictor(metric=False, motion=shift(0.0, 0.0, 0.5)), fixed_scale=4.0)
    pipeline.step(frame(0), ALL_OUTPUTS)
    result = pipeline.step(frame(1), ALL_OUTPUTS)
    assert result.prediction.metric
    np.testing.assert_allclose(result.prediction.depth, 4 * true_depth(result.prediction.camera), rtol=1e-6)
    np.testing.assert_allclose(result.odometry.pose, shift(0.0, 0.0, 2.0))


@pytest.mark.parametrize(("far_value", "check"), [(float("nan"), np.isnan), (float("inf"), np.isposinf)])
def test_metric_depth_beyond_the_range_becomes_the_far_value(far_value, check):
    pipeline, _ = make(max_depth_m=50.0, far_value=far_value)
    depth = pipeline.step(frame(0), ALL_OUTPUTS).prediction.depth
    truth = true_depth(CAMERA.scaled(CAMERA.width // 2, CAMERA.height // 2))
    assert check(depth[truth > 50]).all()
    np.testing.assert_array_equal(depth[truth <= 50], truth[truth <= 50])
    assert depth.dtype == np.float32


def test_relative_depth_has_no_range():
    pipeline, _ = make(StubPredictor(metric=False), max_depth_m=50.0)
    assert np.nanmax(pipeline.step(frame(0), ALL_OUTPUTS).prediction.depth) > 50


def test_a_failure_is_a_rejected_frame_and_the_next_one_starts_a_new_pair():
    stub = StubPredictor()
    pipeline, _ = make(stub)
    pipeline.step(frame(0), ALL_OUTPUTS)
    stub.fails = True
    with pytest.raises(FrameRejectedError, match="input_width") as caught:
        pipeline.step(frame(1), ALL_OUTPUTS)
    assert caught.value.reason == "inference_error"
    stub.fails = False
    assert pipeline.step(frame(2), ALL_OUTPUTS).odometry.lost
    assert not pipeline.step(frame(3), ALL_OUTPUTS).odometry.lost


def test_a_frame_whose_motion_was_not_wanted_is_a_hole_in_the_odometry():
    pipeline, _ = make()
    pipeline.step(frame(0), ALL_OUTPUTS)
    assert pipeline.step(frame(1), frozenset({"depth"})).odometry is None
    assert pipeline.step(frame(2), ALL_OUTPUTS).odometry.lost


def test_new_networks_keep_the_pose():
    pipeline, statistics = make()
    pipeline.step(frame(0), ALL_OUTPUTS)
    pipeline.step(frame(1), ALL_OUTPUTS)
    pipeline.replace_predictor(StubPredictor(motion=shift(0.0, 0.0, 7.0)))
    result = pipeline.step(frame(2), ALL_OUTPUTS)
    assert (result.link, result.odometry.lost) == (Link.FIRST, True)
    np.testing.assert_allclose(pipeline.step(frame(3), ALL_OUTPUTS).odometry.pose, shift(0.0, 0.0, 8.0))
    assert statistics.snapshot().events["resets"] == 1


def test_thousands_of_frames_with_gaps_and_jumps():
    stub = StubPredictor()
    pipeline, statistics = make(stub)
    for index in range(3000):
        pipeline.step(frame(index % 1000 + (10 if index % 1000 >= 500 else 0)), frozenset({"motion"}))
        stub.calls.clear()
    events = statistics.snapshot().events
    assert (events["gaps"], events["jumps"]) == (3, 2)
