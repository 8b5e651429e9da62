"""Every shipped preset: what it says of itself, and that its networks train."""

import math

import pytest
import torch
from unit.tiny_run import tiny_clip

from coopnet_core.config import load_config, preset_file, preset_lines, preset_names
from coopnet_core.cotraining.error_model import ErrorModelState
from coopnet_core.cotraining.step import step
from coopnet_core.cotraining.trainer import train
from coopnet_core.data.augmentation import to_float
from coopnet_core.data.prepare import choose_size
from coopnet_core.data.triplets import TripletSampler
from coopnet_core.geometry.camera import Camera
from coopnet_core.networks.bundle import CoopNetworks

PRESETS = ("cityscapes", "cpu-small", "edge", "kitti-640", "kitti-paper")
KITTI, CITYSCAPES, VGA, HD = (1242, 375), (2048, 1024), (640, 480), (1280, 720)
CPU = torch.device("cpu")


def test_the_presets_are_there_each_with_a_line():
    assert tuple(preset_names()) == PRESETS
    assert tuple(preset_lines()) == PRESETS
    for name, line in preset_lines().items():
        assert 20 < len(line) < 110
        assert preset_file(name).read_text().startswith(f"# {line}\n")


@pytest.mark.parametrize(
    ("preset", "camera", "size"),
    [
        ("cpu-small", KITTI, (416, 128)),
        ("cpu-small", VGA, (256, 192)),
        ("cpu-small", HD, (288, 160)),
        ("edge", KITTI, (512, 160)),
        ("edge", VGA, (320, 256)),
        ("edge", HD, (384, 224)),
        ("kitti-640", KITTI, (640, 192)),
        ("kitti-640", VGA, (384, 288)),
        ("kitti-640", HD, (448, 256)),
        ("kitti-paper", KITTI, (832, 256)),
        ("cityscapes", CITYSCAPES, (512, 256)),
    ],
)
def test_a_preset_gives_the_size_that_it_states(preset, camera, size):
    config = load_config(preset, [], {})
    assert choose_size(Camera.from_field_of_view(*camera, 80.0), config.pixels) == size
    assert f"{size[0]}x{size[1]}" in preset_file(preset).read_text(), "the file says so itself"


@pytest.mark.parametrize(("preset", "millions"), [("cpu-small", 1.8), ("edge", 5.2)])
def test_a_preset_has_as_many_numbers_as_its_line_says(preset, millions):
    networks = CoopNetworks(load_config(preset, [], {}).networks)
    assert sum(parameter.numel() for parameter in networks.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert preset_lines()[preset].startswith(f"{millions} million numbers")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_stage_of_a_preset_gives_finite_gradients(preset):
    config = load_config(preset, [], {})
    torch.manual_seed(0)
    networks = CoopNetworks(config.networks).train()
    sampler = TripletSampler([tiny_clip()], config.frame_offsets, 2, 0)
    error_model = ErrorModelState.initial(CPU)
    for stage in (*config.stages, *config.fine_tuning):
        for name in ("depth", "pose", "flow"):
            getattr(networks, name).requires_grad_(name in stage.train)
        networks.zero_grad()
        output = step(networks, to_float(sampler.next(stage.sources)), error_model, config.loss, stage)
        output.loss.backward()
        assert math.isfinite(float(output.loss.detach()))
        for name in stage.train:
            gradients = [p.grad for p in getattr(networks, name).parameters() if p.grad is not None]
            assert any(gradient.abs().max() > 0 for gradient in gradients), (stage.name, name)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_edge_trains_on_a_cpu(tmp_path):
    changes = {"steps": "4", "batch_size": "2", "device": "cpu", "log_every": "1", "validate_every": "4"}
    result = train(load_config("edge", [], changes), [tiny_clip()], [tiny_clip(seed=1)], tmp_path)
    assert result.steps == 4
    assert math.isfinite(result.best_error)
