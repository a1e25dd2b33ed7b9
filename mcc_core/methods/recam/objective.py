"""One training step of ReCAM."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective
from mcc_core.methods.recam.config import Experiment
from mcc_core.methods.recam.network import ReCAMNet
from mcc_core.networks.batch_norm import share_statistics


class ReCAMObjective(Objective):
    """Classification of the image, then also of what each of its classes sees in it."""

    terms = ("cls", "recam")

    def __init__(self, network: ReCAMNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration; `recam` is 0 while the classifier alone trains."""
        weights = super().weights(iteration)
        return weights | ({"recam": 0.0} if iteration < self.experiment.loss.recam_start else {})

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view1` B,3,S,S and `labels` B,C."""
        weights, images = self.weights(iteration), batch["view1"]
        labels, network = moved(batch["labels"], images.device), self.network
        scored = network.scored(images)
        terms: dict[str, Tensor] = {}
        if weights["cls"]:
            terms["cls"] = classification(scored.cls, labels)
        if weights["recam"]:
            logits = F.linear(network.pooled(scored.features[-1]), network.predictor.weight.flatten(1))
            terms["recam"] = single_label(logits, labels)
        unused = network.predictor.weight.sum() + scored.cls.sum()  # every parameter keeps a gradient of zero
        total = sum((weights[name] * term for name, term in terms.items()), start=0 * unused)
        return Step(total, terms, len(labels))

    def after_step(self, iteration: int) -> None:
        """Ranks agree on running statistics; class maps use the predictor from its first step on."""
        share_statistics(self.network)
        if self.weights(iteration)["recam"]:
            self.network.tuned.fill_(True)


def single_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy of the logits B,C,C of each class's features to that class.

    The mean over an image's classes (labels B,C, 0/1), then over all images; one without a class adds 0.
    """
    right = logits.log_softmax(2).diagonal(dim1=1, dim2=2)
    share = labels / labels.sum(1, keepdim=True).clamp(min=1)
    return -(right * share).sum() / len(labels)
