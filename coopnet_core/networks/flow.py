"""The optical-flow network: feature pyramid, warping, local correlation, one decoder for all levels.

Coarse-to-fine as in PWC-Net (Sun et al. 2018), with the decoder shared by the levels as in IRR (Hur and Roth 2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from coopnet_core.config import FlowConfig
from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.sampling import resize_flow, sample
from coopnet_core.networks.correlation import local_correlation

FINEST_STRIDE = 4
_SLOPE = 0.1
_FIRST_TEMPERATURE = 20.0
_LEAST_SQUARED_LENGTH = 1e-24


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
        self.log_temperature = nn.Parameter(torch.tensor(math.log(_FIRST_TEMPERATURE)))
        reach = torch.arange(-config.search_range, config.search_range + 1, dtype=torch.float32)
        dy, dx = torch.meshgrid(reach, reach, indexing="ij")
        self.register_buffer("displacements", torch.stack([dx, dy], dim=-1).reshape(-1, 2), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to projected features at 1/4, 1/8, 1/16, 1/32."""
        x, pyramid = images, []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index > 0:
                pyramid.append(self.project[index - 1](x))
        return pyramid

    def match(self, target: list[Tensor], source: list[Tensor]) -> list[Tensor]:
        """Flows target -> source at 1/4, 1/8, 1/16, 1/32 of the size, each (B, 2, h, w) float32 in its own pixels."""
        batch, _, height, width = target[-1].shape
        flow = torch.zeros(batch, 2, height, width, device=target[-1].device)
        flows: list[Tensor] = []
        for level in range(len(target) - 1, -1, -1):
            first, second = target[level], source[level]
            if flows:
                flow = resize_flow(flow, *first.shape[-2:])
                # Coordinates in half precision are off by pixels: sample in float32.
                second = sample(second.float(), flow_warp(flow.detach()).coordinates).to(first.dtype)
            similarity = _cosine_correlation(first, second, self.config.search_range)
            inputs = torch.cat([similarity, first, flow.to(first.dtype)], dim=1)
            flow = flow + self._expected_displacement(similarity) + self.head(self.decoder(inputs)).float()
            flows.insert(0, flow)
        return flows

    def both_ways(self, target: Tensor, source: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Flows target -> source and back, as `match` gives them, from one pass over two (B, 3, H, W) image batches."""
        pyramid = self.features(torch.cat([target, source]))
        swapped = [torch.cat(level.chunk(2)[::-1]) for level in pyramid]
        return [tuple(flow.chunk(2)) for flow in self.match(pyramid, swapped)]

    def _expected_displacement(self, similarity: Tensor) -> Tensor:
        """Mean displacement under softmax(temperature * similarity): features that match are all it takes to start."""
        weights = (self.log_temperature.exp() * similarity.float()).softmax(dim=1)
        return torch.einsum("bkhw,kc->bchw", weights, self.displacements)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Two (B, 3, H, W) normalised images to the flow target -> source at a quarter of the size."""
        pyramid = self.features(torch.cat([target, source]))
        return self.match([level.chunk(2)[0] for level in pyramid], [level.chunk(2)[1] for level in pyramid])[0]


def _cosine_correlation(first: Tensor, second: Tensor, search_range: int) -> Tensor:
    """Local correlation of centred features of unit length: cosines in [-1, 1]."""
    channels = first.shape[1]
    first, second = (_unit(feature) for feature in (first, second))
    return local_correlation(first, second, search_range) * channels


def _unit(feature: Tensor) -> Tensor:
    """What all pixels have in common says nothing about where they went: remove it, then scale to length 1."""
    centred = feature.float() - feature.float().mean((2, 3), keepdim=True)
    # as F.normalize, which on a CPU takes several times as long
    squared = centred.square().sum(1, keepdim=True)
    return (centred * squared.clamp(min=_LEAST_SQUARED_LENGTH).rsqrt()).to(feature.dtype)
