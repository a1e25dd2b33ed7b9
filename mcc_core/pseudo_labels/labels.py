"""From CAMs to labels: thresholds (Eq. 8), affinity pairs, refinement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD, ParConfig
from mcc_core.device import constant, moved
from mcc_core.pseudo_labels.par import PIECEWISE, refine

IGNORE = 255
_STD, _MEAN = (tuple(255 * value for value in values) for values in (IMAGENET_STD, IMAGENET_MEAN))


def denormalise(images: Tensor, *, quantise: bool) -> Tensor:
    """ImageNet-normalised B,3,H,W back to 0..255, float; `quantise` cuts to whole grey levels as 8-bit images have."""
    std, mean = (constant(values, images.dtype, images.device) for values in (_STD, _MEAN))
    pixels = images * std[:, None, None] + mean[:, None, None]
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
        images: B,3,H,W normalised; cam: B,K,H,W; labels: B,K, 1 for classes present, on the host: they decide sizes.

    Foreground is what beats the high background score; background is what loses to the low one too.
    """
    labels = labels.cpu()
    size = images.shape[-2:]
    small = [side // config.downscale for side in size]
    pixels = F.interpolate(denormalise(images, quantise=True), size=small, mode="bilinear", align_corners=False)
    cam = F.interpolate(cam, size=small, mode="bilinear", align_corners=False)
    if images.device.type in PIECEWISE:
        refined = torch.full((len(images), *size), IGNORE, dtype=torch.long, device=images.device)
        for i, row in enumerate(labels):
            present = row.nonzero()[:, 0]
            packed = _packed_scores(cam[i : i + 1, present], background, foreground)
            keys = torch.cat([present.new_zeros(1), present + 1])
            high, low = (keys[strongest] for strongest in _strongest(refine(pixels[i : i + 1], packed, config), size))
            refined[i] = decided(high, low)[0]
    else:
        absent = moved(labels == 0, images.device)[:, :, None, None]
        packed = _packed_scores(cam.masked_fill(absent, -torch.inf), background, foreground)
        refined = decided(*_strongest(refine(pixels, packed, config), size))
    return inside_boxes(refined, moved(boxes, images.device))


def reduced(label: Tensor, size: tuple[int, ...]) -> Tensor:
    """A label map B,H,W at another size B,h,w: of each cell the pixel nearest to its middle."""
    return F.interpolate(label[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


def class_ids(label: Tensor, classes: Tensor) -> Tensor:
    """Labels that count 1..K within `classes` (K indices on the host) as labels 1..C; 0 and IGNORE stay."""
    return moved(class_numbers(classes), label.device)[label]


def class_numbers(classes: Tensor) -> Tensor:
    """256: what a label within `classes` is among all."""
    numbers = torch.arange(256)
    numbers[1 : len(classes) + 1] = classes + 1
    return numbers


def decided(high: Tensor, low: Tensor) -> Tensor:
    """Labels of those that win over the high background score and over the low one; IGNORE where they disagree."""
    return torch.where(high > 0, high, torch.where(low > 0, IGNORE, 0))


def _packed_scores(cam: Tensor, background: float, foreground: float) -> Tensor:
    """Probabilities B,2(1+K),h,w: with the high background score, then with the low one."""
    return torch.cat([_with_background(cam, score) for score in (foreground, background)], dim=1)


def _strongest(packed: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """The number of the largest score, at `size`, in each half of the packed."""
    best = F.interpolate(packed, size=size, mode="bilinear", align_corners=False)
    # max, not argmax: over a dimension that is not the last, argmax takes 25 times as long on the CPU.
    high, low = (scores.max(1).indices for scores in best.chunk(2, dim=1))
    return high, low


def _with_background(cam: Tensor, score: float) -> Tensor:
    background = cam.new_full((len(cam), 1, *cam.shape[-2:]), score)
    return torch.cat([background, cam], dim=1).softmax(dim=1)
