"""Checkpoints of the published code of our methods, and ImageNet backbones, as checkpoints of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from mcc_core.methods.base import Method
from mcc_core.methods.registry import DEFAULT, METHODS, method_named, method_of
from mcc_core.networks.backbones import shape_text
from mcc_core.weights_file import named_tensors, read_content, top_names

_TRAINING_ONLY = ("projector.", "centers.", "momentum_encoder.")  # what no prediction reads may be drawn anew
_COUNTER = ".num_batches_tracked"  # of batch norms: nothing reads it, and older files have none
_CLASSES = {20: VOC_CLASSES, 80: COCO_CLASSES}


@dataclass(frozen=True)
class Imported:
    """A checkpoint made of a foreign file, and what the file was found to hold."""

    checkpoint: Checkpoint
    kind: str
    unused: tuple[str, ...]  # tensors of the file that have no place here
    fresh: tuple[str, ...]  # tensors of ours that the file lacks, drawn anew


def import_weights(path: Path, base: str | None = None, method: str | None = None) -> Imported:
    """Read a checkpoint of a method's published code, or an ImageNet backbone.

    Args:
        base: preset or experiment file to take what no weights file says from (auxiliary block, classes); default:
            the method's recipe for VOC with 20 classes and with a backbone alone, for COCO with 80.
        method: whose network it is; default: the base's, or the one that alone names its tensors so, or MCC, whose
            published names ToCo's are too.

    Raises UsageError when the file is of another kind, is ours already, is not finite, or lacks or misshapes a tensor.
    """
    if method is not None:
        method_named(method, "--method")
    state = _tensors(path)
    marked = next(
        (
            method_known
            for method_known in METHODS.values()
            if any(mark in state for mark in method_known.published_marks)
        ),
        None,
    )
    if base is None and method is None and marked is not None:
        method = marked.name
    of = method_named(method) if method is not None else method_of(resolve(base or _preset(DEFAULT), {}, "--base"))
    if marked is not None and marked.name != of.name:
        mark = next(mark for mark in marked.published_marks if mark in state)
        raise UsageError(f"{path}: has {mark}, as weights of {marked.title} do; they do not fit {of.title}")
    head = next((name for name in of.published_heads if name in state), None)
    if head is not None and any(name.startswith(of.published_backbone) for name in state):
        return _import_network(path, state, base, of, len(state[head]), told=method is not None or base is not None)
    if marked is not None or "patch_embed.proj.weight" in state:
        return _import_backbone(path, state, base, of)
    known = ", ".join(method_known.title for method_known in METHODS.values())
    raise UsageError(
        f"{path}: neither a published checkpoint ({known}) nor an ImageNet backbone that they use; {top_names(state)}"
    )


def _experiment(
    backbone: str, base: str | None, method: Method, classes: int, state: Mapping[str, Tensor]
) -> Experiment:
    """The experiment that weights of a backbone and so many classes belong to."""
    fields: dict[str, Any] = {"method": method.name, "model.backbone": backbone, "model.weights": "random"}
    told = method.published_fields(state)
    return resolve(base or _preset(method.name, coco=classes == len(COCO_CLASSES)), fields | told, "--base")


def _preset(method: str, *, coco: bool = False) -> str:
    """The preset with a method's recipe for COCO or for VOC; the default method's carry no name."""
    named = ("voc", "coco") if method == DEFAULT else (method, f"{method}-coco")
    return named[coco]


def _import_network(
    path: Path, state: dict[str, Tensor], base: str | None, method: Method, count: int, *, told: bool
) -> Imported:
    classes = _CLASSES.get(count, tuple(f"class{i + 1}" for i in range(count)))
    prefix = method.published_backbone
    alone = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    backbone = method.backbone_of(alone, str(path))
    experiment = _experiment(backbone, base, method, count, state)
    network = _network(experiment, count)
    ours = method.from_published(state)
    own = network.state_dict()
    averages = {name: ours[source] for name, source in _averaged(network, own).items() if source in ours}
    ours = averages | ours
    wrong = [n for n, t in ours.items() if n in own and t.shape != own[n].shape]
    missing = [n for n in own if n not in ours and not n.endswith(_COUNTER)]
    needed = [n for n in missing if not any(part in n for part in _TRAINING_ONLY)]
    if wrong or needed:
        what = (
            f"{wrong[0]} is {shape_text(ours[wrong[0]])}, not {shape_text(own[wrong[0]])}"
            if wrong
            else f"lacks {needed[0]}"
        )
        raise UsageError(f"{path}: does not fit {backbone} with {count} classes: {what}")
    network.load_state_dict({n: ours.get(n, t).to(t.dtype) for n, t in own.items()})
    kind = f"published {method.title} network"
    if method.name == DEFAULT and not told:
        kind += ", or ToCo's, which names its tensors alike (--method toco)"
    used = {id(tensor) for name, tensor in ours.items() if name in own}
    unused = tuple(name for name, tensor in state.items() if id(tensor) not in used)
    iterations = experiment.train.iterations
    saved = Checkpoint(experiment, classes, iterations, 0, network.state_dict(), None, {})
    return Imported(saved, kind, unused, tuple(missing))


def _import_backbone(path: Path, state: dict[str, Tensor], base: str | None, method: Method) -> Imported:
    backbone = method.backbone_of(state, str(path))
    experiment = _experiment(backbone, base, method, len(VOC_CLASSES), state)
    classes = COCO_CLASSES if base is not None and base.endswith("coco") else VOC_CLASSES
    network = _network(experiment, len(classes))
    unused = method.fill_backbone(network, state, str(path))
    weights = network.state_dict()
    averaged = _averaged(network, weights)
    weights |= {name: weights[source].clone() for name, source in averaged.items()}
    fresh = tuple(name for name in weights if not averaged.get(name, name).startswith(method.backbone))
    return Imported(Checkpoint(experiment, classes, 0, 0, weights, None, {}), "backbone alone", unused, fresh)


def _averaged(network: Any, names: Iterable[str]) -> dict[str, str]:
    """Of names of tensors, those of moving averages, and what each begins as."""
    starts = network.averages.items()
    return {name: own + name.removeprefix(mean) for name in names for mean, own in starts if name.startswith(mean)}


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


def cached_backbone(backbone: str, weights: str = "timm") -> Path | None:
    """The file of a download of a backbone, timm's or `imagenet`'s, in this machine's cache; asks no network."""
    if weights == "imagenet":
        from mcc_core.networks.mix_weights import cached_mix_transformer

        return cached_mix_transformer(backbone)
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(backbone)
    name = config.hf_hub_id if config is not None else None
    file = try_to_load_from_cache(name, "model.safetensors") if name is not None else None
    return Path(file) if isinstance(file, str) else None
