"""Compare a step of AFA with a recorded step of its published code."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
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
)
from torch import Tensor

from mcc_core.experiment_files import resolve
from mcc_core.methods.afa.config import Experiment
from mcc_core.methods.afa.network import AFANet
from mcc_core.methods.afa.objective import AFAObjective, AFAStep, Cams
from mcc_core.methods.afa.published import from_published
from mcc_core.methods.objective import opening


class _EveryTerm(AFAObjective):
    """Computes what the schedule leaves out too; its total is of no use."""

    def weights(self, iteration: int) -> dict[str, float]:
        return dict.fromkeys(self.terms, 1.0)


@dataclass(frozen=True)
class Recorded:
    """A recording and our repetition of it."""

    arrays: dict[str, Any]
    model: AFANet  # with gradients
    step: AFAStep  # every term, the total of those that count
    cams: Cams  # with the affinity of the largest scale
    refined: Tensor
    propagated: Tensor
    spread: Tensor  # B,C+1,S,S scores with the low background, zero for absent classes


def recorded_weights(layout: dict[str, list[int]]) -> dict[str, Tensor]:
    """The deterministic weights of a recording, from names and shapes."""
    state: dict[str, Tensor] = {}
    for name, shape in layout.items():
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("running_mean"):
            state[name] = torch.zeros(shape)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape)
        elif len(shape) == 1:
            state[name] = 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
        elif shape:
            state[name] = math.prod(shape[1:]) ** -0.5 * noise
    return state


def recorded_experiment(arrays: dict[str, Any], overrides: dict[str, Any] | None = None) -> Experiment:
    """The experiment of a recording's settings: the preset of its dataset, with what the recording says."""
    meta = arrays["meta"]
    fields: dict[str, Any] = {
        "model.weights": "random",
        "model.dropout": 0.0,
        "model.drop_path": 0.0,
        "thresholds.background": meta["low"],
        "thresholds.foreground": meta["high"],
        "thresholds.score": meta["bkg"],
        "affinity.radius": meta["radius"],
        "train.crop": meta["S"],
        "train.batch_size": meta["B"],
    }
    preset = "afa-coco" if meta["num_classes"] == 81 else "afa"
    return cast(Experiment, resolve(preset, fields | (overrides or {}), "recording"))


def run_recorded(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> Recorded:
    """Repeat a recording's step, backward included. A term that does not count at its iteration is computed apart."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    meta = arrays["meta"] = json.loads(str(arrays["meta"]))
    experiment = recorded_experiment(arrays, overrides)
    model = AFANet(experiment.model, meta["num_classes"] - 1, compute=experiment.compute)
    model.load_state_dict(from_published(recorded_weights(meta["layout"])))
    model.to(device).train()
    named = {"view1": "images", "labels": "labels", "box": "boxes"}
    batch = {name: torch.from_numpy(arrays[recorded]) for name, recorded in named.items()}
    batch["view1"] = batch["view1"].to(device)
    step = AFAObjective(model, experiment)(batch, {}, meta["n_iter"])
    step.total.backward()
    objective = _EveryTerm(model, experiment)
    with torch.no_grad():
        whole = objective(batch, {}, meta["n_iter"])
        known = opening(objective, batch, meta["n_iter"], all_classes=True)
        cams = objective.class_maps(batch, whole.output, known.classes, with_affinity=True)
        matrix = objective.transition(cams)
        spread = torch.zeros(meta["B"], meta["num_classes"], meta["S"], meta["S"], device=device)
        for i, labels in enumerate(batch["labels"]):
            present = labels.nonzero()[:, 0]
            keys = torch.cat([present.new_zeros(1), present + 1])
            spread[i, keys] = objective.spread(cams.maps[i, present], matrix[i], cams.grid, known.background)
        refined, propagated = objective.refined(known, cams), objective.propagated(known, cams)
    terms = {name: step.terms.get(name, term) for name, term in whole.terms.items()}
    step = AFAStep(
        step.total, terms, step.images, whole.output, whole.cams, whole.affinity, whole.pairs, whole.seg_label
    )
    return Recorded(arrays, model, step, cams, refined, propagated, spread)


def compare(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> list[Row]:
    """Every recorded figure of the file at `path` against ours, made on a device."""
    found = run_recorded(path, overrides, device)
    meta = found.arrays["meta"]
    return [
        *loss_rows(meta["terms"], found.step),
        *_gradients(meta["grad_norms"], found.model),
        *_array_rows(found),
    ]


def _gradients(recorded: dict[str, float], model: AFANet) -> Iterable[Row]:
    """Gradient norms. A bias before batch normalisation has none: what is recorded of it is rounding."""
    least = 1e-5 * max(recorded.values())
    for row in gradient_rows(recorded, model, lambda names: names):
        if 0 < row.recorded < least:
            row = replace(row, error=abs(row.ours - row.recorded) / least)
        yield row


def _array_rows(found: Recorded) -> Iterable[Row]:
    arrays, step = found.arrays, found.step
    size = arrays["images"].shape[-2:]
    seg = F.interpolate(step.output.seg, size=size, mode="bilinear", align_corners=False)[..., ::4, ::4]
    assert step.affinity is not None and step.pairs is not None and found.cams.affinity is not None
    yield distance("cams", arrays["cams"], _as_recorded(found), CAM_TOLERANCE)
    for name, ours in (
        ("affinity", step.affinity),
        ("seg_logits", seg),
        ("cls_logits", step.output.cls),
    ):
        scale = float(np.abs(arrays[name]).max())
        yield distance(name, arrays[name] / scale, ours.detach() / scale, FEATURE_TOLERANCE)
    # Propagation reads the images' half alone; ours does not compute that of their flips.
    half = len(arrays["images"])
    for name, recorded, ours in (
        ("affinity_large", "affinity_large", found.cams.affinity),
        ("propagated_low", "propagated_low", found.spread[..., ::2, ::2]),
    ):
        if recorded in arrays:
            yield distance(name, arrays[recorded][:half], ours, FEATURE_TOLERANCE)
    for name, label in (
        ("refined", found.refined),
        ("propagated_label", found.propagated),
        ("affinity_label", step.pairs),
    ):
        if name in arrays:
            agreement = float((label.cpu().numpy() == arrays[name]).mean())
            yield Row(f"{name} agreement", 1.0, agreement, 1 - agreement, 1 - LABEL_AGREEMENT)


def _as_recorded(found: Recorded) -> Tensor:
    """CAMs of every class, or zero for absent ones where the recording has them so."""
    absent = found.arrays["labels"][:, :, None, None] == 0
    masked = not (found.arrays["cams"] * absent).any()
    maps = found.cams.maps.cpu()
    return maps * torch.from_numpy(found.arrays["labels"])[:, :, None, None] if masked else maps
