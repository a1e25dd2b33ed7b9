"""The losses of a method's step, as the training loop calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcc_core.config import Experiment
from mcc_core.device import moved
from mcc_core.methods.base import Step
from mcc_core.pseudo_labels.labels import class_numbers
from mcc_core.schedules import value_at


class Objective(nn.Module):
    """Batch, random draws and iteration in; named losses out. Draws nothing itself.

    DistributedDataParallel wraps it. It holds no state beside the network's. A term whose weight is 0 at an iteration
    is not computed: it would add exact zeros to every gradient. Parameters that only such a term reaches must keep a
    gradient of zero, so that weight decay applies.
    """

    terms: tuple[str, ...]

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment: Any = experiment

    def begin(self, classes: Sequence[str]) -> None:
        """Before the first pass: the foreground names of the dataset. Raises UsageError where they do not suit."""

    @property
    def total_iterations(self) -> int:
        """Length of the whole run."""
        return self.experiment.train.iterations

    def at(self, value: Any, iteration: int) -> float:
        """A number or schedule of the experiment at a 0-based iteration."""
        return value_at(value, iteration, self.total_iterations)

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        return {term: self.at(getattr(self.experiment.loss, term), iteration) for term in self.terms}

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        """Losses of one pass.

        Args:
            batch: views by name B,3,S,S; on the host `labels` B,C 0/1, `box` B,4 valid area: top, bottom, left,
                right.
            draws: the method's random draws, on the host. What is known there can decide sizes and indices without
                waiting for a GPU; `moved` brings it to one.
            iteration: 0-based.
            first: the first pass of an optimiser step.
        """
        raise TypeError(f"{type(self).__name__} has no losses")

    def after_step(self, iteration: int) -> None:
        """After the optimiser's step of a 0-based iteration; moving averages of the network belong here."""


@dataclass(frozen=True)
class Opening:
    """What every term of a pass may need, of methods that learn from class maps. Maps are of K classes only."""

    batch: Mapping[str, Tensor]
    iteration: int
    weights: Mapping[str, float]  # of the terms
    labels: Tensor  # B,C 0/1
    boxes: Tensor  # B,4
    classes: Tensor  # K class indices
    present: Tensor  # B,K 0/1
    here: Tensor  # the same on the host
    background: float  # thresholds
    foreground: float
    numbers: Tensor  # 256: what a label within `classes` is among all

    def masked(self, cam: Tensor) -> Tensor:
        """CAMs B,K,H,W, zero for absent classes."""
        return cam * self.present[:, :, None, None]

    def class_ids(self, label: Tensor) -> Tensor:
        """Labels that count 1..K within `classes` as labels 1..C; 0 and IGNORE stay."""
        return self.numbers[label]


def opening(objective: Objective, batch: Mapping[str, Tensor], iteration: int, *, all_classes: bool) -> Opening:
    """The opening of a pass on the device of `view1`.

    Args:
        objective: of an experiment with the section `thresholds`.
        all_classes: maps of every class, not only of those that an image of the batch has.
    """
    device, thresholds, labels = batch["view1"].device, objective.experiment.thresholds, batch["labels"].cpu()
    classes = torch.arange(labels.shape[1]) if all_classes else present_classes(labels)
    here = labels[:, classes]
    return Opening(
        batch=batch,
        iteration=iteration,
        weights=objective.weights(iteration),
        labels=moved(labels, device),
        boxes=moved(batch["box"], device),
        classes=moved(classes, device),
        present=moved(here, device),
        here=here,
        background=objective.at(thresholds.background, iteration),
        foreground=objective.at(thresholds.foreground, iteration),
        numbers=moved(class_numbers(classes), device),
    )


class _Settled(torch.autograd.Function):
    """A value whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def settled(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The scalar `function(x)`, whose gradient in `x` is computed at once.

    What the function keeps for its backward pass is gone before the next term is computed: maps of all classes at
    full resolution, or all pairs of tokens.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    leaf = x.detach().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return _Settled.apply(x, value.detach(), gradient)


def present_classes(labels: Tensor) -> Tensor:
    """Indices of the classes that any image of a batch has, of labels B,C; class 0 stands in when there is none."""
    present = labels.any(0).nonzero()[:, 0]
    return present if len(present) else present.new_zeros(1)
