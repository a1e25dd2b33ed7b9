"""The experiment schema of ReCAM. Defaults are the published VOC recipe, its epochs of 661 iterations counted out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import ParConfig, Weight
from mcc_core.networks.resnet_config import (
    LongSideConfig,
    ResNetCamConfig,
    ResNetComputeConfig,
    ResNetConfig,
    ResNetThresholds,
)


class CamConfig(ResNetCamConfig):
    """Multi-scale class activation maps."""

    weights: Literal["product", "classifier", "predictor"] = Field(
        "product",
        description="what features become maps by, once recam counts: the classifier's weights, those of the softmax "
        "predictor, or their elementwise product",
    )


class LossConfig(shared.LossConfig):
    """Weights of the loss terms, and their stages."""

    cls: Weight = Field(1.0, description="multi-label soft margin")
    recam: Weight = Field(1.0, description="softmax cross entropy of features pooled by each class's map")
    recam_start: int = Field(3305, ge=0, description="recam counts from this iteration (0-based); published: 5 epochs")


class OptimConfig(shared.OptimConfig):
    """SGD with a polynomial rate for the classification, and another for the fine-tuning."""

    kind: Literal["adamw", "adam", "sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for the classifier, before the restart")
    predictor_lr_scale: float = Field(
        10.0, gt=0, description="factor for the softmax predictor; after the restart the classifier has the base rate"
    )
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(
        1e-4, gt=0, lt=1, description="the published code hands its weight decay over as the momentum; 0.9 is as usual"
    )
    restart: int | None = Field(3305, ge=1, description="iteration at which fine-tuning begins, from restart_lr")
    restart_lr: float = Field(5e-5, gt=0)
    nesterov: bool = False
    warmup: int = Field(0, ge=0, description="iterations")


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(5949, ge=1, description="published: 5 + 4 epochs of 661")
    batch_size: int = Field(16, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(512, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of ReCAM. With a seed it is a trial."""

    method: Literal["recam"] = "recam"
    augment: LongSideConfig = LongSideConfig()
    model: ResNetConfig = ResNetConfig()
    thresholds: ResNetThresholds = ResNetThresholds()
    cam: CamConfig = CamConfig()
    par: ParConfig = Field(default_factory=ParConfig, description="of the protocol refined")
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ResNetComputeConfig = ResNetComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        return self
