"""One training step of MCC (Eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses import terms as losses
from mcc_core.methods.base import Step
from mcc_core.methods.mcc.config import TERMS, Experiment
from mcc_core.methods.mcc.masking import activation_levels, positiveness
from mcc_core.methods.mcc.network import MCCNet, MCCOutput
from mcc_core.methods.objective import Objective, Opening, opening, settled
from mcc_core.networks.base import MapStage
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.labels import inside_boxes, refined_label, token_label
from mcc_core.schedules import always_zero

Batch = Mapping[str, Tensor]  # view1 (also the classification image), view2, local: B,3,S,S; labels: B,C; box: B,4


@dataclass(frozen=True)
class Contrast:
    """What the contrastive loss compared."""

    queries: Tensor  # 2B,E view-major (or B: contrast.queries)
    keys: Tensor  # (2+V)B,E view-major (or VB: contrast.global_keys)
    flags: Tensor  # B,2+V (or V), one for each key


@dataclass(frozen=True)
class MCCStep(Step):
    """The losses of a step and what they were computed from. Maps are of the classes `classes` only."""

    output: MCCOutput
    classes: Tensor  # K class indices present in the batch
    cams: tuple[Tensor, Tensor]  # final and auxiliary, B,K,S,S, all classes of `classes` for every image
    affinity_label: Tensor | None  # B,h,w
    contrast: Contrast | None
    refined: Tensor | None  # B,S,S
    draws: Mapping[str, Tensor]  # those that the local views were masked by


@dataclass(frozen=True)
class Maps:
    """What the network says of a pass."""

    output: MCCOutput
    final: Tensor  # B,K,S,S CAMs, zero for absent classes
    aux: Tensor
    grid: tuple[int, int]


class MCCObjective(Objective):
    """Eq. 5 for a network.

    The published code multiplies a term by 0 rather than leaving it out; the zero gradients are the same.
    """

    terms = TERMS

    def __init__(self, model: MCCNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.model = model
        if always_zero(experiment.loss.mcc):
            model.projector.requires_grad_(False)

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        weights = super().weights(iteration)
        if iteration <= self.experiment.loss.seg_start:
            weights["seg"] = weights["reg"] = 0.0
        return weights

    def forward(
        self,
        batch: Batch,
        draws: Mapping[str, Tensor],
        iteration: int,
        *,
        first: bool = True,
        all_classes: bool = False,
    ) -> MCCStep:
        """Losses of one pass.

        Args:
            draws: `masks` B,V,h,w key masks, 1 = masked, on the host.
            all_classes: compute the maps of every class, not only of those present; the losses are the same.
            first: the first pass of an optimiser step, which moves the momentum projector.
        """
        known = opening(self, batch, iteration, all_classes=all_classes)
        weights, labels, classes = known.weights, known.labels, known.classes
        early = draws["masks"] if self._passes_views_early(batch, known) else None
        output = self._forward(batch, bool(weights["mcc"]) and self._compares_view2, early)
        cams = self._cams(batch, output, classes)
        final, aux = map(known.masked, cams)
        maps = Maps(output, final, aux, self.model.encoder.grid(*batch["view1"].shape[-2:]))
        terms: dict[str, Tensor] = {
            "cls": losses.classification(output.cls, labels),
            "cls_aux": losses.classification(output.cls_aux, labels),
        }
        affinity_label = self._affinity(known, maps, terms)
        refined = self._segmentation(known, maps, terms)
        draws = self.chosen(known, maps, draws)
        # Last, so that the local views' activations are not held while the terms above need room.
        compared = self._mcc(known, maps, draws["masks"], terms, first=first) if weights["mcc"] else None
        total = sum((weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        total = total + self._untouched(terms, output)
        state = self._state(iteration, compared)
        return MCCStep(
            total, terms, len(labels), output, classes, cams, affinity_label, compared, refined, draws, state=state
        )

    def chooses(self, iteration: int) -> bool:
        """Whether `chosen` masks by the maps of a pass at a 0-based iteration, so that views wait for them."""
        return False

    def chosen(self, known: Opening, maps: Maps, draws: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The draws by which the local views are masked, once the maps of the pass are known: here those drawn."""
        return draws

    def _passes_views_early(self, batch: Batch, known: Opening) -> bool:
        """Whether the local views go through the encoder with the global ones."""
        if not known.weights["mcc"] or not self.experiment.mask.drop_tokens or self.chooses(known.iteration):
            return False
        same_size = batch["local"].shape == batch["view1"].shape
        return same_size and self.model.encoder.passes_together(batch["view1"])

    @property
    def _compares_view2(self) -> bool:
        contrast = self.experiment.contrast
        return contrast.queries == "both" or contrast.global_keys

    def _affinity(self, known: Opening, maps: Maps, terms: dict[str, Tensor]) -> Tensor | None:
        """Adds `aff` (Eq. 9); its token labels B,h,w."""
        if not known.weights["aff"]:
            return None
        e = self.experiment
        inclusive = e.thresholds.foreground_inclusive
        label = token_label(maps.aux, maps.grid, known.background, known.foreground, inclusive)
        label = inside_boxes(label, known.boxes)
        loss = partial(losses.affinity, labels=label, form=e.loss.aff_form)
        terms["aff"] = settled(loss, maps.output.features.patches)
        return label

    def _segmentation(self, known: Opening, maps: Maps, terms: dict[str, Tensor]) -> Tensor | None:
        """Adds `seg` and `reg`; the refined pseudo-label B,S,S that they learn from."""
        e, weights = self.experiment, known.weights
        if not (weights["seg"] or weights["reg"]):
            return None
        source = maps.aux if _reads_auxiliary(known.iteration, e.cam.pseudo_label_aux_until) else maps.final
        images, boxes, seg = known.batch["view1"], known.boxes, maps.output.seg
        refined = refined_label(images, source, known.here, boxes, known.background, known.foreground, e.par)
        label, form = known.class_ids(refined), e.loss.seg_form
        if weights["seg"]:
            terms["seg"] = settled(lambda seg: losses.segmentation(_enlarged(seg, label), label, form), seg)
        if weights["reg"]:
            terms["reg"] = settled(
                lambda seg: losses.dense_energy(images, _enlarged(seg, label), label, boxes, e.energy), seg
            )
        return label

    def _mcc(self, known: Opening, maps: Maps, masks: Tensor, terms: dict[str, Tensor], *, first: bool) -> Contrast:
        """Adds `mcc` (Eq. 7)."""
        e, iteration = self.experiment, known.iteration
        flags = self._flags(known, maps, masks)
        if first:
            self.model.update_momentum_projector(self.at(e.contrast.momentum, iteration))
        compared = self._contrast(known.batch, maps.output, masks, flags)
        terms["mcc"] = losses.contrast(
            compared.queries,
            compared.keys,
            flags,
            self.at(e.contrast.temperature, iteration),
            e.contrast.epsilon,
            e.contrast.empty_term,
        )
        return compared

    def _flags(self, known: Opening, maps: Maps, masks: Tensor) -> Tensor:
        """Which keys are positive (Eq. 6): B,2+V (or V)."""
        e = self.experiment
        guide = maps.aux if _reads_auxiliary(known.iteration, e.cam.positiveness_aux_until) else maps.final
        resize, background, foreground = e.contrast.positiveness_resize, known.background, known.foreground
        if e.contrast.positiveness_from == "levels":
            level = activation_levels(guide, maps.grid, background, foreground, resize)
        else:
            inclusive = e.thresholds.foreground_inclusive
            numbers = token_label(guide, maps.grid, background, foreground, inclusive, resize)
            level = known.class_ids(numbers).to(guide.dtype)
        keys_global = 2 if e.contrast.global_keys else 0
        threshold = self.at(e.thresholds.positiveness, known.iteration)
        return positiveness(level, moved(masks, level.device), threshold, keys_global)

    def _forward(self, batch: Batch, with_view2: bool, masks: Tensor | None) -> MCCOutput:
        """The one pass that serves classification, unflipped CAM, both global views, and local ones of known masks."""
        others = batch["view2"] if with_view2 else None
        return self.model(batch["view1"], others, None if masks is None else (batch["local"], masks))

    def _cams(self, batch: Batch, output: MCCOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs of `classes`; the classification forward serves as their unflipped forward at scale 1."""
        scales = self.experiment.cam.scales
        maps: dict[MapStage, Tensor] = multi_scale_maps(self.model, batch["view1"], scales, output.detached(), classes)
        return maps["cam"], maps["aux_cam"]

    def _contrast(self, batch: Batch, output: MCCOutput, masks: Tensor, flags: Tensor) -> Contrast:
        """Queries are global class tokens, detached, through the momentum projector; keys are the student's."""
        model, e = self.model, self.experiment
        global_tokens = [token for token in (output.features.cls, output.other_cls) if token is not None]
        asking = global_tokens if e.contrast.queries == "both" else global_tokens[:1]
        with torch.no_grad():
            queries = model.momentum_projector(torch.cat(asking).detach())
        local_tokens = output.local_cls
        if local_tokens is None:
            local_tokens = model.encoder.masked_cls(batch["local"], masks, drop=e.mask.drop_tokens)
        keys = model.projector(torch.cat([*global_tokens, local_tokens] if e.contrast.global_keys else [local_tokens]))
        return Contrast(queries, keys, flags)

    def _untouched(self, terms: Mapping[str, Tensor], output: MCCOutput) -> Tensor:
        """Zero, connected to the trained parameters that no computed term reaches."""
        zero = output.cls.new_zeros(())
        if "seg" not in terms and "reg" not in terms:
            zero = zero + 0 * output.seg.sum()
        if "mcc" not in terms:
            zero = zero + sum(0 * p.sum() for p in self.model.projector.parameters() if p.requires_grad)
        return zero

    def _state(self, iteration: int, compared: Contrast | None) -> dict[str, float | Tensor]:
        """Scheduled values, and the share of local views that are positive."""
        e = self.experiment
        state: dict[str, float | Tensor] = {
            "mask/ratio": self.at(e.mask.ratio, iteration),
            "mask/scale": self.at(e.mask.scale, iteration),
        }
        if compared is not None:
            state["mask/positive_views"] = compared.flags[:, 2 * e.contrast.global_keys :].mean()
        return state


def _enlarged(logits: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)


def _reads_auxiliary(iteration: int, until: int | None) -> bool:
    """Whether the auxiliary CAM decides at a 0-based iteration: up to and with `until`; 0 never, None always."""
    return until is None or 0 < until >= iteration
