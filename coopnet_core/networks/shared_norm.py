"""Batch normalisation over the batches of all processes that train together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coopnet_core.distributed import share, summed


class SharedBatchNorm2d(nn.BatchNorm2d):
    """As BatchNorm2d of the whole batch, of which each process holds equally many rows.

    On every device, unlike torch.nn.SyncBatchNorm, which knows GPUs alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training or share().count == 1:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output


def share_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside `module` by one over all processes, with the same tensors."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.weight, shared.bias = child.weight, child.bias
            for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(shared, buffer, getattr(child, buffer))
            shared.train(child.training)
            setattr(module, name, shared)
        else:
            share_batch_norm(child)


class _Normalise(torch.autograd.Function):
    """Mean and variance over rows, pixels and processes; always float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, int]:
        values = x.float()
        count = values.numel() // values.shape[1] * share().count
        mean = summed(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = summed(centred.square().sum((0, 2, 3))) / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count = count
        output = torch.addcmul(bias[:, None, None], centred, (weight * inverse)[:, None, None])
        ctx.mark_non_differentiable(mean, variance)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        normal = (x.float() - mean[:, None, None]) * inverse[:, None, None]
        gradient = gradient.float()
        of_bias, of_weight = gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))
        through_mean, through_spread = summed(torch.stack([of_bias, of_weight])) / ctx.count
        own = gradient - through_mean[:, None, None] - normal * through_spread[:, None, None]
        return (own * (weight * inverse)[:, None, None]).to(x.dtype), of_weight, of_bias, None
