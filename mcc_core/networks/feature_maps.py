"""timm networks of feature maps, as decoders of segmentation take them, with the weights that an experiment names.

A vision transformer has one map, of its patches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from mcc_core.config import ModelConfig
from mcc_core.errors import UsageError
from mcc_core.networks.backbones import build_vit, shape_text
from mcc_core.networks.encoder import Encoder
from mcc_core.weights_file import named_tensors, read_content


class PatchMap(Encoder):
    """A vision transformer whose forward gives its patches after the final norm, as the one feature map B,D,h,w."""

    def __init__(self, vit: Any) -> None:
        super().__init__(vit, len(getattr(vit, "blocks", ())))
        self.out_channels = (self.width,)

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [super().forward(images).patches]


def is_vit(backbone: str) -> bool:
    """Whether a timm network is, by its name, a vision transformer."""
    return backbone.startswith(("vit_", "deit"))


def build_patch_map(config: ModelConfig) -> PatchMap:
    """A vision transformer with the weights that `config` names. Raises UsageError when it cannot be had."""
    return PatchMap(build_vit(config))


def build_feature_maps(config: ModelConfig, output_stride: int) -> Any:
    """An encoder whose forward gives feature maps B,D,h,w from stride 1 to `output_stride`, and `out_channels`.

    It is segmentation_models_pytorch's around timm's, which is its `model`. Raises UsageError when it cannot be had.
    """
    from segmentation_models_pytorch.encoders import TimmUniversalEncoder

    if not timm.is_model(config.backbone):
        close = ", ".join(timm.list_models(f"*{config.backbone.split('.')[0][:6]}*")[:5]) or "resnet101.tv_in1k"
        raise UsageError(f"model.backbone: {config.backbone!r} is not a timm model; such as {close}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of its own tries, which we sum up
    pretrained = config.weights == "timm"
    try:
        encoder = TimmUniversalEncoder(
            config.backbone, pretrained=pretrained, output_stride=output_stride, **config.backbone_args
        )
    except (TypeError, AssertionError, ValueError, RuntimeError, NotImplementedError) as error:
        if config.backbone_args:
            raise UsageError(f"model.backbone_args: {config.backbone_args}: {error}") from None
        raise UsageError(
            f"model.backbone: {config.backbone!r} has no feature maps of stride 4 to {output_stride}; a ResNet, or "
            "with decoder: upernet a ConvNeXt or Swin, has"
        ) from None
    except Exception as error:
        if not pretrained:
            raise
        raise UsageError(
            f"model.weights: timm could not download {config.backbone} ({type(error).__name__}); give a local file "
            "(--set model.weights=FILE, .safetensors or .pth) or --set model.weights=random"
        ) from None
    if not pretrained and config.weights != "random":
        path = Path(config.weights)
        where = f"model.weights: {path}"
        fill_feature_maps(encoder, named_tensors(read_content(path, "model.weights: "), where), where)
    return encoder


def fill_feature_maps(encoder: Any, tensors: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Put tensors in timm's naming, or those of a checkpoint of ours, into an encoder; names of those without a place.

    Raises UsageError, with `where`, when some are missing or of other shapes.
    """
    state = {name.removeprefix("encoder.").removeprefix("model."): tensor for name, tensor in tensors.items()}
    own = encoder.model.state_dict()
    state |= {name: own[name] for name in own if name.endswith(".num_batches_tracked") and name not in state}
    if missing := [name for name in own if name not in state]:
        starts = ", ".join(list(tensors)[:3]) or "nothing"
        raise UsageError(
            f"{where}: lacks {len(missing)} tensors of the backbone, such as {missing[0]}; it starts with {starts}"
        )
    if wrong := [name for name in own if state[name].shape != own[name].shape]:
        shape, other = (shape_text(x[wrong[0]]) for x in (state, own))
        raise UsageError(f"{where}: does not fit model.backbone: {wrong[0]} is {shape}, not {other}")
    encoder.model.load_state_dict({name: state[name].to(own[name].dtype) for name in own})
    return tuple(name for name in state if name not in own)
