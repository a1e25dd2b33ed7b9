"""The AFA network: a mix transformer, a classifier, an all-MLP decoder, and affinity from attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import ComputeConfig
from mcc_core.methods.afa.config import ModelConfig, OptimConfig
from mcc_core.networks import base
from mcc_core.networks.base import MapStage, Network, ParameterGroup
from mcc_core.networks.heads import pooled_logits
from mcc_core.networks.mix_sizes import mix_sizes
from mcc_core.networks.mix_transformer import MixTransformer, Stages
from mcc_core.networks.mix_weights import load_mix_transformer
from mcc_core.networks.mlp_decoder import MLPDecoder


@dataclass(frozen=True)
class AFAOutput(base.Output):
    """One forward pass of images B,3,H,W."""

    features: Stages


class AFANet(Network):
    """Everything that has weights. Tensors have the names of published checkpoints.

    Args:
        config: encoder and head sizes.
        num_classes: foreground classes C.
        compute: precision, compilation and memory of a pass.

    Raises UsageError when the initial weights cannot be had or do not fit.
    """

    def __init__(self, config: ModelConfig, num_classes: int, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        sizes = mix_sizes(config.backbone, config.backbone_args)
        self.encoder = MixTransformer(sizes, config.strides, config.drop_path)
        if config.weights != "random":
            load_mix_transformer(self.encoder, config.backbone, config.weights)
        self.stride = max(self.encoder.stride, self.encoder.least_side)
        self.num_classes = num_classes
        width = self.encoder.widths[-1]
        self.decoder = MLPDecoder(self.encoder.widths, config.decoder_channels, num_classes + 1, config.dropout)
        heads = sum(block.attn.num_heads for block in self.last_blocks)
        self.attn_proj = nn.Conv2d(heads, 1, 1)
        nn.init.kaiming_normal_(self.attn_proj.weight, a=5**0.5, mode="fan_out")
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.encoder.use_bfloat16 = self.use_bfloat16 = compute.precision == "bfloat16"
        self.encoder.recompute = compute.recompute == "blocks"
        if compute.channels_last:
            self.decoder.to(memory_format=torch.channels_last)
        if compute.compile:
            self.encoder.compile_blocks()

    @property
    def last_blocks(self) -> Any:
        """The blocks whose attention is the affinity: those of the last stage, whose keys are its tokens."""
        return self.encoder.block4

    def forward(self, images: Tensor) -> AFAOutput:
        """Logits of `images` with the features behind them."""
        features = self.encoder(images)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            seg = self.decoder(features)
        return AFAOutput(
            cls=pooled_logits(features.maps[3], self.classifier), seg=seg.to(images.dtype), features=features
        )

    def affinity(self, features: Stages, count: int | None = None) -> Tensor:
        """Affinity B,N,N in [0, 1] between the tokens of the last stage, of the first `count` images (section 3.2).

        Query-key products S of every head, neither scaled nor softmaxed, as S + S^T, weighted and summed over heads,
        through a sigmoid. The sum over heads of w q k^T is one product of weighted queries with keys, so no map of a
        head is held.
        """
        total: Tensor | float = 0.0
        weights = self.attn_proj.weight.flatten()
        for block, x in zip(self.last_blocks, features.last_inputs, strict=True):
            attention = block.attn
            mine, weights = weights[: attention.num_heads], weights[attention.num_heads :]
            tokens = block.norm1(x[:count])
            width = tokens.shape[-1]
            keys = F.linear(tokens, attention.kv.weight[:width], attention.kv.bias[:width])
            queries = attention.q(tokens) * mine.repeat_interleave(width // attention.num_heads)
            total = total + queries @ keys.transpose(1, 2)
        assert isinstance(total, Tensor) and self.attn_proj.bias is not None
        return (total + total.transpose(1, 2) + self.attn_proj.bias).sigmoid()

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Class activations of the last stage: B,K,h,w of images B,3,H,W."""
        features: Stages = self.encoder(images) if known is None else known.features
        weight = self.classifier.weight
        return {"cam": F.conv2d(features.maps[3], weight if classes is None else weight[classes])}

    def parameter_groups(self, optim: Any) -> list[ParameterGroup]:
        """The encoder at the base rate, its normalisations at rate 0, everything else at `head_lr_scale` times it."""
        assert isinstance(optim, OptimConfig)
        named = list(self.named_parameters())
        encoder = [(name, p) for name, p in named if name.startswith("encoder.")]
        norms = tuple(p for name, p in encoder if "norm" in name)
        others = tuple(p for name, p in encoder if "norm" not in name)
        heads = tuple(p for name, p in named if not name.startswith("encoder."))
        scale = 0.0 if optim.freeze_norms else 1.0
        return [
            ParameterGroup(others),
            ParameterGroup(norms, lr_scale=scale, decay_scale=scale),
            ParameterGroup(heads, lr_scale=optim.head_lr_scale),
        ]
