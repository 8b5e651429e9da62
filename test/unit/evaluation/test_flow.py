import math

import numpy as np
import pytest

from coopnet_core.evaluation.flow import FlowMeter, end_point_error, outliers, resize_flow

RNG = np.random.default_rng(3)
TRUTH = RNG.uniform(-60, 60, (12, 14, 2)).astype(np.float32)
FLOW = (TRUTH + 3 * RNG.standard_normal(TRUTH.shape)).astype(np.float32)


def figures(truth, flow, masks=None):
    meter = FlowMeter()
    meter.update(truth, flow, masks)
    return meter.compute()


def loops(truth, flow):
    errors, bad = [], 0
    for row in range(truth.shape[0]):
        for column in range(truth.shape[1]):
            u, v = (float(x) for x in truth[row, column])
            if not (math.isfinite(u) and math.isfinite(v)):
                continue
            error = math.hypot(float(flow[row, column, 0]) - u, float(flow[row, column, 1]) - v)
            errors.append(error)
            bad += error > 3 and error > 0.05 * math.hypot(u, v)
    return sum(errors) / len(errors), 100 * bad / len(errors)


def test_against_loops():
    truth = TRUTH.copy()
    truth[2, 3:9, 0] = np.nan
    found = figures(truth, FLOW)
    epe, fl = loops(truth, FLOW)
    assert found["epe"] == pytest.approx(epe)
    assert found["fl_pct"] == pytest.approx(fl)
    assert found["pixels"] == 12 * 14 - 6


def test_perfect_prediction():
    found = figures(TRUTH, TRUTH)
    assert (found["epe"], found["fl_pct"]) == (0, 0)


def test_boundaries_are_no_outliers():
    truth = np.array([[[0, 0], [40, 0], [100, 0], [100, 0], [0, 0]]], np.float32)
    flow = np.array([[[3, 0], [43, 0], [105, 0], [105.01, 0], [3.001, 0]]], np.float32)
    # Exactly 3 px; exactly 3 px; exactly 5 %; just above 5 %; just above 3 px where nothing moves.
    assert outliers(end_point_error(flow, truth), truth).tolist() == [[False, False, False, True, True]]
    assert figures(truth, flow)["fl_pct"] == pytest.approx(40)


def test_error_under_5_percent_of_a_long_flow_is_no_outlier():
    truth, flow = np.array([[[200.0, 0.0]]]), np.array([[[209.0, 0.0]]])
    assert figures(truth, flow)["fl_pct"] == 0
    assert figures(truth, flow)["epe"] == pytest.approx(9)


def test_resizing_scales_the_vectors():
    small = np.ones((3, 4, 2), np.float32)
    large = resize_flow(small, 8, 9)
    assert large.shape == (9, 8, 2)
    np.testing.assert_allclose(large[..., 0], 2)
    np.testing.assert_allclose(large[..., 1], 3)


def test_pooled_and_mean_of_images_differ():
    meter = FlowMeter()
    meter.update(np.zeros((1, 3, 2)), np.full((1, 3, 2), [4.0, 0.0]))
    meter.update(np.zeros((1, 1, 2)), np.zeros((1, 1, 2)))
    found = meter.compute()
    assert (found["epe"], found["epe_image_mean"]) == (3, 2)
    assert (found["fl_pct"], found["fl_pct_image_mean"]) == (75, 50)


def test_parts_add_up():
    occluded = RNG.uniform(size=(12, 14)) < 0.3
    found = figures(TRUTH, FLOW, {"occ": occluded, "noc": ~occluded})
    total = sum(found[name]["epe"] * found[name]["pixels"] for name in ("occ", "noc"))
    assert total / found["pixels"] == pytest.approx(found["epe"])
    assert found["occ"]["pixels"] == occluded.sum()


def test_missing_predictions_are_counted_not_evaluated():
    flow = FLOW.copy()
    flow[:2] = np.nan
    found = figures(TRUTH, flow)
    assert found["pixels_without_prediction"] == 28
    assert found["epe"] == pytest.approx(loops(TRUTH[2:], FLOW[2:])[0])


def test_merged_parts_equal_the_whole():
    whole, first, second = FlowMeter(), FlowMeter(), FlowMeter()
    mask = {"moving": RNG.uniform(size=(12, 14)) < 0.5}
    for index in range(4):
        flow = FLOW + index
        whole.update(TRUTH, flow, mask if index else None)
        (first if index < 1 else second).update(TRUTH, flow, mask if index else None)
    merged = first.merge(second).compute()
    assert merged["epe"] == pytest.approx(whole.compute()["epe"])
    assert merged["moving"]["epe"] == pytest.approx(whole.compute()["moving"]["epe"])
    assert merged["images"] == 4


def test_nothing_to_evaluate():
    meter = FlowMeter()
    assert not meter.update(np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2)))
    assert meter.compute() is None
