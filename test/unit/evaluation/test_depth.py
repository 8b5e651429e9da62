import math

import numpy as np
import pytest

from coopnet_core.errors import UsageError
from coopnet_core.evaluation.depth import DepthMeter, DepthProtocol, crop_mask, depth_errors

RNG = np.random.default_rng(0)
TRUTH = RNG.uniform(2, 70, (20, 30))
PREDICTION = TRUTH * np.exp(0.3 * RNG.standard_normal(TRUTH.shape))
PLAIN = DepthProtocol(crop="none")


def figures(truth, depth, protocol=PLAIN):
    meter = DepthMeter(protocol)
    with np.errstate(divide="ignore"):
        meter.update(truth, 1 / depth)
    return meter.compute()


def loops(truth, depth, cap=80.0):
    """The protocol, pixel by pixel."""
    pairs = [
        (float(g), float(1 / np.float64(1 / p)))
        for g, p in zip(truth.ravel(), depth.ravel(), strict=True)
        if 1e-3 < g < cap
    ]
    scale = np.median([g for g, _ in pairs]) / np.median([p for _, p in pairs])
    pairs = [(g, min(max(p * scale, 1e-3), 80.0)) for g, p in pairs]
    n = len(pairs)
    logs = [math.log(p) - math.log(g) for g, p in pairs]
    return {
        "abs_rel": sum(abs(g - p) / g for g, p in pairs) / n,
        "sq_rel": sum((g - p) ** 2 / g for g, p in pairs) / n,
        "rmse": math.sqrt(sum((g - p) ** 2 for g, p in pairs) / n),
        "rmse_log": math.sqrt(sum(e * e for e in logs) / n),
        "silog": 100 * math.sqrt(sum(e * e for e in logs) / n - (sum(logs) / n) ** 2),
        "a1": sum(max(g / p, p / g) < 1.25 for g, p in pairs) / n,
        "a2": sum(max(g / p, p / g) < 1.25**2 for g, p in pairs) / n,
        "a3": sum(max(g / p, p / g) < 1.25**3 for g, p in pairs) / n,
    }


def test_against_loops():
    found = figures(TRUTH, PREDICTION)
    for name, value in loops(TRUTH, PREDICTION).items():
        assert found[name] == pytest.approx(value, rel=1e-6)


def test_perfect_prediction():
    found = figures(TRUTH, TRUTH)
    assert found["abs_rel"] == pytest.approx(0, abs=1e-9)
    assert found["silog"] == pytest.approx(0, abs=1e-4)
    assert found["a1"] == 1
    assert found["scale_median"] == pytest.approx(1)


def test_scale_and_order_of_the_pixels_do_not_matter():
    found = figures(TRUTH, PREDICTION)
    scaled = figures(TRUTH, 13 * PREDICTION)
    order = RNG.permutation(TRUTH.size)
    shuffled = figures(TRUTH.ravel()[order].reshape(TRUTH.shape), PREDICTION.ravel()[order].reshape(TRUTH.shape))
    for name in loops(TRUTH, PREDICTION):
        assert scaled[name] == pytest.approx(found[name], rel=1e-9)
        assert shuffled[name] == pytest.approx(found[name], rel=1e-9)
    assert scaled["scale_median"] == pytest.approx(found["scale_median"] / 13)


def test_without_scaling_the_scale_matters():
    protocol = DepthProtocol(crop="none", scaling="none")
    assert figures(TRUTH, 2 * TRUTH, protocol)["abs_rel"] > 0.5
    fixed = DepthProtocol(crop="none", scaling="fixed", fixed_scale=0.5)
    assert figures(TRUTH, 2 * TRUTH, fixed)["abs_rel"] == pytest.approx(0, abs=1e-9)


def test_one_pixel_by_hand():
    errors = depth_errors(np.array([4.0]), np.array([5.0]))
    assert errors.abs_rel == 0.25
    assert errors.sq_rel == 0.25
    assert errors.rmse == 1.0
    assert errors.rmse_log == pytest.approx(math.log(1.25))
    assert errors.silog == 0.0
    # 1.25 exactly is not below the threshold.
    assert (errors.a1, errors.a2) == (0.0, 1.0)


def test_scaling_goes_before_clamping():
    # Scaled by 2, the far pixel is 200 m and clamped to 80: clamping first would have kept it at 160.
    truth = np.array([[10.0, 20.0, 79.0]])
    found = figures(truth, np.array([[5.0, 10.0, 100.0]]))
    assert found["scale_median"] == pytest.approx(2)
    assert found["abs_rel"] == pytest.approx(1 / 79 / 3)


def test_median_of_an_even_number_is_the_mean_of_the_middle():
    found = figures(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    assert found["scale_median"] == pytest.approx(2)


def test_limits_of_the_truth_are_open():
    meter = DepthMeter(PLAIN)
    meter.update(np.array([[80.0, 1e-3, 79.999, np.nan, np.inf, 0.0, -1.0]]), np.ones((1, 7)))
    assert meter.pixels == 1


def test_crops():
    garg = crop_mask(375, 1242, "garg")
    rows, columns = np.nonzero(garg.any(1))[0], np.nonzero(garg.any(0))[0]
    assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == (153, 371, 44, 1197)
    assert crop_mask(5, 7, "none").all()
    eigen = crop_mask(375, 1242, "eigen")
    assert np.nonzero(eigen.any(1))[0][0] == 124


def test_disparity_not_depth_is_resized():
    disparity = np.array([[0.1, 0.3]], np.float32)
    truth = np.full((1, 4), np.nan)
    truth[0, 1] = 1 / 0.15
    meter = DepthMeter(DepthProtocol(crop="none", scaling="none"))
    meter.update(truth, disparity)
    assert meter.compute()["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_missing_predictions_are_counted_not_evaluated():
    disparity = 1 / TRUTH
    disparity[0, :3] = np.nan
    disparity[1, :2] = 0
    meter = DepthMeter(PLAIN)
    meter.update(TRUTH, disparity)
    assert meter.compute()["pixels_without_prediction"] == 5
    assert meter.compute()["pixels"] == TRUTH.size - 5
    assert meter.compute()["a1"] == 1


def test_merged_parts_equal_the_whole():
    images = [(RNG.uniform(1, 60, (8, 9)), RNG.uniform(0.01, 1, (8, 9))) for _ in range(5)]
    whole, first, second = DepthMeter(PLAIN), DepthMeter(PLAIN), DepthMeter(PLAIN)
    for index, (truth, disparity) in enumerate(images):
        whole.update(truth, disparity)
        (first if index < 2 else second).update(truth, disparity)
    assert first.merge(second).compute() == whole.compute()
    # Mean of per-image figures, not pooled.
    singles = [figures(truth, 1 / disparity)["rmse"] for truth, disparity in images]
    assert whole.compute()["rmse"] == pytest.approx(np.mean(singles))
    with pytest.raises(UsageError, match="two protocols"):
        first.merge(DepthMeter(DepthProtocol(cap=50)))


def test_nothing_to_evaluate():
    meter = DepthMeter(PLAIN)
    assert not meter.update(np.full((3, 3), np.nan), np.ones((3, 3)))
    assert meter.compute() is None


def test_protocols_without_a_meaning_are_refused():
    with pytest.raises(UsageError, match="garg"):
        DepthProtocol(crop="centre")
    with pytest.raises(UsageError, match="minimum < cap"):
        DepthProtocol(cap=0)
