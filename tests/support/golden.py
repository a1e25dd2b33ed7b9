"""Compare one training step with a recorded step of the published code.

A recording is an `.npz` with the inputs and results of one step (tests/data/golden/README.md lists the arrays);
its weights are a function of the tensor names. `python tests/support/golden.py FILE...` prints both sides.
MCC's comparison is here; that of any other method is `compare(path)` of `golden_<method>.py`.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.experiment_files import merge
from mcc_core.methods.mcc.config import Experiment
from mcc_core.methods.mcc.network import MCCNet
from mcc_core.methods.mcc.objective import MCCObjective, MCCStep
from mcc_core.networks.published import from_published
from mcc_core.validation import validate

HOST = torch.device("cpu")
LOSS_TOLERANCE = 1e-4  # relative
GRADIENT_TOLERANCE = 1e-3  # relative
CAM_TOLERANCE = 2e-3  # absolute
FEATURE_TOLERANCE = 1e-3  # relative to the largest recorded value
LABEL_AGREEMENT = 0.999  # fraction of equal pixels


# An array that only the recordings of one method have, where their settings do not name the method.
_TELLTALE = {"positions": "toco", "affinity": "afa", "noise": "fsr", "masks": "mcc"}


@dataclass(frozen=True)
class Row:
    """One comparison: what, the recorded and our figure, how far apart, and how far is allowed."""

    name: str
    recorded: float
    ours: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def method_of(path: Path) -> str:
    """The method whose step the file at `path` has."""
    with np.load(path) as archive:
        named = json.loads(str(archive["meta"])).get("method")
        found = [method for array, method in _TELLTALE.items() if array in archive.files]
    return (named or found[0]).lower()


def compare(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> list[Row]:
    """Every recorded figure of the file at `path` against ours, made on a device."""
    method = method_of(path)
    found = compare_mcc if method == "mcc" else importlib.import_module(f"golden_{method}").compare
    return found(path, overrides, device)


def recorded_weights(layout: dict[str, list[int]]) -> dict[str, Tensor]:
    """The deterministic weights of a recording, in the published names, from names and shapes."""
    state: dict[str, Tensor] = {}
    for name, shape in layout.items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight") or "norm1.weight" in name or "norm2.weight" in name:
            state[name] = 1 + 0.1 * noise
        elif name.endswith("weight_g"):
            state[name] = torch.ones(shape)
        else:
            fan = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
            small = len(shape) <= 1 or "embed" in name or "token" in name
            state[name] = (0.02 if small else fan**-0.5) * noise
    for name in list(state):
        if name.startswith("proj_head_t."):
            state[name] = state[name.replace("proj_head_t.", "proj_head.")].clone()
    return state


def published_layout(width: int, num_classes: int, depth: int = 12) -> dict[str, list[int]]:
    """Names and shapes of a published checkpoint on a DeiT/16 of `width` with `num_classes` classes, background in."""
    layout: dict[str, list[int]] = {
        "encoder.cls_token": [1, 1, width],
        "encoder.pos_embed": [1, 197, width],
        "encoder.patch_embed.proj.weight": [width, 3, 16, 16],
        "encoder.patch_embed.proj.bias": [width],
    }
    for i in range(depth):
        block = f"encoder.blocks.{i}."
        for norm in ("norm1", "norm2"):
            layout |= {f"{block}{norm}.weight": [width], f"{block}{norm}.bias": [width]}
        for layer, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            layout |= {f"{block}{layer}.weight": [outputs, inputs], f"{block}{layer}.bias": [outputs]}
    layout |= {"encoder.norm.weight": [width], "encoder.norm.bias": [width]}
    for head in ("proj_head", "proj_head_t"):
        for layer, shape in (("0", [2048, width]), ("2", [2048, 2048]), ("4", [256, 2048])):
            layout |= {f"{head}.mlp.{layer}.weight": shape, f"{head}.mlp.{layer}.bias": shape[:1]}
        layout |= {f"{head}.last_layer.weight_g": [1024, 1], f"{head}.last_layer.weight_v": [1024, 256]}
    return layout | {
        "decoder.conv6.weight": [512, width, 3, 3],
        "decoder.conv7.weight": [512, 512, 3, 3],
        "decoder.conv8.weight": [num_classes, 512, 1, 1],
        "classifier.weight": [num_classes - 1, width, 1, 1],
        "aux_classifier.weight": [num_classes - 1, width, 1, 1],
    }


_BACKBONES = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}


def recorded_experiment(meta: dict[str, Any], width: int, overrides: dict[str, Any] | None = None) -> Experiment:
    """The experiment of a recording's settings; its auxiliary layer counts blocks from 0, or from the end."""
    coco = meta["num_classes"] == 81
    aux = meta["aux_layer"]
    fields = {
        "model": {
            "backbone": _BACKBONES[width],
            "weights": "random",
            "aux_block": 12 + aux + 1 if aux < 0 else aux + 1,
        },
        "thresholds": {"background": meta["low"], "foreground": meta["high"], "score": meta["bkg"]},
        "cam": {
            "positiveness_aux_until": None if coco else 12_000,
            "pseudo_label_aux_until": 12_000 if coco else 0,
        },
        "loss": {"seg_start": 8000 if coco else 2000},
        "train": {"iterations": 80_000 if coco else 20_000, "crop": meta["S"], "batch_size": meta["B"]},
    }
    return validate(Experiment, merge(fields, overrides or {}, "recording"), "recording")


