"""One training step of ToCo: patch token contrast and class token contrast beside classification and segmentation."""

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
from mcc_core.methods.objective import Objective, Opening, opening, settled
from mcc_core.methods.toco import crops
from mcc_core.methods.toco.config import Experiment
from mcc_core.methods.toco.network import ToCoNet
from mcc_core.networks.base import MapStage
from mcc_core.networks.contrast import ContrastOutput
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.labels import inside_boxes, refined_label, token_label
from mcc_core.schedules import always_zero

Batch = Mapping[str, Tensor]  # view1 (also the classification image), view2, local: B,3,S,S; labels: B,C; box: B,4


@dataclass(frozen=True)
class Contrast:
    """What class token contrast compared."""

    places: Tensor  # B,P,Q where a crop may lie
    positions: Tensor  # B,V,2 top and left of each crop in `local`
    queries: Tensor  # 2B,E view-major
    keys: Tensor  # (2+V)B,E view-major
    flags: Tensor  # B,2+V, one for each key


@dataclass(frozen=True)
class ToCoStep(Step):
    """The losses of a step and what they were computed from. Maps are of the classes `classes` only."""

    output: ContrastOutput
    classes: Tensor  # K class indices present in the batch
    cams: tuple[Tensor, Tensor]  # final and auxiliary, B,K,S,S, all classes of `classes` for every image
    affinity_label: Tensor | None  # B,h,w
    contrast: Contrast | None
    refined: Tensor | None  # B,S,S


@dataclass(frozen=True)
class _Maps:
    """What the CAMs say, for the terms that learn from them."""

    final: Tensor  # B,K,S,S, zero for absent classes
    aux: Tensor


