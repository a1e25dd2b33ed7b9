"""The augmentation of FSR: two views, drawn alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.data.colours import Colours, View, jitter
from mcc_core.data.draws import Draw
from mcc_core.data.transforms import resized_crop
from mcc_core.methods.fsr.config import AugmentConfig


@dataclass(frozen=True)
class TwoViews:
    """RandomResizedCrop (bicubic), flip and colour jitter, twice; nothing is padded."""

    config: AugmentConfig
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        """`view1`, `view2` of S x S and `box`, all of them, of an image 3,H,W uint8."""
        draw = Draw(generator)
        views: dict[str, Tensor | View] = {name: self._view(image, draw) for name in ("view1", "view2")}
        return views | {"box": torch.tensor([0, self.crop, 0, self.crop])}

    def _view(self, image: Tensor, draw: Draw) -> View:
        config = self.config
        view = resized_crop(image, config.area, self.crop, draw, TF.InterpolationMode.BICUBIC)
        view = TF.horizontal_flip(view) if draw.chance(0.5) else view
        ranges = (config.brightness, config.contrast, config.saturation, config.hue)
        return View(view, Colours(jitter(draw, *ranges) if draw.chance(config.jitter) else ()))
