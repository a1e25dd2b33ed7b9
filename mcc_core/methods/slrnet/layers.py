"""Layers of SLRNet: ASPP, global cue injection, stochastic gate, and the cross-view low-rank module.

ASPP, cue injection and gate are those of Araslanov and Roth (CVPR 2020), on which SLRNet is built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-6


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    momentum: float,
    *,
    dilation: int = 1,
    relu: bool = True,
    affine: bool = True,
) -> nn.Sequential:
    """Convolution without bias that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs, momentum=momentum, affine=affine)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 and the image's mean, merged and dropped out."""

    def __init__(self, inputs: int, channels: int, dilations: tuple[int, ...], momentum: float) -> None:
        super().__init__()
        self.point = conv_norm(inputs, channels, 1, momentum)
        self.dilated = nn.ModuleList([conv_norm(inputs, channels, 3, momentum, dilation=d) for d in dilations])
        self.image = conv_norm(inputs, channels, 1, momentum)
        self.merge = conv_norm((2 + len(dilations)) * channels, channels, 1, momentum)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.image(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.merge(torch.cat([self.point(x), *(layer(x) for layer in self.dilated), whole], 1)))


class CueInjection(nn.Module):
    """Shallow features, scaled and shifted by what the deep ones have anywhere in the image (GCI)."""

    def __init__(self, shallow: int, channels: int, momentum: float) -> None:
        super().__init__()
        self.deep = conv_norm(channels, 2 * channels, 1, momentum)
        self.skip = conv_norm(shallow, channels, 1, momentum, relu=False, affine=False)
        self.out = conv_norm(channels, channels, 1, momentum)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """B,D,h,w of shallow features B,S,h,w and deep ones B,D,h,w."""
        gain, shift = self.deep(deep).amax((2, 3), keepdim=True).chunk(2, dim=1)
        return self.out(F.relu(self.skip(shallow) * (1 + gain) + shift))


class StochasticGate(nn.Module):
    """Deep features with a share `rate` of shallow ones: where it trains, each value is one or the other.

    A deep value is chosen with probability 1 - rate and corrected, so that the mean over choices is the deep value.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        if not self.training:
            return (1 - self.rate) * deep + self.rate * shallow
        chosen = torch.rand_like(deep) >= self.rate
        return torch.where(chosen, (deep - self.rate * shallow) / (1 - self.rate), shallow)


class Factorisation(nn.Module):
    """Cross-view low-rank module: tokens as a product of a code and a dictionary, added to what they were.

    From a dictionary D, with tokens T after a linear layer: code Z = softmax over atoms of D T / temperature; Z with
    rows of sum 1 over tokens; D <- Z T with rows of unit length.
    """

    def __init__(self, channels: int, iterations: int, temperature: float) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.iterations, self.temperature = iterations, temperature

    def forward(self, tokens: Tensor, dictionary: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens B,N,D of low rank and their code B,K,N, of tokens B,N,D and a first dictionary B,K,D."""
        inner = self.before(tokens)
        code, dictionary = factorise(inner, self.before(dictionary), self.iterations, self.temperature)
        low_rank = F.relu(code.transpose(1, 2) @ dictionary)
        return F.relu(tokens + self.after(low_rank)), code


def factorise(tokens: Tensor, dictionary: Tensor, iterations: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Code B,K,N and dictionary B,K,D of tokens B,N,D after so many alternations from a first dictionary B,K,D."""
    dictionary, code = _unit(dictionary), dictionary
    for _ in range(iterations):
        code = (dictionary @ tokens.transpose(1, 2) / temperature).softmax(1)
        shares = code + _EPSILON
        dictionary = _unit((shares / shares.sum(2, keepdim=True)) @ tokens)
    return code, dictionary


def first_dictionary(features: Tensor, logits: Tensor) -> Tensor:
    """Means B,K,D of features B,D,h,w, weighted by the classes' probabilities of logits B,K,h,w. No gradient."""
    share = logits.detach().flatten(2).softmax(1)
    share = share / (share.sum(2, keepdim=True) + _EPSILON)
    return share @ features.detach().flatten(2).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + _EPSILON)
