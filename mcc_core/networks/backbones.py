"""Backbones from timm, with the weights that an experiment names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import eva, vision_transformer
from torch import Tensor

from mcc_core.config import ModelConfig
from mcc_core.errors import UsageError
from mcc_core.weights_file import named_tensors, read_content

# (width, depth, patch side, register tokens): timm's name
_BACKBONES = {
    (192, 12, 16, 0): "deit_tiny_patch16_224",
    (384, 12, 16, 0): "deit_small_patch16_224",
    (768, 12, 16, 0): "deit_base_patch16_224",
    (1024, 24, 16, 0): "vit_large_patch16_224",
    (384, 12, 14, 0): "vit_small_patch14_dinov2",
    (768, 12, 14, 0): "vit_base_patch14_dinov2",
    (1024, 24, 14, 0): "vit_large_patch14_dinov2",
    (384, 12, 14, 4): "vit_small_patch14_reg4_dinov2",
    (768, 12, 14, 4): "vit_base_patch14_reg4_dinov2",
    (1024, 24, 14, 4): "vit_large_patch14_reg4_dinov2",
}


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
        kind = eva if isinstance(vit, eva.Eva) else vision_transformer
        fitted = kind.checkpoint_filter_fn(state, vit)
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


def vit_of(tensors: Mapping[str, Tensor], where: str) -> str:
    """timm's name of the vision transformer that tensors in its naming belong to, by their shapes.

    Raises UsageError, with `where`.
    """
    patch = tensors.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        raise UsageError(f"{where}: lacks patch_embed.proj.weight of a vision transformer")
    depth = 1 + max((int(m[1]) for n in tensors if (m := re.match(r"blocks\.(\d+)\.", n))), default=-1)
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    shape = (len(patch), depth, patch.shape[-1], registers)
    if shape not in _BACKBONES:
        raise UsageError(
            f"{where}: no known backbone of width {shape[0]}, depth {shape[1]}, patch {shape[2]}, {shape[3]} registers"
        )
    return _BACKBONES[shape]


def shape_text(tensor: Tensor) -> str:
    """A shape such as 768x3x16x16."""
    return "x".join(map(str, tensor.shape))
