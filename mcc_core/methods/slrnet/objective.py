"""One training step of SLRNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective, settled
from mcc_core.methods.slrnet.config import Experiment
from mcc_core.methods.slrnet.losses import (
    balanced_cross_entropy,
    class_score,
    code_difference,
    mask_difference,
    pseudo_label,
)
from mcc_core.methods.slrnet.network import SLRNet, Views
from mcc_core.pseudo_labels.labels import IGNORE, denormalise
from mcc_core.pseudo_labels.pamr import refine_masks


@dataclass(frozen=True)
class SLRStep(Step):
    """The losses of a step and what they were computed from."""

    views: Views
    label: Tensor | None  # B,S,S pseudo-label


class SLRObjective(Objective):
    """Class scores, two consistencies of the views, and segmentation from the network's own masks."""

    terms = ("cls", "reg1", "reg2", "seg")

    def __init__(self, network: SLRNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration; `seg` is 0 while pre-training."""
        weights = super().weights(iteration)
        return weights | ({"seg": 0.0} if iteration < self.experiment.loss.seg_start else {})

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> SLRStep:
        """Losses of one pass; `batch` has `view` B,3,S,S and `labels` B,C."""
        weights, labels = self.weights(iteration), moved(batch["labels"], batch["view"].device)
        aux_weight = self.at(self.experiment.loss.aux, iteration)
        views = self.network.two_views(batch["view"])
        size = views.first.shape[-2:]
        second = _resized(views.second, size)
        terms: dict[str, Tensor] = {}
        if weights["cls"]:
            scored = [class_score(x, self.experiment.score) for x in (views.first, views.second, views.aux)]
            one, two, aux = (classification(score, labels) for score in scored)
            terms["cls"] = one + two + aux_weight * aux
        masks, masks2 = views.first.softmax(1), _resized(views.second.softmax(1), size)
        if weights["reg1"]:
            terms["reg1"] = mask_difference(masks, masks2, labels)
        if weights["reg2"]:
            terms["reg2"] = code_difference(views.codes[0], _resized(views.codes[1], size))
        label = None
        if weights["seg"]:
            label = self._label(batch["view"], (masks + masks2).detach() / 2, labels)
            one, two, aux = (self._segmentation(x, label, labels) for x in (views.first, second, views.aux))
            terms["seg"] = one + two + aux_weight * aux
        total = sum((weights[name] * term for name, term in terms.items()), start=masks.new_zeros(()))
        if not {"cls", "seg"} & set(terms):  # what reaches every parameter
            total = total + 0 * (views.first.sum() + views.second.sum() + views.aux.sum())
        state: dict[str, float | Tensor] = {}
        if label is not None:
            state["pseudo_label/labelled"] = (label != IGNORE).to(masks.dtype).mean()
        return SLRStep(total, terms, len(labels), views, label, state=state)

    def after_step(self, iteration: int) -> None:
        """Ranks agree on the batch norms' running statistics."""
        self.network.share_statistics()

    @torch.no_grad()
    def _label(self, images: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """Pseudo-label B,S,S: masks B,C+1,h,w refined at their own resolution, enlarged, thresholded."""
        config = self.experiment.pseudo_label
        refined = refine_masks(
            denormalise(images, quantise=False) / 255,
            masks,
            iterations=config.iterations,
            dilations=config.dilations,
            spread=config.spread,
        )
        return pseudo_label(_resized(refined, images.shape[-2:]), labels, config)

    def _segmentation(self, logits: Tensor, label: Tensor, labels: Tensor) -> Tensor:
        return settled(lambda x: balanced_cross_entropy(_resized(x, label.shape[-2:]), label, labels), logits)


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
