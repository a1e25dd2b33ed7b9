"""The augmentation of training images: two global views and a local one, or one view. Geometry is done at once, on
bytes; colours are drawn here and done later."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import IMAGENET_MEAN, AugmentConfig
from mcc_core.data.colours import Colours, View, jitter
from mcc_core.data.draws import Draw

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class ThreeViews:
    """The augmentation of methods that compare two global views and a local one.

    View 1, the classification image: random scale, crop with padding of the mean colour, flip, colour jitter (p .8),
    grey (.2), blur. The local view is the same crop with colours, blur (.5) and a flip of its own; `align_local_flip`
    leaves its flip out. View 2 is a RandomResizedCrop of the raw image with flip, colours, blur (.1), solarise (.2).
    Colours and blur apply to the padding too.

    The published code flips before the crop and once more after it, and takes the box between the two. One flip after
    the crop gives the same images; `box` follows it, unless `published_box` asks for the unflipped one.
    The flags change no random draw, so that trials which differ in one of them see the same images.
    """

    config: AugmentConfig
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        """`view1`, `view2`, `local` of S x S and `box`, the area of view 1 that is image, of an image 3,H,W uint8."""
        config, crop, draw = self.config, self.crop, Draw(generator)
        base, box = _crop(image, config.scale, crop, draw)
        flip, flip_local, flip_2 = draw.chance(0.5), draw.chance(0.5), draw.chance(0.5)
        view1 = TF.horizontal_flip(base) if flip else base
        if flip and not config.published_box:
            box = (box[0], box[1], crop - box[3], crop - box[2])
        local = TF.horizontal_flip(view1) if flip_local and not config.align_local_flip else view1
        view2 = resized_crop(image, config.global_crop, crop, draw)
        view2 = TF.horizontal_flip(view2) if flip_2 else view2
        colours1, colours_local, colours2 = _colours(draw), _colours(draw), _colours(draw)
        colours1 = replace(colours1, sigma=_sigma(draw))
        colours_local = replace(colours_local, sigma=_sigma(draw) if draw.chance(0.5) else None)
        colours2 = replace(colours2, sigma=_sigma(draw) if draw.chance(0.1) else None)
        colours2 = replace(colours2, solarise=draw.chance(0.2))
        return {
            "view1": View(view1, colours1),
            "view2": View(view2, colours2),
            "local": View(local, colours_local),
            "box": torch.tensor(box),
        }


@dataclass(frozen=True)
class OneView:
    """The augmentation of methods that look at one view: random scale, crop with black padding, flip."""

    scale: tuple[float, float]
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        """`view1` of S x S and `box` of an image 3,H,W uint8; the box follows the flip."""
        draw = Draw(generator)
        view, box = _crop(image, self.scale, self.crop, draw, padding=(0.0, 0.0, 0.0))
        if draw.chance(0.5):
            view, box = TF.horizontal_flip(view), (box[0], box[1], self.crop - box[3], self.crop - box[2])
        return {"view1": View(view), "box": torch.tensor(box)}


@dataclass(frozen=True)
class Window:
    """A random rescaling and then a window of crop x crop; where the image is smaller it lies at random inside."""

    size: tuple[int, int]  # of the rescaled image
    crop: int
    top: int  # of the window in the image, or of the image in the window
    left: int

    @classmethod
    def drawn(cls, size: tuple[int, int], scale: tuple[float, float], crop: int, draw: Draw) -> Window:
        """A window of an image of `size` H,W."""
        factor = draw.uniform(*scale)
        height, width = (max(1, round(side * factor)) for side in size)
        return cls((height, width), crop, draw.integer(abs(height - crop)), draw.integer(abs(width - crop)))

    def cut(
        self,
        image: Tensor,
        padding: tuple[float, ...],
        interpolation: TF.InterpolationMode = TF.InterpolationMode.BILINEAR,
    ) -> tuple[Tensor, Box]:
        """Bytes D,crop,crop of D,H,W and the box that is image; `padding` fills the rest, of 1."""
        (height, width), crop = self.size, self.crop
        if max(height, width) == 1:  # torch fails on bytes that are to become a single pixel
            interpolation = TF.InterpolationMode.NEAREST
        # torch fails on bytes of a strip one pixel wide with antialiasing.
        smooth = interpolation == TF.InterpolationMode.BILINEAR and min(image.shape[-2:]) > 1
        image = TF.resize(image, [height, width], interpolation, antialias=smooth)
        # Interleaved, as decoded images are and torch resizes them fastest.
        canvas = torch.tensor(padding).mul(255).round().to(torch.uint8).repeat(crop, crop, 1).permute(2, 0, 1)
        rows, columns = min(height, crop), min(width, crop)
        y, x = (self.top, 0) if height >= crop else (0, self.top), (self.left, 0) if width >= crop else (0, self.left)
        canvas[:, y[1] : y[1] + rows, x[1] : x[1] + columns] = image[:, y[0] : y[0] + rows, x[0] : x[0] + columns]
        return canvas, (y[1], y[1] + rows, x[1], x[1] + columns)


@dataclass(frozen=True)
class LongSideView:
    """The augmentation of the ResNet-50 classifiers: random longer side, crop with padding of the mean colour, flip."""

    long_side: tuple[int, int]
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        """`view1` of S x S and `box` of an image 3,H,W uint8; the box follows the flip."""
        draw, longest = Draw(generator), max(image.shape[-2:])
        view, box = _crop(image, (self.long_side[0] / longest, self.long_side[1] / longest), self.crop, draw)
        if draw.chance(0.5):
            view, box = TF.horizontal_flip(view), (box[0], box[1], self.crop - box[3], self.crop - box[2])
        return {"view1": View(view), "box": torch.tensor(box)}


@dataclass(frozen=True)
class LabelledView:
    """The augmentation of an image and its label map: random scale, crop with padding that is open, flip."""

    scale: tuple[float, float]
    crop: int

    def __call__(
        self, image: Tensor, generator: torch.Generator, label: Tensor, confidence: Tensor | None = None
    ) -> dict[str, Tensor | View]:
        """`view1` and `label` of S x S and `box` of an image 3,H,W and a label map H,W, uint8; 255 outside.

        Confidence is of no use here: who wants unsure pixels ignored makes the label set so.
        """
        draw = Draw(generator)
        window = Window.drawn((image.shape[-2], image.shape[-1]), self.scale, self.crop, draw)
        view, box = window.cut(image, IMAGENET_MEAN)
        label, _ = window.cut(label[None], (1.0,), TF.InterpolationMode.NEAREST_EXACT)
        if draw.chance(0.5):
            view, label = TF.horizontal_flip(view), TF.horizontal_flip(label)
            box = (box[0], box[1], self.crop - box[3], self.crop - box[2])
        return {"view1": View(view), "label": label[0].contiguous(), "box": torch.tensor(box)}


def _crop(
    image: Tensor,
    scale: tuple[float, float],
    crop: int,
    draw: Draw,
    padding: tuple[float, float, float] = IMAGENET_MEAN,
) -> tuple[Tensor, Box]:
    """The image rescaled at random, then a random window of crop x crop; where it is smaller it lies at random."""
    return Window.drawn((image.shape[-2], image.shape[-1]), scale, crop, draw).cut(image, padding)


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


def _colours(draw: Draw) -> Colours:
    """Colour jitter (.4 brightness, .4 contrast, .2 saturation, .1 hue, in random order) with p .8; grey with .2."""
    steps = jitter(draw, 0.4, 0.4, 0.2, 0.1) if draw.chance(0.8) else ()
    return Colours(steps, grey=draw.chance(0.2))


def _sigma(draw: Draw) -> float:
    return draw.uniform(0.1, 2.0)
