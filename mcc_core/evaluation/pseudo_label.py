"""The pseudo-label of an image, as training makes it, for scores and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from mcc_core.config import EvaluationConfig
from mcc_core.pseudo_labels.labels import refined_label
from mcc_core.pseudo_labels.pamr import mask_label
from mcc_core.schedules import Scheduled


def pseudo_label(image: Tensor, cam: Tensor, seg: Tensor | None, classes: Tensor, config: EvaluationConfig) -> Tensor:
    """Labels 1,H,W: 0 background, 1..C the image's classes, IGNORE where it is left open.

    Args:
        image: 1,3,H,W normalised.
        cam: 1,K,H,W of the classes `classes`, K indices.
        seg: 1,C+1,h,w logits of the image at one scale, background first; read where `config.pamr` is set.
    """
    if not len(classes):
        return torch.zeros(1, *image.shape[-2:], dtype=torch.long, device=image.device)
    here = torch.ones(1, len(classes), device=image.device)
    numbers = torch.arange(256, device=image.device)
    numbers[1 : len(classes) + 1] = classes + 1
    if config.pamr is not None:
        assert seg is not None
        masks = seg.softmax(1)[:, torch.cat([classes.new_zeros(1), classes + 1])]
        return numbers[mask_label(image, masks, here, config.pamr)]
    box = torch.tensor([[0, image.shape[-2], 0, image.shape[-1]]], device=image.device)
    background, foreground = at_rest(config.background), at_rest(config.foreground)
    return numbers[refined_label(image, cam, here, box, background, foreground, config.par)]


def at_rest(threshold: Scheduled) -> float:
    """An evaluation's threshold, which does not change. Raises TypeError for a schedule."""
    if isinstance(threshold, float | int):
        return float(threshold)
    raise TypeError(f"{threshold}: an evaluation's threshold is a number")
