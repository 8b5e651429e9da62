"""Other networks while the node runs: it goes on meanwhile, tries them out, and keeps the old ones where they fail."""

from __future__ import annotations

import gc
import json
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from ros.rig import CAMERA, StubPredictor, shift, true_depth
from ros.test_node_life import change
from std_srvs.srv import Trigger

from coopnet_core.resources import SHIPPED_WEIGHTS, shipped_file
from coopnet_ros import coopnet_node
from coopnet_ros.predictor import load_predictor

OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Loader:
    """Gives a predictor by the name of its file; waits before "slow" until it is let go."""

    def __init__(self, **predictors: StubPredictor | Exception) -> None:
        self.predictors = predictors
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, request):
        found = self.predictors[request.checkpoint or "first"]
        if request.checkpoint == "slow":
            self.reached.set()
            assert self.go_on.wait(30)
        if isinstance(found, Exception):
            raise found
        return found


def ask(rig, checkpoint: str):
    """The answer to a request to load this file."""
    choose(rig, checkpoint)
    return rig.call(Trigger, "load_checkpoint")


def choose(rig, checkpoint: str) -> None:
    assert rig.node.set_parameters([Parameter("checkpoint", value=checkpoint)])[0].successful


def ask_without_waiting(rig, name: str):
    client = rig.peer.create_client(Trigger, f"/coopnet/{name}")
    assert client.wait_for_service(10)
    return client.call_async(Trigger.Request())


def test_everything_goes_on_while_a_checkpoint_is_loaded(make_rig):
    first, slow = StubPredictor(), StubPredictor(motion=shift(0.0, 0.0, 5.0))
    load = Loader(first=first, slow=slow)
    rig = make_rig(load=load, topics=["odom"])
    rig.send(1.0)
    choose(rig, "slow")
    answer = ask_without_waiting(rig, "load_checkpoint")
    rig.wait(load.reached.is_set, "the beginning of the loading")
    rig.get("odom", rig.send(1.1))
    rig.status()
    assert rig.status()["checkpoint"] == "models/small_rendered.safetensors (shipped)"
    assert rig.call(Trigger, "reset").success
    second = rig.call(Trigger, "load_checkpoint")
    assert not second.success
    assert "being loaded already" in second.message
    rig.send(1.2)
    assert [stamp for stamp, _, _ in first.calls] == [1_000_000_000, 1_100_000_000, 1_200_000_000]
    assert not answer.done()
    choose(rig, "another")  # what is asked for later does not change what is being loaded
    load.go_on.set()
    rig.wait(answer.done, "the answer")
    assert answer.result().success, answer.result().message
    assert "slow" in answer.result().message
    rig.send(1.3)
    assert rig.get("odom", rig.send(1.4)).pose.pose.position.x == pytest.approx(6.0)
    assert len(first.calls) == 3
    assert rig.status()["checkpoint"] == "slow"
    assert ask(rig, "first").success  # the loader is free again


def test_new_networks_are_tried_on_the_last_image_of_the_present_camera(make_rig):
    fresh = [StubPredictor(), StubPredictor()]
    rig = make_rig(load=Loader(first=StubPredictor(), a=fresh[0], b=fresh[1]))
    assert ask(rig, "a").success
    (_, _, frame), warmed = fresh[0].calls[0], fresh[0].warmed
    assert frame.camera == CAMERA
    assert frame.image.shape == (CAMERA.height, CAMERA.width, 3)
    assert warmed == [CAMERA]
    assert fresh[0].resets > 0  # the trial is no half of a pair
    image = np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), np.uint8)
    rig.send(1.0, image)
    assert ask(rig, "b").success
    np.testing.assert_array_equal(fresh[1].calls[0][2].image, image)


def broken_at(value: float) -> Callable:
    """A depth with one pixel of this value."""

    def depth(camera):
        result = np.array(true_depth(camera))
        result[3, 4] = value
        return result

    return depth


