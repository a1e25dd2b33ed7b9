"""AffinityNet: one feature for each cell of 8 pixels, from the last three levels of a backbone (section 3.2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import OptimConfig
from mcc_core.methods.psa.config import WIDE, Experiment, ModelConfig
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Output, ParameterGroup
from mcc_core.networks.resnet import ResNetStages
from mcc_core.networks.resnet_cam import ResNetClassifier
from mcc_core.networks.wide_resnet38 import WideResNet38Levels, load_wide_resnet38
from mcc_core.pseudo_labels.cam import map_logits
from mcc_core.pseudo_labels.pixel_affinity import affinity, affinity_walk, distances
from mcc_core.schedules import value_at

STRIDE = 8
_LEVELS = 3


class PSANet(ResNetClassifier):
    """Everything that has weights.

    A linear classifier of the last level, which has no part in the features, is for the network's scores alone: its
    class maps are the stage `aux_cam`, and after the random walk they are `cam`.
    """

    map_stages: tuple[MapStage, ...] = ("cam", "aux_cam")
    has_affinities = True
    stride = STRIDE

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        config, total = experiment.model, experiment.train.iterations
        backbone = _backbone(config, recompute=experiment.compute.recompute == "blocks")
        super().__init__(config, num_classes, experiment.compute, backbone)
        self.walk, self.distance = experiment.walk, config.distance
        self.threshold = value_at(experiment.thresholds.score, total - 1, total)
        widths, joined = backbone.widths[-_LEVELS:], sum(config.channels)
        self.levels = nn.ModuleList(
            [nn.Conv2d(width, channels, 1, bias=False) for width, channels in zip(widths, config.channels, strict=True)]
        )
        self.joined = nn.Conv2d(joined, joined, 1, bias=False)

    def forward(self, images: Tensor) -> Output:
        """Logits with the features behind them; the segmentation is the classifier's maps at one scale, thresholded."""
        scored = self.scored(images, detach=True)
        maps = self.activations(scored.features[-1])
        return Output(scored.cls, map_logits(maps, scored.cls, self.threshold), scored.features)

    def pixel_features(self, features: list[Tensor]) -> Tensor:
        """B,D,h,w at stride 8 of the backbone's: three levels reduced, joined, and mixed once more."""
        made = [F.elu(level(x)) for level, x in zip(self.levels, features[-_LEVELS:], strict=True)]
        return F.elu(self.joined(torch.cat(made, 1)))

    def distances(self, features: list[Tensor], radius: int) -> Tensor:
        """Distances B,P,h,w of the cells of each pair, of the backbone's features."""
        return distances(self.pixel_features(features), radius, self.distance)

    def affinities(self, images: Tensor, radius: int) -> Tensor:
        """Affinities B,P,h,w in (0, 1] at stride 8 of images B,3,H,W."""
        return affinity(self.distances(self.scored(images).features, radius))

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class activations B,K,h,w, and the same rectified, after the random walk."""
        features = (self.scored(images) if known is None else known).features
        maps, walk = self.activations(features[-1], classes), self.walk
        found = affinity(self.distances(features, walk.radius))
        spread = [
            affinity_walk(F.relu(own), alike, radius=walk.radius, power=walk.power, log_steps=walk.log_steps)
            for own, alike in zip(maps, found, strict=True)
        ]
        return {"cam": torch.stack(spread), "aux_cam": maps}

    def exported_maps(self, images: Tensor, known: base.Output) -> Tensor:
        """Those before the walk, which no format of other programs can express."""
        return self.activations(known.features[-1])

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """The backbone at the base rate, the rest at `head_lr_scale` times it."""
        backbone = tuple(p for p in self.backbone.parameters() if p.requires_grad)
        rest = tuple(p for name, p in self.named_parameters() if not name.startswith("backbone."))
        return [ParameterGroup(backbone), ParameterGroup(rest, lr_scale=optim.head_lr_scale)]


def _backbone(config: ModelConfig, *, recompute: bool) -> ResNetStages | WideResNet38Levels:
    """The backbone with its initial weights. Raises UsageError where they cannot be had."""
    if config.backbone != WIDE:
        return ResNetStages(config, recompute=recompute, stride=STRIDE)
    backbone = WideResNet38Levels(**config.backbone_args, frozen=config.frozen, recompute=recompute)
    if config.weights != "random":
        load_wide_resnet38(backbone, Path(config.weights))
    return backbone
