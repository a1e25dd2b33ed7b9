"""The second half of an augmentation: colours, blur, solarisation and normalisation of views already cut to size.

What is done to a view is drawn first (`Colours`) and done later, in one of two places: image by image in the process
that loads it (`View.finished`, OpenCV), or batch by batch on the training device (`finish_batch`, torch). Both start
from the same draws and round after each operation as 8-bit images do; they differ by a grey level here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD
from mcc_core.data.draws import Draw

cv2.setNumThreads(1)  # loader processes are what runs in parallel

Kind = Literal["brightness", "contrast", "saturation", "hue"]

REACH = 6  # pixels of the widest blur, sigma 2
_KINDS: tuple[Kind, ...] = ("brightness", "contrast", "saturation", "hue")
_SUFFIX = "/colours"  # of the name under which a batch has the packed colours of a view
_GREY = (0.299, 0.587, 0.114)
_LEVELS = np.arange(256, dtype=np.float32)
_SOLARISED = np.where(_LEVELS >= 128, 255 - _LEVELS, _LEVELS).astype(np.uint8)

# A packed row: of each of 4 steps and of the greying, factors of pixel, mean grey and own grey; of each of 4 steps, the
# turn of the hue; the blur's kernel; whether to solarise.
_STEPS = 4
_BLEND = 3 * (_STEPS + 1)
_KERNEL = _BLEND + _STEPS
_ROW = _KERNEL + 2 * REACH + 2


@dataclass(frozen=True)
class Colours:
    """What is done to a view, in this order."""

    steps: tuple[tuple[Kind, float], ...] = ()  # factors of the image's own; of hue, a share of the circle
    grey: bool = False
    sigma: float | None = None  # of the blur, pixels
    solarise: bool = False

    def packed(self) -> Tensor:
        """All of it as one row of numbers, for `finish_batch`."""
        row = torch.zeros(_ROW)
        blend = row[:_BLEND].view(-1, 3)
        blend[:, 0] = 1
        for place, (kind, amount) in enumerate(self.steps):
            if kind == "hue":
                row[_BLEND + place] = amount
            else:
                blend[place, 0] = amount
                if kind != "brightness":
                    blend[place, 1 if kind == "contrast" else 2] = 1 - amount
        if self.grey:
            blend[_STEPS] = torch.tensor([0.0, 0.0, 1.0])
        kernel = row[_KERNEL : _KERNEL + 2 * REACH + 1]
        if self.sigma is None:
            kernel[REACH] = 1
        else:
            reach = _reach(self.sigma)
            kernel[REACH - reach : REACH + reach + 1] = torch.from_numpy(_gaussian(self.sigma))
        row[-1] = self.solarise
        return row


@dataclass(frozen=True)
class View:
    """A view 3,S,S uint8 and what is still to be done to it before it is normalised."""

    pixels: Tensor
    colours: Colours = Colours()

    def finished(self) -> Tensor:
        """The view 3,S,S, ImageNet-normalised."""
        pixels = np.ascontiguousarray(self.pixels.permute(1, 2, 0).numpy())
        for kind, amount in self.colours.steps:
            pixels = _changed(pixels, kind, amount)
        if self.colours.grey:
            pixels = _grey(pixels)
        if (sigma := self.colours.sigma) is not None:
            side = 2 * _reach(sigma) + 1
            pixels = cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
        if self.colours.solarise:
            pixels = cv2.LUT(pixels, _SOLARISED)
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())

    def unfinished(self, name: str) -> dict[str, Tensor]:
        """The view under its name and its packed colours, for `finish_batch`."""
        return {name: self.pixels.contiguous(), name + _SUFFIX: self.colours.packed()}


def jitter(
    draw: Draw, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[tuple[Kind, float], ...]:
    """Brightness, contrast and saturation times 1 +- their range, hue turned by +- its own, in random order."""
    ranges = (brightness, contrast, saturation, hue)
    return tuple(
        (_KINDS[i], draw.uniform((i < 3) - ranges[i], (i < 3) + ranges[i])) for i in draw.permutation(len(_KINDS))
    )


def normalise(image: Tensor) -> Tensor:
    """...,3,H,W uint8 to ImageNet-normalised float."""
    return TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))


def finish_batch(collated: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch on its device with its views finished there; `collated` is the same batch in the host's memory.

    Views of one size go through together. A batch whose views are finished is given back as it is. What an image needs
    is read from the host's memory, so that a GPU is not waited for.
    """
    names = [name for name in moved if name + _SUFFIX in moved]
    batch = {name: tensor for name, tensor in moved.items() if not name.endswith(_SUFFIX)}
    for size in dict.fromkeys(moved[name].shape for name in names):
        group = [name for name in names if moved[name].shape == size]
        pixels = torch.cat([moved[name] for name in group])
        rows, known = (torch.cat([where[name + _SUFFIX] for name in group]) for where in (moved, collated))
        finished = _finished(pixels, rows, known)
        batch |= dict(zip(group, finished.split(size[0]), strict=True))
    return batch