BROKEN = {
    "nan": (StubPredictor(depth=broken_at(np.nan)), ("not finite and positive in 1 of 512 pixels",)),
    "infinite": (StubPredictor(depth=broken_at(np.inf)), ("not finite and positive in 1 of 512 pixels",)),
    "negative": (StubPredictor(depth=broken_at(-1.0)), ("not finite and positive in 1 of 512 pixels",)),
    "all nan": (StubPredictor(depth=lambda camera: np.full((16, 32), np.nan)), ("No pixel", "finite")),
    "other shape": (StubPredictor(depth=lambda camera: np.ones((3, 4))), ("shape (3, 4)", "(16, 32) was expected")),
    "no depth": (StubPredictor(depth=lambda camera: None), ("no depth",)),
    "raises": (StubPredictor(fails=True), ("CUDA out of memory", "input_width", "beside the old ones")),
    "no memory": (OUT_OF_MEMORY, ("Tried to allocate", "input_width", "deactivate, cleanup and configure")),
    "unforeseen": (KeyError("decoder"), ("KeyError", "decoder")),
    "no torch": (ImportError("No module named 'torch'"), ("torch", "pip install")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_networks_that_fail_their_trial_are_not_used(make_rig, name):
    predictor, words = BROKEN[name]
    first, good = StubPredictor(), StubPredictor()
    rig = make_rig(load=Loader(first=first, bad=predictor, good=good))
    rig.send(1.0)
    answer = ask(rig, "bad")
    assert not answer.success
    missing = [word for word in (*words, "The old networks are kept") if word not in answer.message]
    assert not missing, f"{missing} not in: {answer.message}"
    rig.send(1.1)
    assert len(first.calls) == 2
    assert rig.counts.processed == 2
    assert rig.status()["checkpoint"] == "models/small_rendered.safetensors (shipped)"
    assert ask(rig, "good").success
    rig.send(1.2)
    assert rig.counts.processed == 3
    assert len(first.calls) == 2


def test_a_node_that_is_cleaned_up_while_it_loads_does_not_use_the_new_networks(make_rig):
    load = Loader(first=StubPredictor(), slow=StubPredictor())
    rig = make_rig(load=load)
    choose(rig, "slow")
    answer = ask_without_waiting(rig, "load_checkpoint")
    rig.wait(load.reached.is_set, "the beginning of the loading")
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert change(rig, Transition.TRANSITION_CLEANUP)
    choose(rig, "")
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    load.go_on.set()
    rig.wait(answer.done, "the answer")
    assert not answer.result().success
    assert "cleaned up" in answer.result().message
    rig.wait(lambda: rig.images.get_subscription_count() and rig.infos.get_subscription_count())
    rig.send_info(CAMERA)
    rig.send(1.0)
    assert len(load.predictors["slow"].calls) == 1  # its trial
    assert len(load.predictors["first"].calls) == 1


def test_the_replaced_networks_are_freed(make_rig):
    load = Loader(first=StubPredictor(), next=StubPredictor())
    rig = make_rig(load=load)
    rig.send(1.0)
    old = weakref.ref(load.predictors.pop("first"))
    rig.stub = None
    assert ask(rig, "next").success
    rig.send(1.1)
    gc.collect()
    assert old() is None


class HangingPredictor(StubPredictor):
    """Does not come back until it is let go."""

    def predict(self, frame, outputs):
        self.reached.set()
        assert self.go_on.wait(30)
        return super().predict(frame, outputs)


@pytest.fixture
def hanging():
    predictor = HangingPredictor()
    predictor.reached, predictor.go_on = threading.Event(), threading.Event()
    yield predictor
    predictor.go_on.set()


def test_services_answer_although_the_networks_hang(make_rig, monkeypatch, hanging):
    monkeypatch.setattr(coopnet_node, "_STUCK_S", 0.5)
    load = Loader(first=hanging, next=StubPredictor())
    rig = make_rig(load=load, no_data_timeout=0.5)
    rig.send(1.0, settle=False)
    rig.wait(hanging.reached.is_set)
    answer = rig.call(Trigger, "reset")
    assert not answer.success
    assert "have not come back" in answer.message
    answer = ask(rig, "next")
    assert not answer.success
    assert "have not come back" in answer.message
    status = rig.status()
    assert status["level"] == 1
    assert "have not come back" in status["message"]
    hanging.go_on.set()
    rig.wait(lambda: rig.counts.processed == 1)
    assert rig.call(Trigger, "reset").success
    assert rig.counts.events["resets"] == 1  # the one that was refused is not made up for


def test_networks_that_hang_do_not_keep_the_node_from_being_freed(make_rig, monkeypatch, hanging, warnings):
    monkeypatch.setattr(coopnet_node, "_STOP_S", 0.2)
    rig = make_rig(load=Loader(first=hanging))
    rig.send(1.0, settle=False)
    rig.wait(hanging.reached.is_set)
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert change(rig, Transition.TRANSITION_CLEANUP)
    assert rig.node.is_loading_or_stuck
    hanging.go_on.set()
    rig.wait(lambda: not rig.node.is_loading_or_stuck)
    assert rig.counts.pending == 0
    assert not warnings


SHIPPED = shipped_file(SHIPPED_WEIGHTS)


def rewritten(path: Path, metadata: Callable[[dict], dict] | None = None, **tensors) -> Path:
    """The shipped checkpoint with other metadata or tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(SHIPPED, framework="pt") as file:
        written = json.loads(file.metadata()["coopnet"])
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, spoil in tensors.items():
        values[name] = spoil(values[name])
    save_file(values, path, {"coopnet": json.dumps((metadata or dict)(written))})
    return path


def a_weight() -> str:
    from safetensors import safe_open

    with safe_open(SHIPPED, framework="pt") as file:
        return next(name for name in file.keys() if name.endswith("weight"))  # noqa: SIM118 (not a mapping)


def truncated(path: Path) -> Path:
    path.write_bytes(SHIPPED.read_bytes()[:100_000])
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def foreign(path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, path)
    return path


def unreadable(path: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.write_bytes(SHIPPED.read_bytes())
    path.chmod(0)
    return path


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "cut off"),
    "empty": (empty, "cannot be read"),
    "foreign": (foreign, "not a checkpoint of coopnet"),
    "newer": (lambda path: rewritten(path, lambda m: {**m, "format": 99}), "update coopnet"),
    "unknown field": (lambda path: rewritten(path, lambda m: {**m, "colour": 1}), "not understood"),
    "not finite": (lambda path: rewritten(path, **{a_weight(): lambda t: t * float("nan")}), "not finite"),
    "other shape": (lambda path: rewritten(path, **{a_weight(): lambda t: t[:1]}), "do not fit"),
    "folder": (a_folder, "Is a directory"),
    "missing": (lambda path: path, "No such file"),
    "unreadable": (unreadable, "Permission denied"),
}


@pytest.fixture(scope="module")
def real_rig(ros):
    """A node with the shipped networks, on a small input; one for all files, as it would be for a user."""
    from ros.rig import Rig

    rig = Rig(load=load_predictor, topics=["depth_relative/image"], device="cpu", input_width=128, input_height=64)
    rig.wait(lambda: rig.infos.get_subscription_count())
    rig.now = 1.0
    yield rig
    rig.close()


def answered(rig) -> np.ndarray:
    """The depth of a next image, always the same."""
    rig.now += 0.1
    image = np.random.default_rng(0).integers(0, 256, (CAMERA.height, CAMERA.width, 3), np.uint8)
    message = rig.get("depth_relative/image", rig.send(rig.now, image))
    depth = np.frombuffer(message.data, np.float32)
    assert np.isfinite(depth).all()
    assert (depth > 0).all()
    return depth


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_with_its_name_and_the_reason(real_rig, tmp_path, name):
    make, reason = FILES[name]
    path = make(tmp_path / f"{name}.safetensors")
    before = answered(real_rig)
    answer = ask(real_rig, str(path))
    assert not answer.success
    assert str(path) in answer.message
    assert reason in answer.message
    assert "The old networks are kept" in answer.message
    np.testing.assert_array_equal(answered(real_rig), before)


def test_a_good_file_is_accepted_after_a_broken_one(real_rig, tmp_path):
    before = answered(real_rig)
    assert not ask(real_rig, str(truncated(tmp_path / "broken.safetensors"))).success
    other = shipped_file("models/small_driving.safetensors")
    answer = ask(real_rig, str(other))
    assert answer.success, answer.message
    assert real_rig.status()["checkpoint"] == str(other)
    assert not np.allclose(answered(real_rig), before)
