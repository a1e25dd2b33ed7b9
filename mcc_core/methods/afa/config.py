"""The experiment schema of AFA. Defaults are the published VOC recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import CamConfig, Fraction, ParConfig, Strict, Weight
from mcc_core.errors import UsageError
from mcc_core.networks.mix_sizes import mix_sizes

Stride = Annotated[int, Field(ge=1)]


class AugmentConfig(Strict):
    """Augmentation of the one view: random rescaling, crop with black padding, flip."""

    scale: tuple[float, float] = Field((0.5, 2.0), description="range of the random rescaling before the crop")


class ModelConfig(shared.ModelConfig):
    """The mix transformer and the heads of AFA."""

    backbone: str = Field("mit_b1", description="a mix transformer: mit_b0 to mit_b5")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description="sizes of its stages: embed_dims, depths, num_heads, sr_ratios, mlp_ratios"
    )
    weights: Literal["imagenet", "random"] | Path = Field(  # type: ignore[assignment]
        "imagenet",
        description="imagenet: a download (NVIDIA's weights, not for commercial use); random; or a local file in "
        "SegFormer's or transformers' naming, .safetensors/.pth, or a checkpoint",
    )
    strides: tuple[Stride, Stride, Stride, Stride] = Field((4, 2, 2, 1), description="of the four patch embeddings")
    decoder_channels: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1, description="share of the decoder's channels that a training step drops")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block; linear from 0")

    @model_validator(mode="after")
    def _can_be_had(self) -> ModelConfig:
        try:
            mix_sizes(self.backbone, self.backbone_args)
        except UsageError as error:
            raise ValueError(str(error).removeprefix("model.")) from None
        if self.weights == "imagenet" and self.backbone_args:
            raise ValueError("weights: imagenet's do not fit a backbone with backbone_args; give random or a file")
        return self


class ThresholdConfig(shared.ThresholdConfig):
    """Thresholds on min-max normalised CAMs."""

    background: Fraction = Field(0.35, description="beta_l: what loses to this background score is background")
    foreground: Fraction = Field(0.55, description="beta_h: what beats this background score is foreground")
    score: Fraction = Field(0.45, description="background threshold when CAMs are scored as segmentations")


class AffinityConfig(Strict):
    """Affinity from attention and its use."""

    radius: int = Field(8, ge=0, description="largest distance, in rows and in columns of tokens, of a pair")
    label: Literal["refined", "segmentation"] = Field(
        "refined", description="where pairs get their labels: the refined label, or whatever segmentation learns from"
    )
    power: float = Field(2.0, gt=0, description="alpha: affinities are raised to it before propagation")
    epsilon: float = Field(0.1, ge=0, description="added to the column sums that affinities are divided by")
    steps: int = Field(1, ge=1, description="times that scores are propagated")


class LossConfig(shared.LossConfig):
    """Weights of the loss terms, and their stages."""

    cls: Weight = 1.0
    seg: Weight = Field(0.1, description="segmentation")
    aff: Weight = Field(0.1, description="affinity")
    seg_start: int = Field(2000, ge=0, description="seg and aff count after this iteration")
    propagation_start: int = Field(
        6000, ge=0, description="segmentation learns from the propagated label after this iteration"
    )


class OptimConfig(shared.OptimConfig):
    """AdamW; norms of the encoder are not trained."""

    power: float = Field(1.0, gt=0)
    freeze_norms: bool = Field(True, description="the encoder's normalisations have learning rate 0 and no decay")


class TrainConfig(shared.TrainConfig):
    crop: int = Field(512, ge=16)


class Experiment(shared.Experiment):
    """One validated configuration of AFA. With a seed it is a trial."""

    method: Literal["afa"] = "afa"
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    affinity: AffinityConfig = AffinityConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        return self
