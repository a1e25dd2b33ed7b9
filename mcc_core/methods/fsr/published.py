"""Tensors of the published FSR code as ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Published name prefixes and ours, the longer first.
_PREFIXES = (
    ("projector.last_layer.weight_v", "projector.last.direction"),
    ("projector.last_layer.weight_g", "projector.last.gain"),
    ("encoder.cls_blocks.", "encoder.class_blocks."),
    ("encoder.mask_token", "encoder.mask_token"),
    ("encoder.", "encoder.vit."),
    ("top_classifier.", "classifier."),
)


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors, with or without `module.` before each name; the ImageNet head is left out."""
    ours: dict[str, Tensor] = {}
    for published, tensor in state.items():
        name = published.removeprefix("module.")
        if name.startswith("encoder.head."):
            continue
        for old, new in _PREFIXES:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        ours[name] = tensor
    return ours


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of an FSRNet's student and centres, which begin at 0, from a published one, which has the student."""
    student = own_names(state)
    directions = student.get("projector.last.direction")
    if directions is None:
        return student
    return student | {f"centers.{kind}_center": torch.zeros(len(directions)) for kind in ("class", "patch")}


def fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of the experiment that tensors of a published checkpoint decide: sizes of its tables and layers."""
    sizes: dict[str, Any] = {}
    table, patch = state.get("encoder.pos_embed"), state.get("encoder.patch_embed.proj.weight")
    if table is not None and patch is not None:
        sizes["model.backbone_args.img_size"] = math.isqrt(table.shape[1] - 1) * patch.shape[-1]
    if (directions := state.get("projector.last_layer.weight_v")) is not None:
        sizes["model.projector.out"] = len(directions)
    if blocks := {name.split(".")[2] for name in state if name.startswith("encoder.cls_blocks.")}:
        sizes["model.class_blocks"] = len(blocks)
    return sizes
