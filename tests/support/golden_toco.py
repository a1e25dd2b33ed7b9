"""Compare a step of ToCo with a recorded step of its published code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from golden import (
    CAM_TOLERANCE,
    FEATURE_TOLERANCE,
    HOST,
    LABEL_AGREEMENT,
    Row,
    distance,
    gradient_rows,
    loss_rows,
    recorded_weights,
)
from torch import Tensor

from mcc_core.experiment_files import resolve
from mcc_core.methods.toco.config import Experiment
from mcc_core.methods.toco.network import ToCoNet
from mcc_core.methods.toco.objective import ToCoObjective, ToCoStep
from mcc_core.networks.published import from_published


class _EveryTerm(ToCoObjective):
    """Computes what the schedule leaves out too; its total is of no use."""

    def weights(self, iteration: int) -> dict[str, float]:
        return dict.fromkeys(self.terms, 1.0)


def recorded_experiment(arrays: dict[str, Any], overrides: dict[str, Any] | None = None) -> Experiment:
    """The experiment of a recording's settings: the preset of its dataset, with what the recording says."""
    meta = arrays["meta"]
    aux = meta["aux_layer"]
    fields: dict[str, Any] = {
        "model.backbone": meta["backbone"],
        "model.weights": "random",
        "model.aux_block": 12 + aux + 1 if aux < 0 else aux + 1,
        "thresholds.background": meta["low"],
        "thresholds.foreground": meta["high"],
        "thresholds.score": meta["bkg"],
        "crops.size": meta["local"],
        "crops.views": arrays["positions"].shape[1],
        "train.crop": meta["S"],
        "train.batch_size": meta["B"],
    }
    if "temperature" in meta:
        fields["contrast.temperature"] = meta["temperature"]
    preset = "toco-coco" if meta["num_classes"] == 81 else "toco"
    return cast(Experiment, resolve(preset, fields | (overrides or {}), "recording"))


def priority_of(positions: Tensor, experiment: Experiment) -> Tensor:
    """A draw that takes the crops at `positions` B,V,2 in their order, where they are allowed."""
    side = experiment.crops.positions(experiment.train.crop)
    priority = torch.zeros(len(positions), side, side)
    for image, crops in enumerate(positions):
        for number, (top, left) in enumerate(crops):
            priority[image, top, left] = len(crops) - number
    return priority


def run_recorded(
    path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST
) -> tuple[dict[str, Any], ToCoStep, ToCoNet]:
    """Repeat a recording's step, backward included. Returns its arrays, our step and the network with gradients.

    Recordings have every term. One that does not count at the recorded iteration is computed apart.
    """
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    meta = arrays["meta"] = json.loads(str(arrays["meta"]))
    experiment = recorded_experiment(arrays, overrides)
    model = ToCoNet(experiment.model, meta["num_classes"] - 1, compute=experiment.compute)
    model.load_state_dict(from_published(recorded_weights(meta["layout"])))
    model.encoder.vit.pos_embed.requires_grad_(False)
    model.to(device)
    named = {"view1": "images", "view2": "view2", "local": "local", "labels": "labels", "box": "boxes"}
    batch = {name: torch.from_numpy(arrays[recorded]) for name, recorded in named.items()}
    batch |= {name: batch[name].to(device) for name in ("view1", "view2", "local")}
    draws = {"priority": priority_of(torch.from_numpy(arrays["positions"]), experiment)}
    step = ToCoObjective(model, experiment)(batch, draws, meta["n_iter"], all_classes=True)
    step.total.backward()
    if len(step.terms) < len(ToCoObjective.terms):
        with torch.no_grad():
            whole = _EveryTerm(model, experiment)(batch, draws, meta["n_iter"], all_classes=True)
        step = replace(whole, total=step.total)
    return arrays, step, model


def compare(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> list[Row]:
    """Every recorded figure of the file at `path` against ours, made on a device."""
    arrays, step, model = run_recorded(path, overrides, device)
    return [
        *loss_rows(arrays["meta"]["terms"], step),
        *gradient_rows(arrays["meta"]["grad_norms"], model, from_published),
        *_array_rows(arrays, step),
    ]


def _array_rows(arrays: dict[str, Any], step: ToCoStep) -> Iterable[Row]:
    size = arrays["images"].shape[-2:]
    seg = F.interpolate(step.output.seg, size=size, mode="bilinear", align_corners=False)[..., ::4, ::4]
    contrast, refined, affinity_label = step.contrast, step.refined, step.affinity_label
    assert contrast is not None and refined is not None and affinity_label is not None
    for name, ours in (("cams", step.cams[0]), ("cams_aux", step.cams[1])):
        yield distance(name, arrays[name], ours, CAM_TOLERANCE)
    for name, ours in (
        ("fmap", step.output.features.patches),
        ("seg_logits", seg),
        ("out_t", contrast.queries),
        ("out_s", contrast.keys),
        ("cls_logits", step.output.cls),
        ("cls_aux_logits", step.output.cls_aux),
    ):
        scale = float(np.abs(arrays[name]).max())
        yield distance(name, arrays[name] / scale, ours.detach() / scale, FEATURE_TOLERANCE)
    for name, ours in (("flags", contrast.flags), ("positions", contrast.positions)):
        unequal = float((ours.cpu() != torch.from_numpy(arrays[name])).sum())
        yield Row(f"{name} unequal", 0.0, unequal, unequal, 0)
    for name, ours in (("refined", refined), ("aux_label", affinity_label)):
        agreement = float((ours.cpu().numpy() == arrays[name]).mean())
        yield Row(f"{name} agreement", 1.0, agreement, 1 - agreement, 1 - LABEL_AGREEMENT)
