"""The classifier of the ResNet-50 pipelines: global average pooling, class maps that are its weights on features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import ComputeConfig, OptimConfig
from mcc_core.device import moved
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Network, ParameterGroup
from mcc_core.networks.resnet import STRIDE, ResNetStages
from mcc_core.networks.resnet_config import ResNetConfig


@dataclass(frozen=True)
class Scored:
    """One pass: image-level logits B,C and the features D_i,h_i,w_i of the stem and of the four stages."""

    cls: Tensor
    features: list[Tensor]


class ResNetClassifier(Network):
    """A ResNet, averaged over space, and a bias-free linear classifier (Zhou et al., CVPR 2016).

    It has no decoder. A method says in `forward` what the segmentation of its class maps is.

    Args:
        backbone: has `widths` and gives a list of features as `ResNetStages` does, which it is by default.
    """

    stride = STRIDE
    map_stages: tuple[MapStage, ...] = ("cam",)

    def __init__(
        self, config: ResNetConfig, num_classes: int, compute: ComputeConfig, backbone: Any | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._given: Tensor | None = None
        self.use_bfloat16 = compute.precision == "bfloat16"
        self.backbone: Any = backbone or ResNetStages(config, recompute=compute.recompute == "blocks")
        self.classifier = nn.Conv2d(self.backbone.widths[-1], num_classes, 1, bias=False)
        if compute.channels_last:
            self.to(memory_format=torch.channels_last)

    def scored(self, images: Tensor, *, detach: bool = False) -> Scored:
        """Logits and features of images B,3,H,W; with `detach` the features learn nothing of the classification."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            features = self.backbone(images)
        features = [x.to(images.dtype) for x in features]
        pooled = features[-1].mean((2, 3), keepdim=True)
        return Scored(self.classifier(pooled.detach() if detach else pooled).flatten(1), features)

    @contextmanager
    def given(self, labels: Tensor) -> Iterator[None]:
        """Within it `labels_of` are those of images that have the labels B,C, of the host."""
        self._given = labels
        try:
            yield
        finally:
            self._given = None

    def labels_of(self, cls: Tensor) -> Tensor:
        """Labels B,C, 0/1: those `given`, which may be of a batch that comes more than once, or what the logits say."""
        if self._given is None:
            return (cls > 0).to(cls.dtype)
        return moved(self._given, cls.device).to(cls.dtype).repeat(len(cls) // len(self._given), 1)

    def labels_on_host(self, cls: Tensor) -> Tensor:
        """Where those labels are 1, B,C on the host, so that they can decide sizes. Logits would be waited for."""
        labels = (cls if self._given is None else self._given) > 0
        return labels.cpu().repeat(len(cls) // len(labels), 1)

    def map_weight(self) -> Tensor:
        """What features are multiplied by to become class maps, C,D,1,1."""
        return self.classifier.weight

    def activations(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Class maps B,K,h,w of features B,D,h,w."""
        weight = self.map_weight()
        return F.conv2d(features, weight if classes is None else weight[classes])

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class activations B,K,h,w."""
        features = self.scored(images).features if known is None else known.features
        return {"cam": self.activations(features[-1], classes)}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """The backbone at the base rate, the rest at `head_lr_scale` times it."""
        return [
            ParameterGroup(tuple(p for p in self.backbone.parameters() if p.requires_grad)),
            ParameterGroup(tuple(self.classifier.parameters()), lr_scale=optim.head_lr_scale),
        ]
