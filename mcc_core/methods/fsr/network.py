"""The FSR network: an encoder whose class token aggregates patches at the end, heads, and a teacher.

Shapes: B images, N = h*w patches of each, D width, E outputs of the projector, M masked patches of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.config import ComputeConfig, OptimConfig
from mcc_core.errors import UsageError
from mcc_core.losses.distillation import Centers
from mcc_core.methods.fsr.config import Experiment
from mcc_core.networks import base
from mcc_core.networks.backbones import build_vit
from mcc_core.networks.base import MapStage, Network, ParameterGroup
from mcc_core.networks.encoder import Encoder
from mcc_core.networks.heads import Decoder, Projector, pooled_logits


class ClassAttention(nn.Module):
    """A pre-norm block in which the class token alone asks, the patches alone answer, and the class token changes."""

    def __init__(self, width: int, heads: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q", "k", "v", "proj")})
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        for layer in (*self.attn.values(), *self.mlp.values()):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Class tokens B,1,D after looking at patches B,N,D."""
        attn, keys = self.attn, self.norm1(patches)
        q, k, v = (
            attn[name](x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name, x in (("q", self.norm1(cls)), ("k", keys), ("v", keys))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        cls = cls + attn["proj"](seen)
        return cls + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(cls))))


class AggregatingEncoder(Encoder):
    """A timm `VisionTransformer` whose blocks see patches alone; class-attention blocks aggregate them afterwards.

    Raises UsageError when the backbone has other tokens beside the class token, or no table of positions.
    """

    def __init__(self, vit: Any, aux_block: int, class_blocks: int) -> None:
        super().__init__(vit, aux_block, stochastic_depth=True)
        if self.prefix != 1 or vit.pos_embed is None:
            raise UsageError("model.backbone: FSR needs a class token, no other tokens, and a table of positions")
        self.prefix = 0
        block = vit.blocks[0]
        sizes = (self.width, block.attn.num_heads, block.mlp.fc1.out_features, block.norm1.eps)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.width), std=0.02))
        self.class_blocks = nn.ModuleList(ClassAttention(*sizes) for _ in range(class_blocks))

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patch embeddings B,N,D of images B,3,H,W, positions added; where `mask` B,h,w is true, the mask token's."""
        vit = self.vit
        patches = vit.patch_embed.norm(vit.patch_embed.proj(images).flatten(2).transpose(1, 2))
        if mask is not None:
            patches = torch.where(mask.flatten(1)[..., None], self.mask_token.to(patches.dtype), patches)
        own = 0 if vit.no_embed_class else 1
        return vit.norm_pre(patches + self._resized(vit.pos_embed[:, own:], self.grid(*images.shape[-2:])))

    def tokens(self, images: Tensor, mask: Tensor | None = None, upto: int | None = None) -> tuple[Tensor, Tensor]:
        """Patch tokens B,N,D of the last block, or of the 1-based block `upto`, and of the auxiliary one. No norm."""
        tokens = aux = self.embed(images, mask)
        for number, block in enumerate(self.vit.blocks[:upto], start=1):
            tokens = self._run(block, tokens)
            if number == self.aux_block:
                aux = tokens
        return tokens, aux

    def aggregated(self, tokens: Tensor) -> Tensor:
        """Class tokens B,D, after the final norm, of patch tokens B,N,D."""
        cls = self.vit.cls_token.expand(len(tokens), -1, -1)
        for block in self.class_blocks:
            cls = block(cls, tokens)
        return self.vit.norm(cls)[:, 0]

    def as_map(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Tokens B,N,D of images B,3,H,W as B,D,h,w."""
        return self._as_map(tokens.to(images.dtype), *self.grid(*images.shape[-2:]))


@dataclass(frozen=True)
class Maps:
    """Features of a pass."""

    patches: Tensor  # B,D,h,w after the final norm
    aux: Tensor  # B,D,h,w output of the auxiliary block, before any norm


@dataclass(frozen=True)
class FSROutput(base.Output):
    """One forward pass of images B,3,H,W."""

    features: Maps
    cls_aux: Tensor  # B,C
    distilled_class: Tensor | None = None  # B,E of the masked view
    distilled_patches: Tensor | None = None  # M,E of the masked view's masked patches

    def detached(self) -> FSROutput:
        """The same with features that no gradient flows through."""
        return replace(self, features=Maps(self.features.patches.detach(), self.features.aux.detach()))


class Teacher(nn.Module):
    """Moving average of the student's encoder and projector, the parts of a teacher that are asked."""

    def __init__(self, encoder: AggregatingEncoder, projector: Projector) -> None:
        super().__init__()
        self.encoder, self.projector = copy.deepcopy(encoder), copy.deepcopy(projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs B,E of view 1's class tokens and B,N,E of view 2's patches, in one pass."""
        encoder = self.encoder
        with encoder.autocast(view1):
            first, second = encoder.tokens(torch.cat([view1, view2]))[0].chunk(2)
            cls, patches = encoder.aggregated(first), encoder.vit.norm(second)
        return self.projector(cls.to(view1.dtype)), self.projector(patches.to(view1.dtype))


class FSRNet(Network):
    """Everything that has weights, the teacher and its centres among them.

    Raises UsageError when the backbone does not suit.
    """

    map_stages: tuple[MapStage, ...] = ("cam", "aux_cam")
    averages: ClassVar[Mapping[str, str]] = {"teacher.encoder.": "encoder.", "teacher.projector.": "projector."}

    def __init__(self, experiment: Experiment, num_classes: int, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        config = experiment.model.model_copy(update={"backbone_args": experiment.backbone_args()})
        self.encoder = AggregatingEncoder(build_vit(config), config.aux_block, config.class_blocks)
        self.stride = self.encoder.patch
        if experiment.mask.block % self.stride:
            raise UsageError(
                f"mask.block: {experiment.mask.block}: must be a multiple of the patch of {config.backbone}, "
                f"{self.stride} pixels"
            )
        width = self.encoder.width
        self.num_classes = num_classes
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.decoder = Decoder(width, config.decoder_channels, num_classes + 1, config.decoder_dilation)
        self.projector = Projector(width, config.projector)
        self.encoder.use_bfloat16 = self.use_bfloat16 = compute.precision == "bfloat16"
        self.encoder.recompute = compute.recompute
        self.teacher = Teacher(self.encoder, self.projector)
        self.centers = Centers(config.projector.out)
        if compute.channels_last:
            self.decoder.to(memory_format=torch.channels_last)
        if compute.compile:
            self.encoder.compile_blocks()
            self.teacher.encoder.compile_blocks()

    def forward(self, images: Tensor) -> FSROutput:
        """Logits of images B,3,H,W. No class token: nothing of them depends on it."""
        with self.encoder.autocast(images):
            tokens, aux = self.encoder.tokens(images)
        return self._output(images, tokens, aux)

    def with_masked(
        self, images: Tensor, masked: Tensor, mask: Tensor, places: Tensor, *, cls: bool, patches: bool
    ) -> FSROutput:
        """Logits of `images`, and the projections of `masked` B,3,H,W under `mask` B,h,w, in one pass.

        Args:
            places: M where `mask` is true, in the flat mask.
            cls, patches: whether those of the class tokens, or of the masked patches, are asked for.
        """
        count, encoder = len(images), self.encoder
        with encoder.autocast(images):
            both = torch.cat([torch.zeros_like(mask), mask])
            tokens, aux = encoder.tokens(torch.cat([images, masked]), both)
            other = tokens[count:]
            class_tokens = encoder.aggregated(other) if cls else None
            hidden = encoder.vit.norm(other.flatten(0, 1)[places]) if patches else None
        projected = [None if x is None else self.projector(x.to(images.dtype)) for x in (class_tokens, hidden)]
        output = self._output(images, tokens[:count], aux[:count])
        return replace(output, distilled_class=projected[0], distilled_patches=projected[1])

    def _output(self, images: Tensor, tokens: Tensor, aux: Tensor) -> FSROutput:
        encoder = self.encoder
        with encoder.autocast(images):
            normed = encoder.vit.norm(tokens)
        features = Maps(encoder.as_map(normed, images), encoder.as_map(aux, images))
        with encoder.autocast(images):
            seg = self.decoder(features.patches)
        return FSROutput(
            cls=pooled_logits(features.patches, self.classifier),
            cls_aux=pooled_logits(features.aux, self.aux_classifier),
            seg=seg.to(images.dtype),
            features=features,
        )

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Final and auxiliary class activations: B,K,h,w of images B,3,H,W.

        None is negative: the published code rectifies them before it resizes them.
        """
        final, aux = self.classifier.weight, self.aux_classifier.weight
        if classes is not None:
            final, aux = final[classes], aux[classes]
        features: Maps = self._maps(images) if known is None else known.features
        return {"cam": F.conv2d(features.patches, final).relu(), "aux_cam": F.conv2d(features.aux, aux).relu()}

    def _maps(self, images: Tensor) -> Maps:
        encoder = self.encoder
        with encoder.autocast(images):
            tokens, aux = encoder.tokens(images)
            normed = encoder.vit.norm(tokens)
        return Maps(encoder.as_map(normed, images), encoder.as_map(aux, images))

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        """Encoder at the base rate, heads at `head_lr_scale` times it; vectors and tokens without weight decay."""
        if optim.freeze_pos_embed:
            self.encoder.vit.pos_embed.requires_grad_(False)
        vit = self.encoder.vit
        bare = {id(vit.pos_embed), id(vit.cls_token), id(self.encoder.mask_token)}
        heads = (self.classifier, self.aux_classifier, self.decoder, self.projector)
        groups = []
        for parts, scale in (((self.encoder,), 1.0), (heads, optim.head_lr_scale)):
            trained = [p for part in parts for p in part.parameters() if p.requires_grad]
            plain = [p.ndim == 1 or id(p) in bare for p in trained]
            for without in (True, False):
                chosen = tuple(p for p, undecayed in zip(trained, plain, strict=True) if undecayed == without)
                if chosen:
                    groups.append(ParameterGroup(chosen, scale, 0.0 if without else 1.0))
        return groups

    def distilled_parameters(self, *, cls: bool, patches: bool) -> Iterable[nn.Parameter]:
        """Parameters that nothing but the named distillations reaches."""
        if cls:
            yield from (self.encoder.vit.cls_token, *self.encoder.class_blocks.parameters())
        if cls and patches:
            yield from (self.encoder.mask_token, *self.projector.parameters())

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s."""
        for slow, fast in ((self.teacher.encoder, self.encoder), (self.teacher.projector, self.projector)):
            torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


class AuxiliaryMaps(Network):
    """The auxiliary class maps alone of a network, which need no block behind the auxiliary one."""

    map_stages: tuple[MapStage, ...] = ("aux_cam",)

    def __init__(self, network: FSRNet) -> None:
        super().__init__()
        self.network = network
        self.num_classes, self.stride = network.num_classes, network.stride

    def class_maps(
        self, images: Tensor, known: base.Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        """Auxiliary class activations B,K,h,w of images B,3,H,W, none negative."""
        encoder, weight = self.network.encoder, self.network.aux_classifier.weight
        with encoder.autocast(images):
            aux = encoder.tokens(images, upto=encoder.aux_block)[1]
        weight = weight if classes is None else weight[classes]
        return {"aux_cam": F.conv2d(encoder.as_map(aux, images), weight).relu()}
