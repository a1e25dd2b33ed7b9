"""Class maps of a frozen CLIP: softmax Grad-CAM, and class-aware affinity from attention (CLIP-ES, sections 3.2, 3.4).

Shapes: K classes of an image, M backgrounds, E the space of texts and images, N = h*w patches.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from mcc_core.clip.config import ClipConfig
from mcc_core.clip.network import FrozenClip, Seen


def class_maps(clip: FrozenClip, image: np.ndarray, classes: Tensor, backgrounds: Tensor) -> Tensor:
    """Class maps K,h,w in [0, 1] of an image H,W,3 uint8 that shows the classes K,E; texts of backgrounds are M,E."""
    seen = clip.seen(image)
    maps = scaled(gradient_maps(clip, seen, classes, backgrounds))
    if not clip.config.attention:
        return maps.cpu()
    return (
        aware_of_classes(maps.double(), affinity(seen.attention.double(), clip.config), clip.config.box).float().cpu()
    )


def gradient_maps(clip: FrozenClip, seen: Seen, classes: Tensor, backgrounds: Tensor) -> Tensor:
    """Grad-CAM K,h,w of the probability of each class among all K classes and M backgrounds.

    A map is the rectified sum of what enters the last block's attention, after its norm, weighted by the mean over
    patches of the probability's gradient. The softmax makes classes and backgrounds compete for the pixels.
    """
    texts = torch.cat([classes, backgrounds]).double()
    scale = clip.clip.logit_scale.exp().double()
    found = []
    with torch.enable_grad():
        normed = clip.visual.transformer.resblocks[-1].ln_1(seen.tokens).detach().requires_grad_()
        feature = clip.last_block(seen.tokens, normed)
        shares = (scale * texts @ feature.double()).softmax(0)  # double: near 1 a float has no gradient left
        for number in range(len(classes)):
            (gradient,) = torch.autograd.grad(shares[number], normed, retain_graph=number + 1 < len(classes))
            weights = gradient[1:].mean(0)
            found.append((normed.detach()[1:] @ weights).relu())
    return torch.stack(found).unflatten(1, seen.grid)


def affinity(attention: Tensor, config: ClipConfig) -> Tensor:
    """Affinity N,N of attention N,N: rows and columns nearly sum to 1, symmetric, squared."""
    matrix = attention
    for _ in range(config.rounds):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    matrix = (matrix + matrix.T) / 2
    for _ in range(config.squarings):
        matrix = matrix @ matrix
    return matrix


def aware_of_classes(maps: Tensor, matrix: Tensor, box: float) -> Tensor:
    """Maps K,h,w in [0, 1] spread by an affinity N,N: of each class only from its own boxes."""
    inside = torch.stack([in_boxes(cam, box) for cam in maps])
    spread = (maps * inside).flatten(1) @ matrix.T
    return scaled(spread.unflatten(1, maps.shape[1:]))


def in_boxes(cam: Tensor, share: float) -> Tensor:
    """0/1 h,w: the bounding boxes of connected parts (also by corners) that are above a share of the maximum."""
    above = (cam > share * cam.max()).cpu().numpy().astype(np.uint8)
    count, _, parts, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    mask = torch.zeros_like(cam)
    for left, top, width, height, _ in parts[1:count]:
        mask[top : top + height, left : left + width] = 1
    return mask


def scaled(maps: Tensor) -> Tensor:
    """Maps K,h,w from 0 to 1, whatever their size was; a flat one is 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)
