"""Prediction on images of any size: multi-scale segmentation, class scores and CAM pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.config import Experiment
from mcc_core.data.colours import normalise
from mcc_core.data.pixels import Simplified, read_rgb, simplified
from mcc_core.data.voc import palette_png
from mcc_core.device import chosen_device, fetched, moved
from mcc_core.errors import DataError
from mcc_core.evaluation.prediction_record import PARTS, PredictionRecord
from mcc_core.evaluation.protocols import (
    ProtocolName,
    label_map,
    least_side,
    needs_crf,
    padded,
    segmentation_maps,
)
from mcc_core.evaluation.pseudo_label import pseudo_label
from mcc_core.evaluation.visualize import cam_panel, overlay
from mcc_core.files import file_digest, whole
from mcc_core.methods.registry import method_of
from mcc_core.networks.base import MapStage, Network
from mcc_core.parallel import ahead
from mcc_core.precision import arithmetic, named_precision
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.crf import require_crf


@dataclass(frozen=True)
class Prediction:
    """One image's results."""

    image: np.ndarray  # H,W,3 uint8
    mask: np.ndarray  # H,W uint8, 0 background
    scores: Tensor  # C probabilities that the image has the class
    maps: dict[MapStage, Tensor]  # class maps C,H,W by stage
    logits: Tensor  # C+1,h,w segmentation at one scale, background first


@torch.no_grad()
def predict(
    model: Network,
    experiment: Experiment,
    images: Sequence[np.ndarray],
    device: torch.device,
    protocol: ProtocolName = "ms",
) -> list[Prediction]:
    """Everything that is written of images H,W,3 uint8, all of one size. Masks are those that `protocol` scores."""
    config = method_of(experiment).evaluation(experiment, model.num_classes)
    height, width = images[0].shape[:2]
    tensor = padded(moved(to_tensor(images), device), least_side(model, config.cam_scales))
    with arithmetic(model.precision, model.deterministic):
        output = model(tensor)
        class_activations = multi_scale_maps(model, tensor, config.cam_scales, output)
        maps = segmentation_maps(model, images, protocol, config, device)
    masks = [label_map(parts, protocol, config, image) for parts, image in zip(maps, images, strict=True)]
    wanted = [output.cls.sigmoid(), output.seg, *(cam[:, :, :height, :width] for cam in class_activations.values())]
    scores, logits, *cams = fetched(wanted)
    class_maps = [
        {stage: cam[i] for stage, cam in zip(class_activations, cams, strict=True)} for i in range(len(images))
    ]
    return [Prediction(*parts) for parts in zip(images, masks, scores, class_maps, logits, strict=True)]


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Images H,W,3 uint8 to B,3,H,W, ImageNet-normalised."""
    return normalise(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]))


@dataclass
class Predicted:
    """What became of the files of a call."""

    masks: list[Path] = field(default_factory=list)  # in order, of the files that were predicted now or before
    before: int = 0  # of them, those predicted by an earlier call
    changed: list[Path] = field(default_factory=list)  # predicted again: the file has another content than before
    renamed: list[tuple[Path, str]] = field(default_factory=list)  # whose results have a number: the name is another's
    repeated: list[Path] = field(default_factory=list)  # named twice in the call
    simplified: dict[Simplified, list[Path]] = field(default_factory=dict)  # of which reading leaves something out
    own: list[Path] = field(default_factory=list)  # left out: what predictions wrote
    broken: list[str] = field(default_factory=list)  # one line for each file that could not be predicted


def predict_files(
    checkpoint: Path,
    images: Iterable[Path],
    out: Path,
    device: str = "auto",
    on_image: Callable[[Path], None] = lambda path: None,
    *,
    protocol: ProtocolName = "ms",
    batch: int = 1,
) -> Predicted:
    """Predict image files with a checkpoint.

    Writes `out/masks/*.png` (palette), `out/overlays/*.jpg`, `out/panels/*.png`, `out/scores.csv`, and
    `out/predictions.jsonl`, which says of which file each is. An image that is there already, by its content, is left
    alone; another one of the same name gets a number. At most `batch` images of the same size that follow each other go
    through the network together. A file that cannot be read or is too large stops no other.

    Raises UsageError for a bad checkpoint, where `out` holds predictions of another checkpoint or protocol, or where
    `protocol` needs a CRF that is not installed.
    """
    if needs_crf(protocol):
        require_crf()
    saved, chosen = checkpoints.load(checkpoint), chosen_device(device)
    config = method_of(saved.experiment).evaluation(saved.experiment, len(saved.classes)).model_dump(mode="json")
    header = {"checkpoint": file_digest(checkpoint), "protocol": protocol, "config": config}
    header |= {"classes": [*saved.classes], **named_precision(saved.experiment.compute.precision)}
    record = PredictionRecord(out, header)
    model = saved.network().to(chosen)
    result = Predicted()
    group: list[_Waiting] = []

    def flush() -> None:
        for read, prediction in zip(group, _predicted(model, saved.experiment, group, chosen, protocol), strict=True):
            if prediction is None:
                height, width = read.image.shape[:2]
                result.broken.append(f"{read.path}: {width}x{height} pixels need more memory than there is")
            elif not prediction.scores.isfinite().all():
                result.broken.append(f"{read.path}: the network gives no finite scores")
            else:
                _write(prediction, saved.experiment, saved.classes, record, read.name)
                record.add(read.name, read.path, read.digest, prediction.scores.tolist())
                result.masks.append(record.file("masks", read.name))
            on_image(read.path)
        group.clear()

    try:
        # Decoding must not wait for the network, nor the network for it.
        known = frozenset(entry["digest"] for entry in record.known.values())
        for path, digest, image, fault in ahead(
            lambda path: _opened(path, known), _once(images, out, result, on_image)
        ):
            name, state = ("", "") if fault else record.name_of(path, digest)
            if not fault and image is None and state != "done":  # the same picture as one before, under another name
                image, fault = _decoded(path)
            if fault:
                result.broken.append(fault)
                on_image(path)
                continue
            if state == "done":
                image = None
            for kind in simplified(path):
                result.simplified.setdefault(kind, []).append(path)
            if name != path.stem:
                result.renamed.append((path, name))
            if image is None:
                flush()  # keeps the order
                result.masks.append(record.file("masks", name))
                result.before += 1
                on_image(path)
                continue
            if state == "changed":
                result.changed.append(path)
            if len(group) == batch or (group and group[0].image.shape != image.shape):
                flush()
            group.append(_Waiting(path, name, digest, image))
        flush()
    finally:
        record.write_scores(saved.classes)
    return result


class _Opened(NamedTuple):
    path: Path
    digest: str
    image: np.ndarray | None  # None where there is a fault, or a prediction of this content before the call
    fault: str  # a line, or empty


def _opened(path: Path, known: frozenset[str]) -> _Opened:
    """A file's digest, and its image unless predictions of it are `known`. Called in other threads."""
    try:
        digest = file_digest(path)
    except OSError as error:
        return _Opened(path, "", None, f"{path}: {error.strerror or error}")
    return _Opened(path, digest, None, "") if digest in known else _Opened(path, digest, *_decoded(path))


