"""The experiment schema of CLIMS. Defaults are the recipe for VOC, as far as it is known."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.clip.config import ClipNetworkConfig
from mcc_core.config import Fraction, ParConfig, Weight
from mcc_core.networks.resnet_config import (
    LongSideConfig,
    ResNetCamConfig,
    ResNetComputeConfig,
    ResNetConfig,
    ResNetThresholds,
)


class MatchingConfig(ClipNetworkConfig):
    """The frozen CLIP that images and texts are matched by, and the texts."""

    model: str = Field("ViT-B-32-quickgelu", description="name of an open_clip network with a vision transformer")
    prompts: str = Field("clims", description="clims or clims-voc, which are shipped, or a YAML file")


class ThresholdConfig(ResNetThresholds):
    """Thresholds on min-max normalised maps."""

    score: Fraction = Field(0.15, description="background threshold when maps are scored as segmentations")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="of the linear classifier that the scores need; features get none of it")
    object_text: Weight = Field(10.0, description="what a class's map shows matches the class")
    background_text: Weight = Field(24.0, description="what it hides does not match the class")
    companion_text: Weight = Field(1.0, description="what it shows does not match what is often seen with the class")
    area: Weight = Field(0.2, description="mean of all maps")


class OptimConfig(shared.OptimConfig):
    """SGD with a polynomial rate."""

    kind: Literal["adamw", "adam", "sgd"] = "sgd"
    lr: float = Field(2.5e-4, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for maps and classifier")
    weight_decay: float = Field(1e-4, ge=0)
    nesterov: bool = False
    warmup: int = Field(0, ge=0, description="iterations")


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(9915, ge=1, description="published: 15 epochs; here of 661")
    batch_size: int = Field(16, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(512, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of CLIMS. With a seed it is a trial."""

    method: Literal["clims"] = "clims"
    augment: LongSideConfig = LongSideConfig()
    model: ResNetConfig = ResNetConfig()
    clip: MatchingConfig = MatchingConfig()
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
