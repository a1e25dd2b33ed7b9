"""The experiment schema of FSR. Defaults are the published VOC recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import (
    CamConfig,
    ContrastModelConfig,
    EnergyConfig,
    Fraction,
    ParConfig,
    ProjectorConfig,
    Strict,
    ThresholdConfig,
    Weight,
    bounded,
)
from mcc_core.schedules import Cosine, Linear, Scheduled

Temperature = Annotated[Scheduled, bounded(1e-3)]


class ModelConfig(ContrastModelConfig):
    """Encoder and heads."""

    backbone: str = Field(
        "vit_base_patch16_224.orig_in21k_ft_in1k", description="a timm vision transformer; the default saw ImageNet-21k"
    )
    class_blocks: int = Field(2, ge=1, description="class-attention blocks, which aggregate patches into a class token")
    stochastic_depth: float = Field(
        0.1, ge=0, lt=1, description="probability that the last block's branches are left out; lower before it"
    )
    projector: ProjectorConfig = ProjectorConfig(out=4096)


class AugmentConfig(Strict):
    """Augmentation of the two views; both are drawn alike."""

    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = Field(
        (0.32, 1.0), description="range of the crop's share of the image"
    )
    jitter: float = Field(0.5, ge=0, le=1, description="probability that colours are changed")
    brightness: float = Field(0.4, ge=0, le=1, description="factor 1 +- this")
    contrast: float = Field(0.4, ge=0, le=1, description="factor 1 +- this")
    saturation: float = Field(0.2, ge=0, le=1, description="factor 1 +- this")
    hue: float = Field(0.1, ge=0, le=0.5, description="turned by up to this share of the circle")

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if self.area[0] > self.area[1]:
            raise ValueError(f"augment.area: {self.area[0]:g} must be at most {self.area[1]:g}")
        return self


class MaskConfig(Strict):
    """Blocks of view 2 that the student does not see."""

    block: int = Field(64, ge=1, description="side of a block in pixels")
    ratio: Fraction = Field(0.4, description="share of blocks that are masked, rounded up")
    uncertain_start: int | None = Field(
        4000,
        ge=0,
        description="uncertain blocks are masked first from this iteration on, any before (null: always any)",
    )
    low: Fraction = Field(0.2, description="a block is uncertain where its auxiliary CAM is above this")
    high: Fraction = Field(0.7, description="and below this")


class DistillConfig(Strict):
    """Self-distillation from a teacher that is a moving average of the student."""

    momentum: Fraction = Field(
        Cosine(schedule="cosine", start=0.9995, end=1.0), description="of the teacher's moving average"
    )
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = Field(
        Linear(schedule="linear", start=0.04, end=0.07, last=2499), description="after centring"
    )
    center_momentum: Fraction = Field(0.9, description="of the moving averages of the teacher's outputs")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms, and when they begin to count."""

    cls: Weight = 1.0
    cls_aux: Weight = 1.0
    fsr_class: Weight = Field(0.1, description="distillation of the class token")
    fsr_patch: Weight = Field(0.1, description="distillation of masked patches")
    ptc: Weight = Field(0.2, description="patch token contrast")
    seg: Weight = Field(0.1, description="segmentation")
    reg: Weight = Field(0.05, description="dense energy")
    seg_start: int = Field(2000, ge=0, description="seg and reg count after so many iterations")
    ptc_start: int = Field(0, ge=0, description="ptc counts after so many iterations")


class OptimConfig(shared.OptimConfig):
    """The optimiser and its learning rate, which decays after a linear warm-up."""

    weight_decay: float = Field(0.05, ge=0, description="none on biases, norms, positions, class and mask token")
    schedule: Literal["poly", "cosine"] = Field(
        "cosine", description="poly: a power of what is left of the run; cosine: half a cosine, constant before it"
    )
    decay_start: int = Field(1500, ge=0, description="cosine: iteration at which the decay begins")
    warmup_start: float = Field(0.1, ge=0)
    freeze_pos_embed: bool = False


class Experiment(shared.Experiment):
    """One validated configuration of FSR. With a seed it is a trial."""

    method: Literal["fsr"] = "fsr"
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    mask: MaskConfig = MaskConfig()
    distill: DistillConfig = DistillConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    energy: EnergyConfig = EnergyConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        if self.train.crop % self.mask.block:
            raise ValueError(f"mask.block ({self.mask.block}) must divide train.crop ({self.train.crop})")
        return self

    def backbone_args(self) -> dict[str, Any]:
        """What timm makes the encoder with: the table of positions is that of the crop."""
        own = {"img_size": self.train.crop, "drop_path_rate": self.model.stochastic_depth}
        return own | self.model.backbone_args
