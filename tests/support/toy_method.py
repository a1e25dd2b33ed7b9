"""A method of two convolutions, from outside the package: what it takes to be trained, swept, scored and predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcc_core import config as shared
from mcc_core.config import EvaluationConfig, Fraction, OptimConfig, Weight
from mcc_core.data.colours import normalise
from mcc_core.methods.base import Augmentation, Method, Step
from mcc_core.methods.objective import Objective
from mcc_core.networks.base import MapStage, Network, Output, ParameterGroup
from mcc_core.pseudo_labels.cam import normalise as normalise_maps
from mcc_core.pseudo_labels.labels import cam_label


class LossConfig(shared.LossConfig):
    cls: Weight = 1.0
    seg: Weight = 1.0


class ToyExperiment(shared.Experiment):
    width: int = 8
    threshold: Fraction = 0.4
    loss: LossConfig = LossConfig()


class ToyNetwork(Network):
    stride = 4
    map_stages: tuple[MapStage, ...] = ("cam",)

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Conv2d(3, width, 4, stride=4)
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        self.segmenter = nn.Conv2d(width, num_classes + 1, 1)

    def forward(self, images: Tensor) -> Output:
        features = self.body(images).relu()
        return Output(self.classifier(features).mean((2, 3)), self.segmenter(features), features)

    def class_maps(
        self, images: Tensor, known: Output | None = None, classes: Tensor | None = None
    ) -> dict[MapStage, Tensor]:
        features = self.body(images).relu() if known is None else known.features
        maps = self.classifier(features)
        return {"cam": maps if classes is None else maps[:, classes]}

    def parameter_groups(self, optim: OptimConfig) -> list[ParameterGroup]:
        return [ParameterGroup(tuple(self.parameters()))]


class ToyObjective(Objective):
    terms = ("cls", "seg")

    def __init__(self, network: ToyNetwork, experiment: ToyExperiment) -> None:
        super().__init__(experiment)
        self.network = network

    def forward(
        self, batch: Mapping[str, Tensor], draws: Mapping[str, Tensor], iteration: int, *, first: bool = True
    ) -> Step:
        noisy = batch["view"] + 0.1 * draws["noise"]
        output, labels = self.network(noisy), batch["labels"]
        maps = normalise_maps(self.network.class_maps(noisy, output)["cam"].detach()) * labels[:, :, None, None]
        target = cam_label(maps, self.at(self.experiment.threshold, iteration))
        terms = {
            "cls": F.multilabel_soft_margin_loss(output.cls, labels),
            "seg": F.cross_entropy(output.seg, target),
        }
        weights = self.weights(iteration)
        total = sum((weights[name] * term for name, term in terms.items()), start=output.cls.new_zeros(()))
        return Step(total, terms, len(labels), state={"toy/noise": noisy.std().detach()})


class Resized:
    def __init__(self, crop: int) -> None:
        self.crop = crop

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        view = normalise(F.interpolate(image[None].float(), size=self.crop).to(torch.uint8)[0])
        flip = torch.rand((), generator=generator) < 0.5
        return {"view": view.flip(-1) if flip else view, "box": torch.tensor([0, self.crop, 0, self.crop])}


class Toy(Method):
    name = "toy"
    title = "Toy"
    experiment = ToyExperiment
    terms = ("cls", "seg")
    map_stages = ("cam",)

    def network(self, experiment: ToyExperiment, num_classes: int) -> ToyNetwork:
        return ToyNetwork(experiment.width, num_classes)

    def objective(self, network: ToyNetwork, experiment: ToyExperiment) -> ToyObjective:
        return ToyObjective(network, experiment)

    def augment(self, experiment: ToyExperiment) -> Augmentation:
        return Resized(experiment.train.crop)

    def draws(
        self,
        experiment: ToyExperiment,
        network: ToyNetwork,
        batch_size: int,
        size: tuple[int, int],
        iteration: int,
        generator: Any,
    ) -> dict[str, Tensor]:
        return {"noise": torch.randn(batch_size, 3, *size, generator=generator)}

    def evaluation(self, experiment: ToyExperiment, num_classes: int, iteration: int | None = None) -> EvaluationConfig:
        return EvaluationConfig(crop=experiment.train.crop, cam_scales=(1.0,), scales=(1.0,), cam_threshold=0.4)


TOY = Toy()

FIELDS: dict[str, Any] = {
    "method": "toy",
    "data": {"name": "shapes", "train_split": "train", "shapes_train": 16, "shapes_val": 4, "shapes_size": 48},
    "model": {"weights": "random"},
    "optim": {"lr": 0.01, "warmup": 2},
    "train": {
        **{"iterations": 6, "batch_size": 4, "crop": 32, "eval_every": 3, "log_every": 1, "panels": 1},
        "loader_workers": 0,
    },
}
