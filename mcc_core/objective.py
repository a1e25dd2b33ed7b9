"""One training step's losses (Eq. 5): batch, key masks and iteration in; named losses out. Draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core import losses
from mcc_core.cam import CamPair, multi_scale_cams
from mcc_core.config import Experiment
from mcc_core.encoder import Features
from mcc_core.masking import activation_levels, positiveness
from mcc_core.model import MCCNet, Output
from mcc_core.pseudo_label import inside_boxes, refined_label, token_label
from mcc_core.schedules import always_zero, value_at

TERMS = ("cls", "cls_aux", "aff", "mcc", "seg", "reg")


@dataclass(frozen=True)
class Batch:
    """Images of one step, ImageNet-normalised, and what is known of them."""

    images: Tensor  # B,3,S,S view 1, also the classification image
    view2: Tensor  # B,3,S,S
    local: Tensor  # B,3,S,S
    labels: Tensor  # B,C 0/1
    boxes: Tensor  # B,4 valid area of `images`: top, bottom, left, right


@dataclass(frozen=True)
class Contrast:
    """What the contrastive loss compared."""

    queries: Tensor  # 2B,E view-major (or B: contrast.queries)
    keys: Tensor  # (2+V)B,E view-major (or VB: contrast.global_keys)
    flags: Tensor  # B,2+V (or V), one for each key


@dataclass(frozen=True)
class Step:
    """The losses of a step and what they were computed from. Maps are of the classes `classes` only."""

    total: Tensor
    terms: dict[str, Tensor]  # unweighted; a term whose weight is 0 at this iteration is absent
    output: Output
    classes: Tensor  # K class indices present in the batch
    cams: CamPair  # final and auxiliary, B,K,S,S, all classes of `classes` for every image
    affinity_label: Tensor | None  # B,h,w
    contrast: Contrast | None
    refined: Tensor | None  # B,S,S


class Objective(nn.Module):
    """Eq. 5 for a network. Wrap it (not the network) in DistributedDataParallel.

    A term whose weight is 0 at an iteration is not computed: it would add exact zeros to every gradient. Parameters
    only such a term reaches keep a gradient of zero, so that weight decay applies as published (PAPER_NOTES row 14).
    """

    def __init__(self, model: MCCNet, experiment: Experiment) -> None:
        super().__init__()
        self.model = model
        self.experiment = experiment
        if always_zero(experiment.loss.mcc):
            model.projector.requires_grad_(False)

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        config = self.experiment.loss
        weights = {term: value_at(getattr(config, term), iteration, self.total_iterations) for term in TERMS}
        if iteration <= config.seg_start:
            weights["seg"] = weights["reg"] = 0.0
        return weights

    @property
    def total_iterations(self) -> int:
        return self.experiment.train.iterations

    def forward(
        self, batch: Batch, masks: Tensor, iteration: int, all_classes: bool = False, first: bool = True
    ) -> Step:
        """Losses of one step.

        Args:
            masks: B,V,h,w key masks, 1 = masked.
            iteration: 0-based.
            all_classes: compute the maps of every class, not only of those present; the losses are the same.
            first: the first pass of an optimiser step, which moves the momentum projector.
        """
        e = self.experiment
        weights = self.weights(iteration)
        compares_view2 = e.contrast.queries == "both" or e.contrast.global_keys
        output = self._forward(batch, bool(weights["mcc"]) and compares_view2)
        classes = torch.arange(batch.labels.shape[1], device=batch.labels.device)
        classes = classes if all_classes else _present(batch.labels)
        cams = self._cams(batch, output, classes)
        present = batch.labels[:, classes]
        final, aux = (cam * present[:, :, None, None] for cam in cams)
        background, foreground = self._at("background", iteration), self._at("foreground", iteration)

        terms: dict[str, Tensor] = {
            "cls": losses.classification(output.cls, batch.labels),
            "cls_aux": losses.classification(output.cls_aux, batch.labels),
        }
        grid = self.model.encoder.grid(*batch.images.shape[-2:])
        inclusive = e.thresholds.foreground_inclusive
        affinity_label = None
        if weights["aff"]:
            affinity_label = inside_boxes(token_label(aux, grid, background, foreground, inclusive), batch.boxes)
            loss = partial(losses.affinity, labels=affinity_label, form=e.loss.aff_form)
            terms["aff"] = settled(loss, output.features.patches)
        refined = None
        if weights["seg"] or weights["reg"]:
            source = aux if _reads_auxiliary(iteration, e.cam.pseudo_label_aux_until) else final
            refined = refined_label(batch.images, source, present, batch.boxes, background, foreground, e.par)
            refined = _class_ids(refined, classes)
            label, form = refined, e.loss.seg_form
            if weights["seg"]:
                terms["seg"] = settled(lambda seg: losses.segmentation(_enlarged(seg, label), label, form), output.seg)
            if weights["reg"]:
                terms["reg"] = settled(
                    lambda seg: losses.dense_energy(batch.images, _enlarged(seg, label), label, batch.boxes, e.energy),
                    output.seg,
                )
        # Last, so that the local views' activations are not held while the terms above need room.
        compared = None
        if weights["mcc"]:
            guide = aux if _reads_auxiliary(iteration, e.cam.positiveness_aux_until) else final
            resize = e.contrast.positiveness_resize
            if e.contrast.positiveness_from == "levels":
                level = activation_levels(guide, grid, background, foreground, resize)
            else:
                numbers = _class_ids(token_label(guide, grid, background, foreground, inclusive, resize), classes)
                level = numbers.to(guide.dtype)
            keys_global = 2 if e.contrast.global_keys else 0
            flags = positiveness(level, masks, self._at("positiveness", iteration), keys_global)
            if first:
                momentum = value_at(e.contrast.momentum, iteration, self.total_iterations)
                self.model.update_momentum_projector(momentum)
            compared = self._contrast(batch, output, masks, flags)
            temperature = value_at(e.contrast.temperature, iteration, self.total_iterations)
            terms["mcc"] = losses.contrast(
                compared.queries, compared.keys, flags, temperature, e.contrast.epsilon, e.contrast.empty_term
            )

        total = sum((weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        total = total + self._untouched(terms, output)
        return Step(total, terms, output, classes, cams, affinity_label, compared, refined)

    def _forward(self, batch: Batch, with_view2: bool) -> Output:
        """The one pass that serves classification, unflipped CAM, and both global views."""
        return self.model(batch.images, batch.view2 if with_view2 else None)

    def _cams(self, batch: Batch, output: Output, classes: Tensor) -> CamPair:
        """CAMs of `classes`; the classification forward serves as their unflipped forward at scale 1."""
        return multi_scale_cams(self.model, batch.images, self.experiment.cam.scales, _detached(output), classes)

    def _contrast(self, batch: Batch, output: Output, masks: Tensor, flags: Tensor) -> Contrast:
        """Queries are global class tokens, detached, through the momentum projector; keys are the student's."""
        model, e = self.model, self.experiment
        global_tokens = [token for token in (output.features.cls, output.other_cls) if token is not None]
        asking = global_tokens if e.contrast.queries == "both" else global_tokens[:1]
        with torch.no_grad():
            queries = model.momentum_projector(torch.cat(asking).detach())
        local_tokens = model.encoder.masked_cls(batch.local, masks, drop=e.mask.drop_tokens)
        keys = model.projector(torch.cat([*global_tokens, local_tokens] if e.contrast.global_keys else [local_tokens]))
        return Contrast(queries, keys, flags)

    def _untouched(self, terms: Mapping[str, Tensor], output: Output) -> Tensor:
        """Zero, connected to the trained parameters that no computed term reaches."""
        zero = output.cls.new_zeros(())
        if "seg" not in terms and "reg" not in terms:
            zero = zero + 0 * output.seg.sum()
        if "mcc" not in terms:
            zero = zero + sum(0 * p.sum() for p in self.model.projector.parameters() if p.requires_grad)
        return zero

    def _at(self, threshold: str, iteration: int) -> float:
        return value_at(getattr(self.experiment.thresholds, threshold), iteration, self.total_iterations)


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


def _enlarged(logits: Tensor, label: Tensor) -> Tensor:
    return F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)


def _reads_auxiliary(iteration: int, until: int | None) -> bool:
    """Whether the auxiliary CAM decides at a 0-based iteration: up to and with `until`; 0 never, None always."""
    return until is None or 0 < until >= iteration


def _present(labels: Tensor) -> Tensor:
    """Indices of the classes that any image of the batch has; class 0 stands in when there is none."""
    present = labels.any(0).nonzero()[:, 0]
    return present if len(present) else present.new_zeros(1)


def _class_ids(label: Tensor, classes: Tensor) -> Tensor:
    """Labels that count 1..K within `classes` as labels 1..C; 0 and IGNORE stay."""
    table = torch.arange(256, device=label.device)
    table[1 : len(classes) + 1] = classes + 1
    return table[label]


def _detached(output: Output) -> Features:
    features = output.features
    return type(features)(features.cls.detach(), features.patches.detach(), features.aux.detach())
