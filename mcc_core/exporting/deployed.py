"""What is exported: the network with the outputs that users of it want, and what they must know to use it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core.checkpoint import Checkpoint
from mcc_core.config import IMAGENET_MEAN, IMAGENET_STD
from mcc_core.networks.base import Network

INPUT = "images"
_OUTPUTS = ("segmentation", "scores", "cam")
LEAST_CELLS = 2  # of the coarsest grid, along each side of an image


class Deployed(nn.Module):
    """A network as one function from images to arrays."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.outputs = _OUTPUTS if "cam" in network.map_stages else _OUTPUTS[:2]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Of normalised images B,3,H,W: logits B,C+1,H,W with the background first, class probabilities B,C, and,
        where the network has them, class activation maps B,C,h,w at its own resolution, at least 0."""
        output = self.network(images)
        segmentation = F.interpolate(output.seg, size=images.shape[-2:], mode="bilinear", align_corners=False)
        found = segmentation, output.cls.sigmoid()
        if "cam" not in self.network.map_stages:
            return found
        return *found, F.relu(self.network.class_maps(images, output)["cam"])


def description(saved: Checkpoint, stride: int, more: dict[str, Any]) -> dict[str, Any]:
    """What stands in an exported file beside the weights; JSON. `more` says where it came from."""
    return {
        "format": 1,
        "method": saved.experiment.method,
        "classes": [*saved.classes],
        "labels": ["background", *saved.classes],
        "input": "RGB, divided by 255, minus mean, divided by std; B,3,H,W float32",
        "mean": [*IMAGENET_MEAN],
        "std": [*IMAGENET_STD],
        "stride": stride,
        "least_side": LEAST_CELLS * stride,
        "iteration": saved.iteration,
        "seed": saved.seed,
        "metrics": saved.metrics,
        "experiment": saved.experiment.model_dump(mode="json"),
    } | more
