"""The schema of a sweep over evaluation parameters of a finished trial."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mcc_core.config import Strict
from mcc_core.evaluation.protocols import ProtocolName
from orchestrator.spec.sweep_file import HeatMap, Slug


class PosthocFile(Strict):
    """A sweep over the parameters of one protocol (`EvaluationConfig`)."""

    name: Slug
    description: str = ""
    of: str = Field(description="SWEEP/TRIAL, whose best checkpoint is scored, or a checkpoint file")
    split: str = "val"
    protocol: ProtocolName
    set: dict[str, Any] = Field(default_factory=dict, description="dotted parameters fixed for every point")
    parameters: dict[str, list[Any]] = Field(min_length=1, description="dotted parameter to its values; all pairs")
    metric: str = Field("miou", description="miou, pixel_accuracy or iou/CLASS")
    mode: Literal["max", "min"] = "max"
    heatmap: HeatMap | None = None
    limit: int | None = Field(None, ge=1, description="the first images only")
    cache_gb: float = Field(4.0, ge=0, description="disk for what the network said, kept for further such sweeps")
