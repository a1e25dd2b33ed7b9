"""The experiment schema of MCTformer. Defaults are the recipe for VOC, its epochs of 165 iterations counted out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import CamConfig, ParConfig, Strict, Weight


class ModelConfig(shared.ModelConfig):
    """Encoder and the head on its patches."""

    backbone: str = Field("deit_small_patch16_224", description="a timm vision transformer")
    stochastic_depth: float = Field(
        0.1, ge=0, lt=1, description="probability that the last block's branches are left out; lower before it"
    )
    pooling: Literal["mean", "ranked"] = Field(
        "mean", description="of the patches' class maps into class scores; ranked: higher values count more"
    )
    rank_decay: float = Field(0.996, gt=0, le=1, description="ranked: weight of a value over that of the next higher")


class AugmentConfig(Strict):
    """Resize, window, flip, colour jitter."""

    resize: int = Field(256, ge=16, description="side of the square that an image is resized to before the window")
    brightness: float = Field(0.4, ge=0, lt=1, description="factor 1 +- this")
    contrast: float = Field(0.4, ge=0, lt=1, description="factor 1 +- this")
    saturation: float = Field(0.4, ge=0, lt=1, description="factor 1 +- this")
    hue: float = Field(0.0, ge=0, le=0.5, description="turned by up to this share of the circle")


class MapsConfig(Strict):
    """From attention to class maps."""

    last_blocks: int = Field(3, ge=1, description="K: blocks whose attention of class tokens to patches is averaged")
    patch_cam: bool = Field(True, description="times the rectified class maps of the patches; false: attention alone")
    affinity: bool = Field(True, description="spread by the mean attention between patches of all blocks")


class ThresholdConfig(shared.ThresholdConfig):
    """Thresholds on min-max normalised class maps."""

    score: float = Field(
        0.45, gt=0, le=1, description="background threshold of class maps, in scores and as a segmentation"
    )


class LossConfig(shared.LossConfig):
    """Weights of the loss terms."""

    cls: Weight = Field(1.0, description="multi-label soft margin of the class tokens' means")
    cls_patch: Weight = Field(1.0, description="the same of the patches' pooled class maps")


class OptimConfig(shared.OptimConfig):
    """AdamW; the rate is 5e-4 times the images of a step over 512."""

    lr: float = Field(6.25e-5, gt=0, description="5e-4 x 64 / 512")
    head_lr_scale: float = Field(1.0, gt=0, description="factor for the head on the patches")
    weight_decay: float = Field(0.05, ge=0, description="none on biases, norms, positions and class tokens")
    schedule: Literal["poly", "cosine"] = Field(
        "cosine", description="poly: a power of what is left of the run; cosine: half a cosine, constant before it"
    )
    warmup: int = Field(825, ge=0, description="iterations; 5 epochs")
    warmup_start_is: Literal["ratio", "rate"] = Field("rate", description="what warmup_start is")
    freeze_pos_embed: bool = False


class TrainConfig(shared.TrainConfig):
    iterations: int = Field(9900, ge=1, description="60 epochs of 165")
    batch_size: int = Field(64, ge=1, description="images per forward pass; losses are normalised over these")
    crop: int = Field(224, ge=16)
    eval_every: int = Field(1980, ge=1, description="iterations between evaluations with a checkpoint; also at the end")


class Experiment(shared.Experiment):
    """One validated configuration of MCTformer. With a seed it is a trial."""

    method: Literal["mctformer"] = "mctformer"
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    maps: MapsConfig = MapsConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        if self.augment.resize < self.train.crop:
            raise ValueError(f"augment.resize ({self.augment.resize}) must be at least train.crop ({self.train.crop})")
        return self

    def backbone_args(self) -> dict[str, Any]:
        """What timm makes the encoder with: the table of positions is that of the crop."""
        own = {"img_size": self.train.crop, "drop_path_rate": self.model.stochastic_depth}
        return own | self.model.backbone_args
