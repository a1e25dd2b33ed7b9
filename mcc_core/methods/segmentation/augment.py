"""The augmentation of images with their label maps: what is done to the one is done to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mcc_core.config import IMAGENET_MEAN
from mcc_core.data.colours import Colours, View, jitter
from mcc_core.data.draws import Draw
from mcc_core.data.transforms import Window
from mcc_core.methods.segmentation.config import AugmentConfig
from mcc_core.pseudo_labels.labels import IGNORE


@dataclass(frozen=True)
class ImageAndMaps:
    """Random scale, crop and flip of an image and its maps, colours of the image alone."""

    config: AugmentConfig
    crop: int

    def __call__(
        self, image: Tensor, generator: torch.Generator, label: Tensor, confidence: Tensor | None = None
    ) -> Mapping[str, Tensor | View]:
        """`view` S,S of an image 3,H,W uint8, `box`, its valid area, `label` S,S uint8 and `confidence` S,S uint8.

        Args:
            label: H,W uint8; outside of the image it is IGNORE.
            confidence: H,W uint8, 255 for 1.0.
        """
        draw = Draw(generator)
        window = Window.drawn((image.shape[-2], image.shape[-1]), self.config.scale, self.crop, draw)
        view, (top, bottom, left, right) = window.cut(image, IMAGENET_MEAN)
        maps = {"label": (label, IGNORE / 255)} | ({} if confidence is None else {"confidence": (confidence, 0.0)})
        nearest = TF.InterpolationMode.NEAREST_EXACT
        cut = {name: window.cut(values[None], (outside,), nearest)[0] for name, (values, outside) in maps.items()}
        if draw.chance(0.5):
            view, left, right = TF.horizontal_flip(view), self.crop - right, self.crop - left
            cut = {name: TF.horizontal_flip(values) for name, values in cut.items()}
        steps = jitter(draw, 0.4, 0.4, 0.4, 0.1) if self.config.jitter and draw.chance(0.8) else ()
        return {
            "view": View(view, Colours(steps)),
            "box": torch.tensor((top, bottom, left, right)),
            **{name: values[0].contiguous() for name, values in cut.items()},
        }
