"""The pipeline alone: scale, range, pairs, failures; over thousands of frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ros.rig_truth import CAMERA, StubPredictor, ground_depth, shift, true_depth, turn

from coopnet_core.data.frames import Frame
from coopnet_core.inference.prediction import ALL_OUTPUTS
from coopnet_ros.diagnostics import Statistics
from coopnet_ros.mounting import Mounting
from coopnet_ros.odometry import UNKNOWN_VARIANCE, transform
from coopnet_ros.pipeline import FrameRejectedError, Pipeline, PipelineSettings
from coopnet_ros.scale import ScaleSettings
from coopnet_ros.sequence import Link

PERIOD = 100_000_000
IMAGE = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)


def frame(index: float) -> Frame:
    return Frame(IMAGE, round(index * PERIOD), CAMERA, "camera")


def make(stub=None, **settings):
    statistics = Statistics()
    return Pipeline(stub or StubPredictor(), statistics, PipelineSettings(**settings)), statistics


def test_a_fixed_scale_multiplies_depth_and_motion_and_makes_them_metric():
    stub = StubPredictor(metric=False, motion=shift(0.0, 0.0, 0.5))
    pipeline, _ = make(stub, scale=ScaleSettings("fixed", fixed=4.0))
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


@pytest.mark.parametrize(
    ("motion", "limits", "lost"),
    [
        (shift(0.0, 0.0, 0.5), {"max_speed_mps": 12.0}, False),  # 0.5 units of 2 m in 0.1 s: 10 m/s
        (shift(0.0, 0.0, 0.5), {"max_speed_mps": 8.0}, True),
        (turn("y", 6.0), {"max_turn_rate_radps": 1.1}, False),  # 60 degrees, 1.047 rad, per second
        (turn("y", 6.0), {"max_turn_rate_radps": 1.0}, True),
        (turn("y", 6.0), {"max_speed_mps": 0.1}, False),
    ],
)
def test_a_motion_that_the_robot_cannot_make_is_none(motion, limits, lost):
    stub = StubPredictor(metric=False, motion=motion)
    pipeline, statistics = make(stub, scale=ScaleSettings("fixed", fixed=2.0), **limits)
    pipeline.step(frame(0), ALL_OUTPUTS)
    earlier = pipeline.step(frame(1), ALL_OUTPUTS)
    result = pipeline.step(frame(2), ALL_OUTPUTS)
    # the speed is known from the first frame whose scale is
    assert earlier.odometry.lost is lost
    assert result.odometry.lost is lost
    assert (result.prediction.T_previous_current is None) is lost
    assert [key for key, _ in result.notices] == ["too_fast"] * lost
    assert statistics.snapshot().consecutive_lost == (2 if lost else 0)
    assert np.array_equal(result.odometry.pose, np.eye(4)) is lost
    assert result.prediction.depth is not None


def test_the_speed_of_a_creeping_camera_is_that_of_the_whole_way():
    stub = StubPredictor(metric=False, motion=shift(0.0, 0.0, 0.3), creeps=2)
    pipeline, _ = make(stub, scale=ScaleSettings("fixed", fixed=1.0), max_speed_mps=1.5)  # 0.3 m in 0.3 s
    assert not any(pipeline.step(frame(index), ALL_OUTPUTS).odometry.lost for index in range(7))


def test_images_that_show_nothing_lose_the_odometry_and_say_why():
    stub = StubPredictor()
    pipeline, statistics = make(stub)
    pipeline.step(frame(0), ALL_OUTPUTS)
    stub.sees_nothing = True
    results = [pipeline.step(frame(index), ALL_OUTPUTS) for index in range(1, 5)]
    assert all(result.odometry.lost for result in results)
    assert [[key for key, _ in result.notices] for result in results] == [["no_motion"]] * 4
    snapshot = statistics.snapshot()
    assert (snapshot.events["lost"], snapshot.consecutive_lost) == (4, 4)
    stub.sees_nothing = False
    assert not pipeline.step(frame(5), ALL_OUTPUTS).odometry.lost
    assert statistics.snapshot().consecutive_lost == 0


def test_an_image_without_a_pair_is_no_reason_to_speak_of_texture():
    stub = StubPredictor()
    pipeline, _ = make(stub, max_pair_gap_s=0.5)
    first = pipeline.step(frame(0), ALL_OUTPUTS)
    gap = pipeline.step(frame(20), ALL_OUTPUTS)
    depth_only = pipeline.step(frame(21), frozenset({"depth"}))
    stub.fails = True
    with pytest.raises(FrameRejectedError):
        pipeline.step(frame(22), ALL_OUTPUTS)
    stub.fails = False
    after_failure = pipeline.step(frame(23), ALL_OUTPUTS)
    keys = [[key for key, _ in result.notices] for result in (first, gap, depth_only, after_failure)]
    assert keys == [[], ["gap"], [], []]


MOUNT = transform((0.0, 0.0, 1.2), (-0.5, 0.5, -0.5, 0.5))
BY_HEIGHT = ScaleSettings("camera_height", max_age_s=1.0)
FIXED = ScaleSettings("fixed", fixed=0.5)
MOTION_ONLY = frozenset({"motion"})


def in_half_metres(**changes) -> StubPredictor:
    """Two units ahead per frame, over ground that the camera sees 2.4 units below."""
    options = {"metric": False, "motion": shift(0.0, 0.0, 2.0), "depth": lambda camera: 2 * ground(camera)}
    return StubPredictor(**{**options, **changes})


def ground(camera):
    return ground_depth(camera, MOUNT, 1.2)


def test_a_measured_scale_reaches_depth_and_motion_and_asks_for_what_it_needs():
    stub = in_half_metres()
    pipeline, _ = make(stub, scale=BY_HEIGHT)
    for index in range(4):
        result = pipeline.step(frame(index), MOTION_ONLY, lambda: Mounting(MOUNT))
        assert (result.scale.value, result.prediction.metric) == (None, False)
        np.testing.assert_allclose(result.prediction.depth, 2 * ground(result.prediction.camera))
        assert result.odometry.position_variance == UNKNOWN_VARIANCE
    result = pipeline.step(frame(4), MOTION_ONLY, lambda: Mounting(MOUNT))
    assert [outputs for _, outputs, _ in stub.calls] == [{"motion", "depth", "mask"}] * 5
    assert result.scale.value == pytest.approx(0.5, rel=0.005)
    np.testing.assert_allclose(result.prediction.depth, ground(result.prediction.camera), rtol=0.005)
    np.testing.assert_allclose(result.prediction.T_previous_current, shift(0, 0, 1.0), rtol=0.005)
    np.testing.assert_allclose(result.odometry.pose, shift(0, 0, 4.0), rtol=0.005)
    assert [key for key, _ in result.notices] == ["scale_found"]
    assert "the path so far too" in result.notices[0][1]


def test_a_scale_that_is_lost_is_said_and_metres_are_never_mixed_with_units():
    stub = in_half_metres()
    pipeline, _ = make(stub, scale=BY_HEIGHT)
    for index in range(5):
        pipeline.step(frame(index), MOTION_ONLY, lambda: Mounting(MOUNT))
    stub.depth = lambda camera: np.full((camera.height, camera.width), 9.0, np.float32)
    notices = []
    for index in range(5, 17):
        result = pipeline.step(frame(index), MOTION_ONLY, lambda: Mounting(MOUNT))
        notices += result.notices
    assert (result.scale.value, result.prediction.metric) == (None, False)
    assert result.prediction.T_previous_current[2, 3] == 2.0
    np.testing.assert_allclose(result.odometry.pose, shift(0, 0, 16.0), rtol=0.005)
    assert result.odometry.position_variance == UNKNOWN_VARIANCE
    assert [key for key, _ in notices] == ["scale_lost"]
    assert "no ground is seen" in notices[0][1]
    assert "goes on with the last scale" in notices[0][1]


def test_another_source_and_another_value_while_running():
    """none, then fixed at 0.5, then fixed at 1, then none: 2 units, then 1 m, 2 m and 2 m per frame."""
    pipeline, _ = make(in_half_metres())
    pipeline.step(frame(0), MOTION_ONLY)
    poses, keys = [], []
    for index, scale in enumerate([ScaleSettings(), FIXED, replace(FIXED, fixed=1.0), ScaleSettings()], 1):
        pipeline.settings = replace(pipeline.settings, scale=scale)
        result = pipeline.step(frame(index), MOTION_ONLY)
        poses.append(float(result.odometry.pose[2, 3]))
        keys += [key for key, _ in result.notices]
        assert result.prediction.metric == (scale.source == "fixed")
        assert (result.odometry.position_variance == UNKNOWN_VARIANCE) == (scale.source == "none")
    assert poses == [2.0, 2.0, 4.0, 6.0]
    assert keys == ["scale_found", "scale_lost"]


def test_new_networks_of_unknown_scale_do_not_go_on_in_a_metric_pose():
    pipeline, _ = make(StubPredictor())
    pipeline.step(frame(0), ALL_OUTPUTS)
    pipeline.step(frame(1), ALL_OUTPUTS)
    pipeline.replace_predictor(in_half_metres())
    for index in (2, 3):
        result = pipeline.step(frame(index), ALL_OUTPUTS)
        assert result.odometry.lost
        np.testing.assert_allclose(result.odometry.pose, shift(0, 0, 1.0))
    pipeline.settings = PipelineSettings(scale=FIXED)
    np.testing.assert_allclose(pipeline.step(frame(4), ALL_OUTPUTS).odometry.pose, shift(0, 0, 2.0))


def test_without_a_mounting_the_height_is_not_known():
    pipeline, _ = make(in_half_metres(), scale=BY_HEIGHT)
    for index in range(6):
        result = pipeline.step(frame(index), MOTION_ONLY)
    assert result.scale.value is None
    assert "mounting" in result.scale.reason


def test_a_loop_that_nobody_saw_is_no_pair():
    """Time went back and on past the last frame while the pipeline was busy: the stamps alone look like a pair."""
    pipeline, statistics = make()
    pipeline.step(frame(50), ALL_OUTPUTS, epoch=0)
    result = pipeline.step(frame(52), ALL_OUTPUTS, epoch=1)
    assert result.link is Link.JUMP
    assert result.odometry.lost
    assert "Time went back (a bag" in dict(result.notices)["jump"]
    assert pipeline.step(frame(53), ALL_OUTPUTS, epoch=1).link is Link.PAIR
    assert statistics.snapshot().events["jumps"] == 1


def test_a_calibration_that_keeps_changing_costs_the_pair_and_no_warm_up():
    stub = StubPredictor()
    pipeline, statistics = make(stub)
    for index in range(5):
        camera = replace(CAMERA, fx=CAMERA.fx + index)
        pipeline.step(replace(frame(index), camera=camera), ALL_OUTPUTS)
    assert statistics.snapshot().events["camera_changes"] == 4
    assert len(stub.warmed) == 1
    pipeline.step(replace(frame(6), camera=CAMERA.scaled(32, 24)), ALL_OUTPUTS)
    assert len(stub.warmed) == 2
