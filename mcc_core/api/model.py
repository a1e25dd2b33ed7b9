"""A trained network with everything it takes to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import PIL.Image
import torch

from mcc_core import checkpoint as checkpoints
from mcc_core.api.locate import checkpoint_file
from mcc_core.api.prediction import Prediction
from mcc_core.checkpoint import Checkpoint
from mcc_core.config import Experiment
from mcc_core.data.pixels import read_rgb
from mcc_core.data.voc import palette
from mcc_core.device import chosen_device
from mcc_core.errors import UsageError
from mcc_core.evaluation import inference
from mcc_core.evaluation.protocols import SEGMENTATION, ProtocolName, needs_crf
from mcc_core.networks.base import Network
from mcc_core.pseudo_labels.crf import require_crf

Image = str | Path | np.ndarray | PIL.Image.Image  # a file, H,W,3 uint8, or Pillow's


class Model:
    """A trained network; `load` gives one.

    Attributes:
        network: the module, in evaluation mode. It takes images B,3,H,W, normalised as ImageNet's.
        experiment: the validated experiment that it was trained by.
        classes: C foreground names.
        iteration, seed, metrics: where its training was, and the scores of its last evaluation.
        device: where it computes.
        source: the name that it was loaded by.
    """

    network: Network
    experiment: Experiment
    classes: tuple[str, ...]

    def __init__(self, saved: Checkpoint, device: str = "auto", source: str = "") -> None:
        self.source = source
        self.experiment, self.classes = saved.experiment, saved.classes
        self.iteration, self.seed, self.metrics = saved.iteration, saved.seed, dict(saved.metrics)
        self.device = chosen_device(device, "device")
        self.network = saved.network().to(self.device)

    @property
    def method(self) -> str:
        """Name of the method that trained it."""
        return self.experiment.method

    @property
    def stride(self) -> int:
        """Pixels per cell of the coarsest grid; smaller images are padded."""
        return self.network.stride

    @property
    def palette(self) -> np.ndarray:
        """RGB colour of each label, 256,3 uint8 (PASCAL VOC's)."""
        return np.array(palette(), np.uint8).reshape(256, 3)

    def to(self, device: str) -> Model:
        """Compute on `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`. Raises UsageError."""
        self.device = chosen_device(device, "device")
        self.network = self.network.to(self.device)
        return self

    def checkpoint(self) -> Checkpoint:
        """Weights on the CPU and what it takes to use them, without the optimiser's state."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return Checkpoint(self.experiment, self.classes, self.iteration, self.seed, weights, None, self.metrics)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a sequence of texts too
        self, images: str | Path | PIL.Image.Image, *, protocol: ProtocolName = ..., batch: int = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[Image], *, protocol: ProtocolName = ..., batch: int = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: np.ndarray, *, protocol: ProtocolName = ..., batch: int = ...
    ) -> Prediction | list[Prediction]: ...

    def predict(
        self, images: Image | Sequence[Image], *, protocol: ProtocolName = "ms", batch: int = 1
    ) -> Prediction | list[Prediction]:
        """Segment one image, or several; they may be of any size.

        Args:
            images: a file, an array H,W,3 uint8 (RGB) or a Pillow image gives one Prediction; a sequence of these, or
                an array B,H,W,3, a list in the same order.
            protocol: what the mask is: `single` (one scale, squashed to the crop), `ms` (scales and flips), `ms_crf`
                (with a dense CRF).
            batch: how many images of one size that follow each other go through the network together.

        Raises UsageError for what is no image, DataError for a file that cannot be read.
        """
        if protocol not in SEGMENTATION:
            raise UsageError(f"protocol: {protocol!r}: not one of {', '.join(SEGMENTATION)}")
        if batch < 1:
            raise UsageError(f"batch: {batch}: must be at least 1")
        if needs_crf(protocol):
            require_crf()
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (str, Path, np.ndarray, PIL.Image.Image)):
            return self._predicted([pixels_of(images, "images")], protocol, 1)[0]
        return self._predicted([pixels_of(image, f"images[{i}]") for i, image in enumerate(images)], protocol, batch)

    def _predicted(self, images: Sequence[np.ndarray], protocol: ProtocolName, batch: int) -> list[Prediction]:
        predictions: list[Prediction] = []
        while len(predictions) < len(images):
            group = images[len(predictions) : len(predictions) + batch]
            same = next((i for i, pixels in enumerate(group) if pixels.shape != group[0].shape), len(group))
            results = inference.predict(self.network, self.experiment, group[:same], self.device, protocol)
            predictions += [Prediction(pixels, self.experiment, self.classes) for pixels in results]
        return predictions

    def __repr__(self) -> str:
        return (
            f"<Model {self.method}, {self.experiment.model.backbone}, {len(self.classes)} classes, "
            f"iteration {self.iteration}, on {self.device}>"
        )


def load(name: str | Path, device: str = "auto") -> Model:
    """A trained network by its checkpoint.

    Args:
        name: a checkpoint file; `SWEEP/TRIAL`, of which the best checkpoint is taken; `s3://bucket/file.pt`; or
            `models:/name@alias` of MLflow's registry. What is not a file is fetched by the orchestrator, where it is
            installed.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Raises UsageError when there is no such checkpoint, or it is of another kind, cut short or not finite.
    """
    return Model(checkpoints.load(checkpoint_file(name)), device, str(name))


def pixels_of(image: object, where: str) -> np.ndarray:
    """H,W,3 uint8 of an image in any accepted form. Raises UsageError, with `where`; DataError for a file."""
    if isinstance(image, str | Path):
        return read_rgb(Path(image))
    if isinstance(image, PIL.Image.Image):
        return np.array(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        raise UsageError(f"{where}: a tensor; give an array H,W,3 uint8, or normalised tensors to model.network")
    if not isinstance(image, np.ndarray):
        raise UsageError(f"{where}: {type(image).__name__}: expected a file, an array H,W,3 uint8 or a Pillow image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        shape = ",".join(map(str, image.shape))
        raise UsageError(f"{where}: an array {shape} of {image.dtype}: expected H,W,3 of uint8, RGB from 0 to 255")
    return np.ascontiguousarray(image)
