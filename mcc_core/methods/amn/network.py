"""The activation manipulation network: a ResNet whose pixels are classified, told the image's labels (section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcc_core.config import OptimConfig
from mcc_core.methods.amn.config import Experiment
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Output, ParameterGroup
from mcc_core.networks.resnet_cam import ResNetClassifier


class AMNet(ResNetClassifier):
    """Everything that has weights.

    The labels of an image are those that `given` says. Elsewhere they are what a linear classifier says, which has no
    part in the features.
    """

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__(experiment.model, num_classes, experiment.compute)
        width = self.backbone.widths[-1]
        self.encode = nn.Linear(num_classes, width) if experiment.model.conditioned else None
        self.dropout = nn.Dropout(experiment.model.dropout)
        self.pixels = nn.ModuleList(
            [nn.Conv2d(width, num_classes + 1, 3, padding=d, dilation=d) for d in experiment.model.dilations]
        )
        for conv in self.pixels:
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> Output:
        """Logits with the features behind them."""
        scored = self.scored(images, detach=True)
        said = (scored.cls > 0).to(scored.cls.dtype)
        return Output(scored.cls, self.pixel_logits(scored.features[-1], said), scored.features)

    def pixel_logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Logits B,C+1,h,w, background first, of features B,D,h,w of images with labels B,C."""
        if self.encode is not None:
            features = features * self.encode(labels)[:, :, None, None]
        features = self.dropout(features)
        return torch.stack([conv(features) for conv in self.pixels]).sum(0)

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Probabilities B,K,h,w of the foreground classes."""
        scored = self.scored(images, detach=True) if known is None else known
        maps = self.pixel_logits(scored.features[-1], self.labels_of(scored.cls)).softmax(1)[:, 1:]
        return {"cam": maps if classes is None else maps[:, classes]}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """The backbone at the base rate, the rest at `head_lr_scale` times it."""
        backbone = tuple(p for p in self.backbone.parameters() if p.requires_grad)
        rest = tuple(p for name, p in self.named_parameters() if not name.startswith("backbone."))
        return [ParameterGroup(backbone), ParameterGroup(rest, lr_scale=optim.head_lr_scale)]
