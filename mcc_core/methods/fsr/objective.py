"""One training step of FSR: distillation of a masked view beside classification, patch contrast and segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses import terms as losses
from mcc_core.losses.distillation import distillation
from mcc_core.methods.base import Step
from mcc_core.methods.fsr.config import Experiment
from mcc_core.methods.fsr.masking import masked_blocks, masked_count, on_grid, true_places, uncertain_blocks
from mcc_core.methods.fsr.network import AuxiliaryMaps, FSRNet, FSROutput
from mcc_core.methods.objective import Objective, Opening, opening, settled
from mcc_core.networks.base import MapStage
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.labels import inside_boxes, refined_label, token_label
from mcc_core.schedules import always_zero

Batch = Mapping[str, Tensor]  # view1 (also the classification image), view2: B,3,S,S; labels: B,C; box: B,4


@dataclass(frozen=True)
class Masking:
    """What the student does not see of view 2."""

    mask: Tensor  # B,h,w tokens, true = masked
    hidden: Tensor  # M where the masked tokens are among the B*h*w
    cam: Tensor | None  # auxiliary CAMs B,K,S,S of view 2, zero for absent classes; None where any block may be masked


@dataclass(frozen=True)
class FSRStep(Step):
    """The losses of a step and what they were computed from. Maps are of the classes `classes` only."""

    output: FSROutput
    classes: Tensor  # K class indices present in the batch
    cams: tuple[Tensor, Tensor] | None  # final and auxiliary, B,K,S,S, all classes of `classes` for every image
    masking: Masking | None
    teacher_class: Tensor | None  # B,E outputs for view 1
    affinity_label: Tensor | None  # B,h,w
    refined: Tensor | None  # B,S,S


class FSRObjective(Objective):
    """The losses of FSR for a network."""

    terms = ("cls", "cls_aux", "fsr_class", "fsr_patch", "ptc", "seg", "reg")

    def __init__(self, model: FSRNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.model = model
        loss = experiment.loss
        self.distils = {"cls": not always_zero(loss.fsr_class), "patches": not always_zero(loss.fsr_patch)}
        unused = {kind: not used for kind, used in self.distils.items()}
        for parameter in model.distilled_parameters(**unused):
            parameter.requires_grad_(False)

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        weights, loss = super().weights(iteration), self.experiment.loss
        if iteration < loss.seg_start:
            weights["seg"] = weights["reg"] = 0.0
        if iteration < loss.ptc_start:
            weights["ptc"] = 0.0
        return weights

    def forward(
        self,
        batch: Batch,
        draws: Mapping[str, Tensor],
        iteration: int,
        *,
        first: bool = True,
        all_classes: bool = False,
    ) -> FSRStep:
        """Losses of one pass.

        Args:
            draws: `noise` B,h,w uniform numbers: blocks with the highest are masked.
            all_classes: compute the maps of every class, not only of those present; the losses are the same.
        """
        known = opening(self, batch, iteration, all_classes=all_classes)
        labels, classes = known.labels, known.classes
        distilling = bool(known.weights["fsr_class"] or known.weights["fsr_patch"])
        masking = self._masking(known, draws["noise"]) if distilling else None
        output = self._forward(known, masking)
        terms: dict[str, Tensor] = {
            "cls": losses.classification(output.cls, labels),
            "cls_aux": losses.classification(output.cls_aux, labels),
        }
        teacher_class = self._distillation(known, output, masking, terms) if masking is not None else None
        cams = self._cams(known, output) if any(known.weights[term] for term in ("ptc", "seg", "reg")) else None
        affinity_label, refined = self._from_cams(known, output, cams, terms) if cams is not None else (None, None)
        total = sum((known.weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        total = total + self._untouched(terms, output)
        return FSRStep(
            total,
            terms,
            len(labels),
            output,
            classes,
            cams,
            masking,
            teacher_class,
            affinity_label,
            refined,
            state=self._state(iteration, masking),
        )

    def after_step(self, iteration: int) -> None:
        """Moves the centres and the teacher."""
        if any(self.distils.values()):
            distill = self.experiment.distill
            self.model.centers.update(self.at(distill.center_momentum, iteration))
            self.model.move_teacher(self.at(distill.momentum, iteration))

    def _masking(self, known: Opening, noise: Tensor) -> Masking:
        mask, start = self.experiment.mask, self.experiment.mask.uncertain_start
        noise = moved(noise, known.labels.device)
        cam = uncertain = None
        if start is not None and known.iteration >= start:
            cam = known.masked(self._view2_cam(known))
            low, high = (self.at(value, known.iteration) for value in (mask.low, mask.high))
            uncertain = uncertain_blocks(cam, (noise.shape[1], noise.shape[2]), low, high)
        ratio, grid = self.at(mask.ratio, known.iteration), self.model.encoder.grid(*known.batch["view2"].shape[-2:])
        tokens = on_grid(masked_blocks(noise, ratio, uncertain), grid)
        share = masked_count(ratio, noise[0].numel()) * (tokens[0].numel() // noise[0].numel())
        return Masking(tokens, true_places(tokens, len(tokens) * share), cam)

    def _view2_cam(self, known: Opening) -> Tensor:
        """Auxiliary CAMs B,K,S,S of the whole view 2; no block behind the auxiliary one is computed."""
        maps = AuxiliaryMaps(self.model)
        return multi_scale_maps(maps, known.batch["view2"], self.experiment.cam.scales, None, known.classes)["aux_cam"]

    def _forward(self, known: Opening, masking: Masking | None) -> FSROutput:
        """The one pass that serves classification, unflipped CAM and the masked view."""
        batch, weights = known.batch, known.weights
        if masking is None:
            return self.model(batch["view1"])
        asked = {"cls": bool(weights["fsr_class"]), "patches": bool(weights["fsr_patch"])}
        return self.model.with_masked(batch["view1"], batch["view2"], masking.mask, masking.hidden, **asked)

    def _cams(self, known: Opening, output: FSROutput) -> tuple[Tensor, Tensor]:
        """CAMs of view 1; the classification forward serves as their unflipped forward at scale 1."""
        scales, view1 = self.experiment.cam.scales, known.batch["view1"]
        maps: dict[MapStage, Tensor] = multi_scale_maps(self.model, view1, scales, output.detached(), known.classes)
        return maps["cam"], maps["aux_cam"]

    def _distillation(self, known: Opening, output: FSROutput, masking: Masking, terms: dict[str, Tensor]) -> Tensor:
        """Adds `fsr_class` and `fsr_patch`; the teacher's class outputs B,E for view 1."""
        distill, centers = self.experiment.distill, self.model.centers
        cls, patches = self.model.teacher(known.batch["view1"], known.batch["view2"])
        temperatures = [
            self.at(value, known.iteration) for value in (distill.student_temperature, distill.teacher_temperature)
        ]
        if output.distilled_class is not None:
            terms["fsr_class"] = distillation(output.distilled_class, cls, centers.class_center, *temperatures)
        if output.distilled_patches is not None:
            hidden = patches.flatten(0, 1)[masking.hidden]
            terms["fsr_patch"] = distillation(output.distilled_patches, hidden, centers.patch_center, *temperatures)
        centers.collect(cls, patches.flatten(0, 1))
        return cls

    def _from_cams(
        self, known: Opening, output: FSROutput, cams: tuple[Tensor, Tensor], terms: dict[str, Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Adds `ptc`, `seg` and `reg`; token labels B,h,w and the refined pseudo-label B,S,S that they learn from."""
        e, batch, weights = self.experiment, known.batch, known.weights
        view1, boxes, low, high = batch["view1"], known.boxes, known.background, known.foreground
        final, aux = map(known.masked, cams)
        tokens = None
        if weights["ptc"]:
            tokens = inside_boxes(token_label(aux, self.model.encoder.grid(*view1.shape[-2:]), low, high), boxes)
            terms["ptc"] = settled(partial(losses.affinity, labels=tokens), output.features.patches)
        if not (weights["seg"] or weights["reg"]):
            return tokens, None
        label = known.class_ids(refined_label(view1, final, known.here, boxes, low, high, e.par))
        if weights["seg"]:
            terms["seg"] = settled(lambda seg: losses.segmentation(_enlarged(seg, label), label), output.seg)
        if weights["reg"]:
            terms["reg"] = settled(
                lambda seg: losses.dense_energy(view1, _enlarged(seg, label), label, boxes, e.energy), output.seg
            )
        return tokens, label

    def _untouched(self, terms: Mapping[str, Tensor], output: FSROutput) -> Tensor:
        """Zero, connected to the trained parameters that no computed term reaches."""
        zero = output.cls.new_zeros(())
        if "seg" not in terms and "reg" not in terms:
            zero = zero + 0 * output.seg.sum()
        absent = {"cls": "fsr_class" not in terms, "patches": "fsr_patch" not in terms}
        idle = [p for p in self.model.distilled_parameters(**absent) if p.requires_grad]
        return zero + sum(0 * p.sum() for p in idle)

    def _state(self, iteration: int, masking: Masking | None) -> dict[str, float | Tensor]:
        state: dict[str, float | Tensor] = {"teacher/momentum": self.at(self.experiment.distill.momentum, iteration)}
        if masking is not None:
            state["mask/ratio"] = masking.mask.float().mean()
        return state


def _enlarged(logits: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
