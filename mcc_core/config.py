"""The experiment schema: everything that can change a trial's numbers, validated once, here.

Names of the paper are in the descriptions. Defaults are the published VOC recipe; presets under
`mcc_core/presets` change what differs. Every model forbids unknown keys and is immutable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mcc_core.schedules import Scheduled, extremes, value_at


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _bounded(low: float, high: float = float("inf"), *, open_high: bool = False) -> AfterValidator:
    def check(value: Scheduled) -> Scheduled:
        for v in extremes(value):
            if not (low <= v < high if open_high else low <= v <= high):
                upper = "" if high == float("inf") else f" and {'below' if open_high else 'at most'} {high:g}"
                raise ValueError(f"{v:g} is out of range: must be at least {low:g}{upper}")
        return value

    return AfterValidator(check)


Weight = Annotated[Scheduled, _bounded(0.0)]
Fraction = Annotated[Scheduled, _bounded(0.0, 1.0)]


class DataConfig(Strict):
    """Which images and image-level labels to train on, and which masks to evaluate on."""

    name: Literal["shapes", "voc"] = Field("voc", description="shapes: generated scenes; voc: a folder in VOC layout")
    root: Path | None = Field(None, description="dataset folder; shapes are generated into the MCC home when not set")
    classes: Path | tuple[str, ...] | None = Field(
        None, description="foreground class names, or a file with one name a line; default: the 20 of VOC, or shapes'"
    )
    train_split: str = Field("train_aug", description="ImageSets/Segmentation/<split>.txt with the training ids")
    val_split: str = Field("val", description="split that evaluation during training scores")
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="an image that cannot be read: stop, or skip it")
    shapes_train: int = Field(800, ge=8, description="shapes: number of training scenes")
    shapes_val: int = Field(100, ge=4, description="shapes: number of validation scenes")
    shapes_size: int = Field(128, ge=32, description="shapes: side of a scene in pixels")
    shapes_seed: int = Field(0, ge=0, description="shapes: seed of the generator")


class AugmentConfig(Strict):
    """Augmentation of the three views (PAPER_NOTES rows 11 and 21)."""

    scale: tuple[float, float] = Field((0.5, 2.0), description="range of the random rescaling before the crop")
    global_crop: tuple[float, float] = Field((0.4, 1.0), description="area range of view 2's RandomResizedCrop")
    align_local_flip: bool = Field(False, description="give the local view view 1's flip (published: its own flip)")
    published_box: bool = Field(False, description="reproduce the published code's unflipped image box (a bug)")


class ProjectorConfig(Strict):
    """Projection of class tokens for the contrast: D to hidden, hidden, bottleneck, then weight-normalised to out."""

    kind: Literal["mlp", "linear"] = Field("mlp", description="linear: D to out alone, as section 3.3 reads")
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    out: int = Field(1024, ge=1)
    init_std: float = Field(
        0.02, gt=0, description="of the MLP's weights; a narrow MLP needs more, or its normalised output is all noise"
    )


class ModelConfig(Strict):
    """Encoder and heads."""

    backbone: str = Field("deit_base_patch16_224", description="a timm vision transformer")
    backbone_args: dict[str, Any] = Field(default_factory=dict, description="overrides for timm.create_model")
    weights: Literal["timm", "random"] | Path = Field(
        "timm",
        description="timm: its download; random; or a local file: .safetensors/.pth in timm naming, or a checkpoint",
    )
    aux_block: int = Field(10, ge=1, description="block (1-based) whose output feeds the auxiliary classifier")
    decoder_channels: int = Field(512, ge=1)
    decoder_dilation: int = Field(5, ge=1)
    projector: ProjectorConfig = ProjectorConfig()


class ThresholdConfig(Strict):
    """Thresholds on min-max normalised CAMs and on positiveness."""

    background: Fraction = Field(0.25, description="beta_bg of Eq. 8: at or below is background")
    foreground: Fraction = Field(0.70, description="beta_fg of Eq. 8: above is foreground")
    foreground_inclusive: bool = Field(False, description="a value equal to beta_fg is foreground too, as in Eq. 8")
    positiveness: Annotated[Scheduled, _bounded(0.0, 2.0)] = Field(0.2, description="mu of Eq. 6")
    score: Fraction = Field(0.50, description="background threshold when CAMs are scored as segmentations")


class MaskConfig(Strict):
    """Key masks of the local views (section 3.3, Figure 4)."""

    ratio: Fraction = Field(0.95, description="probability p that a key is masked")
    scale: Annotated[Scheduled, _bounded(1.0)] = Field(4, description="side, in tokens, of the squares masked together")
    views: Annotated[Scheduled, _bounded(1.0)] = Field(8, description="local views per image")
    drop_tokens: bool = Field(True, description="drop masked tokens (exact) instead of masking attention over all")


class ContrastConfig(Strict):
    """InfoNCE over global and local class tokens (Eq. 6 and 7)."""

    queries: Literal["both", "first"] = Field("both", description="global views that are queries; the text has one")
    global_keys: bool = Field(True, description="the global views are positive keys too; the text has local keys only")
    positiveness_from: Literal["levels", "labels"] = Field(
        "levels",
        description="what Eq. 6 averages: 0, 1, 2 for background, between, foreground; or the labels of Eq. 8 as they "
        "read (class number, 255 where uncertain)",
    )
    positiveness_resize: Literal["bicubic", "bilinear"] = Field("bicubic", description="of the CAM to the token grid")

    temperature: Annotated[Scheduled, _bounded(1e-3)] = Field(0.5, description="tau")
    momentum: Fraction = Field(0.9, description="m of the projector's moving average")
    epsilon: float = Field(1e-4, gt=0)
    empty_term: bool = Field(True, description="the published code's extra log(1 + negatives) term per query")


class CamConfig(Strict):
    """Multi-scale class activation maps and which of them decides what (PAPER_NOTES rows 5, 16, 18)."""

    scales: tuple[float, ...] = Field((1.0, 0.5, 1.5), min_length=1)
    positiveness_aux_until: int | None = Field(
        12_000,
        ge=0,
        description="positiveness reads the auxiliary CAM up to and with this iteration (0: never, null: always)",
    )
    pseudo_label_aux_until: int | None = Field(
        0,
        ge=0,
        description="the pseudo-label reads the auxiliary CAM up to and with this iteration (0: never, null: always)",
    )


class ParConfig(Strict):
    """Pixel-adaptive refinement of the pseudo-label."""

    iterations: int = Field(10, ge=0)
    dilations: tuple[int, ...] = Field((1, 2, 4, 8, 12, 24), min_length=1)
    color_weight: float = Field(0.3, gt=0, description="w1: width of the colour kernel, in local standard deviations")
    position_weight: float = Field(0.01, ge=0, description="w2: weight of the position kernel")
    downscale: int = Field(2, ge=1)


class EnergyConfig(Strict):
    """Dense energy regularisation."""

    sigma_rgb: float = Field(15.0, gt=0, description="grey levels of 255")
    sigma_xy: float = Field(100.0, gt=0, description="pixels at full resolution")
    scale: float = Field(0.5, gt=0, le=1)
    weight: float = Field(1e-7, ge=0, description="applied before the loss weight")


class LossConfig(Strict):
    """Weights of Eq. 5."""

    cls: Weight = 1.0
    cls_aux: Weight = 1.0
    aff: Weight = Field(0.2, description="lambda 1, affinity")
    mcc: Weight = Field(0.5, description="lambda 2, masked collaborative contrast")
    seg: Weight = Field(0.1, description="lambda 3, segmentation")
    reg: Weight = Field(0.05, description="lambda 4, dense energy")
    seg_start: int = Field(2000, ge=0, description="seg and reg count after this iteration")
    aff_form: Literal["published", "equation"] = Field(
        "published", description="published: half the mean absolute cosines; equation: Eq. 9 as printed"
    )
    seg_form: Literal["halves", "mean"] = Field(
        "halves", description="halves: background and foreground pixels count half each; mean: over all labelled pixels"
    )


class OptimConfig(Strict):
    """AdamW with a polynomial decay after a linear warm-up."""

    lr: float = Field(6e-5, gt=0)
    head_lr_scale: float = Field(10.0, gt=0, description="factor for classifiers, projector and decoder")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    power: float = Field(0.9, gt=0)
    warmup: int = Field(1500, ge=0, description="iterations")
    warmup_start: float = Field(1e-6, ge=0)
    warmup_start_is: Literal["ratio", "rate"] = Field(
        "ratio", description="ratio: of the base rate, as the published code reads 1e-6; rate: absolute, as the text"
    )
    freeze_pos_embed: bool = True


class ComputeConfig(Strict):
    """How a step is computed. Nothing here changes what is computed, only rounding, time and memory."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of encoder and decoder matrix products; losses, CAMs and weights stay float32"
    )
    compile: bool = Field(False, description="torch.compile the encoder's blocks (needs a C++ compiler on CPUs)")
    recompute: Literal["nothing", "elementwise", "blocks"] = Field(
        "elementwise",
        description="what the backward pass computes again instead of keeping it: normalisations and activations "
        "(less memory, at no time that could be measured), or whole encoder blocks (activation checkpointing)",
    )
    channels_last: bool = Field(False, description="memory format of the decoder's convolutions")


