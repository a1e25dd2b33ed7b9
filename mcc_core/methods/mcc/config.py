"""The experiment schema of MCC. Defaults are the published VOC recipe; names of the paper are in the descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mcc_core import config as shared
from mcc_core.config import AugmentConfig, EnergyConfig, Fraction, ParConfig, Strict, Weight, bounded
from mcc_core.schedules import Cosine, Linear, Scheduled, always_zero


class ModelConfig(shared.ContrastModelConfig):
    """Encoder and heads."""


class ThresholdConfig(shared.ThresholdConfig):
    """Thresholds on min-max normalised CAMs and on positiveness."""

    foreground_inclusive: bool = Field(False, description="a value equal to beta_fg is foreground too, as in Eq. 8")
    positiveness: Annotated[Scheduled, bounded(0.0, 2.0)] = Field(0.2, description="mu of Eq. 6")


class MaskConfig(Strict):
    """Key masks of the local views (section 3.3, Figure 4)."""

    ratio: Fraction = Field(0.95, description="probability p that a key is masked")
    scale: Annotated[Scheduled, bounded(1.0)] = Field(4, description="side, in tokens, of the squares masked together")
    views: Annotated[Scheduled, bounded(1.0)] = Field(8, description="local views per image")
    uncertain_start: int | None = Field(
        None,
        ge=0,
        description="from this iteration on as many squares as otherwise are masked, but uncertain ones first, as in "
        "FSR (null: never)",
    )
    drop_tokens: bool = Field(True, description="drop masked tokens (exact) instead of masking attention over all")


class PatchConfig(Strict):
    """Distillation of masked patches of the local view, FSR's (`loss.fsr_patch`)."""

    ratio: Fraction = Field(0.4, description="share of squares that the mask token hides, rounded up")
    student_temperature: Annotated[Scheduled, bounded(1e-3)] = 0.1
    teacher_temperature: Annotated[Scheduled, bounded(1e-3)] = Field(
        Linear(schedule="linear", start=0.04, end=0.07, last=2499), description="after centring"
    )
    center_momentum: Fraction = Field(0.9, description="of the moving average of the teacher's outputs")


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

    temperature: Annotated[Scheduled, bounded(1e-3)] = Field(0.5, description="tau")
    momentum: Fraction = Field(0.9, description="m of the projector's moving average")
    teacher: Literal["projector", "network"] = Field(
        "projector", description="what queries come of: a moving average of the projector, or of encoder and it (FSR)"
    )
    teacher_momentum: Fraction = Field(
        Cosine(schedule="cosine", start=0.9995, end=1.0), description="in place of momentum, of a network as teacher"
    )
    epsilon: float = Field(1e-4, gt=0)
    empty_term: bool = Field(True, description="the published code's extra log(1 + negatives) term per query")


class CamConfig(shared.CamConfig):
    """Multi-scale class activation maps and which of them decides what."""

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


TERMS: tuple[str, ...] = ("cls", "cls_aux", "aff", "mcc", "seg", "reg")  # of Eq. 5, in display order
OPTIONAL_TERMS: tuple[str, ...] = ("fsr_patch",)  # off by default


class LossConfig(shared.LossConfig):
    """Weights of Eq. 5."""

    cls: Weight = 1.0
    cls_aux: Weight = 1.0
    aff: Weight = Field(0.2, description="lambda 1, affinity")
    mcc: Weight = Field(0.5, description="lambda 2, masked collaborative contrast")
    seg: Weight = Field(0.1, description="lambda 3, segmentation")
    reg: Weight = Field(0.05, description="lambda 4, dense energy")
    fsr_patch: Weight = Field(0.0, description="distillation of masked patches, not of Eq. 5 but FSR's")
    seg_start: int = Field(2000, ge=0, description="seg and reg count after this iteration")
    aff_form: Literal["published", "equation"] = Field(
        "published", description="published: half the mean absolute cosines; equation: Eq. 9 as printed"
    )
    seg_form: Literal["halves", "mean"] = Field(
        "halves", description="halves: background and foreground pixels count half each; mean: over all labelled pixels"
    )


# What `compat` sets; docs/method.md says why.
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


class Experiment(shared.Experiment):
    """One validated configuration of MCC. With a seed it is a trial."""

    bundles: ClassVar[Mapping[str, Mapping[str, Any]]] = BUNDLES

    compat: Literal["published", "paper"] = Field(
        "published",
        description="paper: where the published code differs from the text, follow the text (docs/method.md); applies "
        "under the fields that are set beside it",
    )
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    thresholds: ThresholdConfig = ThresholdConfig()
    mask: MaskConfig = MaskConfig()
    patches: PatchConfig = PatchConfig()
    contrast: ContrastConfig = ContrastConfig()
    cam: CamConfig = CamConfig()
    par: ParConfig = ParConfig()
    energy: EnergyConfig = EnergyConfig()
    loss: LossConfig = LossConfig()

    @property
    def hides_patches(self) -> bool:
        """Whether masked patches are distilled at any iteration."""
        return not always_zero(self.loss.fsr_patch)

    @property
    def reinforced(self) -> bool:
        """Whether anything of FSR is on."""
        return self.hides_patches or self.mask.uncertain_start is not None or self.contrast.teacher == "network"

    @model_validator(mode="after")
    def _threshold_order(self) -> Experiment:
        self.thresholds.check_order(self.train.iterations)
        return self
