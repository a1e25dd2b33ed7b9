"""The augmentation of SLRNet: one view; the second is made of it in the step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.data.colours import Colours, View, jitter
from mcc_core.data.draws import Draw
from mcc_core.data.transforms import resized_crop
from mcc_core.methods.slrnet.config import AugmentConfig


@dataclass(frozen=True)
class OneView:
    """`view`, S x S, of an image 3,H,W uint8: RandomResizedCrop (bicubic), flip, colour jitter; `box`, all of it."""

    config: AugmentConfig
    crop: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor | View]:
        draw, config = Draw(generator), self.config
        view = resized_crop(image, config.area, self.crop, draw, TF.InterpolationMode.BICUBIC)
        view = TF.horizontal_flip(view) if draw.chance(0.5) else view
        steps = jitter(draw, config.brightness, config.contrast, config.saturation, config.hue)
        return {"view": View(view, Colours(steps)), "box": torch.tensor([0, self.crop, 0, self.crop])}
