"""A figure of the paper as a page: images in rows, methods in columns, the ground truth last."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mcc_core import checkpoint as checkpoints
from mcc_core.config import DataConfig
from mcc_core.data.index import DataIndex, Item, build_index
from mcc_core.data.pixels import read_mask, read_rgb
from mcc_core.device import chosen_device
from mcc_core.errors import DataError, UsageError
from mcc_core.evaluation.inference import predict
from mcc_core.evaluation.visualize import colorize
from mcc_core.methods.registry import method_of
from mcc_core.pseudo_labels.crf import require_crf
from orchestrator.evaluation.request import evaluation_request
from orchestrator.reports.pages import render, require_ours
from orchestrator.reproduction.lines import named, protocol_text
from orchestrator.reproduction.scores import Found
from orchestrator.settings import Settings
from orchestrator.spec.paper_table import PaperTable, Sheet

PAGE = "figure.html"
_WIDTH = 240  # pixels of a tile


@dataclass(frozen=True)
class Column:
    """One method's label maps."""

    name: str
    protocol: str  # in words
    tiles: Sequence[str]  # pictures as addresses, in the order of the images


def write_sheet(
    table: PaperTable, networks: Found, settings: Settings, out: Path, on_image: Callable[[str, int, int], None]
) -> Path:
    """Write `out/figure.html`, whole in itself; returns it. Each method by its authors' protocol.

    Raises UsageError where there is no network, where a CRF is not installed, or where networks are of different data.
    """
    sheet = table.sheet
    assert sheet is not None
    require_ours(out, (PAGE,))
    if not networks.networks:
        raise UsageError(f"{table.description}: no network was trained or given")
    require_crf()
    chosen = {point: file for point in table.points for (name, _), file in networks.networks.items() if name == point}
    index, items = _images(sheet, list(chosen.values()), networks, settings)
    images = [read_rgb(item.image) for item in items]
    columns = [_column(table, point, file, images, index, on_image) for point, file in chosen.items()]
    truths = [read_mask(index.masks[item.name], len(index.classes)) for item in items]
    page = render(
        "sheet.html.j2",
        title=table.description,
        columns=columns,
        names=[item.name for item in items],
        present=[[(index.classes[label], _colour(label + 1)) for label in item.labels] for item in items],
        images=[_tile(image, smooth=True) for image in images],
        truths=[_tile(colorize(truth), smooth=False) for truth in truths],
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def _images(sheet: Sheet, files: Sequence[Path], networks: Found, settings: Settings) -> tuple[DataIndex, list[Item]]:
    """The data and its images with masks: those with two classes or more first, as the paper's figure has them."""
    known: dict[str, DataIndex] = {}
    for file in files:
        request = evaluation_request(
            file, [sheet.protocol], sheet.split, {}, data=str(networks.data) if networks.data else None
        )
        data: DataConfig = request.data
        changes = {} if sheet.split == data.train_split else {"val_split": sheet.split}
        index = build_index(data.model_copy(update=changes), settings.home)
        if index.classes != request.saved.classes:
            raise UsageError(f"{file}: was trained on other classes than the data has")
        known.setdefault(index.fingerprint, index)
    if len(known) > 1:
        raise UsageError("the networks are of different data: a figure shows the same images of all")
    (index,) = known.values()
    shown = index.train if sheet.split == data.train_split else index.val
    scored = [item for item in shown if item.name in index.masks]
    if not scored:
        raise DataError(f"no image of {sheet.split} has a mask: there is no ground truth to show")
    return index, sorted(scored, key=lambda item: len(item.labels) < 2)[: sheet.images]


def _column(
    table: PaperTable,
    point: str,
    file: Path,
    images: Sequence[np.ndarray],
    index: DataIndex,
    on_image: Callable[[str, int, int], None],
) -> Column:
    assert table.sheet is not None
    saved, device, protocol = checkpoints.load(file), chosen_device("auto"), table.sheet.protocol
    network = saved.network().to(device).eval()
    tiles = []
    for done, image in enumerate(images):
        on_image(point, done, len(images))
        (prediction,) = predict(network, saved.experiment, [image], torch.device(device), protocol)
        tiles.append(_tile(colorize(prediction.mask), smooth=False))
    config = method_of(saved.experiment).evaluation(saved.experiment, len(index.classes))
    return Column(named(point, table), protocol_text(config, protocol), tiles)


def _colour(label: int) -> str:
    red, green, blue = colorize(np.array([[label]], np.uint8))[0, 0].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def _tile(picture: np.ndarray, *, smooth: bool) -> str:
    """H,W,3 uint8 at the page's width as an address; label maps keep their colours."""
    height = max(1, round(_WIDTH * picture.shape[0] / picture.shape[1]))
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    stream = io.BytesIO()
    Image.fromarray(picture).resize((_WIDTH, height), how).save(stream, "JPEG" if smooth else "PNG")
    kind = "jpeg" if smooth else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
