"""From CAMs to labels: thresholds (Eq. 8), affinity pairs, refinement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD, ParConfig
from mcc_core.pseudo_labels.par import refine

IGNORE = 255


def denormalise(images: Tensor, *, quantise: bool) -> Tensor:
    """ImageNet-normalised B,3,H,W back to 0..255, float; `quantise` cuts to whole grey levels as 8-bit images have."""
    std = images.new_tensor([255 * value for value in IMAGENET_STD])[:, None, None]
    mean = images.new_tensor([255 * value for value in IMAGENET_MEAN])[:, None, None]
    pixels = images * std + mean
    return pixels.to(torch.uint8).to(images.dtype) if quantise else pixels


def cam_label(cam: Tensor, background: float, foreground: float | None = None, inclusive: bool = False) -> Tensor:
    """Labels B,H,W of CAMs B,C,H,W that are zero for absent classes: 0 background, 1..C classes.

    A value at or below `background` is background; with `foreground`, what lies between is IGNORE (Eq. 8), the value
    `foreground` itself too unless `inclusive`.
    """
    value, label = cam.max(dim=1)
    label = label + 1
    if foreground is not None:
        label = label.masked_fill(value < foreground if inclusive else value <= foreground, IGNORE)
    return label.masked_fill(value <= background, 0)


def inside_boxes(label: Tensor, boxes: Tensor) -> Tensor:
    """`label` B,H,W with IGNORE outside each image's box (top, bottom, left, right)."""
    return label.masked_fill(~box_masks(boxes, label.shape[-2:]), IGNORE)


def box_masks(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Boolean B,H,W, true inside each box."""
    rows = torch.arange(size[0], device=boxes.device)[None, :, None]
    columns = torch.arange(size[1], device=boxes.device)[None, None, :]
    top, bottom, left, right = (b[:, None, None] for b in boxes.unbind(1))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def token_label(
    cam: Tensor,
    grid: tuple[int, int],
    background: float,
    foreground: float,
    inclusive: bool = False,
    resize: str = "bilinear",
) -> Tensor:
    """Reliable token labels B,h,w from CAMs B,C,H,W resized to the token grid (Eq. 8)."""
    resized = F.interpolate(cam, size=grid, mode=resize, align_corners=False)
    return cam_label(resized, background, foreground, inclusive)


def refined_label(
    images: Tensor,
    cam: Tensor,
    labels: Tensor,
    boxes: Tensor,
    background: float,
    foreground: float,
    config: ParConfig,
) -> Tensor:
    """Pseudo-labels B,H,W in 0..K or IGNORE: refinement against two constant background scores.

    Args:
        images: B,3,H,W normalised; cam: B,K,H,W; labels: B,K, 1 for classes present.

    Foreground is what beats the high background score; background is what loses to the low one too.
    """
    size = images.shape[-2:]
    small = [side // config.downscale for side in size]
    pixels = F.interpolate(denormalise(images, quantise=True), size=small, mode="bilinear", align_corners=False)
    cam = F.interpolate(cam, size=small, mode="bilinear", align_corners=False)
    refined = torch.full((len(images), *size), IGNORE, dtype=torch.long, device=images.device)
    for i in range(len(images)):
        present = labels[i].nonzero()[:, 0]
        high, low = (_with_background(cam[i : i + 1, present], score) for score in (foreground, background))
        packed = refine(pixels[i : i + 1], torch.cat([high, low], dim=1), config)
        keys = torch.cat([present.new_zeros(1), present + 1])
        best = F.interpolate(packed, size=size, mode="bilinear", align_corners=False)
        # max, not argmax: over a dimension that is not the last, argmax takes 25 times as long on the CPU.
        high_label, low_label = (keys[scores.max(1).indices][0] for scores in best.chunk(2, dim=1))
        refined[i] = torch.where(high_label > 0, high_label, torch.where(low_label > 0, IGNORE, 0))
    return inside_boxes(refined, boxes)


def _with_background(cam: Tensor, score: float) -> Tensor:
    background = cam.new_full((len(cam), 1, *cam.shape[-2:]), score)
    return torch.cat([background, cam], dim=1).softmax(dim=1)
