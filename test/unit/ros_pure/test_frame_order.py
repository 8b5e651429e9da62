"""Stamps, notices, silence and the worker: the small parts of the node, without ROS."""

from __future__ import annotations

import threading
import time

import pytest

from coopnet_ros.notifier import Notifier
from coopnet_ros.sequence import Arrival, ArrivalOrder, Companions, Link, classify_arrival, classify_link
from coopnet_ros.silence import Endpoint, explain_clock, explain_silence
from coopnet_ros.worker import Worker, run_in_thread

SECOND = 1_000_000_000
IMAGE = "sensor_msgs/msg/Image"


@pytest.mark.parametrize(
    ("newest", "stamp", "expected"),
    [
        (None, 5.0, Arrival.IN_ORDER),
        (5.0, 5.1, Arrival.IN_ORDER),
        (5.0, 5.0, Arrival.OUT_OF_ORDER),
        (5.0, 4.5, Arrival.OUT_OF_ORDER),
        (5.0, 4.0, Arrival.OUT_OF_ORDER),
        (5.0, 3.9, Arrival.JUMP),
        (5.0, 500.0, Arrival.IN_ORDER),
    ],
)
def test_arrivals(newest, stamp, expected):
    newest_ns = None if newest is None else round(newest * SECOND)
    assert classify_arrival(newest_ns, round(stamp * SECOND), jump_threshold_s=1.0) is expected


@pytest.mark.parametrize(
    ("previous", "stamp", "expected"),
    [
        (None, 1.0, Link.FIRST),
        (1.0, 1.5, Link.PAIR),
        (1.0, 1.6, Link.GAP),
        (1.0, 0.1, Link.JUMP),
        (1.0, 1.0, Link.JUMP),
    ],
)
def test_links(previous, stamp, expected):
    previous_ns = None if previous is None else round(previous * SECOND)
    assert classify_link(previous_ns, round(stamp * SECOND), max_pair_gap_s=0.5) is expected


def test_a_notice_is_written_once_and_again_after_a_while_with_the_number_held_back():
    now, said = [0.0], []
    notifier = Notifier(said.append, every_s=60.0, clock=lambda: now[0])
    for _ in range(5):
        notifier.notify("gap", "A gap.")
    notifier.notify("other", "Something else.")
    now[0] = 61.0
    notifier.notify("gap", "A gap.")
    assert said == ["A gap.", "Something else.", "A gap. (4 more like it since.)"]


def test_a_condition_that_ended_is_written_again_at_once():
    said = []
    notifier = Notifier(said.append)
    assert notifier.once("silence", "Nothing.")
    assert not notifier.once("silence", "Nothing.")
    notifier.forget("silence")
    assert notifier.once("silence", "Nothing.")
    assert len(said) == 2


@pytest.mark.parametrize(
    ("publishers", "says"),
    [
        ([], ["no publisher", "ROS_DOMAIN_ID"]),
        ([Endpoint("/camera", "sensor_msgs/msg/CompressedImage", True)], ["image_transport to compressed"]),
        ([Endpoint("/camera", "std_msgs/msg/String", True)], ["std_msgs/msg/String", "Remap"]),
        ([Endpoint("/camera", IMAGE, False)], ["QoS mismatch", "/camera", "best_effort"]),
        ([Endpoint("/camera", IMAGE, True)], ["/camera", "FASTRTPS_DEFAULT_PROFILES_FILE"]),
    ],
)
def test_silence_is_explained(publishers, says):
    text = explain_silence("/image", IMAGE, True, publishers)
    assert text.startswith("/image: ")
    for part in says:
        assert part in text


def test_what_came_before_and_stopped_is_no_matter_of_the_transport():
    there = explain_silence("/image", IMAGE, False, [Endpoint("/player", IMAGE, True)], came_before=True)
    assert "/player is still there" in there
    assert "paused" in there
    gone = explain_silence("/image", IMAGE, False, [], came_before=True)
    assert "its publisher is gone" in gone
    for text in (there, gone):
        assert "Fast DDS" not in text
        assert "remap" not in text


