"""The experiment schema of ToCo. Defaults are the published VOC recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import (
    AugmentConfig,
    ContrastModelConfig,
    EnergyConfig,
    Fraction,
    ParConfig,
    Strict,
    Weight,
    bounded,
)
from mcc_core.schedules import Scheduled


class ThresholdConfig(shared.ThresholdConfig):
    """Thresholds on min-max normalised CAMs and on local crops."""

    positiveness: Annotated[Scheduled, bounded(0.0, 2.0)] = Field(
        0.2,
        description="a local crop whose mean level (0 background, 1 uncertain, 2 foreground) exceeds it is positive",
    )


class CropConfig(Strict):
    """Local crops, drawn where the auxiliary CAM of view 1 is uncertain or background."""

    size: int = Field(96, ge=1, description="side of a crop in pixels")
    views: int = Field(8, ge=1, description="crops per image")

    def positions(self, side: int) -> int:
        """Places of a crop along a side of so many pixels: its middle keeps half a crop from both ends."""
        return side - 2 * (self.size // 2)


class ContrastConfig(Strict):
    """Class token contrast (section 3.3): InfoNCE of global queries against global and local class tokens."""

    temperature: Annotated[Scheduled, bounded(1e-3)] = Field(0.5, description="tau")
    momentum: Fraction = Field(0.9, description="of the projector's moving average")
    epsilon: float = Field(1e-4, gt=0)
    empty_term: bool = Field(True, description="the published code's extra log(1 + negatives) term per query")


class CamConfig(shared.CamConfig):
    """Multi-scale class activation maps and which of them the pseudo-label reads."""

    pseudo_label_aux_until: int | None = Field(
        0, ge=0, description="the pseudo-label reads the auxiliary CAM before this iteration (null: always)"
    )


class LossConfig(shared.LossConfig):
    """Weights of the loss terms, and when they begin to count."""

    cls: Weight = 1.0
    cls_aux: Weight = 1.0
    ptc: Weight = Field(0.2, description="patch token contrast")
    ctc: Weight = Field(0.5, description="class token contrast")
    seg: Weight = Field(0.1, description="segmentation")
    reg: Weight = Field(0.05, description="dense energy")
    seg_start: int = Field(2000, ge=0, description="seg and reg count after this iteration")
    contrast_start: int | None = Field(
        None, ge=0, description="ptc and ctc count after this iteration (null: from the first)"
    )
    ptc_form: Literal["published", "equation"] = Field(
        "published",
        description="published: half the mean absolute cosines; equation: mean cosines without halves, absolute value, "
        "or the one added to the number of pairs",
    )


class Experiment(shared.Experiment):
    """One validated configuration of ToCo. With a seed it is a trial."""

    method: Literal["toco"] = "toco"
    augment: AugmentConfig = AugmentConfig()
    model: ContrastModelConfig = ContrastModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    crops: CropConfig = CropConfig()
    contrast: ContrastConfig = ContrastConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    energy: EnergyConfig = EnergyConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        side = self.crops.positions(self.train.crop)
        if side < 1 or side * side < self.crops.views:
            raise ValueError(
                f"crops.size ({self.crops.size}) leaves no {self.crops.views} places for local crops in "
                f"train.crop ({self.train.crop})"
            )
        return self
