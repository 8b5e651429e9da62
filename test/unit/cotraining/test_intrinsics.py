import math

import numpy as np
import pytest
import torch

from coopnet_core.cotraining.intrinsics import LearnedFocal, has_settled, late_change
from coopnet_core.geometry.projection import rigid_warp
from coopnet_core.geometry.se3 import transform_from_vector


def _matrix(focal, rows):
    return torch.tensor([[focal, 0.0, 31.5], [0.0, focal, 23.5], [0.0, 0.0, 1.0]]).expand(rows, 3, 3)


def test_only_assumed_rows_and_only_focal_lengths_change():
    focal = LearnedFocal()
    with torch.no_grad():
        focal.log_factor.fill_(math.log(1.5))
    matrices = focal(_matrix(40.0, 2), torch.tensor([True, False]))
    assert torch.allclose(matrices[0, [0, 1], [0, 1]], torch.tensor(60.0))
    assert torch.equal(matrices[0, :2, 2], _matrix(40.0, 1)[0, :2, 2])
    assert matrices[0, 2].tolist() == [0, 0, 1]
    assert torch.equal(matrices[1], _matrix(40.0, 1)[0])
    assert focal.factor() == pytest.approx(1.5)


def test_a_turning_camera_tells_its_focal_length():
    """Rotations that are known and a flow that is exact: the factor is found, whatever it starts from."""
    rows = 4
    generator = torch.Generator().manual_seed(0)
    motion = torch.zeros(rows, 6)
    motion[:, 3:] = 0.1 * torch.randn(rows, 3, generator=generator)
    T_source_target = transform_from_vector(motion)
    depth = 2 + torch.rand(rows, 1, 48, 64, generator=generator)
    truth = rigid_warp(depth, T_source_target, _matrix(50.0, rows)).coordinates
    focal = LearnedFocal()
    optimiser = torch.optim.Adam(focal.parameters(), lr=0.02)
    for _ in range(150):
        matrix = focal(_matrix(40.0, rows), torch.ones(rows, dtype=torch.bool))
        loss = (rigid_warp(depth, T_source_target, matrix).coordinates - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert focal.factor() == pytest.approx(50 / 40, rel=0.02)


def test_late_change_looks_at_the_last_quarter_alone():
    assert late_change([]) == 0
    assert late_change([1.0]) == 0
    assert late_change([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]) == 0
    assert late_change(np.linspace(1, 2, 101).tolist()) == pytest.approx(0.12, abs=0.01)


def test_what_creeps_has_not_settled():
    steps = np.arange(200)
    assert has_settled((1 + 0.3 * (1 - np.exp(-steps / 20))).tolist())
    assert has_settled((1 + 0.001 * np.sin(steps)).tolist())
    assert not has_settled((1 + 0.0002 * steps).tolist())
    assert not has_settled((1 + 0.3 * (1 - np.exp(-steps / 150))).tolist())
    assert not has_settled([1.0] * 19), "too short to tell"
