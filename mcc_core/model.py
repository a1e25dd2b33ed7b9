"""The MCC network: encoder, classifier and auxiliary classifier, LargeFOV decoder, projector and its momentum copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from mcc_core.config import ComputeConfig, ModelConfig, ProjectorConfig
from mcc_core.encoder import Encoder, Features
from mcc_core.errors import UsageError
from mcc_core.weights_file import named_tensors, read_content


class Decoder(nn.Module):
    """LargeFOV head: two dilated 3x3 convolutions and a 1x1 classifier, all without bias."""

    def __init__(self, width: int, channels: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(width, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv7 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv8 = nn.Conv2d(channels, outputs, 1, bias=False)
        for conv in (self.conv6, self.conv7, self.conv8):
            nn.init.kaiming_normal_(conv.weight, a=1)

    def forward(self, patches: Tensor) -> Tensor:
        """B,D,h,w patch features to B,C+1,h,w logits, background first."""
        return self.conv8(F.relu(self.conv7(F.relu(self.conv6(patches)))))


class UnitLinear(nn.Module):
    """Weight-normalised linear layer whose gain is frozen (PAPER_NOTES row 10): rows of unit length times `gain`."""

    gain: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.trunc_normal_(self.direction, std=0.02)
        self.register_buffer("gain", torch.ones(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.gain * F.normalize(self.direction, dim=1))


class Projector(nn.Module):
    """Class token D to the contrast space: three-layer MLP with GELU, L2 normalisation, UnitLinear.

    The text has one linear layer (`kind: linear`, PAPER_NOTES row 10).
    """

    mlp: nn.Sequential | None
    last: nn.Module

    def __init__(self, width: int, config: ProjectorConfig) -> None:
        super().__init__()
        if config.kind == "linear":
            self.mlp, self.last = None, nn.Linear(width, config.out)
            _init(self.last, config.init_std)
            return
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                _init(layer, config.init_std)
        self.last = UnitLinear(config.bottleneck, config.out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(tokens if self.mlp is None else F.normalize(self.mlp(tokens), dim=-1))


def _init(layer: nn.Linear, std: float) -> None:
    nn.init.trunc_normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class Output:
    """One forward pass of images B,3,H,W."""

    features: Features
    cls: Tensor  # B,C image-level logits
    cls_aux: Tensor  # B,C
    seg: Tensor  # B,C+1,h,w
    other_cls: Tensor | None = None  # O,D class tokens of the other images of the pass


class MCCNet(nn.Module):
    """Everything that has weights.

    Args:
        config: encoder and head sizes.
        num_classes: foreground classes C.
        compute: precision, compilation and memory of a pass.
    """

    def __init__(self, config: ModelConfig, num_classes: int, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        self.encoder = Encoder(build_vit(config), config.aux_block)
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

    def forward(self, images: Tensor, others: Tensor | None = None) -> Output:
        """Logits of `images` with the features behind them, and the class tokens alone of `others` O,3,H,W."""
        features, other_cls = self.encoder.features_and_cls(images, others)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.use_bfloat16):
            seg = self.decoder(features.patches)
        return Output(
            features,
            cls=_pooled_logits(features.patches, self.classifier),
            cls_aux=_pooled_logits(features.aux, self.aux_classifier),
            seg=seg.to(images.dtype),
            other_cls=other_cls,
        )

    @torch.no_grad()
    def update_momentum_projector(self, momentum: float) -> None:
        """theta_g <- m theta_g + (1 - m) theta_l (section 3.3)."""
        for slow, fast in zip(self.momentum_projector.parameters(), self.projector.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


def _pooled_logits(features: Tensor, classifier: nn.Conv2d) -> Tensor:
    """Global max pooling, then the classifier: B,D,h,w to B,C."""
    return classifier(F.adaptive_max_pool2d(features, 1)).flatten(1)


def build_vit(config: ModelConfig) -> Any:
    """The timm backbone with the weights that `config.weights` names. Raises UsageError when it cannot be had."""
    if config.weights == "timm":
        return _create(config, pretrained=True)
    vit = _create(config, pretrained=False)
    if config.weights != "random":
        load_backbone_weights(vit, Path(config.weights))
    return vit


def _create(config: ModelConfig, *, pretrained: bool) -> Any:
    if not timm.is_model(config.backbone):
        close = timm.list_models(f"*{config.backbone.split('_')[0]}*patch*")[:5]
        raise UsageError(f"model.backbone: {config.backbone!r} is not a timm model; such as {', '.join(close)}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its own tries, which we sum up
    try:
        return timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, **config.backbone_args)
    except (TypeError, AssertionError) as error:
        raise UsageError(f"model.backbone_args: {config.backbone_args}: {error}") from None
    except Exception as error:
        if not pretrained:
            raise
        raise UsageError(
            f"model.weights: timm could not download {config.backbone} ({type(error).__name__}); give a local file "
            "(--set model.weights=FILE, .safetensors or .pth) or --set model.weights=random"
        ) from None


def load_backbone_weights(vit: Any, path: Path) -> None:
    """Load a local file in timm or DeiT naming, or the encoder of a checkpoint of ours, into `vit`.

    Raises UsageError when the file is missing, unreadable or not finite, or lacks or misshapes a tensor.
    """
    where = f"model.weights: {path}"
    fill_backbone(vit, named_tensors(read_content(path, "model.weights: "), where), where)


def fill_backbone(vit: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put named tensors into `vit`; position tables are resized to its grid. Raises UsageError, with `where`."""
    state = {name.removeprefix("encoder.").removeprefix("vit."): t.float() for name, t in tensors.items()}
    state = {name: t for name, t in state.items() if not name.startswith(("head.", "head_dist."))}
    starts = ", ".join(list(state)[:3]) or "nothing"
    own = vit.state_dict()
    try:
        fitted = checkpoint_filter_fn(state, vit)
    except Exception:  # of tensors named or shaped like nothing that timm knows
        raise UsageError(f"{where}: not a backbone that timm or DeiT names; it starts with {starts}") from None
    wrong = [name for name, t in fitted.items() if name in own and t.shape != own[name].shape]
    if wrong:
        shape, other = (shape_text(x[wrong[0]]) for x in (fitted, own))
        raise UsageError(f"{where}: does not fit model.backbone: {wrong[0]} is {shape}, not {other}")
    if missing := [name for name in own if name not in fitted]:
        raise UsageError(
            f"{where}: lacks {len(missing)} tensors of the backbone, such as {missing[0]}; it starts with {starts}"
        )
    vit.load_state_dict(fitted, strict=False)


def shape_text(tensor: Tensor) -> str:
    """A shape such as 768x3x16x16."""
    return "x".join(map(str, tensor.shape))
