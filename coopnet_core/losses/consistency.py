"""Coupling of the rigid flow with the optical flow."""

from __future__ import annotations

from torch import Tensor


def charbonnier(residual: Tensor, epsilon: float = 0.1) -> Tensor:
    """Robust length of (B, 2, H, W) residuals in pixels: sqrt(|r|^2 + eps^2) - eps, (B, 1, H, W)."""
    return (residual.square().sum(1, keepdim=True) + epsilon**2).sqrt() - epsilon
