"""The ReCAM network: the ResNet classifier and a softmax predictor of features pooled by each class's map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.methods.recam.config import Experiment, OptimConfig
from mcc_core.networks.base import Output, ParameterGroup
from mcc_core.networks.resnet_cam import ResNetClassifier
from mcc_core.pseudo_labels.cam import map_logits
from mcc_core.schedules import value_at

_EPSILON = 1e-5


class ReCAMNet(ResNetClassifier):
    """Everything that has weights.

    `tuned` is whether the predictor has begun to learn: before, class maps are the classifier's alone.
    """

    tuned: Tensor

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__(experiment.model, num_classes, experiment.compute)
        total = experiment.train.iterations
        self.kind, self.threshold = experiment.cam.weights, value_at(experiment.thresholds.score, total - 1, total)
        self.predictor = nn.Conv2d(self.backbone.widths[-1], num_classes, 1, bias=False)
        self.register_buffer("tuned", torch.zeros((), dtype=torch.bool))

    def forward(self, images: Tensor) -> Output:
        """Logits with the features behind them; the segmentation is the class maps at one scale, thresholded."""
        scored = self.scored(images)
        maps = self.activations(scored.features[-1])
        return Output(scored.cls, map_logits(maps, scored.cls, self.threshold), scored.features)

    def map_weight(self) -> Tensor:
        """What features are multiplied by to become class maps, C,D,1,1."""
        if self.kind == "classifier" or not self.tuned:
            return self.classifier.weight
        return self.predictor.weight * (self.classifier.weight if self.kind == "product" else 1)

    def pooled(self, features: Tensor) -> Tensor:
        """Class-specific features B,C,D of features B,D,h,w: their means, weighted by the classifier's maps."""
        return pooled_features(features, F.conv2d(features, self.classifier.weight))

    def parameter_groups(self, optim: Any) -> list[ParameterGroup]:
        """Backbone, classifier and predictor, each with its rates before and after the restart."""
        assert isinstance(optim, OptimConfig)
        backbone = tuple(p for p in self.backbone.parameters() if p.requires_grad)
        return [
            ParameterGroup(backbone),
            ParameterGroup(tuple(self.classifier.parameters()), lr_scale=optim.head_lr_scale, restart_lr_scale=1.0),
            ParameterGroup(tuple(self.predictor.parameters()), lr_scale=optim.predictor_lr_scale),
        ]


def pooled_features(features: Tensor, maps: Tensor) -> Tensor:
    """Means B,C,D over space of features B,D,h,w times each class's map of B,C,h,w, rectified, its maximum 1."""
    maps = F.relu(maps).flatten(2)
    maps = maps / (maps.amax(2, keepdim=True) + _EPSILON)
    return maps @ features.flatten(2).transpose(1, 2) / maps.shape[2]
