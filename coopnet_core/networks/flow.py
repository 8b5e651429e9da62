"""The optical-flow network: feature pyramid, warping, local correlation, one decoder for all levels.

Coarse-to-fine as in PWC-Net (Sun et al. 2018), with the decoder shared by the levels as in IRR (Hur and Roth 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coopnet_core.config import FlowConfig
from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.sampling import resize_flow, sample
from coopnet_core.networks.correlation import local_correlation

FINEST_STRIDE = 4
_SLOPE = 0.1


def _layer(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, stride, 1), nn.LeakyReLU(_SLOPE))


class FlowNetwork(nn.Module):
    """Flow between two images at a quarter of their size."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        channels = 3
        self.stages, self.project = nn.ModuleList(), nn.ModuleList()
        for index, width in enumerate(config.widths):
            self.stages.append(nn.Sequential(_layer(channels, width, 2), _layer(width, width)))
            if index > 0:
                self.project.append(nn.Conv2d(width, config.projected, 1))
            channels = width
        channels = (2 * config.search_range + 1) ** 2 + config.projected + 2
        layers = []
        for width in config.decoder_widths:
            layers.append(_layer(channels, width))
            channels = width
        self.decoder = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, 2, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to projected features at 1/4, 1/8, 1/16, 1/32."""
        x, pyramid = images, []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index > 0:
                pyramid.append(self.project[index - 1](x))
        return pyramid

    def match(self, target: list[Tensor], source: list[Tensor]) -> Tensor:
        """Flow target -> source from two feature pyramids: (B, 2, H/4, W/4) float32, pixels of that grid."""
        batch, _, height, width = target[-1].shape
        flow = torch.zeros(batch, 2, height, width, device=target[-1].device)
        for level in range(len(target) - 1, -1, -1):
            first, second = target[level], source[level]
            if level < len(target) - 1:
                flow = resize_flow(flow, *first.shape[-2:])
                # Coordinates in half precision are off by pixels: sample in float32.
                second = sample(second.float(), flow_warp(flow.detach()).coordinates).to(first.dtype)
            correlation = F.leaky_relu(_normalised_correlation(first, second, self.config.search_range), _SLOPE)
            inputs = torch.cat([correlation, first, flow.to(first.dtype)], dim=1)
            flow = flow + self.head(self.decoder(inputs)).float()
        return flow

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Two (B, 3, H, W) normalised images to the flow target -> source at a quarter of the size."""
        pyramid = self.features(torch.cat([target, source]))
        return self.match([level.chunk(2)[0] for level in pyramid], [level.chunk(2)[1] for level in pyramid])


def _normalised_correlation(first: Tensor, second: Tensor, search_range: int) -> Tensor:
    """Correlation of features normalised per pixel, times the number of channels (cosine similarity, well scaled)."""
    channels = first.shape[1]
    first = F.normalize(first.float(), dim=1).to(first.dtype) * channels**0.5
    second = F.normalize(second.float(), dim=1).to(second.dtype) * channels**0.5
    return local_correlation(first, second, search_range)
