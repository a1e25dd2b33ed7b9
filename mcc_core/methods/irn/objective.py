"""One training step of IRN."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.base import Step
from mcc_core.methods.irn.config import Experiment
from mcc_core.methods.irn.network import IRNet
from mcc_core.methods.objective import Objective
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.inter_pixel import affinity_losses, displacement_losses, path_affinity, relations
from mcc_core.pseudo_labels.labels import IGNORE, reduced


class IRNObjective(Objective):
    """Affinities across boundaries and displacements of pairs of labelled pixels."""

    terms = ("cls", "alike", "unlike", "foreground", "background")

    def __init__(self, network: IRNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view1` B,3,S,S, `label` B,S,S and `labels` B,C."""
        weights, images, radius = self.weights(iteration), batch["view1"], self.experiment.relations.radius
        scored = self.network.scored(images)
        boundary, field = self.network.boundary(scored.features), self.network.displacement(scored.features)
        label = reduced(batch["label"], boundary.shape[-2:])
        pairs = relations(label, radius)
        terms = {"cls": classification(scored.cls, moved(batch["labels"], images.device))}
        terms["alike"], terms["unlike"] = affinity_losses(path_affinity(boundary.sigmoid(), radius), pairs)
        terms["foreground"], terms["background"] = displacement_losses(field, pairs, radius)
        total = sum((weights[name] * term for name, term in terms.items()), start=images.new_zeros(()))
        state: dict[str, float | Tensor] = {"label/known": (label != IGNORE).float().mean()}
        return Step(total, {name: term for name, term in terms.items() if weights[name]}, len(label), state=state)

    def after_step(self, iteration: int) -> None:
        """Ranks agree on running statistics and the mean displacement."""
        share_statistics(self.network)
