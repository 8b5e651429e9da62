import numpy as np
import pytest

from coopnet_core.evaluation.mask import MaskMeter, auc, iou

RNG = np.random.default_rng(4)


def test_auc_is_the_chance_of_a_right_order():
    score = RNG.integers(0, 20, 80) / 20
    moving = RNG.uniform(size=80) < 0.3
    wins = [(p > n) + 0.5 * (p == n) for p in score[moving] for n in score[~moving]]
    assert auc(score, moving) == pytest.approx(np.mean(wins))
    order = RNG.permutation(80)
    assert auc(score[order], moving[order]) == pytest.approx(np.mean(wins))
    assert auc(1 - score, moving) == pytest.approx(1 - np.mean(wins))


def test_meter_equals_the_exact_auc_up_to_its_bins():
    score = RNG.uniform(size=(40, 50))
    moving = RNG.uniform(size=(40, 50)) < score
    meter = MaskMeter()
    meter.update(moving, score)
    assert meter.compute()["auc"] == pytest.approx(auc(score.ravel(), moving.ravel()), abs=1e-3)


def test_perfect_and_useless_masks():
    moving = np.zeros((6, 6), bool)
    moving[2:4, 2:5] = True
    meter = MaskMeter()
    meter.update(moving, moving.astype(np.float32))
    assert [meter.compute()[name] for name in ("auc", "iou_moving", "iou_static", "iou_mean")] == [1, 1, 1, 1]
    static = MaskMeter()
    static.update(moving, np.zeros((6, 6)))
    assert static.compute()["auc"] == 0.5
    assert static.compute()["iou_moving"] == 0
    assert static.compute()["iou_static"] == pytest.approx(30 / 36)


def test_iou_by_hand():
    predicted = np.array([[1, 1, 1, 0]], bool)
    moving = np.array([[0, 1, 1, 1]], bool)
    background, foreground = iou(predicted, moving)
    assert foreground == pytest.approx(2 / 4)
    assert background == 0.0


def test_threshold_itself_is_static():
    meter = MaskMeter(threshold=0.5)
    meter.update(np.array([[True, False]]), np.array([[0.51, 0.5]]))
    assert meter.compute()["iou_moving"] == 1


def test_undefined_without_movers():
    meter = MaskMeter()
    meter.update(np.zeros((3, 3), bool), RNG.uniform(size=(3, 3)))
    assert meter.compute()["auc"] is None
    assert meter.compute()["iou_moving"] is None
    assert meter.compute()["iou_static"] is not None
    assert MaskMeter().compute() is None


def test_unknown_pixels_are_left_out():
    meter = MaskMeter()
    meter.update(np.array([[True, False, False]]), np.array([[0.9, 0.1, np.nan]]))
    assert meter.compute()["pixels"] == 2


def test_merged_parts_equal_the_whole():
    whole, first, second = MaskMeter(), MaskMeter(), MaskMeter()
    for index in range(5):
        moving, score = RNG.uniform(size=(7, 8)) < 0.4, RNG.uniform(size=(7, 8))
        whole.update(moving, score)
        (first if index < 2 else second).update(moving, score)
    assert first.merge(second).compute() == whole.compute()