@pytest.mark.parametrize(("has_profile", "where"), [(True, "(this node has one)"), (False, "and of this node")])
def test_the_profile_is_asked_for_where_it_may_be_missing(has_profile, where):
    text = explain_silence("/image", IMAGE, False, [Endpoint("/camera", IMAGE, True)], has_profile=has_profile)
    assert where in text


def test_a_latched_subscription_and_a_volatile_publisher_do_not_meet():
    volatile = Endpoint("/camera", IMAGE, True)
    text = explain_silence("/image", IMAGE, True, [volatile], wants_transient_local=True)
    assert "QoS mismatch" in text
    assert "qos_overrides./image.subscription.durability" in text
    latched = Endpoint("/camera", IMAGE, True, transient_local=True)
    assert "mismatch" not in explain_silence("/image", IMAGE, True, [latched], wants_transient_local=True)


def test_the_worker_takes_the_newest_item_only():
    handled, gate = [], threading.Event()

    def handle(item):
        handled.append(item)
        gate.wait(5)

    worker = Worker(handle, lambda error: None)
    assert not worker.offer(1)
    while not handled:
        time.sleep(0.001)
    assert not worker.offer(2)
    assert worker.offer(3)
    gate.set()
    while len(handled) < 2:
        time.sleep(0.001)
    worker.stop()
    assert handled == [1, 3]


def test_the_worker_outlives_an_error_and_runs_tasks_in_its_thread():
    failures = []

    def handle(item):
        raise RuntimeError(item)

    worker = Worker(handle, failures.append)
    worker.offer("broken")
    name = worker.submit(lambda: threading.current_thread().name).result(5)
    assert name == "coopnet-worker"
    with pytest.raises(KeyError):
        worker.submit(lambda: {}["missing"]).result(5)
    deadline = time.monotonic() + 5
    while not failures and time.monotonic() < deadline:
        time.sleep(0.001)
    assert str(failures[0]) == "broken"
    worker.stop()
    assert worker.submit(lambda: 1).cancelled()


def test_a_worker_that_does_not_come_back_can_be_left():
    begun, gate = threading.Event(), threading.Event()

    def handle(item):
        begun.set()
        gate.wait(10)

    worker = Worker(handle, lambda error: None)
    assert worker.busy_s == 0
    worker.offer(1)
    assert begun.wait(5)
    first, second = worker.submit(lambda: 1), worker.submit(lambda: 2)
    worker.cancel_tasks()
    assert first.cancelled()
    assert second.cancelled()
    third = worker.submit(lambda: 3)
    assert worker.busy_s > 0
    assert not worker.stop(timeout_s=0.01)
    assert worker.is_alive
    assert third.cancelled()
    gate.set()
    assert worker.stop(timeout_s=10)
    assert not worker.is_alive
    assert worker.busy_s == 0


def test_a_task_in_a_thread_of_its_own_hands_over_what_it_returns_or_raises():
    assert run_in_thread(lambda: threading.current_thread().name, "apart").result(5) == "apart"
    with pytest.raises(KeyError):
        run_in_thread(lambda: {}["missing"], "apart").result(5)


def test_a_companion_is_found_by_its_stamp_and_the_oldest_is_forgotten():
    companions: Companions[int] = Companions()
    for stamp in range(1, Companions.KEPT + 2):
        companions.add(stamp, 10 * stamp)
    assert companions.at(1) is None
    assert [companions.at(stamp) for stamp in (2, 5, Companions.KEPT + 1)] == [20, 50, 10 * (Companions.KEPT + 1)]
    companions.add(2, 21)
    companions.add(100, 1000)
    assert companions.at(2) == 21, "added again, it is new"
    assert companions.at(3) is None
    companions.clear()
    assert companions.at(2) is None