def _decoded(path: Path) -> tuple[np.ndarray | None, str]:
    """An image H,W,3 uint8, or a line on why there is none."""
    try:
        return read_rgb(path), ""
    except DataError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{path}: {error.strerror or error}"


class _Waiting(NamedTuple):
    path: Path
    name: str
    digest: str
    image: np.ndarray


def _once(images: Iterable[Path], out: Path, result: Predicted, on_image: Callable[[Path], None]) -> Iterator[Path]:
    """Each file once, and none that predictions wrote into `out`."""
    written, seen = {(out / part).resolve() for part in PARTS}, set()
    for path in images:
        file = path.resolve()
        if file.parent in written or file in seen:
            (result.own if file.parent in written else result.repeated).append(path)
            on_image(path)
            continue
        seen.add(file)
        yield path


def _predicted(
    model: Network, experiment: Experiment, group: Sequence[_Waiting], device: torch.device, protocol: ProtocolName
) -> Sequence[Prediction | None]:
    """Predictions of images of one size; None where memory does not suffice, even for one of them alone."""
    if not group:
        return []
    try:
        return predict(model, experiment, [read.image for read in group], device, protocol)
    except (MemoryError, RuntimeError) as error:  # torch has its own class for a GPU, and none for the CPU
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
    if len(group) == 1:
        return [None]
    return [read for waiting in group for read in _predicted(model, experiment, [waiting], device, protocol)]


def panel(
    prediction: Prediction, experiment: Experiment, classes: Sequence[str], truth: np.ndarray | None = None
) -> PIL.Image.Image:
    """A labelled row of pictures; CAMs and pseudo-label are of the classes in `truth`, else of those predicted."""
    if truth is None:
        present = prediction.scores > 0.5
        present[prediction.scores.argmax()] = True
    else:
        present = torch.tensor([bool((truth == number).any()) for number in range(1, len(classes) + 1)])
    shown = {stage: cam * present[:, None, None] for stage, cam in prediction.maps.items()}
    pseudo = None
    if "cam" in shown:
        config = method_of(experiment).evaluation(experiment, len(classes))
        height, width = prediction.image.shape[:2]
        # Refinement works on a smaller picture, of which something must be left.
        least, numbers = config.par.downscale, present.nonzero()[:, 0]
        wide, tensor = padded(shown["cam"][None, numbers], least), padded(to_tensor([prediction.image]), least)
        label = pseudo_label(tensor, wide, prediction.logits[None], numbers, config)
        pseudo = label[0, :height, :width].to(torch.uint8).numpy()
    return cam_panel(
        prediction.image,
        {stage: cam.numpy() for stage, cam in shown.items()},
        pseudo,
        prediction.mask,
        truth,
        [name for name, here in zip(classes, present, strict=True) if here],
    )


def _write(
    prediction: Prediction, experiment: Experiment, classes: Sequence[str], record: PredictionRecord, name: str
) -> None:
    panel(prediction, experiment, classes).save(record.file("panels", name))
    overlay(prediction.image, prediction.mask).save(record.file("overlays", name), quality=92)
    with whole(record.file("masks", name)) as partial:
        partial.write_bytes(palette_png(prediction.mask))
