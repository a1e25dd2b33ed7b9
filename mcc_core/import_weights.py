"""Checkpoints of the published MCC, ToCo, AFA and FSR code, and ImageNet backbones, as checkpoints of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcc_core.checkpoint import FORMAT, Checkpoint
from mcc_core.config import Experiment
from mcc_core.data.coco import COCO_CLASSES
from mcc_core.data.voc import VOC_CLASSES
from mcc_core.errors import UsageError
from mcc_core.experiment_files import resolve
from mcc_core.methods.registry import DEFAULT, method_named, method_of
from mcc_core.networks.backbones import fill_backbone, shape_text
from mcc_core.networks.mix_weights import fill_mix_transformer, is_mix_transformer, mix_transformer_of, segformer_names
from mcc_core.weights_file import named_tensors, read_content, top_names

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
_FSR_MARK = "encoder.cls_blocks.0.attn.q.weight"  # a tensor that only FSR has
_HEADS = ("classifier.weight", "top_classifier.weight")  # one row for each class
_TRAINING_ONLY = ("projector.", "centers.")  # what no prediction reads may be drawn anew
_CLASSES = {20: VOC_CLASSES, 80: COCO_CLASSES}


@dataclass(frozen=True)
class Imported:
    """A checkpoint made of a foreign file, and what the file was found to hold."""

    checkpoint: Checkpoint
    kind: str
    unused: tuple[str, ...]  # tensors of the file that have no place here
    fresh: tuple[str, ...]  # tensors of ours that the file lacks, drawn anew


def import_weights(path: Path, base: str | None = None, method: str | None = None) -> Imported:
    """Read a checkpoint of published MCC, ToCo, AFA or FSR code, or an ImageNet backbone (timm, DeiT, SegFormer).

    Args:
        base: preset or experiment file to take what no weights file says from (auxiliary block, classes); default:
            the method's recipe for VOC with 20 classes and with a backbone alone, for COCO with 80.
        method: whose network it is; default: the base's, or AFA for a mix transformer, or FSR for its class-attention
            blocks, or MCC, whose published names ToCo's are too.

    Raises UsageError when the file is of another kind, is ours already, is not finite, or lacks or misshapes a tensor.
    """
    if method is not None:
        method_named(method, "--method")
    state = _tensors(path)
    if base is None and method is None and is_mix_transformer(state):
        method = "afa"
    if base is None and method is None and _FSR_MARK in state:
        method = "fsr"
    if any(head in state for head in _HEADS) and any(name.startswith("encoder.") for name in state):
        return _import_network(path, state, base, method)
    if "patch_embed.proj.weight" in state or is_mix_transformer(state):
        return _import_backbone(path, state, base, method)
    raise UsageError(
        f"{path}: neither a published MCC, ToCo, AFA or FSR checkpoint nor an ImageNet backbone; {top_names(state)}"
    )


def _experiment(
    backbone: str, base: str | None, method: str | None, classes: int, state: Mapping[str, Tensor]
) -> Experiment:
    """The experiment that weights of a backbone and so many classes belong to."""
    fields: dict[str, Any] = {"model.backbone": backbone, "model.weights": "random"}
    if method is not None:
        fields["method"] = method
    base = base or _preset(method or DEFAULT, coco=classes == 80)
    told = method_of(resolve(base, fields, "--base")).published_fields(state)
    return resolve(base, fields | told, "--base")


def _preset(method: str, *, coco: bool) -> str:
    """The preset with a method's recipe for COCO or for VOC; the default method's carry no name."""
    named = ("voc", "coco") if method == DEFAULT else (method, f"{method}-coco")
    return named[coco]


def _import_network(path: Path, state: dict[str, Tensor], base: str | None, method: str | None) -> Imported:
    count = len(next(state[head] for head in _HEADS if head in state))
    classes = _CLASSES.get(count, tuple(f"class{i + 1}" for i in range(count)))
    backbone = _backbone(path, {n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")})
    experiment = _experiment(backbone, base, method, count, state)
    network = _network(experiment, count)
    ours = method_of(experiment).from_published(state)
    own = network.state_dict()
    wrong = [n for n, t in ours.items() if n in own and t.shape != own[n].shape]
    missing = [n for n in own if n not in ours and not any(part in n for part in _TRAINING_ONLY)]
    if wrong or missing:
        what = (
            f"{wrong[0]} is {shape_text(ours[wrong[0]])}, not {shape_text(own[wrong[0]])}"
            if wrong
            else f"lacks {missing[0]}"
        )
        raise UsageError(f"{path}: does not fit {backbone} with {count} classes: {what}")
    fresh = tuple(n for n in own if n not in ours)
    network.load_state_dict({n: ours.get(n, t).float() for n, t in own.items()})
    kind = f"published {method_of(experiment).title} network"
    if method_of(experiment).name == DEFAULT and base is None and method is None:
        kind += ", or ToCo's, which names its tensors alike (--method toco)"
    unused = tuple(n for n in state if n.startswith("encoder.head.")) + tuple(n for n in ours if n not in own)
    weights = network.state_dict()
    iterations = experiment.train.iterations
    return Imported(Checkpoint(experiment, classes, iterations, 0, weights, None, {}), kind, unused, fresh)


def _import_backbone(path: Path, state: dict[str, Tensor], base: str | None, method: str | None) -> Imported:
    experiment = _experiment(_backbone(path, state), base, method, len(VOC_CLASSES), {})
    classes = COCO_CLASSES if base is not None and base.endswith("coco") else VOC_CLASSES
    network = _network(experiment, len(classes))
    mixed = is_mix_transformer(state)
    prefix = "encoder." if mixed else "encoder.vit."
    if mixed:
        fill_mix_transformer(network.encoder, state, str(path))
    else:
        fill_backbone(network.encoder.vit, state, str(path))
    weights = network.state_dict()
    named = segformer_names(state) if mixed else state
    unused = tuple(name for name in named if f"{prefix}{name}" not in weights)
    fresh = tuple(name for name in weights if not name.startswith("encoder."))
    return Imported(Checkpoint(experiment, classes, 0, 0, weights, None, {}), "backbone alone", unused, fresh)


def _network(experiment: Experiment, classes: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return method_of(experiment).network(experiment, classes)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a file, out of their wrapping, without `module.` before each name."""
    content = read_content(path)
    if content.get("format") == FORMAT and "experiment" in content:
        raise UsageError(f"{path}: is an mcc checkpoint already")
    return named_tensors(content, str(path))


def _backbone(path: Path, vit: Mapping[str, Tensor]) -> str:
    """The backbone that tensors in timm's or SegFormer's naming belong to, by their shapes."""
    if is_mix_transformer(vit):
        return mix_transformer_of(vit, str(path))
    patch = vit.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 4:
        raise UsageError(f"{path}: lacks patch_embed.proj.weight of a vision transformer")
    depth = 1 + max((int(m[1]) for n in vit if (m := re.match(r"blocks\.(\d+)\.", n))), default=-1)
    registers = vit["reg_token"].shape[1] if "reg_token" in vit else 0
    found = (len(patch), depth, patch.shape[-1], registers)
    if found not in _BACKBONES:
        raise UsageError(
            f"{path}: no known backbone of width {found[0]}, depth {found[1]}, patch {found[2]}, {found[3]} registers"
        )
    return _BACKBONES[found]


def cached_backbone(backbone: str) -> Path | None:
    """The file of timm's download of a backbone in this machine's cache; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone)
    name = config.hf_hub_id if config is not None else None
    file = try_to_load_from_cache(name, "model.safetensors") if name is not None else None
    return Path(file) if isinstance(file, str) else None
