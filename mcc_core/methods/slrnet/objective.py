"""One training step of SLRNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.errors import UsageError
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective, settled
from mcc_core.methods.slrnet.config import Experiment
from mcc_core.methods.slrnet.losses import (
    balanced_cross_entropy,
    class_score,
    classification,
    code_difference,
    mask_difference,
)
from mcc_core.methods.slrnet.network import SLRNet, Views
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.labels import IGNORE
from mcc_core.pseudo_labels.pamr import mask_label


@dataclass(frozen=True)
class SLRStep(Step):
    """The losses of a step and what they were computed from."""

    views: Views
    label: Tensor | None  # B,S,S pseudo-label


class SLRObjective(Objective):
    """Class scores, two consistencies of the views, and segmentation from the network's own masks.

    Raises UsageError where the weights of positive classes are not as many as the classes.
    """

    terms = ("cls", "reg1", "reg2", "seg")
    positive_weight: Tensor | None

    def __init__(self, network: SLRNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network
        given = experiment.loss.positive_weight
        if isinstance(given, tuple) and len(given) != network.num_classes:
            raise UsageError(
                f"loss.positive_weight: {len(given)} numbers, but the data has {network.num_classes} classes"
            )
        weights = None if given == 1 else torch.tensor(given).expand(network.num_classes)
        self.register_buffer("positive_weight", weights, persistent=False)

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
            view1, two, aux = (classification(score, labels, self.positive_weight) for score in scored)
            terms["cls"] = view1 + two + aux_weight * aux
        masks, masks2 = views.first.softmax(1), _resized(views.second.softmax(1), size)
        if weights["reg1"]:
            terms["reg1"] = mask_difference(masks, masks2, labels)
        if weights["reg2"]:
            terms["reg2"] = code_difference(views.codes[0], _resized(views.codes[1], size))
        label = None
        if weights["seg"]:
            label = mask_label(batch["view"], (masks + masks2).detach() / 2, labels, self.experiment.pseudo_label)
            view1, two, aux = (self._segmentation(x, label, labels) for x in (views.first, second, views.aux))
            terms["seg"] = view1 + two + aux_weight * aux
        total = sum((weights[name] * term for name, term in terms.items()), start=masks.new_zeros(()))
        if not {"cls", "seg"} & set(terms):  # what reaches every parameter
            total = total + 0 * (views.first.sum() + views.second.sum() + views.aux.sum())
        state: dict[str, float | Tensor] = {}
        if label is not None:
            state["pseudo_label/labelled"] = (label != IGNORE).to(masks.dtype).mean()
        return SLRStep(total, terms, len(labels), views, label, state=state)

    def after_step(self, iteration: int) -> None:
        """Ranks agree on the batch norms' running statistics."""
        share_statistics(self.network)

    def _segmentation(self, logits: Tensor, label: Tensor, labels: Tensor) -> Tensor:
        return settled(lambda x: balanced_cross_entropy(_resized(x, label.shape[-2:]), label, labels), logits)


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
