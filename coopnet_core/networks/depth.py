"""The depth network: residual encoder, skip decoder, disparity at several scales (Godard et al. 2019)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coopnet_core.config import DepthConfig
from coopnet_core.networks.encoder import ResNetEncoder

_FIRST_DEPTH = 10.0
"""Times the nearest."""


class _Convolution(nn.Module):
    """3x3 convolution with reflected border, then ELU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x))


class DepthNetwork(nn.Module):
    """Image to sigmoid disparity in (0, 1), finest scale first."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ResNetEncoder(config.encoder)
        skips = (0, *config.encoder.widths[:4])
        channels = config.encoder.widths[4]
        self.reduce, self.merge, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for level in range(4, config.finest_scale - 1, -1):
            width = config.decoder_widths[level]
            self.reduce[str(level)] = _Convolution(channels, width)
            self.merge[str(level)] = _Convolution(width + skips[level], width)
            channels = width
            if level < config.finest_scale + config.scales:
                self.heads[str(level)] = nn.Conv2d(width, 1, 3, padding=1, padding_mode="reflect")
                nn.init.constant_(self.heads[str(level)].bias, _first_logit(config))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to [(B, 1, H/2^s, W/2^s)] float32, s from finest_scale upwards."""
        features = self.encoder(images)
        x = features[4]
        disparities: list[Tensor] = []
        for level in range(4, self.config.finest_scale - 1, -1):
            x = F.interpolate(self.reduce[str(level)](x), scale_factor=2.0, mode="nearest")
            if level > 0:
                x = torch.cat([x, features[level - 1]], dim=1)
            x = self.merge[str(level)](x)
            if str(level) in self.heads:
                # In half precision the sigmoid has no resolution for far depths.
                disparities.insert(0, torch.sigmoid(self.heads[str(level)](x).float()))
        return disparities


def _first_logit(config: DepthConfig) -> float:
    """The bias that starts depth at ten times the nearest: from the middle of the sigmoid it would soon saturate."""
    nearest, farthest = 1 / config.minimum, 1 / config.maximum
    disparity = (nearest / _FIRST_DEPTH - farthest) / (nearest - farthest)
    return math.log(disparity / (1 - disparity))


def depth_from_disparity(disparity: Tensor, config: DepthConfig) -> Tensor:
    """Sigmoid disparity in (0, 1) to depth in (minimum, maximum), linear in inverse depth (Godard et al. 2019)."""
    nearest, farthest = 1 / config.minimum, 1 / config.maximum
    return 1 / (farthest + (nearest - farthest) * disparity)
