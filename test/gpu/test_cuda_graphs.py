"""Replayed on a GPU, a prediction is what it is when every kernel is started by itself, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coopnet_core.data.frames import Frame
from coopnet_core.data.rendered import SceneConfig, render_clip
from coopnet_core.geometry.camera import Camera
from coopnet_core.inference.prediction import ALL_OUTPUTS, DEPTH, FLOW, MOTION, REFINE_CHOICES
from coopnet_core.inference.stream import StreamPredictor
from coopnet_core.resources import shipped_file

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch sees no CUDA device"),
]
ARRAYS = ("depth", "flow", "motion_probability", "confidence", "T_previous_current", "motion_covariance")


@pytest.mark.parametrize("refine", REFINE_CHOICES)
def test_a_replayed_prediction_is_the_computed_one(refine):
    camera = Camera.from_field_of_view(160, 96, 80.0)
    clip = render_clip(SceneConfig(seed=3, frames=6, camera=camera, movers=0.2, camera_moves=True)).clip
    path = shipped_file("models/small_rendered.safetensors")
    replayed, computed = (
        StreamPredictor(path, "cuda", (160, 96), refine, cuda_graphs=graphs) for graphs in (True, False)
    )
    wanted = [ALL_OUTPUTS, ALL_OUTPUTS, frozenset({DEPTH}), frozenset({FLOW}), frozenset({MOTION}), ALL_OUTPUTS]
    for image, stamp, outputs in zip(clip.images, clip.stamps_ns, wanted, strict=True):
        frame = Frame(image, int(stamp), clip.camera)
        found, expected = replayed.predict(frame, outputs), computed.predict(frame, outputs)
        for name in ARRAYS:
            one, other = getattr(found, name), getattr(expected, name)
            assert (one is None) == (other is None), name
            if one is not None:
                np.testing.assert_array_equal(one, other, err_msg=name)
    assert replayed._compute.works
