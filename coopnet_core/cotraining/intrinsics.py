"""Learning the focal length of a camera that came without calibration.

After Gordon et al. 2019 (Depth from Videos in the Wild) [peer]: K is one more number that the reconstruction error
depends on, through u = K T D K^-1 p. A translation leaves it free (depth and motion make up for it); rotations do not.
So only the focal length is learned: square pixels and a central principal point stay assumed, as they hold for most
cameras and an hour of driving tells little about them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_SETTLED_CHANGE = 0.01
_SETTLED_SHARE = 0.1
"""Of the whole way gone so far."""
_NOISE = 0.003
_LEAST_FACTORS = 20
"""Fewer logged factors lie in the warm-up, in which nothing moves yet."""


class LearnedFocal(nn.Module):
    """One factor on the assumed focal length, shared by all uncalibrated recordings of a run."""

    def __init__(self) -> None:
        """The assumption itself: factor 1."""
        super().__init__()
        self.log_factor = nn.Parameter(torch.zeros(()))

    def factor(self) -> float:
        """Learned over assumed focal length."""
        return float(self.log_factor.detach().exp())

    def forward(self, camera_matrix: Tensor, assumed: Tensor) -> Tensor:
        """K (B, 3, 3) with the focal lengths of the rows that `assumed` (B,) bool marks multiplied by the factor."""
        focal = torch.diag(camera_matrix.new_tensor([1.0, 1.0, 0.0])) * camera_matrix
        factor = torch.where(assumed, self.log_factor.exp(), torch.ones_like(self.log_factor))
        return camera_matrix + (factor - 1)[:, None, None] * focal


def late_change(factors: Sequence[float]) -> float:
    """Relative range of the last quarter of the factors that a run has logged; 0 for fewer than two."""
    late = factors[-max(2, len(factors) // 4) :]
    return (max(late) - min(late)) / late[-1] if late else 0.0


def has_settled(factors: Sequence[float]) -> bool:
    """Whether the last quarter changed a factor by less than 1 %, and by little of the way it has gone from 1.

    The rate of the factor does not decay within a run: what stands still does so because nothing pulls at it.
    """
    if len(factors) < _LEAST_FACTORS:
        return False
    change = late_change(factors)
    return change < _SETTLED_CHANGE and change < max(_SETTLED_SHARE * abs(factors[-1] - 1), _NOISE)
