"""The three networks together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coopnet_core.config import NetworksConfig
from coopnet_core.geometry.projection import rays, scaled_matrix
from coopnet_core.geometry.sampling import resize
from coopnet_core.geometry.se3 import transform_from_vector
from coopnet_core.networks.depth import DepthNetwork, depth_from_disparity
from coopnet_core.networks.flow import FINEST_STRIDE, FlowNetwork
from coopnet_core.networks.pose import FlowPoseNetwork, ImagePoseNetwork

SIZE_MULTIPLE = 32
NETWORKS = ("depth", "pose", "flow")
MEAN, STD = 0.45, 0.225
"""Normalisation of images in [0, 1], the same for all channels."""


class CoopNetworks(nn.Module):
    """Depth, odometry and optical flow."""

    def __init__(self, config: NetworksConfig) -> None:
        super().__init__()
        self.config = config
        self.depth = DepthNetwork(config.depth)
        self.pose = ImagePoseNetwork(config.pose) if config.pose.source == "images" else FlowPoseNetwork(config.pose)
        self.flow = FlowNetwork(config.flow)
        self.to(memory_format=torch.channels_last)  # what convolutions on CPU and GPU are fastest with

    def depths(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sigmoid disparities of all scales and the finest depth at full size, of (B, 3, H, W) images in [0, 1]."""
        disparities = self.depth(normalise(images))
        finest = resize(disparities[0], *images.shape[-2:])
        return disparities, depth_from_disparity(finest, self.config.depth)

    def motion(self, target: Tensor, source: Tensor, flow: Tensor, depth: Tensor, camera_matrix: Tensor) -> Tensor:
        """T_source_target, (B, 4, 4), in the unit of `depth`.

        Args:
            target, source: (B, 3, H, W) images in [0, 1].
            flow: (B, 2, H/4, W/4) target -> source, pixels of that grid; detached here.
            depth: (B, 1, H, W) of the target; detached here.
            camera_matrix: (B, 3, 3) at full size.
        """
        if isinstance(self.pose, ImagePoseNetwork):
            return transform_from_vector(self.pose(normalise(target), normalise(source)))
        height, width = flow.shape[-2:]
        matrix = scaled_matrix(camera_matrix, 1 / FINEST_STRIDE)
        inverse_depth = resize(1 / depth.detach(), height, width)
        focal = torch.stack([matrix[:, 0, 0], matrix[:, 1, 1]], dim=1)
        with torch.autocast(flow.device.type, enabled=False):
            vector = self.pose(flow.detach(), inverse_depth, rays(matrix, height, width)[:, :2], focal)
        return transform_from_vector(vector)


def normalise(images: Tensor) -> Tensor:
    """Images in [0, 1] to zero mean and unit spread."""
    return (images - MEAN) / STD
