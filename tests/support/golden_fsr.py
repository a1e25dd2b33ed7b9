"""Compare a step of FSR with a recorded step of its published code."""

from __future__ import annotations

import json
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
    LOSS_TOLERANCE,
    Row,
    distance,
    gradient_rows,
    loss_rows,
    recorded_weights,
)
from torch import Tensor

from mcc_core.experiment_files import resolve
from mcc_core.methods.fsr.config import Experiment
from mcc_core.methods.fsr.network import FSRNet
from mcc_core.methods.fsr.objective import FSRObjective, FSRStep, Masking
from mcc_core.methods.fsr.published import own_names
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.schedules import value_at

_BACKBONES = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}


class _EveryTerm(FSRObjective):
    """Computes what the schedule leaves out too; its total is of no use."""

    def weights(self, iteration: int) -> dict[str, float]:
        return dict.fromkeys(self.terms, 1.0)


@dataclass(frozen=True)
class Recorded:
    """A recording and our repetition of it."""

    arrays: dict[str, Any]
    experiment: Experiment
    model: FSRNet  # with gradients, centres after the step
    step: FSRStep  # every term, the total of those that count
    student_class: Tensor  # 2B,E
    teacher_class: Tensor
    cams_aux_view2: Tensor  # B,C,S,S


def recorded_experiment(arrays: dict[str, Any], overrides: dict[str, Any] | None = None) -> Experiment:
    """The published recipe, VOC's or COCO's, that the recorded total fits, with what the recording says.

    The published script for COCO is of another state of the code than the network, so that with COCO's classes either
    may have been recorded, and the share of masked blocks is the recorded one.
    """
    meta = arrays["meta"]
    depth = len({name.split(".")[2] for name in meta["layout"] if name.startswith("encoder.blocks.")})
    fields: dict[str, Any] = {
        "model.backbone": meta.get("backbone", _BACKBONES.get(arrays["fmap"].shape[1])),
        "model.backbone_args": {"depth": depth},
        "model.weights": "random",
        "model.aux_block": depth - 2,
        "model.class_blocks": len({n.split(".")[2] for n in meta["layout"] if n.startswith("encoder.cls_blocks.")}),
        "model.stochastic_depth": 0,
        "model.projector.out": meta["out_dim"],
        "thresholds.background": meta["low"],
        "thresholds.foreground": meta["high"],
        "mask.block": meta["block"],
        "mask.uncertain_start": 0 if meta["strategy"] == "uncertain" else None,
        "distill.teacher_temperature": meta["teacher_temperature"],
        "train.iterations": meta["max_iters"],
        "train.crop": meta["S"],
        "train.batch_size": meta["B"],
    }
    recipes = ["fsr"]
    if meta["num_classes"] == 81:
        fields["mask.ratio"] = float(arrays["mask"].mean())
        recipes.append("fsr-coco")
    found = [cast(Experiment, resolve(recipe, fields | (overrides or {}), "recording")) for recipe in recipes]
    return min(found, key=lambda experiment: abs(_total(experiment, meta) - meta["terms"]["total"]))


def _total(experiment: Experiment, meta: dict[str, Any]) -> float:
    """The recorded terms summed with an experiment's weights."""
    loss, iteration = experiment.loss, meta["n_iter"]
    off = {"seg": loss.seg_start, "reg": loss.seg_start, "ptc": loss.ptc_start}
    return sum(
        value_at(getattr(loss, term), iteration, experiment.train.iterations) * meta["terms"][term]
        for term in FSRObjective.terms
        if iteration >= off.get(term, 0)
    )


def state_of(layout: dict[str, list[int]], model: FSRNet) -> dict[str, Tensor]:
    """The recording's tensors: student, teacher and centres before the step."""
    student = own_names(recorded_weights(layout))
    teachers = recorded_weights({f"teacher.{name}": shape for name, shape in layout.items()})
    teacher = own_names({name.removeprefix("teacher."): tensor for name, tensor in teachers.items()})
    own = model.state_dict()
    state = student | {f"teacher.{n}": t for n, t in teacher.items() if f"teacher.{n}" in own}
    for kind in ("class", "patch"):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{kind}_center".encode()))
        state[f"centers.{kind}_center"] = 0.05 * torch.randn(len(own["centers.class_center"]), generator=generator)
    return state


