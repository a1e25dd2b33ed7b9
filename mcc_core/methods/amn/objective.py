"""One training step of AMN."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses.terms import classification
from mcc_core.methods.amn.config import Experiment
from mcc_core.methods.amn.network import AMNet
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective
from mcc_core.networks.batch_norm import share_statistics
from mcc_core.pseudo_labels.labels import IGNORE, reduced


class AMNObjective(Objective):
    """Classification of pixels by a label map, background and foreground alike in weight."""

    terms = ("cls", "pcl")

    def __init__(self, network: AMNet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.network = network

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass; `batch` has `view1` B,3,S,S, `label` B,S,S and `labels` B,C."""
        weights, images = self.weights(iteration), batch["view1"]
        labels, network = moved(batch["labels"], images.device), self.network
        scored = network.scored(images, detach=True)
        logits = network.pixel_logits(scored.features[-1], labels)
        label = reduced(batch["label"], logits.shape[-2:])
        smoothing = self.at(self.experiment.loss.smoothing, iteration)
        terms = {
            "cls": classification(scored.cls, labels),
            "pcl": balanced_cross_entropy(logits, label, smoothing),
        }
        total = sum((weights[name] * term for name, term in terms.items()), start=images.new_zeros(()))
        state: dict[str, float | Tensor] = {"label/known": (label != IGNORE).float().mean()}
        return Step(total, {name: term for name, term in terms.items() if weights[name]}, len(label), state=state)

    def after_step(self, iteration: int) -> None:
        """Ranks agree on running statistics."""
        share_statistics(self.network)


def balanced_cross_entropy(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Half the mean over the batch's background pixels and half that over its foreground pixels.

    A pixel's target is 1 - smoothing of its own label, the rest shared by the others alike. A batch without pixels of a
    kind has 0 for it.

    Args:
        logits: B,C+1,h,w, background first; label: B,h,w, 0..C or IGNORE.
    """
    logs = logits.log_softmax(1)
    known = label != IGNORE
    own = logs.gather(1, label.masked_fill(~known, 0)[:, None])[:, 0]
    others = (logs.sum(1) - own) / (logits.shape[1] - 1)
    loss = -(1 - smoothing) * own - smoothing * others
    background, foreground = (
        (loss * kind).sum() / kind.sum().clamp(min=1) for kind in (label == 0, known & (label > 0))
    )
    return (background + foreground) / 2
