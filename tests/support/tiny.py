"""The smallest experiment and sweep that still train for real: seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Plan, plan_sweep
from orchestrator.settings import Settings
from orchestrator.spec.sweep_file import SweepFile

TINY: dict[str, Any] = {
    "data.shapes_train": 8,
    "data.shapes_val": 4,
    "data.shapes_size": 48,
    "model.backbone_args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "model.aux_block": 1,
    "model.decoder_channels": 8,
    "model.projector.hidden": 16,
    "model.projector.bottleneck": 8,
    "model.projector.out": 8,
    "cam.scales": [1.0],
    "par.iterations": 1,
    "loss.seg_start": 1,
    "train.iterations": 4,
    "train.batch_size": 2,
    "train.crop": 32,
    "train.log_every": 1,
    "train.eval_every": 2,
    "train.panels": 1,
}


def tiny_sweep(name: str = "tiny", **fields: Any) -> SweepFile:
    """A sweep on the smallest experiment; `set` is added to it, other fields are the sweep's."""
    varied = {*fields.get("parameters", ()), *fields.get("derived", ())}
    fixed = {key: value for key, value in TINY.items() if key not in varied} | fields.get("set", {})
    return SweepFile.model_validate({"name": name, "base": "tiny", **fields, "set": fixed})


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Settings with everything below a folder."""
    return Settings.at(folder / "home", **changes)


def tiny_plan(settings: Settings, **fields: Any) -> Plan:
    """The plan of a sweep on the smallest experiment, without an estimate of its time."""
    return plan_sweep(tiny_sweep(**fields), "s.yaml", settings=settings, estimate=False)
