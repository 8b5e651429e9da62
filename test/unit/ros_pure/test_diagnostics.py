"""Counters that add up, rates and percentiles, and the sentence they become."""

from __future__ import annotations

import numpy as np
import pytest

from coopnet_ros.diagnostics import ERROR, OK, STALE, WARN, Statistics, assess, percentiles


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def statistics(clock):
    return Statistics(clock)


def test_counters_add_up(statistics):
    for _ in range(10):
        statistics.receive()
    for _ in range(4):
        statistics.process(decode=1.0, infer=2.0, publish=3.0, total=6.0)
    statistics.drop("newer_frame")
    statistics.drop("disabled")
    statistics.reject("malformed")
    snapshot = statistics.snapshot()
    assert snapshot.pending == 3
    assert snapshot.received == snapshot.processed + 2 + 1 + snapshot.pending
    rows = dict(snapshot.rows())
    assert (rows["received"], rows["dropped"], rows["rejected"], rows["pending"]) == ("10", "2", "1", "3")
    assert rows["rejected.malformed"] == "1"
    assert rows["total_ms.p50"] == "6.0"


def test_rates_are_taken_over_the_last_seconds(statistics, clock):
    for _ in range(50):
        statistics.receive()
        clock.now += 0.1
    assert statistics.snapshot().input_hz == pytest.approx(10.0)
    clock.now += 20.0
    assert statistics.snapshot().input_hz == 0.0


def test_percentiles_against_the_sorted_values():
    values = list(np.random.default_rng(0).permutation(101).astype(float))
    assert percentiles(values) == (50.0, 95.0)
    assert percentiles([]) is None


def test_an_unknown_reason_is_a_programming_error(statistics):
    for call in (statistics.drop, statistics.reject, statistics.count):
        with pytest.raises(ValueError, match="known"):
            call("whatever")


def test_the_summary_follows_the_state(statistics, clock):
    def summary(state="active"):
        return assess(statistics.snapshot(), state, 5.0)

    assert summary("inactive") == (OK, "inactive")
    assert summary() == (WARN, "no image yet")
    statistics.receive()
    assert summary() == (OK, "warming up")
    statistics.reject("uncalibrated")
    level, text = summary()
    assert level == WARN
    assert "uncalibrated" in text
    statistics.receive()
    statistics.process(total=1.0)
    assert summary() == (OK, "running")
    statistics.receive()
    statistics.reject("inference_error")
    assert summary()[0] == ERROR
    statistics.receive()
    statistics.process(total=1.0)
    assert summary() == (OK, "running")
    clock.now += 6.0
    assert summary()[0] == STALE


def test_a_scale_that_was_asked_for_and_is_not_known_is_a_warning(statistics):
    statistics.receive()
    statistics.process(total=1.0)
    assert assess(statistics.snapshot(), "active", 5.0) == (OK, "running")
    level, text = assess(statistics.snapshot(), "active", 5.0, "no ground is seen")
    assert (level, text) == (WARN, "running without a scale: no ground is seen")


def test_networks_that_do_not_come_back_are_a_warning(statistics):
    statistics.receive()
    assert assess(statistics.snapshot(), "active", 5.0, busy_s=4.0) == (OK, "warming up")
    level, text = assess(statistics.snapshot(), "active", 5.0, busy_s=12.0)
    assert level == WARN
    assert "not come back for 12 s" in text
    assert assess(statistics.snapshot(), "inactive", 5.0, busy_s=12.0) == (OK, "inactive")


def test_what_is_lost_on_the_way_is_counted_and_nothing_else(statistics):
    statistics.receive()
    statistics.lose(2)
    statistics.lose(3)
    snapshot = statistics.snapshot()
    assert (snapshot.lost_before_arrival, snapshot.received, snapshot.pending) == (5, 1, 1)
    assert dict(snapshot.rows())["lost_before_arrival"] == "5"


def test_the_summary_is_of_the_last_seconds(statistics, clock):
    def summary():
        return assess(statistics.snapshot(), "active", 5.0)

    statistics.receive()
    statistics.reject("malformed")
    assert summary()[0] == WARN
    clock.now += 6.0
    for _ in range(10):
        statistics.receive()
        statistics.drop("not_wanted")
    level, text = summary()
    assert level == OK, "one early reject is forgotten"
    assert "nobody subscribes" in text
    for number in range(30):
        statistics.receive()
        if number % 10 == 0:
            statistics.process(total=1.0)
        else:
            statistics.reject("malformed")
    level, text = summary()
    assert level == WARN, "a few good images among many bad ones are not 'running'"
    assert "malformed: 27" in text


def test_odometry_that_stays_lost_is_a_warning_and_a_jump_is_none(statistics):
    statistics.receive()
    statistics.process(decode=1.0, infer=1.0, publish=1.0, total=3.0)
    for _ in range(2):
        statistics.track(lost=True)
    assert assess(statistics.snapshot(), "active", 5.0) == (OK, "running")
    statistics.track(lost=True)
    level, text = assess(statistics.snapshot(), "active", 5.0)
    assert level == WARN
    assert "odometry lost: at the last 3 images" in text
    statistics.track(lost=False)
    assert assess(statistics.snapshot(), "active", 5.0) == (OK, "running")
    assert dict(statistics.snapshot().rows())["lost"] == "3"
