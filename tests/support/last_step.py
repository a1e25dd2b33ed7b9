"""A method's step at the end of its preset, where every loss is on, with batches made up."""

from __future__ import annotations

import torch

from mcc_core.experiment_files import resolve
from mcc_core.methods.base import Step
from mcc_core.methods.registry import method_of, network_of

PRESETS = (
    "tiny",
    "toco-tiny",
    "afa-tiny",
    "fsr-tiny",
    "slrnet-tiny",
    "segmentation-tiny",
    "mctformer-tiny",
    "recam-tiny",
    "irn-tiny",
    "amn-tiny",
)


class LastStep:
    """A method's step at the end of its preset, on a device."""

    def __init__(self, preset: str, device: torch.device, images: int = 4) -> None:
        experiment = resolve(preset)
        method, self.last = method_of(experiment), experiment.train.iterations - 1
        network, crop = network_of(experiment, 6), experiment.train.crop
        generator = torch.Generator().manual_seed(0)
        self.draws = method.draws(experiment, network, images, (crop, crop), self.last, generator)
        self.parameters = network.parameters
        self.objective = method.objective(network.to(device), experiment)
        views = {name: torch.rand(images, 3, crop, crop, device=device) for name in ("view1", "view2", "local", "view")}
        labels = torch.zeros(images, 6)
        labels[1:, [1, 4]] = 1  # the first image has no class
        self.batch = views | {"labels": labels, "box": torch.tensor([[2, crop, 0, crop - 3]] * images)}
        self.batch["label"] = torch.randint(7, (images, crop, crop), generator=generator).byte().to(device)
        self.terms = set(method.terms)

    def run(self) -> Step:
        step: Step = self.objective(self.batch, self.draws, self.last)
        step.total.backward()
        self.objective.after_step(self.last)
        return step
