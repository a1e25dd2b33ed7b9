"""The CLIMS network: a ResNet whose pixels say by a sigmoid, class by class, whether they show it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import OptimConfig
from mcc_core.methods.clims.config import Experiment
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Output
from mcc_core.networks.resnet_cam import ResNetClassifier
from mcc_core.pseudo_labels.cam import map_logits
from mcc_core.schedules import value_at
from mcc_core.weights_file import named_tensors, read_content


class CLIMSNet(ResNetClassifier):
    """Everything that is trained; CLIP is not part of it.

    A checkpoint as initial weights also gives the maps those of its classifier, where that has as many classes. A
    linear classifier, which has no part in features and maps, is for the network's scores alone.
    """

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__(experiment.model, num_classes, experiment.compute)
        total = experiment.train.iterations
        self.threshold = value_at(experiment.thresholds.score, total - 1, total)
        self.maps = nn.Conv2d(self.backbone.widths[-1], num_classes, 1, bias=False)
        if isinstance(experiment.model.weights, Path):
            self._begin_with(experiment.model.weights)

    def forward(self, images: Tensor) -> Output:
        """Logits with the features behind them; the segmentation is the class maps at one scale, thresholded."""
        scored = self.scored(images, detach=True)
        maps = self.shown(scored.features[-1])
        return Output(scored.cls, map_logits(maps, scored.cls, self.threshold), scored.features)

    def map_weight(self) -> Tensor:
        """What features are multiplied by to become class maps, C,D,1,1."""
        return self.maps.weight

    def shown(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Class maps B,K,h,w in (0, 1) of features B,D,h,w."""
        return self.activations(features, classes).sigmoid()

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class maps B,K,h,w in (0, 1)."""
        features = self.scored(images).features if known is None else known.features
        return {"cam": self.shown(features[-1], classes)}

    def parameter_groups(self, optim: OptimConfig) -> list[base.ParameterGroup]:
        """The backbone at the base rate, the rest at `head_lr_scale` times it."""
        backbone, classifier = super().parameter_groups(optim)
        rest = (*classifier.parameters, *self.maps.parameters())
        return [backbone, base.ParameterGroup(rest, lr_scale=optim.head_lr_scale)]

    @torch.no_grad()
    def _begin_with(self, file: Path) -> None:
        """Take up the classifier of a checkpoint."""
        found = named_tensors(read_content(file, "model.weights: "), f"model.weights: {file}").get("classifier.weight")
        if found is not None and found.shape == self.maps.weight.shape:
            self.maps.weight.copy_(found)
            self.classifier.weight.copy_(found)


def regions(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """What maps N,h,w in [0, 1] show of images N,3,H,W, and what they hide: images times maps, and times the rest."""
    enlarged = F.interpolate(maps[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    return images * enlarged, images * (1 - enlarged)
