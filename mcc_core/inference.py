"""Prediction on images of any size: multi-scale segmentation, class scores and CAM pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mcc_core import checkpoint as checkpoints
from mcc_core.cam import multi_scale_cams
from mcc_core.config import Experiment
from mcc_core.data.voc import palette
from mcc_core.errors import DataError
from mcc_core.model import MCCNet
from mcc_core.protocols import combined_logits, raw_logits
from mcc_core.pseudo_label import IMAGENET_MEAN, IMAGENET_STD, refined_label
from mcc_core.schedules import value_at
from mcc_core.visualize import cam_panel, overlay

SCALES = (1.0, 1.25, 1.5)  # PAPER_NOTES row 24, VOC
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Prediction:
    """One image's results."""

    image: np.ndarray  # H,W,3 uint8
    mask: np.ndarray  # H,W uint8, 0 background
    scores: Tensor  # C probabilities that the image has the class
    cam: Tensor  # C,H,W
    aux_cam: Tensor  # C,H,W


def read_image(path: Path) -> np.ndarray:
    """An RGB image H,W,3 uint8, EXIF rotation applied. Raises DataError naming the file."""
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(f"{path}: {opened.width}x{opened.height} pixels; at most {MAX_PIXELS} are read")
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None


def to_tensor(image: np.ndarray) -> Tensor:
    """H,W,3 uint8 to 1,3,H,W, ImageNet-normalised."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels - mean) / std)[None]


def segment(model: MCCNet, images: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Segmentation logits B,C+1,H,W: flips summed, maximum over scales (PAPER_NOTES row 24, VOC)."""
    return combined_logits(raw_logits(model, images, scales), (images.shape[-2], images.shape[-1]), "voc")


@torch.no_grad()
def predict(model: MCCNet, experiment: Experiment, image: np.ndarray, device: torch.device) -> Prediction:
    """Everything that is written of one image."""
    tensor = to_tensor(image).to(device)
    output = model(tensor)
    cam, aux = multi_scale_cams(model, tensor, experiment.cam.scales, output.features)
    mask = segment(model, tensor).argmax(1)[0]
    return Prediction(image, mask.to(torch.uint8).cpu().numpy(), output.cls.sigmoid()[0].cpu(), cam[0], aux[0])


def predict_files(
    checkpoint: Path,
    images: Iterable[Path],
    out: Path,
    device: str = "auto",
    on_image: Callable[[Path], None] = lambda path: None,
) -> list[Path]:
    """Predict image files with a checkpoint; returns the written masks.

    Writes `out/masks/*.png` (palette), `out/overlays/*.jpg`, `out/panels/*.png` and `out/scores.csv`. An image whose
    mask is already there is left alone. Files that cannot be read are left out; after all others are done, a
    DataError names them.
    """
    saved = checkpoints.load(checkpoint)
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    model = saved.network().to(chosen)
    for folder in ("masks", "overlays", "panels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    written, broken = [], []
    for path, name in _named(images):
        mask_file = out / "masks" / f"{name}.png"
        if not mask_file.exists():
            try:
                prediction = predict(model, saved.experiment, read_image(path), chosen)
            except DataError as error:
                broken.append(str(error))
                on_image(path)
                continue
            _write(prediction, saved.experiment, saved.classes, out, name)
        written.append(mask_file)
        on_image(path)
    if broken:
        raise DataError("\n".join(broken))
    return written


def _named(images: Iterable[Path]) -> Iterable[tuple[Path, str]]:
    """Each path with an output name: its stem, made unique by a number where stems repeat."""
    seen: dict[str, int] = {}
    for path in images:
        count = seen[path.stem] = seen.get(path.stem, 0) + 1
        yield path, path.stem if count == 1 else f"{path.stem}-{count}"


def _write(prediction: Prediction, experiment: Experiment, classes: Sequence[str], out: Path, name: str) -> None:
    present = prediction.scores > 0.5
    present[prediction.scores.argmax()] = True
    keep = present[:, None, None].to(prediction.cam.device)
    cam, aux = prediction.cam * keep, prediction.aux_cam * keep
    tensor = to_tensor(prediction.image).to(cam.device)
    last = experiment.train.iterations - 1
    background, foreground = (
        value_at(t, last, experiment.train.iterations)
        for t in (experiment.thresholds.background, experiment.thresholds.foreground)
    )
    box = torch.tensor([[0, tensor.shape[2], 0, tensor.shape[3]]], device=cam.device)
    pseudo = refined_label(tensor, cam[None], present[None].to(cam.device), box, background, foreground, experiment.par)
    panel = cam_panel(
        prediction.image,
        cam.cpu().numpy(),
        aux.cpu().numpy(),
        pseudo[0].to(torch.uint8).cpu().numpy(),
        prediction.mask,
        None,
        [name for name, here in zip(classes, present, strict=True) if here],
    )
    panel.save(out / "panels" / f"{name}.png")
    overlay(prediction.image, prediction.mask).save(out / "overlays" / f"{name}.jpg", quality=92)
    scores = out / "scores.csv"
    fresh = not scores.exists()
    with scores.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["image", *classes])
        writer.writerow([name, *(f"{score:.4f}" for score in prediction.scores.tolist())])
    mask = Image.fromarray(prediction.mask, mode="P")
    mask.putpalette(palette())
    partial = out / "masks" / f".{name}.part"
    mask.save(partial, format="PNG")
    partial.replace(out / "masks" / f"{name}.png")  # last and whole: its presence means the image is done