class TrainConfig(Strict):
    iterations: int = Field(20_000, ge=1)
    batch_size: int = Field(4, ge=1, description="images per forward pass; losses are normalised over these")
    workers: int = Field(
        1, ge=1, description="data-parallel workers; the global batch is workers x accumulate x batch_size"
    )
    accumulate: int = Field(
        1, ge=1, description="passes per optimiser step; 1 worker with 4 of them trains as 4 workers with 1 do"
    )
    crop: int = Field(448, ge=16)
    log_every: int = Field(10, ge=1)
    eval_every: int = Field(2000, ge=1, description="iterations between evaluations with a checkpoint; also at the end")
    eval_images: int | None = Field(None, ge=1, description="score only the first N images of the split")
    eval_batch: int = Field(8, ge=1)
    eval_train_images: int = Field(0, ge=0, description="training images with masks to score too, at the end")
    panels: int = Field(4, ge=0, description="images shown as CAM panels at each evaluation")
    loader_workers: int = Field(4, ge=0, description="data-loading processes per worker")
    same_masks: bool = Field(False, description="every worker draws the same masks, as in the published code (a bug)")

    @property
    def global_batch(self) -> int:
        """Images of one optimiser step."""
        return self.batch_size * self.accumulate * self.workers


class Experiment(Strict):
    """One validated configuration. With a seed it is a trial."""

    description: str = ""
    compat: Literal["published", "paper"] = Field(
        "published",
        description="paper: where the published code differs from the text, follow the text (docs/method.md); applies "
        "under the fields that are set beside it",
    )
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    mask: MaskConfig = MaskConfig()
    contrast: ContrastConfig = ContrastConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    energy: EnergyConfig = EnergyConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _bundle(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and isinstance(bundle := BUNDLES.get(str(fields.get("compat"))), Mapping):
            return _under(fields, bundle)
        return fields

    @model_validator(mode="after")
    def _threshold_order(self) -> Experiment:
        total = self.train.iterations
        for i in range(0, total, max(1, total // 1000)):
            low = value_at(self.thresholds.background, i, total)
            high = value_at(self.thresholds.foreground, i, total)
            if not low < high:
                raise ValueError(
                    f"thresholds.background ({low:g}) must be below thresholds.foreground ({high:g})"
                    + (f" at iteration {i}" if i else "")
                )
        return self


# What `compat` sets; docs/method.md has the row of PAPER_NOTES behind each.
BUNDLES: dict[str, dict[str, Any]] = {
    "paper": {
        "model.projector.kind": "linear",
        "thresholds.foreground_inclusive": True,
        "contrast.queries": "first",
        "contrast.global_keys": False,
        "contrast.positiveness_from": "labels",
        "contrast.positiveness_resize": "bilinear",
        "contrast.empty_term": False,
        "cam.positiveness_aux_until": None,
        "loss.aff_form": "equation",
        "loss.seg_form": "mean",
        "loss.seg_start": 0,
        "optim.warmup_start_is": "rate",
    }
}


def _under(fields: Mapping[str, Any], bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `fields` with those of the bundle that they lack."""
    merged = copy.deepcopy(dict(fields))
    for key, value in bundle.items():
        node: Any = merged
        *sections, last = key.split(".")
        for section in sections:
            node = node.setdefault(section, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(last, value)
    return merged