def _finished(pixels: Tensor, rows: Tensor, known: Tensor) -> Tensor:
    """Views N,3,S,S uint8 with their packed colours N,R on the device and on the host: normalised."""
    images = pixels.float()
    blends, turns = rows[:, :_BLEND].view(-1, _STEPS + 1, 3, 1, 1, 1), rows[:, _BLEND:_KERNEL, None, None]
    plain = torch.tensor([1.0, 0.0, 0.0])
    blended = (known[:, :_BLEND].view(-1, _STEPS + 1, 3) != plain).any(2).any(0).tolist()
    turned = (known[:, _BLEND:_KERNEL] != 0).any(0).tolist()
    for place in range(_STEPS + 1):
        if blended[place]:
            images = _blended(images, *blends[:, place].unbind(1))
        if place < _STEPS and turned[place]:
            turn = turns[:, place]
            images = torch.where(turn[:, None] != 0, _turned(images, turn), images)
    if (known[:, _KERNEL + REACH] != 1).any():
        images = _blurred(images, rows[:, _KERNEL : _KERNEL + 2 * REACH + 1])
    if known[:, -1].any():
        images = torch.where((rows[:, -1, None, None, None] != 0) & (images >= 128), 255 - images, images)
    return TF.normalize(images.div_(255), list(IMAGENET_MEAN), list(IMAGENET_STD))


def _blended(images: Tensor, own: Tensor, mean: Tensor, grey: Tensor) -> Tensor:
    """Images N,3,S,S as sums of themselves, their mean grey and their grey, with factors N,1,1,1."""
    red, green, blue = images.split(1, dim=1)
    greys = (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]).round_()
    return (images * own).add_(greys * grey + greys.mean((2, 3), keepdim=True) * mean).clamp_(0, 255).floor_()


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    """Images N,3,S,S with the hue turned by N,1,1, a share of the circle; value and saturation stay.

    A channel is value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n + 6 hue) mod 6 and n = 5, 3, 1: the usual
    conversion from HSV without its six cases.
    """
    red, green, blue = images.unbind(1)
    least, value = images.aminmax(dim=1)
    chroma = value - least
    per = chroma.clamp(min=1)  # 0 where the hue is of no account, else at least 1
    sector = torch.where(
        value == red,
        (green - blue) / per,
        torch.where(value == green, (blue - red) / per + 2, (red - green) / per + 4),
    )
    hue = sector + 6 * turn
    channels = []
    for n in (5, 3, 1):
        k = (hue + n).remainder_(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1).round_()


def _blurred(images: Tensor, kernels: Tensor) -> Tensor:
    """Images N,3,S,S, each by its own kernel N,K along both sides; the border is mirrored."""
    n, channels, height, width = images.shape
    weights = kernels.repeat_interleave(channels, 0)[:, None]
    padded = F.pad(images, [REACH] * 4, mode="reflect").view(1, n * channels, height + 2 * REACH, width + 2 * REACH)
    across = F.conv2d(padded, weights[:, :, None], groups=n * channels)
    both = F.conv2d(across, weights[:, :, :, None], groups=n * channels)
    return both.view(n, channels, height, width).round_()


def _changed(pixels: np.ndarray, kind: Kind, amount: float) -> np.ndarray:
    """Pixels H,W,3 uint8 with one thing changed."""
    if kind == "hue":
        return _hue(pixels, amount)
    if kind == "saturation":
        # OpenCV rounds to the nearest; just under a half less rounds down.
        return cv2.addWeighted(pixels, amount, _grey(pixels), 1 - amount, -0.4999)
    mean = cv2.mean(_one_grey(pixels))[0] if kind == "contrast" else 0.0
    return cv2.LUT(pixels, (_LEVELS * amount + mean * (1 - amount)).clip(0, 255).astype(np.uint8))


def _hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """As floats: OpenCV's 8-bit HSV has 180 or 256 hues, which is up to 12 grey levels off."""
    hsv = cv2.cvtColor(pixels.astype(np.float32) * np.float32(1 / 255), cv2.COLOR_RGB2HSV)
    hue: Any = hsv[..., 0]
    hue += np.float32(360 * turn)
    hue[hue < 0] += 360
    hue[hue >= 360] -= 360
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha=255)


def _one_grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(_one_grey(pixels), cv2.COLOR_GRAY2RGB)


def _reach(sigma: float) -> int:
    return max(1, round(3 * sigma))


def _gaussian(sigma: float) -> np.ndarray:
    """The blur's kernel, one side after the other."""
    distance = np.arange(-_reach(sigma), _reach(sigma) + 1)
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    return (kernel / kernel.sum()).astype(np.float32)
