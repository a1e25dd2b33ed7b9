"""Pictures of CAMs and label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mcc_core.data.voc import palette

_COLOURS = np.array(palette(), dtype=np.uint8).reshape(256, 3)
_CAPTIONS = {"cam": "CAM", "aux_cam": "auxiliary CAM"}
_TILE, _CAPTION, _GAP = 192, 18, 4


def colorize(mask: np.ndarray) -> np.ndarray:
    """Label map H,W uint8 to VOC colours H,W,3; 255 (ignore) is light grey-white."""
    return _COLOURS[mask]


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.55) -> Image.Image:
    """Labels in colour over the image; background stays as it is."""
    mixed = image * (1 - opacity) + colorize(mask) * opacity
    return Image.fromarray(np.where((mask > 0)[..., None], mixed, image).astype(np.uint8))


def heat(image: np.ndarray, cam: np.ndarray) -> Image.Image:
    """CAM H,W in [0, 1] over the image as a heat map."""
    from matplotlib import colormaps  # here, because it takes a while and only pictures need it

    colours = colormaps["jet"](np.clip(cam, 0, 1))[..., :3] * 255
    return Image.fromarray((0.45 * image + 0.55 * colours).astype(np.uint8))


def cam_panel(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    pseudo_label: np.ndarray | None,
    prediction: np.ndarray,
    ground_truth: np.ndarray | None,
    present: Sequence[str],
) -> Image.Image:
    """One labelled row: image, class maps, pseudo-label, prediction, ground truth.

    Args:
        image: H,W,3 uint8; maps: by stage, C,H,W in [0, 1], zero for absent classes; label maps: H,W uint8.
        present: class names for the caption of the image.
    """
    tiles = [
        (", ".join(present) or "no class", Image.fromarray(image)),
        *((_CAPTIONS.get(stage, stage), heat(image, cam.max(0))) for stage, cam in maps.items()),
        *([] if pseudo_label is None else [("pseudo-label", Image.fromarray(colorize(pseudo_label)))]),
        ("prediction", Image.fromarray(colorize(prediction))),
    ]
    if ground_truth is not None:
        tiles.append(("ground truth", Image.fromarray(colorize(ground_truth))))
    # A strip is drawn less long, or less thin, than it is: its sheet would be of any size, or of none.
    height = min(max(round(_TILE * image.shape[0] / image.shape[1]), _TILE // 8), _TILE * 8)
    sheet = Image.new("RGB", (len(tiles) * (_TILE + _GAP) - _GAP, height + _CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, (caption, tile) in enumerate(tiles):
        x = column * (_TILE + _GAP)
        smooth = Image.Resampling.BILINEAR if column <= len(maps) else Image.Resampling.NEAREST
        sheet.paste(tile.resize((_TILE, height), smooth), (x, _CAPTION))
        draw.text((x + 2, 2), _fitted(caption, font), fill="black", font=font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(text) > _TILE and len(text) > 4:
        text = text[:-4] + "..."
    return text
