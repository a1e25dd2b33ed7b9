"""Batch normalisation over the images of all ranks, on any device."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SyncedBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics in training are those of all ranks.

    torch's own nn.SyncBatchNorm works on GPUs alone. Running statistics come out equal on all ranks, which may have
    batches of unlike sizes. Half precision is normalised in float32, as nn.BatchNorm2d does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """B,D,h,w normalised over B of all ranks, h and w."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        count = precise.new_tensor([x.numel() // x.shape[1]])
        dist.all_reduce(count)
        mean = _summed(precise.sum((0, 2, 3))) / count
        centred = precise - mean[:, None, None]
        variance = _summed(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Summed(torch.autograd.Function):
    """The sum over ranks. What any rank's loss says of it reaches every rank's part."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def _summed(x: Tensor) -> Tensor:
    return _Summed.apply(x)


def synchronised(module: nn.Module) -> None:
    """Turn every plain batch norm in a module, such as a library's, into a SyncedBatchNorm; it has the same tensors."""
    for norm in module.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = SyncedBatchNorm
