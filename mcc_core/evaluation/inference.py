"""Prediction on images of any size: multi-scale segmentation, class scores and CAM pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.config import Experiment
from mcc_core.data.transforms import normalise
from mcc_core.data.voc import IMAGE_SUFFIXES, palette_png, read_rgb
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.protocols import ProtocolName, at_rest, label_map, needs_crf, segmentation_maps
from mcc_core.evaluation.visualize import cam_panel, overlay
from mcc_core.files import whole
from mcc_core.methods.registry import method_of
from mcc_core.networks.base import MapStage, Network
from mcc_core.pseudo_labels.cam import multi_scale_maps
from mcc_core.pseudo_labels.crf import require_crf
from mcc_core.pseudo_labels.labels import refined_label


@dataclass(frozen=True)
class Prediction:
    """One image's results."""

    image: np.ndarray  # H,W,3 uint8
    mask: np.ndarray  # H,W uint8, 0 background
    scores: Tensor  # C probabilities that the image has the class
    maps: dict[MapStage, Tensor]  # class maps C,H,W by stage


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Image files of what a user names: files, folders, patterns such as `photos/*.jpg`, and `.txt` lists of files.

    Lines of a list are relative to its folder. Raises UsageError for what does not exist or holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.suffix == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            inside = [path.parent / line for line in lines if line]
            if missing := [file for file in inside if not file.is_file()]:
                raise UsageError(f"{path}: {missing[0]}: no such file")
        elif path.is_file():
            inside = [path]
        elif any(mark in str(path) for mark in "*?["):
            inside = [Path(name) for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()]
        else:
            raise UsageError(f"{path}: no such file or folder")
        if not inside:
            raise UsageError(f"{path}: no images here ({', '.join(IMAGE_SUFFIXES)})")
        found += inside
    return found


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
    tensor = to_tensor(images).to(device)
    output = model(tensor)
    found = multi_scale_maps(model, tensor, config.cam_scales, output)
    maps = segmentation_maps(model, images, protocol, config, device)
    masks = [label_map(one, protocol, config, image) for one, image in zip(maps, images, strict=True)]
    scores = output.cls.sigmoid().cpu()
    class_maps = [{stage: cam[i].cpu() for stage, cam in found.items()} for i in range(len(images))]
    return [Prediction(*one) for one in zip(images, masks, scores, class_maps, strict=True)]


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Images H,W,3 uint8 to B,3,H,W, ImageNet-normalised."""
    return normalise(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]))


def predict_files(
    checkpoint: Path,
    images: Iterable[Path],
    out: Path,
    device: str = "auto",
    on_image: Callable[[Path], None] = lambda path: None,
    *,
    protocol: ProtocolName = "ms",
    batch: int = 1,
) -> list[Path]:
    """Predict image files with a checkpoint; returns the written masks.

    Writes `out/masks/*.png` (palette), `out/overlays/*.jpg`, `out/panels/*.png` and `out/scores.csv`. An image whose
    mask is already there is left alone. At most `batch` images of the same size that follow each other go through the
    network together. Files that cannot be read are left out; after all others are done, a DataError names them.

    Raises UsageError for a bad checkpoint, or where `protocol` needs a CRF that is not installed.
    """
    if needs_crf(protocol):
        require_crf()
    saved = checkpoints.load(checkpoint)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    model = saved.network().to(chosen)
    for folder in ("masks", "overlays", "panels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    broken: list[str] = []
    group: list[tuple[Path, str, np.ndarray]] = []

    def flush() -> None:
        found = predict(model, saved.experiment, [image for _, _, image in group], chosen, protocol) if group else []
        for (path, name, _), prediction in zip(group, found, strict=True):
            _write(prediction, saved.experiment, saved.classes, out, name)
            on_image(path)
        group.clear()

    for path, name in _named(images):
        mask_file = out / "masks" / f"{name}.png"
        if mask_file.exists():
            on_image(path)
        else:
            try:
                image = read_rgb(path)
            except DataError as error:
                broken.append(str(error))
                on_image(path)
                continue
            if len(group) == batch or (group and group[0][2].shape != image.shape):
                flush()
            group.append((path, name, image))
        written.append(mask_file)
    flush()
    if broken:
        raise DataError("\n".join(broken))
    return written


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
    tensor = to_tensor([prediction.image])
    config = method_of(experiment).evaluation(experiment, len(classes))
    background, foreground = at_rest(config.background), at_rest(config.foreground)
    box = torch.tensor([[0, tensor.shape[2], 0, tensor.shape[3]]])
    pseudo = refined_label(tensor, shown["cam"][None], present[None], box, background, foreground, config.par)
    return cam_panel(
        prediction.image,
        {stage: cam.numpy() for stage, cam in shown.items()},
        pseudo[0].to(torch.uint8).numpy(),
        prediction.mask,
        truth,
        [name for name, here in zip(classes, present, strict=True) if here],
    )


def _named(images: Iterable[Path]) -> Iterable[tuple[Path, str]]:
    """Each path with an output name: its stem, made unique by a number where stems repeat."""
    seen: dict[str, int] = {}
    for path in images:
        count = seen[path.stem] = seen.get(path.stem, 0) + 1
        yield path, path.stem if count == 1 else f"{path.stem}-{count}"


def _write(prediction: Prediction, experiment: Experiment, classes: Sequence[str], out: Path, name: str) -> None:
    panel(prediction, experiment, classes).save(out / "panels" / f"{name}.png")
    overlay(prediction.image, prediction.mask).save(out / "overlays" / f"{name}.jpg", quality=92)
    scores = out / "scores.csv"
    fresh = not scores.exists()
    with scores.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["image", *classes])
        writer.writerow([name, *(f"{score:.4f}" for score in prediction.scores.tolist())])
    with whole(out / "masks" / f"{name}.png") as partial:  # last: its presence means the image is done
        partial.write_bytes(palette_png(prediction.mask))
