"""One training step on label maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.errors import UsageError
from mcc_core.losses import terms as losses
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective, settled
from mcc_core.methods.segmentation.config import Experiment
from mcc_core.methods.segmentation.network import SegmentationNet
from mcc_core.networks.base import Output
from mcc_core.pseudo_labels.labels import IGNORE


@dataclass(frozen=True)
class SegmentationStep(Step):
    """The losses of a step and what they were computed from."""

    output: Output


class SegmentationObjective(Objective):
    """Weighted cross entropy and, where it is asked for, dense energy.

    Raises UsageError where there are not as many class weights as outputs.
    """

    class_weights: Tensor | None

    def __init__(self, network: SegmentationNet, experiment: Experiment, terms: tuple[str, ...]) -> None:
        super().__init__(experiment)
        self.network, self.terms = network, terms
        given = experiment.loss.class_weights
        if given is not None and len(given) != network.num_classes + 1:
            raise UsageError(
                f"loss.class_weights: {len(given)} numbers; expected {network.num_classes + 1}: the background's and "
                "one for each class"
            )
        weights = None if given is None else torch.tensor(given)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> SegmentationStep:
        """Losses of one pass; `batch` has `view` B,3,S,S, `label` B,S,S uint8 and may have `confidence` B,S,S uint8."""
        e, weights, images = self.experiment, self.weights(iteration), batch["view"]
        label = batch["label"].long()
        sure = batch["confidence"].to(images.dtype) / 255 if "confidence" in batch else None
        if sure is not None and e.loss.least_confidence:
            label = label.masked_fill(sure < e.loss.least_confidence, IGNORE)
        output: Output = self.network(images)
        terms: dict[str, Tensor] = {}
        if weights["seg"]:
            factors = class_factors(label, self.network.num_classes + 1, e.loss.balance, self.class_weights)
            pixels = sure if e.loss.confidence else None
            terms["seg"] = settled(
                lambda seg: weighted_cross_entropy(_enlarged(seg, label), label, factors, pixels), output.seg
            )
        if weights.get("reg"):
            boxes = moved(batch["box"], images.device)
            terms["reg"] = settled(
                lambda seg: losses.dense_energy(images, _enlarged(seg, label), label, boxes, e.energy), output.seg
            )
        start = output.seg.new_zeros(()) if terms else 0 * output.seg.sum()
        total = sum((weights[name] * term for name, term in terms.items()), start=start)
        state: dict[str, float | Tensor] = {"label/labelled": (label != IGNORE).to(images.dtype).mean()}
        return SegmentationStep(total, terms, len(images), output, state=state)


def class_factors(label: Tensor, outputs: int, balance: float, given: Tensor | None) -> Tensor | None:
    """Factors of the background and of each class, `outputs` of them; None: all 1.

    `balance` b: a class of n pixels of the labels B,H,W counts (N / n)^b, N the pixels of the mean class; those that
    do not occur have no pixel to count. At 1 all classes that occur count alike. `given` multiplies them.
    """
    if not balance:
        return given
    pixels = torch.stack([(label == number).sum() for number in range(outputs)]).float()
    here = pixels > 0
    mean = pixels.sum() / here.sum().clamp(min=1)
    factors = torch.where(here, (mean / pixels.clamp(min=1)) ** balance, 0)
    return factors if given is None else factors * given


def weighted_cross_entropy(logits: Tensor, label: Tensor, factors: Tensor | None, sure: Tensor | None) -> Tensor:
    """Sum of f_c s_i CE_i over the sum of f_c, over labelled pixels i of class c.

    Confidence is not in the denominator: a batch of doubtful labels teaches less than one of sure ones.

    Args:
        logits: B,C+1,H,W; label: B,H,W with IGNORE; factors: C+1, default 1; sure: B,H,W in [0, 1], default 1.
    """
    per_pixel = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    labelled = label != IGNORE
    weight = labelled.to(logits.dtype)
    if factors is not None:
        weight = weight * factors[label.masked_fill(~labelled, 0)]
    counted = per_pixel * weight if sure is None else per_pixel * weight * sure
    return counted.sum() / weight.sum().clamp(min=1e-6)


def _enlarged(seg: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(seg, size=label.shape[-2:], mode="bilinear", align_corners=False)
