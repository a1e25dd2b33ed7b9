"""Pictures of where two networks differ: a page of CAM panels, the classes that lost most first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from mcc_core.checkpoint import Checkpoint
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.evaluation.inference import panel, predict
from mcc_core.evaluation.protocols import ProtocolName
from orchestrator.analysis.images import ImageComparison
from orchestrator.reports.pages import render


@dataclass(frozen=True)
class Side:
    """A network of the comparison."""

    label: str
    saved: Checkpoint


def write_gallery(
    comparison: ImageComparison,
    sides: tuple[Side, Side],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    out: Path,
    *,
    classes: int = 5,
    per_class: int = 4,
    device: str = "cpu",
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `out/index.html` and its pictures; returns the page.

    For each of the `classes` classes whose IoU changed worst, the `per_class` images in which it moved most: image,
    CAM, auxiliary CAM, pseudo-label, prediction and ground truth, of one network above the other.
    """
    sections = [
        (name, first, other, comparison.by_class[name][:per_class])
        for name, first, other in comparison.classes[:classes]
    ]
    wanted = list(dict.fromkeys(image for *_, rows in sections for image, _, _ in rows))
    (out / "images").mkdir(parents=True, exist_ok=True)
    protocol: ProtocolName = comparison.first.setting["protocol"]
    for number, side in enumerate(sides):
        _panels(side, wanted, images, masks, out / "images", number, protocol, device, on_image)
    page = out / "index.html"
    page.write_text(
        render("gallery.html.j2", found=comparison, sections=sections, sides=sides, label=comparison.first.measures),
        encoding="utf-8",
    )
    return page


def _panels(
    side: Side,
    wanted: Sequence[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    folder: Path,
    number: int,
    protocol: ProtocolName,
    device: str,
    on_image: Callable[[int, int], None],
) -> None:
    saved = side.saved
    network = saved.network().to(device)
    shown: ProtocolName = "ms" if protocol in ("cam", "aux_cam") else protocol
    for done, name in enumerate(wanted):
        on_image(number * len(wanted) + done, 2 * len(wanted))
        (prediction,) = predict(network, saved.experiment, [read_rgb(images[name])], torch.device(device), shown)
        truth = read_mask(masks[name], len(saved.classes))
        picture: Image.Image = panel(prediction, saved.experiment, saved.classes, truth)
        picture.save(folder / f"{name}-{number}.jpg", quality=90)
