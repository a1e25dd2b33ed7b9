"""The MCTformer network: an encoder with a class token for each class, and a convolution on its patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcc_core.config import OptimConfig
from mcc_core.errors import UsageError
from mcc_core.methods.mctformer.config import Experiment
from mcc_core.methods.mctformer.maps import fused, pooled, spread
from mcc_core.networks import base
from mcc_core.networks.backbones import build_vit
from mcc_core.networks.base import MapStage, Network, ParameterGroup
from mcc_core.networks.class_tokens import Attention, MultiClassEncoder, Tokens
from mcc_core.pseudo_labels.cam import map_logits


@dataclass(frozen=True)
class Scores:
    """Image-level logits B,C of one pass."""

    tokens: Tensor  # means of the class tokens over channels
    patches: Tensor  # of the patches' class maps


@dataclass(frozen=True)
class Features:
    """What class maps are made of."""

    patch_cam: Tensor  # B,C,h,w class maps of the patches, not rectified
    attention: Attention


class MCTformerNet(Network):
    """Everything that has weights. It has no decoder: its segmentation is its class maps, thresholded.

    Raises UsageError when the backbone does not suit, or has fewer blocks than `maps.last_blocks`.
    """

    map_stages: tuple[MapStage, ...] = ("cam",)

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__()
        config, compute = experiment.model, experiment.compute
        vit = build_vit(config.model_copy(update={"backbone_args": experiment.backbone_args()}))
        self.encoder = MultiClassEncoder(vit, num_classes)
        if config.weights == "random":
            nn.init.trunc_normal_(vit.cls_token, std=0.02)  # apart from each other
        self.maps, self.background = experiment.maps, experiment.thresholds.score
        if self.maps.last_blocks > len(vit.blocks):
            raise UsageError(f"maps.last_blocks: {self.maps.last_blocks}: the backbone has {len(vit.blocks)} blocks")
        self.stride, self.num_classes = self.encoder.patch, num_classes
        self.rank_decay = config.rank_decay if config.pooling == "ranked" else 1.0
        self.head = nn.Conv2d(self.encoder.width, num_classes, 3, padding=1)
        self.encoder.use_bfloat16 = compute.precision == "bfloat16"
        self.encoder.recompute = compute.recompute
        if compute.channels_last:
            self.head.to(memory_format=torch.channels_last)
        if compute.compile:
            self.encoder.compile_blocks()

    def forward(self, images: Tensor) -> base.Output:
        """Logits of images B,3,H,W: `cls` is the mean of both kinds of scores, `seg` is made of the class maps."""
        tokens, attention = self.encoder.tokens_and_attention(images, self.maps.last_blocks)
        features = Features(self._patch_cam(tokens), attention)
        scores = self._scores(tokens, features.patch_cam)
        cls = (scores.tokens + scores.patches) / 2
        return base.Output(cls, map_logits(self._class_maps(features), cls, self.background), features)

    def scores(self, images: Tensor) -> Scores:
        """Image-level logits of images B,3,H,W, without the class maps."""
        tokens = self.encoder.tokens(images)
        return self._scores(tokens, self._patch_cam(tokens))

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class maps B,K,h,w of images B,3,H,W, none negative."""
        features: Features = (self(images) if known is None else known).features
        return {"cam": self._class_maps(features, classes)}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """Weights that decay and others that do not, of the encoder and of the head."""
        vit = self.encoder.vit
        vit.pos_embed.requires_grad_(not optim.freeze_pos_embed)
        bare = {id(vit.cls_token), id(vit.pos_embed)}
        groups: list[ParameterGroup] = []
        for part, scale in ((self.encoder, 1.0), (self.head, optim.head_lr_scale)):
            trained = [p for p in part.parameters() if p.requires_grad]
            for decays in (True, False):
                chosen = tuple(p for p in trained if (p.ndim > 1 and id(p) not in bare) == decays)
                if chosen:
                    groups.append(ParameterGroup(chosen, scale, 1.0 if decays else 0.0))
        return groups

    def _scores(self, tokens: Tokens, patch_cam: Tensor) -> Scores:
        return Scores(tokens.classes.mean(2), pooled(patch_cam, self.rank_decay))

    def _patch_cam(self, tokens: Tokens) -> Tensor:
        with self.encoder.autocast(tokens.patches):
            maps = self.head(tokens.patches)
        return maps.to(tokens.patches.dtype)

    def _class_maps(self, features: Features, classes: Tensor | None = None) -> Tensor:
        patch_cam, maps = features.patch_cam, features.attention.to_patches
        if classes is not None:
            patch_cam, maps = patch_cam[:, classes], maps[:, classes]
        if self.maps.patch_cam:
            maps = fused(patch_cam, maps)
        return spread(maps, features.attention.affinity) if self.maps.affinity else maps