class ToCoObjective(Objective):
    """The losses of ToCo for a network."""

    terms = ("cls", "cls_aux", "ptc", "ctc", "seg", "reg")

    def __init__(self, model: ToCoNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.model = model
        self.contrasts = not always_zero(experiment.loss.ctc)
        if not self.contrasts:
            model.projector.requires_grad_(False)

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        weights, loss = super().weights(iteration), self.experiment.loss
        if iteration <= loss.seg_start:
            weights["seg"] = weights["reg"] = 0.0
        if loss.contrast_start is not None and iteration <= loss.contrast_start:
            weights["ptc"] = weights["ctc"] = 0.0
        return weights

    def forward(
        self,
        batch: Batch,
        draws: Mapping[str, Tensor],
        iteration: int,
        *,
        first: bool = True,
        all_classes: bool = False,
    ) -> ToCoStep:
        """Losses of one pass.

        Args:
            draws: `priority` B,P,Q uniform numbers: candidates with the highest are where the local crops lie.
            all_classes: compute the maps of every class, not only of those present; the losses are the same.
            first: the first pass of an optimiser step, which moves the momentum projector.
        """
        known = opening(self, batch, iteration, all_classes=all_classes)
        weights, labels, classes = known.weights, known.labels, known.classes
        output = self._forward(batch, with_view2=bool(weights["ctc"]))
        cams = self._cams(batch, output, classes)
        final, aux = map(known.masked, cams)
        maps = _Maps(final, aux)
        terms: dict[str, Tensor] = {
            "cls": losses.classification(output.cls, labels),
            "cls_aux": losses.classification(output.cls_aux, labels),
        }
        affinity_label = self._ptc(known, output, maps, terms) if weights["ptc"] else None
        refined = self._segmentation(known, output, maps, terms)
        if first and self.contrasts:
            # Published: at every step, whether the term counts yet or not.
            self.model.update_momentum_projector(self.at(self.experiment.contrast.momentum, iteration))
        # Last, so that the crops' activations are not held while the terms above need room.
        compared = self._ctc(known, output, maps, draws["priority"], terms) if weights["ctc"] else None
        total = sum((weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        total = total + self._untouched(terms, output)
        state: dict[str, float | Tensor] = {}
        if compared is not None:
            state["crops/positive_views"] = compared.flags[:, 2:].mean()
        return ToCoStep(
            total, terms, len(labels), output, classes, cams, affinity_label, compared, refined, state=state
        )

    def _ptc(self, known: Opening, output: ContrastOutput, maps: _Maps, terms: dict[str, Tensor]) -> Tensor:
        """Adds `ptc`, the contrast of final patch tokens; the token labels B,h,w behind it."""
        grid = self.model.encoder.grid(*known.batch["view1"].shape[-2:])
        label = inside_boxes(token_label(maps.aux, grid, known.background, known.foreground), known.boxes)
        loss = partial(losses.affinity, labels=label, form=self.experiment.loss.ptc_form)
        terms["ptc"] = settled(loss, output.features.patches)
        return label

    def _segmentation(
        self, known: Opening, output: ContrastOutput, maps: _Maps, terms: dict[str, Tensor]
    ) -> Tensor | None:
        """Adds `seg` and `reg`; the refined pseudo-label B,S,S that they learn from."""
        e, weights = self.experiment, known.weights
        if not (weights["seg"] or weights["reg"]):
            return None
        images, boxes, until = known.batch["view1"], known.boxes, e.cam.pseudo_label_aux_until
        source = maps.aux if until is None or known.iteration < until else maps.final
        refined = refined_label(images, source, known.here, boxes, known.background, known.foreground, e.par)
        label = known.class_ids(refined)
        if weights["seg"]:
            terms["seg"] = settled(lambda seg: losses.segmentation(_enlarged(seg, label), label), output.seg)
        if weights["reg"]:
            terms["reg"] = settled(
                lambda seg: losses.dense_energy(images, _enlarged(seg, label), label, boxes, e.energy), output.seg
            )
        return label

    def _ctc(
        self, known: Opening, output: ContrastOutput, maps: _Maps, priority: Tensor, terms: dict[str, Tensor]
    ) -> Contrast:
        """Adds `ctc`, the contrast of global and local class tokens."""
        e, iteration = self.experiment, known.iteration
        level = crops.activation_levels(maps.aux, known.background, known.foreground)
        places = crops.candidates(level, e.crops.size, e.crops.views)
        positions = crops.chosen(places, moved(priority, level.device), e.crops.views)
        threshold = self.at(e.thresholds.positiveness, iteration)
        flags = crops.positiveness(level, positions, e.crops.size, threshold)
        queries, keys = self._projected(known.batch, output, positions)
        temperature = self.at(e.contrast.temperature, iteration)
        terms["ctc"] = losses.contrast(queries, keys, flags, temperature, e.contrast.epsilon, e.contrast.empty_term)
        return Contrast(places, positions, queries, keys, flags)

    def _forward(self, batch: Batch, with_view2: bool) -> ContrastOutput:
        """The one pass that serves classification, unflipped CAM, and both global views."""
        return self.model(batch["view1"], batch["view2"] if with_view2 else None)

    def _cams(self, batch: Batch, output: ContrastOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
        """CAMs of `classes`; the classification forward serves as their unflipped forward at scale 1."""
        scales = self.experiment.cam.scales
        maps: dict[MapStage, Tensor] = multi_scale_maps(self.model, batch["view1"], scales, output.detached(), classes)
        return maps["cam"], maps["aux_cam"]

    def _projected(self, batch: Batch, output: ContrastOutput, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries 2B,E and keys (2+V)B,E, view-major.

        The teacher's encoder is the student's, so queries are the student's own global tokens, detached, through the
        momentum projector. All crops go through the encoder in one pass.
        """
        model = self.model
        assert output.other_cls is not None
        global_tokens = torch.cat([output.features.cls, output.other_cls])
        with torch.no_grad():
            queries = model.momentum_projector(global_tokens.detach())
        local = crops.windows(batch["local"], positions, self.experiment.crops.size)
        local_tokens = model.crop_tokens(local.transpose(0, 1).flatten(0, 1))
        return queries, model.projector(torch.cat([global_tokens, local_tokens]))

    def _untouched(self, terms: Mapping[str, Tensor], output: ContrastOutput) -> Tensor:
        """Zero, connected to the trained parameters that no computed term reaches."""
        zero = output.cls.new_zeros(())
        if "seg" not in terms and "reg" not in terms:
            zero = zero + 0 * output.seg.sum()
        if "ctc" not in terms:
            zero = zero + sum(0 * p.sum() for p in self.model.projector.parameters() if p.requires_grad)
        return zero


def _enlarged(logits: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
