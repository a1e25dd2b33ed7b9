"""The second half of an augmentation: colours, blur, solarisation and normalisation of views already cut to size.

What is done to a view is drawn first (`Colours`) and done later, in one of two places: image by image in the process
that loads it (`View.finished`, OpenCV), or batch by batch on the training device (`finish_batch`, torch). Both start
from the same draws and round after each operation as 8-bit images do; they differ by a grey level here and there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
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

# A packed row. A hue is turned at most once, so that a batch does it once for all: up to 3 blends before it, up
# to 3 after it, then the greying. Of each blend, factors of the pixel, of the image's mean grey and of the own grey.
_BLENDS = 7
_TURN = 3 * _BLENDS  # the turn of the hue
_KERNEL = _TURN + 1  # of the blur
_SOLARISE = _KERNEL + 2 * REACH + 1


@dataclass(frozen=True)
class Colours:
    """What is done to a view, in this order."""

    steps: tuple[tuple[Kind, float], ...] = ()  # factors of the image's own; of hue, a share of the circle
    grey: bool = False
    sigma: float | None = None  # of the blur, pixels
    solarise: bool = False

    def packed(self) -> Tensor:
        """All of it as one row of numbers, for `finish_batch`."""
        row = torch.zeros(_SOLARISE + 1)
        blends = row[:_TURN].view(_BLENDS, 3)
        blends[:, 0] = 1
        place = 0
        for kind, amount in self.steps:
            if kind == "hue":
                row[_TURN], place = amount, 3
                continue
            blends[place, 0] = amount
            if kind != "brightness":
                blends[place, 1 if kind == "contrast" else 2] = 1 - amount
            place += 1
        if self.grey:
            blends[-1] = torch.tensor([0.0, 0.0, 1.0])
        kernel = row[_KERNEL : _KERNEL + 2 * REACH + 1]
        if self.sigma is None:
            kernel[REACH] = 1
        else:
            reach = _reach(self.sigma)
            kernel[REACH - reach : REACH + reach + 1] = torch.from_numpy(_gaussian(self.sigma))
        row[_SOLARISE] = self.solarise
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
        finished = _finished(pixels, rows, known.numpy())
        batch |= dict(zip(group, finished.split(size[0]), strict=True))
    return batch


def _finished(pixels: Tensor, rows: Tensor, known: np.ndarray) -> Tensor:
    """Views N,3,S,S uint8 with their packed colours N,R on the device and on the host: normalised."""
    images = pixels.float()
    factors = rows[:, :_TURN].view(-1, _BLENDS, 3, 1, 1, 1)
    blended = (known[:, :_TURN].reshape(-1, _BLENDS, 3) != (1, 0, 0)).any((0, 2))
    for place in range(_BLENDS):
        if place == 3 and known[:, _TURN].any():
            turn = rows[:, _TURN, None, None]
            images = torch.where(turn[:, None] != 0, _turned(images, turn), images)
        if blended[place]:
            images = _blended(images, *factors[:, place].unbind(1))
    if (known[:, _KERNEL + REACH] != 1).any():
        images = _blurred(images, rows[:, _KERNEL:_SOLARISE])
    if known[:, _SOLARISE].any():
        images = torch.where((rows[:, _SOLARISE, None, None, None] != 0) & (images >= 128), 255 - images, images)
    mean, std = _constants(images.device)[:2]
    return images.sub_(mean).div_(std)


@cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """3,1,1 each: mean and deviation in grey levels, shares of grey, places of the channels on the circle of hues.

    Kept, as copying them to a GPU would be waited for."""
    mean, std = (255 * torch.tensor(x) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return tuple(t.view(3, 1, 1).to(device) for t in (mean, std, torch.tensor(_GREY), torch.tensor([5.0, 3.0, 1.0])))


def _blended(images: Tensor, own: Tensor, mean: Tensor, grey: Tensor) -> Tensor:
    """Images N,3,S,S as sums of themselves, their mean grey and their grey, with factors N,1,1,1."""
    greys = (images * _constants(images.device)[2]).sum(1, keepdim=True).round_()
    sums = (images * own).addcmul_(greys, grey).addcmul_(greys.mean((2, 3), keepdim=True), mean)
    return sums.clamp_(0, 255).floor_()


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
    k = ((sector + 6 * turn)[:, None] + _constants(images.device)[3]).remainder_(6)
    return (value[:, None] - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma[:, None])).round_()


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
