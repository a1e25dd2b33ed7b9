"""Backbones from timm, with the weights that an experiment names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn

from mcc_core.config import ModelConfig
from mcc_core.errors import UsageError


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

    Position tables are resized to the model's grid.

    Raises UsageError when the file is missing, unreadable, or lacks or misshapes a tensor of the backbone.
    """
    state = read_state_dict(path)
    state = state.get("model", state.get("state_dict", state))
    state = {
        name.removeprefix("module.").removeprefix("encoder.").removeprefix("vit."): t.float()
        for name, t in state.items()
    }
    state = {name: t for name, t in state.items() if not name.startswith(("head.", "head_dist."))}
    try:
        missing, _ = vit.load_state_dict(checkpoint_filter_fn(state, vit), strict=False)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise UsageError(f"model.weights: {path}: does not fit {type(vit).__name__}: {_first_line(error)}") from None
    if missing:
        raise UsageError(f"model.weights: {path}: lacks {len(missing)} tensors of the backbone, such as {missing[0]}")


def read_state_dict(path: Path) -> dict[str, Any]:
    """Tensors of a `.safetensors`, `.pth` or `.pt` file, never unpickling code. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"model.weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UsageError(f"model.weights: {path}: cannot be read as weights: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].startswith("Error(s)") else lines[0] if lines else repr(error))[
        :200
    ]
