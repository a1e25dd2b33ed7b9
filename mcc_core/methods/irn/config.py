"""The experiment schema of IRN. Defaults are the published VOC recipe, its epochs of 330 iterations counted out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import Fraction, LabelsConfig, ParConfig, Strict, Weight
from mcc_core.networks.resnet_config import (
    ResNetCamConfig,
    ResNetComputeConfig,
    ResNetConfig,
    ResNetThresholds,
    ScaleConfig,
)


class ModelConfig(ResNetConfig):
    """A ResNet at stride 16, and two branches on all of its stages."""

    frozen: bool = Field(
        True, description="the backbone stays as it came; false: it learns to classify, as random weights must"
    )
    boundary_channels: int = Field(32, ge=4, multiple_of=4, description="of each stage in the boundary branch")
    displacement_channels: int = Field(256, ge=32, multiple_of=32, description="of the displacement branch")


class RelationsConfig(Strict):
    """Which pairs of pixels are learned from."""

    radius: int = Field(10, ge=2, description="distance below which pixels are a pair, in cells of 4 pixels")


class WalkConfig(Strict):
    """The random walk that spreads class maps."""

    radius: int = Field(5, ge=2, description="distance below which a step leads, in cells of 4 pixels")
    power: float = Field(10.0, gt=0, description="beta: affinities are raised to it")
    log_steps: int = Field(8, ge=0, le=12, description="the walk has 2 to this power steps")


class ThresholdConfig(ResNetThresholds):
    """Thresholds on min-max normalised maps."""

    score: Fraction = Field(0.28, description="background threshold when maps are scored as segmentations")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="of the linear classifier that the scores need; the branches get none of it")
    alike: Weight = Field(0.5, description="affinity of pairs of one class")
    unlike: Weight = Field(0.5, description="affinity of pairs of different classes")
    foreground: Weight = Field(0.5, description="displacement of pairs of one foreground class")
    background: Weight = Field(0.5, description="displacement of background pairs")


class OptimConfig(shared.OptimConfig):
    """SGD with a polynomial rate."""

    kind: Literal["adamw", "adam", "sgd"] = "sgd"
    lr: float = Field(0.1, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for displacement branch and classifier")
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(
        1e-4, gt=0, lt=1, description="the published code hands its weight decay over as the momentum; 0.9 is as usual"
    )
    nesterov: bool = False
    warmup: int = Field(0, ge=0, description="iterations")


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(990, ge=1, description="published: 3 epochs of 330")
    batch_size: int = Field(32, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(512, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of IRN. With a seed it is a trial."""

    method: Literal["irn"] = "irn"
    labels: LabelsConfig = LabelsConfig()
    augment: ScaleConfig = ScaleConfig()
    model: ModelConfig = ModelConfig()
    relations: RelationsConfig = RelationsConfig()
    walk: WalkConfig = WalkConfig()
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
        cells, reach = -(-self.train.crop // 4), self.relations.radius - 1
        if cells <= 2 * reach:
            raise ValueError(
                f"relations.radius: {self.relations.radius} cells leave no pair in a crop of {cells} cells; at most "
                f"{(cells - 1) // 2 + 1}"
            )
        return self
