"""The odometry networks: from an image pair, or from flow and inverse depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coopnet_core.config import PoseConfig
from coopnet_core.networks.encoder import ResNetEncoder

_OUTPUT_SCALE = 0.01
"""Small first motions keep the first warps inside the image (Zhou et al. 2017)."""
_TRANSLATION_GAIN = 10.0
"""Depth starts near 1 (networks/depth.py): at camera rate, a tenth of that is a usual translation."""
_FLOW_SCALE = 10.0
"""Flow over focal length is a few hundredths at camera rate; this brings it to the order of one."""


class ImagePoseNetwork(nn.Module):
    """Target and source image to the motion between them."""

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(config.encoder, images=2)
        self.squeeze = nn.Conv2d(config.encoder.widths[4], 256, 1)
        self.first = nn.Conv2d(256, 256, 3, padding=1)
        self.second = nn.Conv2d(256, 256, 3, padding=1)
        self.head = nn.Conv2d(256, 6, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Two (B, 3, H, W) normalised images to (B, 6): translation and axis-angle of T_source_target, float32."""
        x = self.encoder(torch.cat([target, source], dim=1))[-1]
        for layer in (self.squeeze, self.first, self.second):
            x = F.relu(layer(x))
        return _OUTPUT_SCALE * self.head(x).float().mean((2, 3))


class FlowPoseNetwork(nn.Module):
    """Flow, inverse depth and viewing rays to the motion of the camera.

    The idea of an intrinsics layer is that of TartanVO (Wang et al. 2020): flow divided by the focal length, next to
    the viewing rays, makes the network independent of the camera and of the look of the world. Inverse depth,
    divided by its mean, is added: the network must not see the scale of one image's depth, or nothing would keep that
    scale the same from image to image. The answer to zero flow is subtracted: no flow is no motion, exactly.
    """

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        width = config.width
        widths = (width, 2 * width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        channels = 5
        for out in widths:
            layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.ELU(), nn.Conv2d(out, out, 3, 1, 1), nn.ELU()]
            channels = out
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(channels, 4 * width), nn.ELU(), nn.Linear(4 * width, 6))

    def forward(self, flow: Tensor, inverse_depth: Tensor, rays: Tensor, focal: Tensor) -> Tensor:
        """Motion of the camera, float32.

        Args:
            flow: (B, 2, h, w) target to source, pixels of this grid.
            inverse_depth: (B, 1, h, w) of the target.
            rays: (B, 2, h, w) x/z and y/z of every pixel.
            focal: (B, 2) focal lengths, pixels of this grid.

        Returns:
            (B, 6): translation (unit of the depth) and axis-angle (radians) of T_source_target.
        """
        scale = inverse_depth.mean((1, 2, 3), keepdim=True)
        normalised = _FLOW_SCALE * flow / focal[..., None, None]
        context = torch.cat([inverse_depth / scale, rays], dim=1)
        moving = torch.cat([normalised, context], dim=1)
        still = torch.cat([torch.zeros_like(normalised), context], dim=1)
        features = self.trunk(torch.cat([moving, still])).mean((2, 3))
        answer, rest = self.head(features).chunk(2)
        motion = _OUTPUT_SCALE * (answer - rest)
        return torch.cat([_TRANSLATION_GAIN * motion[:, :3], motion[:, 3:]], dim=1)
