"""Heads on token features: classifier, LargeFOV decoder, projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import ProjectorConfig


def pooled_logits(features: Tensor, classifier: nn.Conv2d) -> Tensor:
    """Global max pooling, then the classifier: B,D,h,w to B,C.

    As adaptive_max_pool2d, whose gradient has no deterministic form on GPUs: of equal values the first has all of it.
    """
    return classifier(features.flatten(2).max(2).values[..., None, None]).flatten(1)


class Decoder(nn.Module):
    """LargeFOV head: two dilated 3x3 convolutions and a 1x1 classifier, all without bias."""

    def __init__(self, width: int, channels: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(width, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv7 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv8 = nn.Conv2d(channels, outputs, 1, bias=False)
        for conv in (self.conv6, self.conv7, self.conv8):
            nn.init.kaiming_normal_(conv.weight, a=1)

    def forward(self, patches: Tensor) -> Tensor:
        """B,D,h,w patch features to B,C+1,h,w logits, background first."""
        return self.conv8(F.relu(self.conv7(F.relu(self.conv6(patches)))))


class UnitLinear(nn.Module):
    """Weight-normalised linear layer whose gain is frozen: rows of unit length times `gain`."""

    gain: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.trunc_normal_(self.direction, std=0.02)
        self.register_buffer("gain", torch.ones(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.gain * F.normalize(self.direction, dim=1))


class Projector(nn.Module):
    """Class token D to the contrast space: three-layer MLP with GELU, L2 normalisation, UnitLinear.

    The text has one linear layer (`kind: linear`; docs/method.md).
    """

    mlp: nn.Sequential | None
    last: nn.Module

    def __init__(self, width: int, config: ProjectorConfig) -> None:
        super().__init__()
        if config.kind == "linear":
            self.mlp, self.last = None, nn.Linear(width, config.out)
            _init(self.last, config.init_std)
            return
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                _init(layer, config.init_std)
        self.last = UnitLinear(config.bottleneck, config.out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(tokens if self.mlp is None else F.normalize(self.mlp(tokens), dim=-1))


def _init(layer: nn.Linear, std: float) -> None:
    nn.init.trunc_normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
