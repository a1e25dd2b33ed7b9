"""The inter-pixel relation network: class boundaries and displacements from all stages of a ResNet (section 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.device import moved
from mcc_core.methods.irn.config import Experiment, OptimConfig
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Output, ParameterGroup
from mcc_core.networks.resnet_cam import ResNetClassifier
from mcc_core.pseudo_labels.cam import map_logits
from mcc_core.pseudo_labels.inter_pixel import random_walk
from mcc_core.schedules import value_at


class IRNet(ResNetClassifier):
    """Two branches on features that they do not change, and a linear classifier of the last stage's.

    The classifier is for the network's scores alone: its class maps are the stage `aux_cam`, and after the random walk
    they are `cam`.
    """

    map_stages: tuple[MapStage, ...] = ("cam", "aux_cam")
    has_boundaries = True

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        config, total = experiment.model, experiment.train.iterations
        super().__init__(config, num_classes, experiment.compute)
        self.frozen, self.walk = config.frozen, experiment.walk
        self.threshold = value_at(experiment.thresholds.score, total - 1, total)
        self.boundary_branch = BoundaryBranch(self.backbone.widths, config.boundary_channels)
        self.displacement_branch = DisplacementBranch(self.backbone.widths, config.displacement_channels)
        if config.frozen:
            self.backbone.requires_grad_(False)

    def forward(self, images: Tensor) -> Output:
        """Logits with the features behind them; the segmentation is the classifier's maps at one scale, thresholded."""
        scored = self.scored(images)
        maps = self.activations(scored.features[-1])
        return Output(scored.cls, map_logits(maps, scored.cls, self.threshold), scored.features)

    def boundary(self, features: list[Tensor]) -> Tensor:
        """Logits B,h,w of class boundaries at stride 4."""
        return self.boundary_branch([x.detach() for x in features])

    def displacement(self, features: list[Tensor]) -> Tensor:
        """Displacements B,2,h,w (rows, columns) in cells of stride 4."""
        return self.displacement_branch([x.detach() for x in features])

    def boundaries(self, images: Tensor) -> Tensor:
        """Class boundaries B,h,w in [0, 1] at stride 4, of the mean logits of images B,3,H,W and their flips."""
        straight, flipped = self.boundary(self.scored(torch.cat([images, images.flip(-1)])).features).chunk(2)
        return ((straight + flipped.flip(-1)) / 2).sigmoid()

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class activations B,K,h,w at stride 16, and at stride 4 after the random walk.

        Walked maps are 0 of classes that an image has not, by the labels that are given or by the logits.
        """
        scored = self.scored(images) if known is None else known
        maps = self.activations(scored.features[-1], classes)
        boundaries = self.boundary(scored.features).sigmoid()
        if classes is None:  # few of all classes are in an image
            each = zip(maps, self.labels_on_host(scored.cls), boundaries, strict=True)
            walked = [self._walked_some(*one) for one in each]
        else:
            labels = self.labels_of(scored.cls)[:, classes, None, None]
            walked = [self._walked(*one) for one in zip(maps * labels, boundaries, strict=True)]
        return {"cam": torch.stack(walked), "aux_cam": maps}

    def exported_maps(self, images: Tensor, known: base.Output) -> Tensor:
        """Those before the walk, which no format of other programs can express."""
        return self.activations(known.features[-1])

    def parameter_groups(self, optim: Any) -> list[ParameterGroup]:
        """Backbone, where it trains, and boundary branch at the base rate, the rest at `head_lr_scale` times it."""
        assert isinstance(optim, OptimConfig)
        rest = (*self.displacement_branch.parameters(), *self.classifier.parameters())
        backbone = tuple(p for p in self.backbone.parameters() if p.requires_grad)
        return [
            *([ParameterGroup(backbone)] if backbone else []),
            ParameterGroup(tuple(self.boundary_branch.parameters())),
            ParameterGroup(rest, lr_scale=optim.head_lr_scale),
        ]

    def _walked(self, maps: Tensor, boundary: Tensor) -> Tensor:
        """Maps K,h,w of one image after the walk, at stride 4."""
        size, walk = (boundary.shape[0], boundary.shape[1]), self.walk
        fine = F.interpolate(F.relu(maps)[None], size=size, mode="bilinear")[0]
        return random_walk(fine, boundary, radius=walk.radius, power=walk.power, log_steps=walk.log_steps)

    def _walked_some(self, maps: Tensor, present: Tensor, boundary: Tensor) -> Tensor:
        """The same, of those that are `present`, K on the host; others are 0."""
        fine = maps.new_zeros(len(maps), *boundary.shape)
        if not present.any():
            return fine
        numbers = moved(present.nonzero()[:, 0], maps.device)
        return fine.index_copy(0, numbers, self._walked(maps.index_select(0, numbers), boundary))


class BoundaryBranch(nn.Module):
    """A 1x1 convolution of each stage to as many channels, enlarged to stride 4; one of all together."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_conv_norm(width, channels, 4) for width in widths])
        self.last = nn.Conv2d(len(widths) * channels, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits B,h,w of features at strides 4, 4, 8, 16, 16."""
        size, factors = features[0].shape[-2:], (1, 1, 2, 4, 4)
        made = [
            F.relu(_enlarged(stage(x), factor, size))
            for stage, x, factor in zip(self.stages, features, factors, strict=True)
        ]
        return self.last(torch.cat(made, 1))[:, 0]


class DisplacementBranch(nn.Module):
    """The coarse stages merged at stride 8, then with the fine ones at stride 4; two channels, whose mean is 0."""

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        outputs = (channels // 4, channels // 2, channels, channels, channels)
        groups = (8, 16, 16, 16, 16)
        self.stages = nn.ModuleList([_conv_norm(*sizes) for sizes in zip(widths, outputs, groups, strict=True)])
        self.coarse = _conv_norm(3 * channels, channels, 16)
        self.fine = _conv_norm(channels + outputs[0] + outputs[1], channels, 16)
        self.last = nn.Conv2d(channels, 2, 1, bias=False)
        self.mean = RunningMean(2)

    def forward(self, features: list[Tensor]) -> Tensor:
        """B,2,h,w at stride 4 of features at strides 4, 4, 8, 16, 16."""
        middle, large = features[2].shape[-2:], features[0].shape[-2:]
        made = [stage(x) for stage, x in zip(self.stages, features, strict=True)]
        first, second, third = (F.relu(x) for x in made[:3])
        merged = torch.cat([third, *(F.relu(_enlarged(x, 2, middle)) for x in made[3:])], 1)
        coarse = F.relu(_enlarged(self.coarse(merged), 2, large))
        return self.mean(self.last(F.relu(self.fine(torch.cat([first, second, coarse], 1)))))


class RunningMean(nn.BatchNorm2d):
    """Takes the running mean off where it does not train."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """B,D,h,w as it is in training, and less its mean afterwards."""
        if self.training:
            super().forward(x.detach())
            return x
        assert self.running_mean is not None
        return x - self.running_mean[:, None, None]


def _conv_norm(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs))


def _enlarged(x: Tensor, factor: int, size: torch.Size) -> Tensor:
    """`factor` times as large; what lies beyond `size` is cut off."""
    if factor > 1:
        x = F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return x[..., : size[0], : size[1]]
