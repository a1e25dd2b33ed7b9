"""The pseudo-label of an image, as training makes it, for scores and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from mcc_core.config import EvaluationConfig
from mcc_core.device import moved
from mcc_core.pseudo_labels.labels import class_ids, refined_label
from mcc_core.pseudo_labels.pamr import mask_label
from mcc_core.schedules import Scheduled


def pseudo_label(image: Tensor, cam: Tensor, seg: Tensor | None, classes: Tensor, config: EvaluationConfig) -> Tensor:
    """Labels 1,H,W: 0 background, 1..C the image's classes, IGNORE where it is left open.

    Args:
        image: 1,3,H,W normalised.
        cam: 1,K,H,W of the classes `classes`, K indices on the host.
        seg: 1,C+1,h,w logits of the image at one scale, background first; read where `config.pamr` is set.
    """
    if not len(classes):
        return torch.zeros(1, *image.shape[-2:], dtype=torch.long, device=image.device)
    here = torch.ones(1, len(classes))
    if config.pamr is not None:
        assert seg is not None
        masks = seg.softmax(1)[:, moved(torch.cat([classes.new_zeros(1), classes + 1]), seg.device)]
        return class_ids(mask_label(image, masks, moved(here, seg.device), config.pamr), classes)
    box = torch.tensor([[0, image.shape[-2], 0, image.shape[-1]]])
    background, foreground = at_rest(config.background), at_rest(config.foreground)
    return class_ids(refined_label(image, cam, here, box, background, foreground, config.par), classes)


def at_rest(threshold: Scheduled) -> float:
    """An evaluation's threshold, which does not change. Raises TypeError for a schedule."""
    if isinstance(threshold, float | int):
        return float(threshold)
    raise TypeError(f"{threshold}: an evaluation's threshold is a number")
