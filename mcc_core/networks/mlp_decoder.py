"""SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.networks.batch_norm import SyncedBatchNorm
from mcc_core.networks.mix_transformer import Stages


class Projection(nn.Module):
    """A linear layer on every token, then the grid of another stage."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, channels)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """B,D,h,w to B,channels of `size`."""
        y = self.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[-2:])
        return F.interpolate(y, size=size, mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """1x1 convolution, batch normalisation over all ranks, ReLU."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn = SyncedBatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MLPDecoder(nn.Module):
    """SegFormer's head: all stages projected, at the first stage's resolution, fused and classified."""

    def __init__(self, widths: Sequence[int], channels: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.linear_c4, self.linear_c3, self.linear_c2, self.linear_c1 = (
            Projection(width, channels) for width in reversed(widths)
        )
        self.linear_fuse = Fusion(4 * channels, channels)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(channels, outputs, 1)

    def forward(self, stages: Stages) -> Tensor:
        """Logits B,C+1,h,w at the resolution of the first stage, background first."""
        first, two, three, four = stages.maps
        size = first.shape[-2:]
        parts = (
            self.linear_c4(four, size),
            self.linear_c3(three, size),
            self.linear_c2(two, size),
            self.linear_c1(first, size),
        )
        return self.linear_pred(self.dropout(self.linear_fuse(torch.cat(parts, 1))))