def run_recorded(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> Recorded:
    """Repeat a recording's step, backward included. A term that does not count there is computed apart."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    meta = arrays["meta"] = json.loads(str(arrays["meta"]))
    experiment = recorded_experiment(arrays, overrides)
    model = FSRNet(experiment, meta["num_classes"] - 1, compute=experiment.compute)
    model.load_state_dict(state_of(meta["layout"], model))
    model.to(device)
    batch = {name: torch.from_numpy(arrays[name]) for name in ("view1", "view2", "labels")}
    batch |= {name: batch[name].to(device) for name in ("view1", "view2")}
    batch["box"] = torch.tensor([[0, meta["S"], 0, meta["S"]]] * meta["B"])
    side = meta["S"] // meta["block"]
    draws = {"noise": torch.from_numpy(arrays["noise"]).unflatten(1, (side, side))}
    objective = FSRObjective(model, experiment)
    step = objective(batch, draws, meta["n_iter"], all_classes=True)
    step.total.backward()
    with torch.no_grad():
        if len(step.terms) < len(FSRObjective.terms):
            whole = _EveryTerm(model, experiment)(batch, draws, meta["n_iter"], all_classes=True)
            step = replace(whole, total=step.total)
        masking = cast(Masking, step.masking)
        nothing = torch.zeros_like(masking.mask)
        nowhere, view1 = nothing.flatten().nonzero()[:, 0], batch["view1"]
        first = model.with_masked(view1, view1, nothing, nowhere, cls=True, patches=False).distilled_class
        student = torch.cat([cast(Tensor, first), cast(Tensor, step.output.distilled_class)])
        teacher = torch.cat([model.teacher(batch[v], batch["view2"])[0] for v in ("view1", "view2")])
        cams = multi_scale_maps(model, batch["view2"], experiment.cam.scales)["aux_cam"]
        model.centers.update(experiment.distill.center_momentum)  # type: ignore[arg-type]
    return Recorded(arrays, experiment, model, step, student, teacher, cams)


def compare(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> list[Row]:
    """Every recorded figure of the file at `path` against ours, made on a device."""
    found = run_recorded(path, overrides, device)
    meta = found.arrays["meta"]
    momentum = FSRObjective(found.model, found.experiment).at(found.experiment.distill.momentum, meta["n_iter"])
    error = abs(momentum - meta["momentum_next"])
    return [
        *loss_rows(meta["terms"], found.step),
        *_gradients(meta["grad_norms"], found.model),
        Row("momentum", meta["momentum_next"], momentum, error, LOSS_TOLERANCE * (1 - 0.9995)),
        *_array_rows(found),
    ]


def _gradients(recorded: dict[str, float], model: FSRNet) -> Iterable[Row]:
    """A key's bias shifts all scores of a softmax alike: its gradient is 0 but for rounding, which is not compared."""
    for row in gradient_rows(recorded, model, own_names):
        rounding = row.name.endswith("attn.k.bias") and max(row.recorded, row.ours) < 1e-8
        yield replace(row, error=0.0) if rounding else row


def _array_rows(found: Recorded) -> Iterable[Row]:
    arrays, step = found.arrays, found.step
    size = arrays["view1"].shape[-2:]
    seg = F.interpolate(step.output.seg, size=size, mode="bilinear", align_corners=False)[..., ::4, ::4]
    cams, masking, refined, affinity_label = step.cams, step.masking, step.refined, step.affinity_label
    assert cams is not None and masking is not None and refined is not None and affinity_label is not None
    for name, ours in (("cams", cams[0]), ("cams_aux", cams[1]), ("cams_aux_view2", found.cams_aux_view2)):
        kept = arrays.get("cam_classes", slice(None))
        yield distance(name, arrays[name], ours[:, kept], CAM_TOLERANCE)
    centers = found.model.centers
    for name, ours in (
        ("fmap", step.output.features.patches),
        ("seg_logits", seg),
        ("student_class", found.student_class),
        ("teacher_class", found.teacher_class),
        ("cls_logits", step.output.cls),
        ("cls_aux_logits", step.output.cls_aux),
        ("class_center", centers.class_center[None]),
        ("patch_center", centers.patch_center.expand(arrays["patch_center"].shape)),
    ):
        scale = float(np.abs(arrays[name]).max())
        yield distance(name, arrays[name] / scale, ours.detach() / scale, FEATURE_TOLERANCE)
    unequal = float((masking.mask.cpu() != torch.from_numpy(arrays["mask"])).sum())
    yield Row("mask unequal", 0.0, unequal, unequal, 0)
    for name, ours in (("refined", refined), ("aux_label", affinity_label)):
        agreement = float((ours.cpu().numpy() == arrays[name]).mean())
        yield Row(f"{name} agreement", 1.0, agreement, 1 - agreement, 1 - LABEL_AGREEMENT)
