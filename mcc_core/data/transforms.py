"""The augmentation of training images: two global views and a local one, or one view."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import IMAGENET_MEAN as MEAN
from mcc_core.config import IMAGENET_STD as STD
from mcc_core.config import AugmentConfig

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class Views:
    """3,S,S views, ImageNet-normalised, and the area of view 1 that is image rather than padding."""

    view1: Tensor
    view2: Tensor
    local: Tensor
    box: Box


@dataclass(frozen=True)
class ThreeViews:
    """The augmentation of methods that compare two global views and a local one."""

    config: AugmentConfig
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`view1`, `view2`, `local` 3,S,S and `box` of an image 3,H,W uint8."""
        views = augment(image, self.config, self.crop, generator)
        return {"view1": views.view1, "view2": views.view2, "local": views.local, "box": torch.tensor(views.box)}


@dataclass(frozen=True)
class OneView:
    """The augmentation of methods that look at one view: random scale, crop with black padding, flip."""

    scale: tuple[float, float]
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`view1` 3,S,S and `box` of an image 3,H,W uint8; the box follows the flip."""
        draw = Draw(generator)
        view, box = _crop(image, self.scale, self.crop, draw, padding=(0.0, 0.0, 0.0))
        if draw.chance(0.5):
            view, box = TF.horizontal_flip(view), (box[0], box[1], self.crop - box[3], self.crop - box[2])
        return {"view1": normalise(view), "box": torch.tensor(box)}


def normalise(image: Tensor) -> Tensor:
    """3,H,W uint8 to ImageNet-normalised float."""
    return TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(MEAN), list(STD))


def augment(image: Tensor, config: AugmentConfig, crop: int, generator: torch.Generator) -> Views:
    """All views of an image 3,H,W uint8.

    View 1, the classification image: random scale, crop with padding of the mean colour, flip, colour jitter (p .8),
    grey (.2), blur. The local view is the same crop with colours, blur (.5) and a flip of its own; `align_local_flip`
    leaves its flip out. View 2 is a RandomResizedCrop of the raw image with flip, colours, blur (.1), solarise (.2).
    Colours and blur apply to the padding too.

    The published code flips before the crop and once more after it, and takes the box between the two. One flip after
    the crop gives the same images; `box` follows it, unless `published_box` asks for the unflipped one.
    The flags change no random draw, so that trials which differ in one of them see the same images.
    """
    draw = Draw(generator)
    base, box = _crop(image, config.scale, crop, draw)
    flip, flip_local, flip_2 = draw.chance(0.5), draw.chance(0.5), draw.chance(0.5)
    view1 = TF.horizontal_flip(base) if flip else base
    if flip and not config.published_box:
        box = (box[0], box[1], crop - box[3], crop - box[2])
    local = TF.horizontal_flip(view1) if flip_local and not config.align_local_flip else view1
    view2 = resized_crop(image, config.global_crop, crop, draw)
    view2 = TF.horizontal_flip(view2) if flip_2 else view2
    view1, local, view2 = _colours(view1, draw), _colours(local, draw), _colours(view2, draw)
    view1 = _blur(view1, draw)
    local = _blur(local, draw) if draw.chance(0.5) else local
    view2 = _blur(view2, draw) if draw.chance(0.1) else view2
    view2 = TF.solarize(view2, 128) if draw.chance(0.2) else view2
    return Views(normalise(view1), normalise(view2), normalise(local), box)


class Draw:
    """Random choices from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return torch.rand((), generator=self.generator).item() < probability

    def integer(self, high: int) -> int:
        """In 0..high, both included."""
        return int(torch.randint(high + 1, (), generator=self.generator))

    def permutation(self, n: int) -> list[int]:
        return torch.randperm(n, generator=self.generator).tolist()


def _crop(
    image: Tensor, scale: tuple[float, float], crop: int, draw: Draw, padding: tuple[float, float, float] = MEAN
) -> tuple[Tensor, Box]:
    """The image rescaled at random, then a random window of crop x crop; where it is smaller it lies at random."""
    factor = draw.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
    # torch fails on bytes of a strip one pixel wide with antialiasing.
    image = TF.resize(image, [height, width], antialias=min(image.shape[-2:]) > 1)
    top, left = draw.integer(abs(height - crop)), draw.integer(abs(width - crop))
    canvas = torch.tensor(padding).mul(255).round().to(torch.uint8)[:, None, None].expand(3, crop, crop).clone()
    rows, columns = min(height, crop), min(width, crop)
    y, x = (top, 0) if height >= crop else (0, top), (left, 0) if width >= crop else (0, left)
    canvas[:, y[1] : y[1] + rows, x[1] : x[1] + columns] = image[:, y[0] : y[0] + rows, x[0] : x[0] + columns]
    return canvas, (y[1], y[1] + rows, x[1], x[1] + columns)


def resized_crop(
    image: Tensor,
    area: tuple[float, float],
    crop: int,
    draw: Draw,
    interpolation: TF.InterpolationMode = TF.InterpolationMode.BILINEAR,
) -> Tensor:
    """A window of a random share of the area and an aspect ratio of 3:4 to 4:3, resized to crop x crop.

    An image too long or too tall for any of ten tries gives its middle, cut to that range of ratios.
    """
    height, width = image.shape[-2:]
    for _ in range(10):
        target = draw.uniform(*area) * height * width
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round((target / ratio) ** 0.5), round((target * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            top, left = draw.integer(height - h), draw.integer(width - w)
            return TF.resized_crop(image, top, left, h, w, [crop, crop], interpolation, antialias=True)
    h, w = max(1, min(height, round(width * 4 / 3))), max(1, min(width, round(height * 4 / 3)))
    top, left = (height - h) // 2, (width - w) // 2
    return TF.resized_crop(image, top, left, h, w, [crop, crop], interpolation, antialias=True)


def _colours(image: Tensor, draw: Draw) -> Tensor:
    """Colour jitter (.4 brightness, .4 contrast, .2 saturation, .1 hue, in random order) with p .8; grey with .2."""
    if draw.chance(0.8):
        image = jitter(image, draw, 0.4, 0.4, 0.2, 0.1)
    return TF.rgb_to_grayscale(image, 3) if draw.chance(0.2) else image


def jitter(image: Tensor, draw: Draw, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Brightness, contrast and saturation times 1 +- their range, hue moved by +- its own, in random order."""
    for step in draw.permutation(4):
        if step == 0:
            image = TF.adjust_brightness(image, draw.uniform(1 - brightness, 1 + brightness))
        elif step == 1:
            image = TF.adjust_contrast(image, draw.uniform(1 - contrast, 1 + contrast))
        elif step == 2:
            image = TF.adjust_saturation(image, draw.uniform(1 - saturation, 1 + saturation))
        else:
            image = TF.adjust_hue(image, draw.uniform(-hue, hue))
    return image


def _blur(image: Tensor, draw: Draw) -> Tensor:
    sigma = draw.uniform(0.1, 2.0)
    reach = max(1, round(3 * sigma))
    return TF.gaussian_blur(image, [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
