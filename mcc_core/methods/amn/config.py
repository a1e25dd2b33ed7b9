"""The experiment schema of AMN. Defaults are the published VOC recipe, its epochs of 661 iterations counted out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import Fraction, LabelsConfig, ParConfig, Weight
from mcc_core.networks.resnet_config import (
    ResNetCamConfig,
    ResNetComputeConfig,
    ResNetConfig,
    ResNetThresholds,
    ScaleConfig,
)


class ModelConfig(ResNetConfig):
    """A ResNet at stride 16 and a classifier of its pixels."""

    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (6, 12, 18, 24), min_length=1, description="of the 3x3 convolutions whose sum classifies pixels"
    )
    conditioned: bool = Field(True, description="features are scaled by a linear function of the image's labels")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the features")


class ThresholdConfig(ResNetThresholds):
    """Thresholds on min-max normalised maps."""

    background: Fraction = Field(0.15, description="at or below is background")
    foreground: Fraction = Field(0.45, description="above is foreground; between, open")
    score: Fraction = Field(0.25, description="background threshold when maps are scored as segmentations")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="of the linear classifier that predictions need; features get none of it")
    pcl: Weight = Field(1.0, description="balanced cross entropy of the pixels")
    smoothing: Fraction = Field(0.4, description="share of a pixel's target that all other labels have")


class OptimConfig(shared.OptimConfig):
    """Adam at a constant rate."""

    kind: Literal["adamw", "adam", "sgd"] = "adam"
    lr: float = Field(5e-6, gt=0)
    head_lr_scale: float = Field(20.0, gt=0, description="factor for everything but the backbone")
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "constant"
    warmup: int = Field(0, ge=0, description="iterations")


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(3305, ge=1, description="published: 5 epochs of 661")
    batch_size: int = Field(16, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(512, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of AMN. With a seed it is a trial."""

    method: Literal["amn"] = "amn"
    labels: LabelsConfig = LabelsConfig()
    augment: ScaleConfig = ScaleConfig()
    model: ModelConfig = ModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    cam: ResNetCamConfig = ResNetCamConfig()
    par: ParConfig = Field(default_factory=ParConfig, description="of the protocol refined")
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ResNetComputeConfig = ResNetComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        return self
