import json

import pytest
import torch
from safetensors.torch import save_file

from coopnet_core.checkpoint import FORMAT, CheckpointMetadata, load_checkpoint, read_metadata, save_checkpoint
from coopnet_core.config import load_config
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.errors import CheckpointError
from coopnet_core.networks.bundle import CoopNetworks

CONFIG = load_config("cpu-small", [], {})


def _metadata(**changes):
    base = {
        "networks": CONFIG.networks.model_dump(mode="json"),
        "width": 96,
        "height": 64,
        "camera_matrix": [[80.0, 0.0, 47.5], [0.0, 80.0, 31.5], [0.0, 0.0, 1.0]],
        "error_model": ErrorModelState.initial().as_floats(),
        "error_model_config": CONFIG.loss.error_model.model_dump(mode="json"),
        "step": 7,
    }
    return CheckpointMetadata(**(base | changes))


@pytest.fixture
def saved(tmp_path):
    networks = CoopNetworks(CONFIG.networks)
    path = tmp_path / "run" / "weights.safetensors"
    save_checkpoint(path, networks, _metadata())
    return path, networks


def test_round_trip(saved):
    path, networks = saved
    loaded = load_checkpoint(path)
    assert loaded.metadata == _metadata()
    assert not loaded.networks.training
    expected = networks.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.networks.state_dict().items())
    assert not list(path.parent.glob("*.partial"))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_metadata(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_truncated_file(saved, keep):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)


def test_foreign_files(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a checkpoint of coopnet"):
        load_checkpoint(foreign)
    pickled = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(2)}, pickled)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(pickled)


def test_newer_format_and_odd_metadata(tmp_path):
    networks = CoopNetworks(CONFIG.networks)
    newer = tmp_path / "newer.safetensors"
    save_checkpoint(newer, networks, _metadata(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match="update coopnet"):
        load_checkpoint(newer)
    odd = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(2)}, odd, metadata={"coopnet": json.dumps({"what": 1})})
    with pytest.raises(CheckpointError, match="not understood"):
        load_checkpoint(odd)


def test_weights_that_do_not_fit_or_are_not_finite(tmp_path):
    networks = CoopNetworks(CONFIG.networks)
    other = _metadata(networks=CONFIG.networks.model_dump(mode="json") | {"pose": {"source": "flow", "width": 8}})
    save_checkpoint(tmp_path / "other.safetensors", networks, other)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "other.safetensors")
    with torch.no_grad():
        networks.depth.encoder.conv1.weight[0, 0, 0, 0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", networks, _metadata())
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(tmp_path / "nan.safetensors")