def test_a_companion_is_waited_for_where_the_image_before_had_one(monkeypatch):
    companions: Companions[int] = Companions()
    monkeypatch.setattr(Companions, "PATIENCE_S", 10.0)
    assert companions.of_image(1) is None  # at once: nothing is known of their stamps
    companions.add(1, 10)  # too late for its image, but there is one for each
    threading.Timer(0.02, lambda: companions.add(2, 20)).start()
    assert companions.of_image(2) == 20
    companions.add(3, 30)
    assert companions.of_image(3) == 30
    monkeypatch.setattr(Companions, "PATIENCE_S", 0.001)
    assert companions.of_image(4) is None
    monkeypatch.setattr(Companions, "PATIENCE_S", 1000.0)
    assert companions.of_image(5) is None  # at once again: they have ceased to come


def test_a_clock_that_is_silent_is_explained():
    text = explain_clock(5.0, [])
    assert "/clock for 5 s: it has no publisher" in text
    assert "--clock" in text
    assert "set use_sim_time to false" in text
    assert "/b, /c publishes it, but nothing arrives" in explain_clock(5.0, ["/c", "/b"])


def judge(order: ArrivalOrder, *stamps: float) -> list[Arrival]:
    return [order.judge(round(stamp * SECOND), jump_threshold_s=1.0) for stamp in stamps]


def test_disorder_is_not_taken_for_a_new_start():
    order = ArrivalOrder()
    judge(order, 1.0, 1.3)
    assert judge(order, 1.1, 1.4, 1.2, 1.5, 1.3) == [
        Arrival.OUT_OF_ORDER,
        Arrival.IN_ORDER,
        Arrival.OUT_OF_ORDER,
        Arrival.IN_ORDER,
        Arrival.OUT_OF_ORDER,
    ]
    assert judge(order, 1.4, 1.4, 1.4, 1.4) == [Arrival.OUT_OF_ORDER] * 4, "one stamp again and again is no sequence"
    assert order.epoch == 0


def test_a_bag_shorter_than_the_threshold_that_loops_is_a_new_start_after_three_images():
    order = ArrivalOrder()
    loop = (1.0, 1.2, 1.4, 1.6)
    judge(order, *loop)
    for count in (1, 2):
        out, jump, on = Arrival.OUT_OF_ORDER, Arrival.JUMP, Arrival.IN_ORDER
        assert judge(order, *loop) == [out, out, jump, on]
        assert order.epoch == count


def test_a_jump_and_a_restart_begin_an_epoch():
    order = ArrivalOrder()
    judge(order, 5.0, 5.1)
    assert order.epoch == 0
    assert judge(order, 1.0) == [Arrival.JUMP]
    assert order.epoch == 1
    order.restart()
    assert judge(order, 0.9) == [Arrival.IN_ORDER]
    assert order.epoch == 2


def test_a_second_condition_of_the_same_key_is_written_its_numbers_alone_are_none():
    said = []
    notifier = Notifier(said.append, clock=lambda: 0.0)
    for text in ("needs 10 bytes, holds 3", "needs 12 bytes, holds -4.5e-3", "step is 7", "needs 1 bytes, holds 0"):
        notifier.notify("malformed", text)
    assert said == ["needs 10 bytes, holds 3", "step is 7"]


def test_junk_that_differs_every_time_is_not_written_out():
    now, said = [0.0], []
    notifier = Notifier(said.append, every_s=60.0, clock=lambda: now[0])
    for index in range(1000):
        notifier.notify("malformed", "junk " + "x" * index)
    assert len(said) < 10
    assert len(notifier._last["malformed"]) < 10
    now[0] = 61.0
    assert notifier.notify("malformed", "other junk")


def test_what_comes_back_after_a_recovery_is_written_again_but_not_with_every_frame():
    now, said = [0.0], []
    notifier = Notifier(said.append, every_s=60.0, again_s=10.0, clock=lambda: now[0])
    for index in range(25):
        now[0] = float(index)
        notifier.notify("malformed", "step is 7")
        notifier.recover("malformed", "unheard_of")
    assert said == ["step is 7", "step is 7 (9 more like it since.)", "step is 7 (9 more like it since.)"]
    now[0] = 1000.0
    notifier.notify("malformed", "step is 7")
    now[0] = 1015.0
    assert not notifier.notify("malformed", "step is 7")
