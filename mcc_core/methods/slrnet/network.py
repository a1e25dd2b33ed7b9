"""The SLRNet network: WideResNet-38, ASPP trunk, auxiliary head, cross-view low-rank module, segmentation head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.methods.slrnet.config import Experiment, OptimConfig
from mcc_core.methods.slrnet.layers import (
    ASPP,
    CueInjection,
    Factorisation,
    StochasticGate,
    conv_norm,
    first_dictionary,
)
from mcc_core.methods.slrnet.losses import class_score
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Network, Output, ParameterGroup
from mcc_core.networks.wide_resnet38 import STRIDE, WideResNet38, load_wide_resnet38


@dataclass(frozen=True)
class Views:
    """One pass of images and of the same images smaller. Logits are B,C+1,h,w, background first, at stride 4."""

    first: Tensor
    second: Tensor  # at the second view's own size
    aux: Tensor  # of the first view
    codes: tuple[Tensor, Tensor]  # B,C+1,h,w of each view


class SLRNet(Network):
    """Everything that has weights."""

    map_stages: tuple[MapStage, ...] = ("cam",)
    stride = STRIDE

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__()
        config, compute = experiment.model, experiment.compute
        self.num_classes, self.frozen = num_classes, config.frozen
        self.view_scale, self.score = experiment.factorisation.scale, experiment.score
        self.use_bfloat16 = compute.precision == "bfloat16"
        width, momentum = config.channels, config.norm_momentum
        self.backbone = WideResNet38(config.width, config.depths, recompute=compute.recompute == "blocks")
        self.aspp = ASPP(self.backbone.channels, width, config.dilations, momentum)
        self.skip = conv_norm(self.backbone.shallow_channels, config.skip_channels, 1, momentum)
        self.merge = conv_norm(width + config.skip_channels, width, 3, momentum)
        self.aux_head = nn.Sequential(
            conv_norm(width, width, 3, momentum), nn.Dropout(0.5), nn.Conv2d(width, num_classes, 1)
        )
        factorisation = experiment.factorisation
        self.factorisation = Factorisation(width, factorisation.iterations, factorisation.temperature)
        self.cues = CueInjection(self.backbone.shallow_channels, width, momentum)
        self.gate = StochasticGate(experiment.gate.rate)
        self.seg_head = nn.Sequential(
            *(conv_norm(width, width, 3, momentum), nn.Dropout(0.5)),
            *(conv_norm(width, width, 3, momentum), nn.Dropout(0.1)),
            nn.Conv2d(width, num_classes, 1),
        )
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                nn.init.kaiming_normal_(module.weight)
        if config.weights != "random":
            load_wide_resnet38(self.backbone, Path(config.weights))
        if self.frozen:
            for module in (*self.backbone.first_layers(), *_norms(self.backbone)):
                module.requires_grad_(False)
        if compute.channels_last:
            self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> SLRNet:
        """Training mode, in which the ASPP's and frozen batch norms keep to their running statistics."""
        super().train(mode)
        for norm in (*(_norms(self.backbone) if self.frozen else ()), *_norms(self.aspp)):
            norm.eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """Logits of one view; `features` is None: maps are the softmax of the segmentation."""
        x, shallow = self._trunk(images)
        dictionary = first_dictionary(x, self._aux(x))
        (low_rank,), _ = self._factorised([x], dictionary)
        seg = self._segmentation(low_rank, shallow)
        return Output(class_score(seg, self.score), seg, None)

    def two_views(self, images: Tensor) -> Views:
        """Logits of images B,3,H,W and of the same images smaller; one dictionary serves both."""
        sides = [max(self.stride, int(side * self.view_scale)) for side in images.shape[-2:]]
        small = F.interpolate(images, size=sides, mode="bilinear", align_corners=True)
        x1, shallow1 = self._trunk(images)
        x2, shallow2 = self._trunk(small)
        aux = self._aux(x1)
        (low1, low2), (code1, code2) = self._factorised([x1, x2], first_dictionary(x1, aux))
        first, second = self._segmentation(low1, shallow1), self._segmentation(low2, shallow2)
        return Views(first, second, aux, (code1, code2))

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Masks: the segmentation's probabilities B,K,h,w of the foreground classes."""
        masks = (self(images) if known is None else known).seg.softmax(1)[:, 1:]
        return {"cam": masks if classes is None else masks[:, classes]}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:  # type: ignore[override]
        """Weights and biases of the backbone, then of all that is new; biases do not decay."""
        groups: list[ParameterGroup] = []
        for scale, new in ((1.0, False), (optim.head_lr_scale, True)):
            for bias in (False, True):
                made = tuple(
                    p
                    for name, p in self.named_parameters()
                    if p.requires_grad and name.startswith("backbone.") != new and name.endswith(".bias") == bias
                )
                if made:
                    rate = scale * (optim.bias_lr_scale if bias else 1.0)
                    groups.append(ParameterGroup(made, lr_scale=rate, decay_scale=0.0 if bias else 1.0))
        return groups

    def _trunk(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features B,D,h,w at stride 4, and the backbone's shallow ones B,S,h,w."""
        with self._precision(images):
            shallow, deep = self.backbone(images)
            skipped = self.skip(shallow)
            deep = F.interpolate(self.aspp(deep), size=skipped.shape[-2:], mode="bilinear", align_corners=True)
            x = self.merge(torch.cat([deep, skipped], 1))
        return x.to(images.dtype), shallow.to(images.dtype)

    def _aux(self, x: Tensor) -> Tensor:
        """Logits B,C+1,h,w; the background's is one minus the largest."""
        with self._precision(x):
            foreground = self.aux_head(x)
        foreground = foreground.to(x.dtype)
        return torch.cat([1 - foreground.amax(1, keepdim=True), foreground], 1)

    def _factorised(self, views: list[Tensor], dictionary: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features of low rank and codes of each view."""
        sizes = [x.shape[-2:] for x in views]
        tokens = torch.cat([x.flatten(2) for x in views], 2).transpose(1, 2)
        low_rank, code = self.factorisation(tokens, dictionary)
        lengths = [height * width for height, width in sizes]
        features = low_rank.transpose(1, 2).split(lengths, 2)
        return (
            [x.unflatten(2, size) for x, size in zip(features, sizes, strict=True)],
            [x.unflatten(2, size) for x, size in zip(code.split(lengths, 2), sizes, strict=True)],
        )

    def _segmentation(self, x: Tensor, shallow: Tensor) -> Tensor:
        """Logits B,C+1,h,w; the background's is 1."""
        with self._precision(x):
            foreground = self.seg_head(self.gate(x, self.cues(shallow, x)))
        foreground = foreground.to(x.dtype)
        return torch.cat([torch.ones_like(foreground[:, :1]), foreground], 1)

    def _precision(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16)


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
