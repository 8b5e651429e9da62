"""Residual encoder with the parameter names of torchvision's ResNet, so that its plain weight files load."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from coopnet_core.config import EncoderConfig

_ONEDNN_BLOCK = 16
"""Channels that oneDNN handles at once (AVX-512)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        # With fewer channels than a block, oneDNN's backward pass of a strided 1x1 convolution writes outside its
        # memory (uxlfoundation/oneDNN issue 6035): those take every second pixel first, which is the same.
        self.step = stride if channels_in < _ONEDNN_BLOCK else 1
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride // self.step, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, H, W) to (B, C, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x[:, :, :: self.step, :: self.step])
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNetEncoder(nn.Module):
    """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input."""

    def __init__(self, config: EncoderConfig, images: int = 1) -> None:
        super().__init__()
        stem = config.widths[0]
        self.widths = config.widths
        self.conv1 = nn.Conv2d(3 * images, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for index, (blocks, width) in enumerate(zip(config.layers, config.widths[1:], strict=True)):
            stage = [BasicBlock(channels, width, 1 if index == 0 else 2)]
            stage += [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
            channels = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3 n, H, W) normalised images to five feature maps, finest first."""
        x = F.relu(self.bn1(self.conv1(images)))
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features
