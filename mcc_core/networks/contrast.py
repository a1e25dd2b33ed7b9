"""The network of methods that contrast class tokens: encoder, classifiers, LargeFOV decoder, projector and its copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import ComputeConfig, ContrastModelConfig, OptimConfig
from mcc_core.networks import base
from mcc_core.networks.backbones import build_vit
from mcc_core.networks.base import MapStage, Network, ParameterGroup
from mcc_core.networks.encoder import Features
from mcc_core.networks.heads import Decoder, Projector, pooled_logits
from mcc_core.networks.rotary import encoder_of


@dataclass(frozen=True)
class ContrastOutput(base.Output):
    """One forward pass of images B,3,H,W."""

    features: Features
    cls_aux: Tensor  # B,C
    other_cls: Tensor | None = None  # O,D class tokens of the other images of the pass
    local_cls: Tensor | None = None  # V*B,D view-major, of masked local views of the pass

    def detached(self) -> ContrastOutput:
        """The same with features that no gradient flows through."""
        features = self.features
        cut = Features(features.cls.detach(), features.patches.detach(), features.aux.detach())
        return replace(self, features=cut)


class ContrastNet(Network):
    """Everything that has weights.

    Args:
        config: encoder and head sizes.
        num_classes: foreground classes C.
        compute: precision, compilation and memory of a pass.
    """

    map_stages: tuple[MapStage, ...] = ("cam", "aux_cam")
    averages: ClassVar[Mapping[str, str]] = {"momentum_projector.": "projector."}

    def __init__(self, config: ContrastModelConfig, num_classes: int, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        self.encoder = encoder_of(build_vit(config), config.aux_block)
        self.stride = self.encoder.patch
        width = self.encoder.width
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.decoder = Decoder(width, config.decoder_channels, num_classes + 1, config.decoder_dilation)
        self.projector = Projector(width, config.projector)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.encoder.use_bfloat16 = self.use_bfloat16 = compute.precision == "bfloat16"
        self.encoder.recompute = compute.recompute
        if compute.channels_last:
            self.decoder.to(memory_format=torch.channels_last)
        if compute.compile:
            self.encoder.compile_blocks()

    def forward(
        self, images: Tensor, others: Tensor | None = None, views: tuple[Tensor, Tensor] | None = None
    ) -> ContrastOutput:
        """Logits of `images` with the features behind them, and the class tokens alone of all else of the pass.

        Args:
            others: O,3,H,W.
            views: local views B,3,H,W and their key masks B,V,h,w, 1 = masked, on the host.
        """
        local_cls = None
        if views is None:
            features, other_cls = self.encoder.features_and_cls(images, others)
        else:
            features, other_cls, local_cls = self.encoder.features_and_views(images, others, *views)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            seg = self.decoder(features.patches)
        return ContrastOutput(
            cls=pooled_logits(features.patches, self.classifier),
            cls_aux=pooled_logits(features.aux, self.aux_classifier),
            seg=seg.to(images.dtype),
            features=features,
            other_cls=other_cls,
            local_cls=local_cls,
        )

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Final and auxiliary class activations: B,K,h,w of images B,3,H,W."""
        return self._maps(self.encoder(images) if known is None else known.features, classes)

    def class_maps_of(self, batches: Sequence[Tensor], classes: Tensor | None = None) -> list[dict[MapStage, Tensor]]:
        """Class activations of batches of images of several sizes, in one pass. For what needs no gradient."""
        return [self._maps(features, classes) for features in self.encoder.features_of(batches)]

    def _maps(self, features: Features, classes: Tensor | None) -> dict[MapStage, Tensor]:
        final, aux = self.classifier.weight, self.aux_classifier.weight
        if classes is not None:
            final, aux = final[classes], aux[classes]
        return {"cam": F.conv2d(features.patches, final), "aux_cam": F.conv2d(features.aux, aux)}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """The encoder at the base rate and everything else at `head_lr_scale` times it."""
        position_table = self.encoder.vit.pos_embed
        if optim.freeze_pos_embed and position_table is not None:
            position_table.requires_grad_(False)
        encoder = tuple(p for p in self.encoder.parameters() if p.requires_grad)
        known = {id(p) for p in self.encoder.parameters()}
        heads = tuple(p for p in self.parameters() if p.requires_grad and id(p) not in known)
        return [ParameterGroup(encoder), ParameterGroup(heads, lr_scale=optim.head_lr_scale)]

    @torch.no_grad()
    def update_momentum_projector(self, momentum: float) -> None:
        """theta_g <- m theta_g + (1 - m) theta_l, g the copy and l the trained projector."""
        slow: list[Tensor] = list(self.momentum_projector.parameters())
        torch._foreach_lerp_(slow, list[Tensor](self.projector.parameters()), 1 - momentum)
