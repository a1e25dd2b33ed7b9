"""One training step of MCTformer: classification by class tokens and by patches."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses import terms as losses
from mcc_core.methods.base import Step
from mcc_core.methods.mctformer.config import Experiment
from mcc_core.methods.mctformer.network import MCTformerNet
from mcc_core.methods.objective import Objective


class MCTformerObjective(Objective):
    """Multi-label soft margin losses of both kinds of class scores."""

    terms = ("cls", "cls_patch")

    def __init__(self, network: MCTformerNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view` B,3,S,S and `labels` B,C."""
        weights, labels = self.weights(iteration), moved(batch["labels"], batch["view"].device)
        scores = self.network.scores(batch["view"])
        both = {"cls": scores.tokens, "cls_patch": scores.patches}
        terms = {name: losses.classification(score, labels) for name, score in both.items() if weights[name]}
        total = sum((weights[name] * term for name, term in terms.items()), start=scores.tokens.new_zeros(()))
        total = total + 0 * sum(score.sum() for name, score in both.items() if name not in terms)
        return Step(total, terms, len(labels))
