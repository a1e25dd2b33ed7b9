"""One training step of PSA."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective
from mcc_core.methods.psa.config import Experiment
from mcc_core.methods.psa.network import PSANet
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.labels import IGNORE, reduced
from mcc_core.pseudo_labels.pixel_affinity import cross_entropies, pairs_of


class PSAObjective(Objective):
    """Affinities of pairs of labelled cells: background, foreground and different ones, each kind by itself."""

    terms = ("cls", "background", "foreground", "unlike")

    def __init__(self, network: PSANet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view1` B,3,S,S, `label` B,S,S and `labels` B,C."""
        weights, images, radius = self.weights(iteration), batch["view1"], self.experiment.relations.radius
        scored = self.network.scored(images, detach=True)
        apart = self.network.distances(scored.features, radius)
        label = reduced(batch["label"], apart.shape[-2:])
        terms = {"cls": classification(scored.cls, moved(batch["labels"], images.device))}
        terms["background"], terms["foreground"], terms["unlike"] = cross_entropies(apart, pairs_of(label, radius))
        total = sum((weights[name] * term for name, term in terms.items()), start=images.new_zeros(()))
        state: dict[str, float | Tensor] = {"label/known": (label != IGNORE).float().mean()}
        return Step(total, {name: term for name, term in terms.items() if weights[name]}, len(label), state=state)

    def after_step(self, iteration: int) -> None:
        """Ranks agree on running statistics."""
        share_statistics(self.network)
