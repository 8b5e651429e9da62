"""How well depth and motion, and flow, explain one image by the other: needs no truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from coopnet_core.geometry.projection import flow_warp, rigid_warp
from coopnet_core.geometry.sampling import sample
from coopnet_core.inference.prediction import Prediction
from coopnet_core.losses.photometric import photometric_error

KINDS = ("identity", "rigid", "flow")


@dataclass
class PhotometricMeter:
    """Sums the photometric error of three reconstructions of each image from the one before.

    All on the same pixels: those whose rigid and flow correspondences both lie in the earlier image.

    Attributes:
        sums: summed error of identity (the earlier image unchanged), rigid and flow.
        pixels: evaluated pixels.
        pairs: evaluated image pairs.
    """

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    pixels: int = 0
    pairs: int = 0

    @torch.no_grad()
    def update(self, prediction: Prediction, previous_image: np.ndarray) -> bool:
        """Add one pair.

        Args:
            prediction: with depth, motion and flow.
            previous_image: (h, w, 3) uint8 RGB, the frame it was paired with, on the same grid.

        Returns:
            Whether there was a pixel to evaluate.
        """
        if prediction.depth is None or prediction.flow is None or prediction.T_previous_current is None:
            return False
        image, previous = _image(prediction.image), _image(previous_image)
        depth = torch.from_numpy(np.nan_to_num(prediction.depth, nan=0.0, posinf=0.0).astype(np.float32))[None, None]
        motion = torch.from_numpy(prediction.T_previous_current.astype(np.float32))[None]
        rigid = rigid_warp(depth, motion, torch.from_numpy(prediction.camera.matrix.astype(np.float32))[None])
        known = torch.from_numpy(np.isfinite(prediction.flow).all(-1))[None, None]
        flow = flow_warp(torch.from_numpy(np.nan_to_num(prediction.flow).transpose(2, 0, 1).astype(np.float32))[None])
        valid = rigid.valid & flow.valid & known & (depth > 0)
        if not bool(valid.any()):
            return False
        reconstructions = {
            "identity": previous,
            "rigid": sample(previous, rigid.coordinates),
            "flow": sample(previous, flow.coordinates),
        }
        for kind, reconstruction in reconstructions.items():
            self.sums[kind] += float(photometric_error(image, reconstruction)[valid].double().sum())
        self.pixels += int(valid.sum())
        self.pairs += 1
        return True

    def merge(self, other: PhotometricMeter) -> PhotometricMeter:
        """The meter over the pairs of both."""
        sums = {kind: self.sums[kind] + other.sums[kind] for kind in KINDS}
        return PhotometricMeter(sums, self.pixels + other.pixels, self.pairs + other.pairs)

    def compute(self) -> dict[str, float | int] | None:
        """Mean errors, their ratio to identity (below 1 is better) and the counts; None without a pair."""
        if not self.pixels:
            return None
        means = {kind: self.sums[kind] / self.pixels for kind in KINDS}
        floor = max(means["identity"], 1e-12)
        ratios = {f"{kind}_over_identity": means[kind] / floor for kind in KINDS[1:]}
        return {**means, **ratios, "pixels": self.pixels, "pairs": self.pairs}


def _image(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None] / 255
