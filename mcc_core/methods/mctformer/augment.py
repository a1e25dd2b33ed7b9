"""The augmentation of MCTformer: one view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.data.colours import Colours, View, jitter
from mcc_core.data.draws import Draw
from mcc_core.methods.mctformer.config import AugmentConfig


@dataclass(frozen=True)
class Window:
    """`view`, S x S, of an image 3,H,W uint8: resized to a square, a random window, flip, colours; `box`, all of it."""

    config: AugmentConfig
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        draw, config, side = Draw(generator), self.config, self.config.resize
        # torch fails on bytes of a strip one pixel wide with antialiasing.
        square = TF.resize(image, [side, side], TF.InterpolationMode.BICUBIC, antialias=min(image.shape[-2:]) > 1)
        top, left = draw.integer(side - self.crop), draw.integer(side - self.crop)
        view = square[:, top : top + self.crop, left : left + self.crop]
        view = TF.horizontal_flip(view) if draw.chance(0.5) else view
        steps = jitter(draw, config.brightness, config.contrast, config.saturation, config.hue)
        return {"view": View(view, Colours(steps)), "box": torch.tensor([0, self.crop, 0, self.crop])}
