"""One training step of AFA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.device import moved
from mcc_core.losses import terms as losses
from mcc_core.methods.afa import affinity as pairs_of
from mcc_core.methods.afa.config import Experiment
from mcc_core.methods.afa.network import AFANet, AFAOutput
from mcc_core.methods.base import Step
from mcc_core.methods.objective import Objective, Opening, opening, settled
from mcc_core.pseudo_labels.cam import MapPair, combined_maps, raw_maps
from mcc_core.pseudo_labels.labels import IGNORE, decided, denormalise, refined_label
from mcc_core.pseudo_labels.par import refine

Batch = Mapping[str, Tensor]  # view1 B,3,S,S; labels: B,C; box: B,4


@dataclass(frozen=True)
class Cams:
    """CAMs of a batch and the affinity that spreads them. Maps are of the classes `classes` only."""

    classes: Tensor  # K class indices
    maps: Tensor  # B,K,S,S, all of `classes` for every image
    affinity: Tensor | None  # B,M,M at the largest scale
    grid: tuple[int, int]  # of that affinity


@dataclass(frozen=True)
class AFAStep(Step):
    """The losses of a step and what they were computed from."""

    output: AFAOutput
    cams: Cams | None
    affinity: Tensor | None  # B,N,N
    pairs: Tensor | None  # B,N,N 1, 0 or IGNORE
    seg_label: Tensor | None  # B,S,S what segmentation learns from


class AFAObjective(Objective):
    """Classification, segmentation and affinity, in stages."""

    terms = ("cls", "seg", "aff")

    def __init__(self, model: AFANet, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.model = model

    def weights(self, iteration: int) -> dict[str, float]:
        """Weight of each term at a 0-based iteration."""
        weights = super().weights(iteration)
        if iteration <= self.experiment.loss.seg_start:
            weights["seg"] = weights["aff"] = 0.0
        return weights

    def forward(
        self,
        batch: Batch,
        draws: Mapping[str, Tensor],
        iteration: int,
        *,
        first: bool = True,
        all_classes: bool = False,
    ) -> AFAStep:
        """Losses of one pass.

        Args:
            draws: none.
            all_classes: compute the maps of every class, not only of those present; the losses are the same.
        """
        known = opening(self, batch, iteration, all_classes=all_classes)
        weights, labels = known.weights, known.labels
        output: AFAOutput = self.model(batch["view1"])
        terms: dict[str, Tensor] = {"cls": losses.classification(output.cls, labels)}
        cams = affinity = pairs = seg_label = None
        if weights["seg"] or weights["aff"]:
            propagates = self.propagates(iteration)
            cams = self.class_maps(batch, output, known.classes, with_affinity=propagates)
            seg_label, pair_label = self._labels(known, cams, propagates)
            if weights["seg"]:
                loss = partial(_segmentation, label=seg_label)
                terms["seg"] = settled(loss, output.seg)
            if weights["aff"]:
                affinity = self.model.affinity(output.features)
                grid = (output.features.maps[3].shape[-2], output.features.maps[3].shape[-1])
                pairs = pairs_of.pair_labels(pair_label, grid, self.experiment.affinity.radius)
                terms["aff"] = settled(partial(pairs_of.affinity_loss, pairs=pairs), affinity)
        total = sum((weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        total = total + self._untouched(terms, output)
        return AFAStep(
            total,
            terms,
            len(labels),
            output,
            cams,
            None if affinity is None else affinity.detach(),
            pairs,
            seg_label,
        )

    def propagates(self, iteration: int) -> bool:
        """Whether the label of segmentation is the propagated one at a 0-based iteration."""
        return iteration > self.experiment.loss.propagation_start

    def _labels(self, known: Opening, cams: Cams, propagates: bool) -> tuple[Tensor, Tensor]:
        """What segmentation learns from, and what affinity does; both B,S,S."""
        weights = known.weights
        from_refined = self.experiment.affinity.label == "refined"
        wanted = propagates and (bool(weights["seg"]) or not from_refined)
        refined = self.refined(known, cams) if not wanted or (from_refined and weights["aff"]) else None
        spread = self.propagated(known, cams) if wanted else None
        seg_label = refined if spread is None else spread
        pair_label = refined if refined is not None else spread
        assert seg_label is not None and pair_label is not None
        return seg_label, pair_label

    @torch.no_grad()
    def class_maps(self, batch: Batch, output: AFAOutput, classes: Tensor, *, with_affinity: bool) -> Cams:
        """CAMs of `classes`; the classification forward serves as their unflipped forward at scale 1."""
        images, scales = batch["view1"], self.experiment.cam.scales
        straight = replace(output, features=output.features.detach())
        size = (images.shape[-2], images.shape[-1])
        pairs: list[MapPair] = []
        affinity, grid = None, (0, 0)
        for scale in scales:
            if with_affinity and scale == max(scales) and affinity is None:
                target = [max(self.model.stride, int(scale * side)) for side in size]
                scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
                features = self.model.encoder(torch.cat([scaled, scaled.flip(-1)]))
                both = F.conv2d(features.maps[3], self.model.classifier.weight[classes])
                pairs.append((both.chunk(2)[0], both.chunk(2)[1]))
                affinity = self.model.affinity(features, len(images))
                grid = (both.shape[-2], both.shape[-1])
            else:
                pairs += raw_maps(self.model, images, [scale], straight, classes)["cam"]
        return Cams(classes, combined_maps(pairs, size), affinity, grid)

    def refined(self, known: Opening, cams: Cams) -> Tensor:
        """The refined label B,S,S of the CAMs as they are."""
        images, cam, par = known.batch["view1"], known.masked(cams.maps), self.experiment.par
        label = refined_label(images, cam, known.here, known.boxes, known.background, known.foreground, par)
        return known.class_ids(label)

    @torch.no_grad()
    def propagated(self, known: Opening, cams: Cams) -> Tensor:
        """The label B,S,S of CAMs that affinity has spread, refined inside the image box (section 3.4)."""
        e, images = self.experiment, known.batch["view1"]
        matrix = self.transition(cams)
        pixels = denormalise(images, quantise=True)
        label = torch.full((len(images), *images.shape[-2:]), IGNORE, dtype=torch.long, device=images.device)
        for i, (top, bottom, left, right) in enumerate(known.batch["box"].tolist()):
            height, width = bottom - top, right - left
            keys = F.pad(known.here[i].nonzero()[:, 0] + 1, (1, 0))
            keys = moved(keys, images.device)
            maps = cams.maps[i].index_select(0, keys[1:] - 1)
            scores = [
                self.spread(maps, matrix[i], cams.grid, score)[:, top:bottom, left:right]
                for score in (known.foreground, known.background)
            ]
            small = [max(1, side // e.par.downscale) for side in (height, width)]
            image = F.interpolate(
                pixels[i : i + 1, :, top:bottom, left:right], size=small, mode="bilinear", align_corners=False
            )
            best = F.interpolate(
                refine(image, torch.cat(scores)[None], e.par),
                size=(height, width),
                mode="bilinear",
                align_corners=False,
            )
            label[i, top:bottom, left:right] = decided(*(keys[half[0].max(0).indices] for half in best.chunk(2, dim=1)))
        return known.class_ids(label)

    def transition(self, cams: Cams) -> Tensor:
        """What spreads the CAMs: B,M,M."""
        config = self.experiment.affinity
        assert cams.affinity is not None
        return pairs_of.transition(cams.affinity, cams.grid, config.radius, config.power, config.epsilon)

    def spread(self, maps: Tensor, matrix: Tensor, grid: tuple[int, int], background: float) -> Tensor:
        """Scores 1+K,S,S of one image: its maps K,S,S and a constant background, spread and brought back to size."""
        scores = torch.cat([maps.new_full((1, *maps.shape[1:]), background), maps])
        small = pairs_of.propagated(scores, matrix, grid, self.experiment.affinity.steps)
        return F.interpolate(small[None], size=maps.shape[-2:], mode="bilinear", align_corners=False)[0]

    def _untouched(self, terms: Mapping[str, Tensor], output: AFAOutput) -> Tensor:
        """Zero, connected to the trained parameters that no computed term reaches."""
        zero = output.cls.new_zeros(())
        if "seg" not in terms:
            zero = zero + 0 * output.seg.sum()
        if "aff" not in terms:
            zero = zero + sum(0 * p.sum() for p in self.model.attn_proj.parameters())
        return zero


def _segmentation(seg: Tensor, label: Tensor) -> Tensor:
    logits = F.interpolate(seg, size=label.shape[-2:], mode="bilinear", align_corners=False)
    return losses.segmentation(logits, label)
