"""Short trainings in this process: each method at its smallest size, and the losses of every iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small import SMALL
from small_slrnet import SMALL_SLRNET
from tiny_clip import SIZES

from mcc_core.config import Experiment
from mcc_core.data.index import DataIndex
from mcc_core.experiment_files import resolve
from mcc_core.training.engine import Callbacks, StepRecord, train

_PROJECTOR: dict[str, Any] = {
    "model.projector.hidden": 16,
    "model.projector.bottleneck": 8,
    "model.projector.out": 12,
    "model.decoder_channels": 8,
    "par.iterations": 1,
}
RESNET: dict[str, Any] = {k: v for k, v in SMALL.items() if not k.startswith(("model.", "loss."))} | {
    "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    "par.iterations": 1,
}
# Preset and fields of each method: six iterations, evaluated and saved after three, every term in the second half.
SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "mcc": ("tiny", SMALL | _PROJECTOR),
    "toco": ("toco-tiny", SMALL | _PROJECTOR | {"crops.size": 16, "crops.views": 2}),
    "afa": (
        "afa-tiny",
        {k: v for k, v in SMALL.items() if not k.startswith("model.")}
        | {"loss.propagation_start": 3, "model.dropout": 0.1, "model.drop_path": 0.1},
    ),
    "slrnet": ("slrnet-tiny", SMALL_SLRNET),
    "recam": ("recam-tiny", RESNET | {"loss.recam_start": 2, "optim.restart": 2}),
    "amn": ("amn-tiny", RESNET | {"model.frozen": True}),
    "irn": (
        "irn-tiny",
        RESNET | {"model.frozen": True, "relations.radius": 3, "walk.radius": 3, "walk.log_steps": 2},
    ),
    "psa": (
        "psa-tiny",
        RESNET
        | {"model.frozen": True, "model.channels": [4, 4, 4], "relations.radius": 3}
        | {"walk.radius": 3, "walk.log_steps": 2},
    ),
    "clims": (
        "clims",
        RESNET
        | {"data.name": "shapes", "data.train_split": "train", "data.val_split": "val", "train.loader_workers": 0}
        | {"model.weights": "random", "compute.augmentation": "loader", "augment.long_side": [40, 56]}
        | {"clip.model_args": SIZES, "clip.weights": "random", "clip.prompts": "clims"},
    ),
    "segmentation": (
        "segmentation-tiny",
        {k: v for k, v in SMALL.items() if k.startswith(("train.", "data."))}
        | {"model.backbone_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "stem_width": 8}}
        | {"model.dilations": [1, 2], "loss.seg": {"schedule": "step", "values": [0, 1], "at_iterations": [1]}},
    ),
    "fsr": ("fsr-tiny", SMALL | _PROJECTOR | {"mask.uncertain_start": 3}),
    "mctformer": (
        "mctformer-tiny",
        {k: v for k, v in SMALL.items() if k not in ("model.aux_block", "loss.seg_start")}
        | {"augment.resize": 40, "model.stochastic_depth": 0.1, "maps.affinity": True},
    ),
}


def smallest(method: str, **fields: Any) -> Experiment:
    """A method's smallest experiment; `fields` are dotted."""
    preset, small = SMALLEST[method]
    return resolve(preset, small | fields)


class Curve(Callbacks):
    """The losses of each iteration, and the checkpoints."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}
        self.files: list[Path] = []

    def on_step(self, record: StepRecord) -> None:
        self.losses[record.iteration] = {k: v for k, v in record.metrics.items() if k != "images_per_second"}

    def on_checkpoint(self, iteration: int, file: Path, sha256: str) -> None:
        self.files.append(file)


def trained(experiment: Experiment, index: DataIndex, work: Path, **options: Any) -> Curve:
    """Train on the CPU with seed 0."""
    curve = Curve()
    train(experiment, 0, index, device=torch.device("cpu"), workdir=work, callbacks=curve, **options)
    return curve
