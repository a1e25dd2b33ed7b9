"""Segmentation networks: DeepLabV2, DeepLabV3+ and UPerNet on a timm backbone, SegFormer on a mix transformer.

DeepLabV3+ (Chen et al., ECCV 2018) and UPerNet (Xiao et al., ECCV 2018) are those of segmentation_models_pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.methods.segmentation.config import Experiment, ModelConfig
from mcc_core.networks import base
from mcc_core.networks.backbones import fill_backbone
from mcc_core.networks.base import MapStage, Network, Output, ParameterGroup
from mcc_core.networks.batch_norm import synchronised
from mcc_core.networks.feature_maps import PatchMap, build_feature_maps, build_patch_map, fill_feature_maps, is_vit
from mcc_core.networks.mix_sizes import mix_sizes
from mcc_core.networks.mix_transformer import MixTransformer
from mcc_core.networks.mix_weights import fill_mix_transformer, load_mix_transformer
from mcc_core.networks.mlp_decoder import MLPDecoder


class ASPP(nn.Module):
    """DeepLabV2's head: dilated 3x3 convolutions to classes, summed (Chen et al., TPAMI 2018, section 3.2).

    The publication has two more 1x1 convolutions in each branch on VGG-16, and on ResNet-101 the one given here.
    """

    def __init__(self, width: int, outputs: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(width, outputs, 3, padding=d, dilation=d) for d in dilations)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits B,C+1,h,w of the deepest features."""
        total = self.branches[0](features[-1])
        for branch in self.branches[1:]:
            total = total + branch(features[-1])
        return total


class Library(nn.Module):
    """A decoder of segmentation_models_pytorch with its classifier."""

    def __init__(self, decoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.decoder, self.head = decoder, head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits B,C+1,h,w of all feature maps, at stride 4."""
        return self.head(self.decoder(features))


class SegmentationNet(Network):
    """Backbone and decoder. It has no class maps; that an image has a class is said by its surest pixel.

    Raises UsageError when the backbone or its initial weights cannot be had or do not fit.
    """

    map_stages: tuple[MapStage, ...] = ()

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__()
        config, compute = experiment.model, experiment.compute
        self.num_classes, self.kind = num_classes, config.decoder
        self.frozen = config.frozen_norms and config.decoder != "segformer"
        self.use_bfloat16 = compute.precision == "bfloat16"
        again = compute.recompute == "blocks"
        if config.decoder == "segformer":
            sizes = mix_sizes(config.backbone, config.backbone_args)
            mix = MixTransformer(sizes, (4, 2, 2, 2), config.drop_path)
            if config.weights != "random":
                load_mix_transformer(mix, config.backbone, config.weights)
            self.encoder: nn.Module = mix
            self.decoder: nn.Module = MLPDecoder(mix.widths, config.decoder_channels, num_classes + 1, config.dropout)
            mix.use_bfloat16, mix.recompute = self.use_bfloat16, again
            self.stride = self.multiple = max(mix.stride, mix.least_side)
            if compute.compile:
                mix.compile_blocks()
        elif is_vit(config.backbone):
            patches = build_patch_map(config)
            patches.use_bfloat16, patches.recompute = self.use_bfloat16, compute.recompute
            self.encoder, self.stride, self.multiple = patches, patches.patch, patches.patch
            self.decoder = ASPP(patches.width, num_classes + 1, config.dilations)
        else:
            dilated = config.decoder != "upernet"
            self.encoder = build_feature_maps(config, config.output_stride if dilated else 32)
            self.decoder = _decoder(config, self.encoder, num_classes + 1)
            # What the strides of maps that a decoder joins must divide; the ASPP joins none.
            self.multiple = 1 if config.decoder == "deeplabv2" else 32
            self.stride = config.output_stride if config.decoder == "deeplabv2" else 32
            if again:
                self.encoder.model.set_grad_checkpointing()  # type: ignore[operator, union-attr]
        synchronised(self.decoder)
        if self.frozen:
            for norm in self._frozen():
                norm.requires_grad_(False)
        else:
            synchronised(self.encoder)
        if compute.channels_last:
            self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> SegmentationNet:
        """Training mode, in which frozen batch norms keep to their running statistics."""
        super().train(mode)
        for norm in self._frozen() if self.frozen else ():
            norm.eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """Logits of images; `features` is None. A class's logit is the log-odds of its surest pixel."""
        height, width = images.shape[-2:]
        more = (-height % self.multiple, -width % self.multiple)
        whole = F.pad(images, (0, more[1], 0, more[0])) if any(more) else images
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            seg = self.decoder(self.encoder(whole))
        seg = seg.to(images.dtype)
        if any(more):
            cell = whole.shape[-1] // seg.shape[-1]
            seg = seg[..., : -(-height // cell), : -(-width // cell)]
        return Output(_log_odds(seg), seg, None)

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """None: it learns from label maps, not from labels of images."""
        return {}

    def parameter_groups(self, optim: Any) -> list[ParameterGroup]:
        """The backbone at the base rate and the decoder at `head_lr_scale` times it."""
        if isinstance(self.encoder, PatchMap) and self.encoder.vit.pos_embed is not None:
            self.encoder.vit.pos_embed.requires_grad_(not optim.freeze_pos_embed)
        encoder = tuple(p for p in self.encoder.parameters() if p.requires_grad)
        return [ParameterGroup(encoder), ParameterGroup(tuple(self.decoder.parameters()), optim.head_lr_scale)]

    def fill(self, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
        """Put tensors of a backbone alone into the network; the names of those without a place. Raises UsageError."""
        if isinstance(self.encoder, MixTransformer):
            return fill_mix_transformer(self.encoder, tensors, where)
        if isinstance(self.encoder, PatchMap):
            fill_backbone(self.encoder.vit, tensors, where)
            return ()
        return fill_feature_maps(self.encoder, tensors, where)

    def _frozen(self) -> list[nn.BatchNorm2d]:
        return [m for m in self.encoder.modules() if isinstance(m, nn.BatchNorm2d)]


def _decoder(config: ModelConfig, encoder: Any, outputs: int) -> nn.Module:
    if config.decoder == "deeplabv2":
        return ASPP(encoder.out_channels[-1], outputs, config.dilations)
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    channels, inputs = config.decoder_channels, encoder.out_channels
    decoder: nn.Module
    if config.decoder == "deeplabv3plus":
        atrous = {"atrous_rates": config.dilations, "aspp_separable": True, "aspp_dropout": config.dropout}
        decoder = DeepLabV3PlusDecoder(inputs, 5, channels, output_stride=config.output_stride, **atrous)
    else:
        decoder = UPerNetDecoder(inputs, encoder_depth=5, decoder_channels=channels)
    return Library(decoder, SegmentationHead(channels, outputs, kernel_size=1, upsampling=1))


def _log_odds(seg: Tensor) -> Tensor:
    """B,C: of each class the largest log-odds of its probability among the pixels of logits B,C+1,h,w."""
    logs = seg.log_softmax(1)[:, 1:].flatten(2).max(2).values
    return logs - torch.log1p(-logs.exp().clamp(max=1 - 1e-6))
