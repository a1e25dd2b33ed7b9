"""Scores of a network on images with masks, and the panels that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mcc_core.config import Experiment, Precision
from mcc_core.data.datasets import EvaluationSet
from mcc_core.data.index import DataIndex, Item
from mcc_core.device import moved
from mcc_core.evaluation.metrics import (
    ConfusionMatrix,
    Metric,
    Protocol,
    Stage,
    f1_counts,
    f1_score,
    require_foreground,
)
from mcc_core.evaluation.pseudo_label import at_rest, pseudo_label
from mcc_core.evaluation.visualize import cam_panel
from mcc_core.methods.registry import method_of
from mcc_core.networks.base import MapStage, Network
from mcc_core.parallel import ahead
from mcc_core.precision import arithmetic
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.labels import cam_label, denormalise

STAGES: dict[Stage, Protocol] = {"cam": "ms", "aux_cam": "ms", "seg": "single"}  # and the protocols of their scores


@dataclass(frozen=True)
class EvaluationRecord:
    """Scores after `iteration` finished iterations, and one picture per shown image (rank 0 only)."""

    iteration: int
    metrics: tuple[Metric, ...]
    panels: tuple[tuple[str, Image.Image], ...]
    precision: Precision = "float32"  # of the network's products


@torch.no_grad()
def evaluate(
    model: Network,
    index: DataIndex,
    experiment: Experiment,
    device: torch.device,
    iteration: int,
    *,
    split: str = "val",
    panels: int = 0,
    images: int | None = None,
) -> EvaluationRecord:
    """Score CAMs and segmentation as the published in-training evaluation does.

    Images are squashed to the crop; segmentation is single-scale, CAMs are multi-scale and know the image's labels;
    maps are compared at the mask's own size. With torch.distributed every rank scores its share and confusion
    matrices are summed, which is exact. `split` is `val`, or `train` where training images have masks. Without any
    mask only the classes are scored.

    Args:
        images: score only the first so many (default: `train.eval_images` for val).
    """
    model.eval()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    limit = images if images is not None else (experiment.train.eval_images if split == "val" else None)
    whole = _scored(index, split)
    items = whole[:limit]
    scorer = _Scorer(model, index, experiment, device, iteration, panels if rank == 0 else 0)
    scorer.whole_split = len(items) == len(whole)
    dataset = EvaluationSet(items[rank::world], index.masks, len(index.classes), experiment.train.crop)
    batch, threads = experiment.train.eval_batch, min(4, max(1, experiment.train.loader_workers))
    samples = ahead(dataset.__getitem__, range(len(dataset)), threads=threads, depth=2 * batch)
    with arithmetic(model.precision, model.deterministic):
        while chosen := list(islice(samples, batch)):
            scorer.add(chosen)
    if world > 1:
        scorer.sum_over_ranks()
    model.train()
    return EvaluationRecord(iteration, tuple(scorer.metrics(split)), tuple(scorer.panels), model.precision)


def _scored(index: DataIndex, split: str) -> Sequence[Item]:
    items = index.val if split == "val" else index.train
    return [item for item in items if item.name in index.masks] or items


class _Scorer:
    """Confusion matrices of every stage over a growing set of images."""

    def __init__(
        self,
        model: Network,
        index: DataIndex,
        experiment: Experiment,
        device: torch.device,
        iteration: int,
        panels: int,
    ) -> None:
        self.model, self.classes, self.device, self.wanted = model, index.classes, device, panels
        self.config = method_of(experiment).evaluation(experiment, len(index.classes), iteration)
        outputs = len(index.classes) + 1
        self.stages: tuple[Stage, ...] = (*model.map_stages, "seg")
        self.matrices = {stage: ConfusionMatrix(outputs) for stage in (*self.stages, "all_background")}
        self.f1 = torch.zeros(3, len(index.classes), dtype=torch.long, device=device)
        self.panels: list[tuple[str, Image.Image]] = []
        self.whole_split = True

    def add(self, samples: Sequence[dict[str, object]]) -> None:
        images = moved(torch.stack([s["image"] for s in samples]), self.device)  # type: ignore[misc]
        here = torch.stack([s["labels"] for s in samples])  # type: ignore[misc]
        labels = moved(here, self.device)
        output = self.model(images)
        present = labels[:, :, None, None]
        with self.model.given(here):
            raw = multi_scale_maps(self.model, images, self.config.cam_scales, output)
        maps = {stage: cam * present for stage, cam in raw.items()}
        self.f1 += f1_counts(output.cls > 0, labels > 0)
        for i, sample in enumerate(samples):
            mask = sample["mask"]
            truth = moved(mask, self.device) if isinstance(mask, Tensor) else None
            prediction = self._segmentation(output.seg[i : i + 1], images.shape[-2:] if truth is None else truth.shape)
            if truth is not None:
                self.matrices["seg"].update(prediction, truth)
                for stage, cam in maps.items():
                    self.matrices[stage].update(self._cam_label(cam[i : i + 1], truth.shape), truth)
                self.matrices["all_background"].update(torch.zeros_like(truth), truth)
            if len(self.panels) < self.wanted:
                this = slice(i, i + 1)
                shown = {stage: cam[this] for stage, cam in maps.items()}
                panel = self._panel(images[this], here[this], shown, output.seg[this], prediction, truth)
                self.panels.append((str(sample["name"]), panel))

    def sum_over_ranks(self) -> None:
        for counts in [*(matrix.counts for matrix in self.matrices.values()), self.f1]:
            moved = counts.to(self.device)
            dist.all_reduce(moved)
            counts.copy_(moved.cpu())

    def metrics(self, split: str) -> list[Metric]:
        """mIoU, pixel accuracy and IoU per class of every stage; mIoU of calling everything background; F1.

        Without masks F1 alone.
        """
        f1 = Metric(split, "cls", "single", "f1", f1_score(self.f1))
        if not self.matrices["seg"].counts.any():
            return [f1]
        if not self.matrices["seg"].counts[1:].any():
            if self.whole_split:
                require_foreground(self.matrices["seg"], split)
            return [f1]  # of the first few images of a split, which may all be background
        values: list[Metric] = []
        names = ("background", *self.classes)
        for stage in self.stages:
            protocol, matrix = STAGES[stage], self.matrices[stage]
            values.append(Metric(split, stage, protocol, "miou", matrix.miou()))
            values.append(Metric(split, stage, protocol, "pixel_accuracy", matrix.pixel_accuracy()))
            per_class = zip(names, matrix.iou().tolist(), strict=True)
            values += [Metric(split, stage, protocol, f"iou/{n}", v) for n, v in per_class if v == v]
        values.append(Metric(split, "all_background", "single", "miou", self.matrices["all_background"].miou()))
        return [*values, f1]

    def _segmentation(self, logits: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False).argmax(1)[0]

    def _cam_label(self, cam: Tensor, size: torch.Size) -> Tensor:
        resized = F.interpolate(cam, size=tuple(size), mode="bilinear", align_corners=False)
        return cam_label(resized, at_rest(self.config.cam_threshold))[0]

    def _panel(
        self,
        image: Tensor,
        labels: Tensor,
        maps: dict[MapStage, Tensor],
        seg: Tensor,
        prediction: Tensor,
        truth: Tensor | None,
    ) -> Image.Image:
        size, classes = image.shape[-2:], labels[0].nonzero()[:, 0]
        pseudo = None
        if "cam" in maps:
            cam = maps["cam"][:, moved(classes, image.device)]
            pseudo = pseudo_label(image, cam, seg, classes, self.config)[0].to(torch.uint8).cpu().numpy()

        def fit(label: Tensor) -> Tensor:
            return F.interpolate(label[None, None].float(), size=size, mode="nearest")[0, 0].to(torch.uint8).cpu()

        return cam_panel(
            denormalise(image, quantise=False)[0].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy(),
            {stage: cam[0].cpu().numpy() for stage, cam in maps.items()},
            pseudo,
            fit(prediction).numpy(),
            None if truth is None else fit(truth).numpy(),
            [name for name, here in zip(self.classes, labels[0], strict=True) if here],
        )
