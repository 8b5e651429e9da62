"""What is recorded as a CUDA graph must not wait for the GPU; and what cannot be recorded is computed all the same."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.inference import graphs
from coopnet_core.inference.computation import Computation
from coopnet_core.inference.graphs import Recorded
from coopnet_core.inference.prediction import ALL_OUTPUTS, MOTION, REFINE_CHOICES
from coopnet_core.resources import shipped_file

SHIPPED = "models/small_rendered.safetensors"
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_linalg_check_errors", "is_nonzero", "equal")
"""Operators that ask a GPU for a number, and wait for it."""
FROM_THE_HOST = ("lift_fresh",)
"""A tensor made of Python numbers: it is copied from the host."""


class _Forbid(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(part == name.split(".")[1] for part in WAITS + FROM_THE_HOST), f"{name} waits for the GPU"
        return func(*args, **(kwargs or {}))


def _pair(width=96, height=64):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    image = torch.nn.functional.interpolate(image, size=(height, width), mode="bicubic").clamp(0, 1)
    matrix = torch.tensor([[[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]]])
    return image, image.roll(2, dims=3), matrix


@pytest.mark.parametrize("refine", REFINE_CHOICES)
def test_nothing_in_a_computation_waits_for_the_device(refine):
    computation = Computation(load_checkpoint(shipped_file(SHIPPED)), refine, None)
    image, previous, matrix = _pair()
    with torch.inference_mode():
        for outputs, stands in itertools.product((ALL_OUTPUTS, frozenset({MOTION})), (False, True)):
            computation(image, previous, matrix, outputs=outputs, stands=stands)  # what is set up once may wait
            with _Forbid():
                computation(image, previous, matrix, outputs=outputs, stands=stands)
        with _Forbid():
            computation(image, None, matrix, outputs=ALL_OUTPUTS, stands=False)


def test_the_test_would_notice_what_waits():
    with pytest.raises(AssertionError, match="waits for the GPU"), _Forbid():
        float(torch.ones(2).sum())
    with pytest.raises(AssertionError, match="waits for the GPU"), _Forbid():
        torch.tensor([1.0, 2.0])


def test_what_cannot_be_recorded_is_computed_and_said_once(monkeypatch):
    def refuse(self, tensors, manner):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Recorded, "_record", refuse)
    recorded = Recorded(lambda x, *, factor: {"product": x * factor}, torch.device("cpu"))
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph.*slower: operation not permitted"):
        assert recorded(torch.ones(2), factor=3)["product"].tolist() == [3, 3]
    assert not recorded.works
    assert recorded(torch.ones(1), factor=2)["product"].tolist() == [2]


def test_every_shape_and_manner_has_its_own_recording(monkeypatch):
    """With a recording that only computes anew from its own memory, as a graph does."""
    made = []

    class Replays:
        def __init__(self, function, inputs, manner):
            self.function, self.inputs, self.manner = function, inputs, manner
            self.outputs = {name: torch.zeros_like(value) for name, value in function(*inputs, **manner).items()}

        def replay(self):
            for name, value in self.function(*self.inputs, **self.manner).items():
                self.outputs[name].copy_(value)

    def record(self, tensors, manner):
        inputs = tuple(None if tensor is None else torch.zeros_like(tensor) for tensor in tensors)
        replays = Replays(self._function, inputs, manner)
        made.append((tuple(None if tensor is None else tuple(tensor.shape) for tensor in tensors), manner))
        return graphs._Recording(replays, inputs, replays.outputs)

    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    recorded = Recorded(lambda x, y, *, sign: {"sum": sign * (x if y is None else x + y)}, torch.device("cpu"))
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert recorded(one, two, sign=1)["sum"].tolist() == [3]
    assert recorded(two, two, sign=1)["sum"].tolist() == [4]
    assert recorded(two, None, sign=1)["sum"].tolist() == [2]
    assert recorded(two, two, sign=-1)["sum"].tolist() == [-4]
    assert recorded(torch.ones(3), torch.ones(3), sign=1)["sum"].tolist() == [2, 2, 2]
    assert recorded(one, one, sign=1)["sum"].tolist() == [2]
    assert made == [
        (((1,), (1,)), {"sign": 1}),
        (((1,), None), {"sign": 1}),
        (((1,), (1,)), {"sign": -1}),
        (((3,), (3,)), {"sign": 1}),
    ]
