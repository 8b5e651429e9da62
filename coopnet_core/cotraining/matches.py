"""Matches of a classical method: the first teacher of a flow network that has learnt nothing yet.

[ours] The photometric error has a slope only within a texture's correlation length; matches say where to go from any
distance. No label is involved: the matcher sees the same two images.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from coopnet_core.geometry.projection import flow_warp
from coopnet_core.geometry.sampling import resize, sample
from coopnet_core.losses.consistency import charbonnier
from coopnet_core.losses.reduction import masked_mean

_FINEST_SCALE = 1
"""DIS stops at half of the size and interpolates: twice as fast, and as exact as the flow network's own grid."""
_ABSOLUTE, _RELATIVE = 0.5, 0.05
_COARSE_WEIGHT = 0.5


@dataclass(frozen=True)
class Matches:
    """Where the pixels of images are found in others.

    Attributes:
        flow: (B, 2, H, W) pixels.
        agree: (B, 1, H, W) float, 1 where the way there and back ends where it began.
    """

    flow: Tensor
    agree: Tensor


@torch.no_grad()
def classical_matches(target: Tensor, source: Tensor) -> Matches:
    """Dense inverse search (Kroeger et al. 2016, OpenCV's) from target to source and back, on the CPU.

    Args:
        target, source: (B, 3, H, W) in [0, 1].

    Returns:
        2 B rows: target -> source, then source -> target.
    """
    first, second = (_grey(image) for image in (target, source))
    there, back = _search(np.concatenate([first, second]), np.concatenate([second, first])).to(target.device).chunk(2)
    return Matches(torch.cat([there, back]), torch.cat([_agree(there, back), _agree(back, there)]).float())


def matches_term(flows: list[tuple[Tensor, Tensor]], matches: Matches) -> Tensor:
    """Robust distance of the flows of all levels to the matches, in pixels of the image: a scalar.

    Args:
        flows: (there, back) by level from the finest, each (B, 2, h, w) in pixels of its own grid.
        matches: of the same pairs, 2 B rows.
    """
    total = matches.flow.new_zeros(())
    width = matches.flow.shape[-1]
    for level, pair in enumerate(flows):
        flow = torch.cat(pair)
        size = flow.shape[-2:]
        share = resize(matches.agree, *size)
        wanted = resize(matches.flow * matches.agree, *size) / share.clamp(min=1e-3)
        distance = charbonnier(flow * (width / size[1]) - wanted)
        total = total + (_COARSE_WEIGHT if level else 1.0) * masked_mean(distance, share > 0.5)
    return total


def _grey(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to (B, H, W) uint8."""
    return (images.detach().float().mean(1) * 255).round().clamp(0, 255).byte().cpu().numpy()


def _search(first: np.ndarray, second: np.ndarray) -> Tensor:
    """(B, H, W) each to (B, 2, H, W), several at once: one search alone leaves cores idle."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        flows = list(pool.map(_search_one, first, second))
    return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2)


def _search_one(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # One object for each: it has working memory, which threads cannot share.
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    method.setFinestScale(_FINEST_SCALE)
    return method.calc(first, second, None)


def _agree(flow: Tensor, backward: Tensor) -> Tensor:
    warp = flow_warp(flow)
    mismatch = (flow + sample(backward, warp.coordinates)).square().sum(1, keepdim=True).sqrt()
    return warp.valid & (mismatch < _ABSOLUTE + _RELATIVE * flow.square().sum(1, keepdim=True).sqrt())
