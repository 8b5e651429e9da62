import subprocess
import sys

import pytest
import torch

from coopnet_core.devices import half_dtype, resolve_device
from coopnet_core.errors import UsageError


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(UsageError, match="unknown"):
        resolve_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            resolve_device("cuda")


def test_a_gpu_always_has_its_number(monkeypatch):
    """`torch.cuda.set_device`, which every thread that touches a GPU needs, refuses a device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_half_precision_is_bfloat16_or_nothing():
    assert half_dtype(torch.device("cpu")) in {None, torch.bfloat16}


def test_inference_does_not_load_what_only_training_needs():
    code = "import sys, coopnet_core.inference.stream; print('tensorboard' in sys.modules, 'rosbags' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]