def run_recorded(
    path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST
) -> tuple[dict[str, Any], MCCStep, MCCNet]:
    """Repeat a recording's step, backward included. Returns its arrays, our step and the network with gradients."""
    with np.load(path) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    meta = arrays["meta"] = json.loads(str(arrays["meta"]))
    width = arrays["fmap"].shape[1]
    experiment = recorded_experiment(meta, width, overrides)
    model = MCCNet(experiment.model, meta["num_classes"] - 1, compute=experiment.compute)
    model.load_state_dict(from_published(recorded_weights(published_layout(width, meta["num_classes"]))))
    model.encoder.vit.pos_embed.requires_grad_(False)
    model.to(device)
    named = {"view1": "images", "view2": "view2", "local": "local", "labels": "labels", "box": "boxes"}
    batch = {name: torch.from_numpy(arrays[recorded]) for name, recorded in named.items()}
    batch |= {name: batch[name].to(device) for name in ("view1", "view2", "local")}
    masks = {"masks": torch.from_numpy(arrays["masks"])}
    step = MCCObjective(model, experiment)(batch, masks, meta["n_iter"], all_classes=True)
    step.total.backward()
    return arrays, step, model


def compare_mcc(path: Path, overrides: dict[str, Any] | None = None, device: torch.device = HOST) -> list[Row]:
    """Every recorded figure of MCC's step at `path` against ours, made on a device."""
    arrays, step, model = run_recorded(path, overrides, device)
    return [
        *loss_rows(arrays["meta"]["terms"], step),
        *gradient_rows(arrays["meta"]["grad_norms"], model, from_published),
        *_array_rows(arrays, step),
    ]


def loss_rows(recorded: Mapping[str, float], step: Any) -> Iterable[Row]:
    """Recorded losses by term, `total` among them, against those of a step."""
    ours = {name: term.item() for name, term in step.terms.items()} | {"total": step.total.item()}
    for name, value in recorded.items():
        yield Row(f"loss {name}", value, ours[name], abs(ours[name] - value) / max(abs(value), 1e-12), LOSS_TOLERANCE)


def gradient_rows(
    recorded: Mapping[str, float], model: torch.nn.Module, from_published: Callable[[dict[str, Tensor]], Any]
) -> Iterable[Row]:
    """Recorded gradient norms by published parameter name, -1 for none, against those of the model's parameters.

    No gradient counts as one of 0. A name that `from_published` leaves out is not compared.
    """
    names = from_published({name: torch.tensor(i) for i, name in enumerate(recorded)})
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = list(recorded.values())
    for name, position in names.items():
        value = values[int(position)]
        gradient = gradients.get(name)
        ours = -1.0 if gradient is None else gradient.norm().item()
        yield Row(
            f"gradient {name}",
            value,
            ours,
            abs(max(ours, 0.0) - max(value, 0.0)) / max(value, 1e-12),
            GRADIENT_TOLERANCE,
        )


def _array_rows(arrays: dict[str, Any], step: MCCStep) -> Iterable[Row]:
    size = arrays["images"].shape[-2:]
    seg = F.interpolate(step.output.seg, size=size, mode="bilinear", align_corners=False)[..., ::4, ::4]
    contrast, labels = step.contrast, {"refined": step.refined, "aux_label": step.affinity_label}
    assert contrast is not None and step.refined is not None and step.affinity_label is not None
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
    unequal = float((contrast.flags.cpu() != torch.from_numpy(arrays["flags"])).sum())
    yield Row("flags unequal", 0.0, unequal, unequal, 0)
    for name, label in labels.items():
        assert label is not None
        agreement = (label.cpu().numpy() == arrays[name]).mean()
        yield Row(f"{name} agreement", 1.0, float(agreement), float(1 - agreement), 1 - LABEL_AGREEMENT)


def distance(name: str, recorded: np.ndarray, ours: Tensor, tolerance: float) -> Row:
    """The largest absolute difference of two arrays, at the place where it is."""
    theirs, ours = torch.from_numpy(recorded.astype(np.float32)), ours.cpu()
    gap = (ours - theirs).abs()
    worst = int(gap.argmax())
    return Row(name, float(theirs.flatten()[worst]), float(ours.flatten()[worst]), float(gap.max()), tolerance)


def main(paths: list[str]) -> int:
    """Print every comparison of every file; 1 if any is out of tolerance."""
    failed = 0
    for path in map(Path, paths):
        print(f"{path.name}\n{'':42}{'recorded':>14}{'ours':>14}{'error':>11}{'allowed':>10}")
        rows = compare(path)
        for row in rows:
            verdict = "" if row.passed else "  FAILED"
            print(f"{row.name:42}{row.recorded:14.6g}{row.ours:14.6g}{row.error:11.2e}{row.tolerance:10.0e}{verdict}")
        failed += sum(not row.passed for row in rows)
        print(f"{len(rows)} comparisons, {sum(not row.passed for row in rows)} out of tolerance")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
