from pathlib import Path

import torch
from torch import nn

from coopnet_core.checkpoint import load_checkpoint
from coopnet_core.inference.computation import Computation
from coopnet_core.inference.prediction import ALL_OUTPUTS
from coopnet_core.resources import shipped_file

SHIPPED = Path(shipped_file("models/small_rendered.safetensors"))


def test_weights_kept_in_half_precision_give_what_autocast_gives(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 12, generator=generator)
    image = nn.functional.interpolate(coarse, size=(64, 96), mode="bicubic").clamp(0, 1)
    matrix = torch.tensor([[[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]]])
    half = Computation(load_checkpoint(SHIPPED), "static", torch.bfloat16)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "to", lambda self, *_: self)
        cast_each_time = Computation(load_checkpoint(SHIPPED), "static", torch.bfloat16)
    dtypes = [computation._networks.depth.encoder.conv1.weight.dtype for computation in (half, cast_each_time)]
    assert dtypes == [torch.bfloat16, torch.float32]
    with torch.inference_mode():
        found, expected = (
            computation(image, image.roll(2, dims=3), matrix, outputs=ALL_OUTPUTS, stands=False)
            for computation in (half, cast_each_time)
        )
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
