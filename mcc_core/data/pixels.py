"""Reading images and masks of any origin: decoded whole, turned, at 8 bits a channel."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mcc_core.errors import DataError

READING = 5  # of images and masks: a change to what is accepted, or to what is read of a file, changes this


MAX_PIXELS = 64_000_000  # of an image of unknown origin


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")


_ORIENTATION = 0x0112  # the EXIF tag


# What Pillow raises for a file that is missing, cut short or no image.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


_DARK = 4096  # 12 bits stored in 16, or 8: fewer than 16 of the 256 grey values would be left


Simplified = Literal["scaled", "pages", "transparent"]
# How each is said of images.
SIMPLIFIED: Mapping[Simplified, str] = {
    "scaled": "more than 8 bits a channel, scaled to 8",
    "pages": "several pages or frames, of which the first is read",
    "transparent": "transparent pixels, whose stored colours are read",
}


_KINDS = {"1": "1-bit", "RGB": "colour", "RGBA": "colour with alpha", "LA": "grey with alpha", "CMYK": "CMYK"}
_KINDS |= {"I": "32-bit whole numbers", "F": "floating point"}


def read_rgb(path: Path) -> np.ndarray:
    """H,W,3 uint8 of an image, EXIF rotation applied.

    Grey images of 16 bits are scaled to 8, and floating point from 0 to 1; the decoder reads colour of 16 bits at 8.
    Raises DataError naming the file, also for values that nothing says how to scale.
    """
    with _opened(path) as image:
        return np.array(_eight_bits(ImageOps.exif_transpose(image), path).convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image, EXIF rotation applied, after decoding it whole. Raises DataError naming the file.

    A JPEG is decoded at an eighth of its size, which reads every byte of it and costs a fraction.
    """
    with _opened(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else (image.width, image.height)
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        _eight_bits(ImageOps.exif_transpose(image), path).convert("RGB")
        return size


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as its header says, EXIF rotation applied. Raises DataError naming the file."""
    with _opened(path) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def simplified(path: Path) -> tuple[Simplified, ...]:
    """What `read_rgb` leaves out of an image, see SIMPLIFIED. Raises DataError naming the file."""
    with _opened(path) as image:
        tiles = getattr(image, "tile", None)
        stored = str(tiles[0].args) if tiles else ""  # known only before the pixels are decoded
        found: dict[Simplified, bool] = {
            "scaled": image.mode.startswith("I;16") or image.mode == "F" or ";16" in stored
        }
        found["pages"] = getattr(image, "n_frames", 1) > 1
        clear = image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255
        found["transparent"] = clear
        return tuple(kind for kind, so in found.items() if so)


def examined(path: Path) -> str:
    """Decode an image whole; what `simplified` says of it, with spaces between. Raises DataError naming the file."""
    image_size(path)
    return " ".join(simplified(path))


def simplification_notes(found: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each kind of thing that reading leaves out, of what `simplified` says of images by name."""
    notes = []
    for kind, what in SIMPLIFIED.items():
        if names := [name for name, kinds in found.items() if kind in kinds]:
            notes.append(f"{len(names)} images have {what}, such as {names[0]}")
    return notes


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """A palette or grey mask H,W uint8. Raises DataError when it cannot be read or has labels out of range."""
    return decode_mask(path, path, num_classes)


def decode_mask(stream: Path | IO[bytes], source: Path, num_classes: int) -> np.ndarray:
    """`read_mask` of a stream; `source` is what an error names."""
    mask = decode_bytes(stream, source)
    wrong = mask[(mask > num_classes) & (mask != 255)]
    if len(wrong):
        raise DataError(f"{source}: label {int(wrong[0])} is out of range: there are {num_classes} classes")
    return mask


def decode_bytes(stream: Path | IO[bytes], source: Path) -> np.ndarray:
    """The numbers H,W uint8 of a palette or grey PNG. Raises DataError naming `source`."""
    try:
        with Image.open(stream) as image:
            if image.mode not in {"P", "L"}:
                raise DataError(f"{source}: {_kind(image.mode)}; a mask is a palette or grey PNG of 8 bits")
            if image.format == "JPEG":
                raise DataError(f"{source}: its content is JPEG, which changes class numbers; a mask is a PNG")
            step = _grey_step(image)  # known only before the pixels are decoded
            return np.array(image) // step
    except IMAGE_ERRORS as error:
        raise DataError(f"{source}: cannot be read as a mask: {_plain(error)}") from None


def _grey_step(image: Image.Image) -> int:
    """What the decoder multiplies grey values of 2 and 4 bits by, which are class numbers here."""
    tile = getattr(image, "tile", None)
    mode = tile[0].args if tile else ""
    return {"L;2": 85, "L;4": 17}.get(mode if isinstance(mode, str) else "", 1)


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """An image of more bits scaled to 8."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        if 0 < (highest := int(deep.max())) < _DARK:
            raise DataError(
                f"{path}: 16 bits a pixel, but no value above {highest}: scaled to 8 bits, next to nothing is left; "
                "save it with 8 bits, or values up to 65535"
            )
        return Image.fromarray(np.round(deep.astype(np.float64) / 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # NaN too
            raise DataError(f"{path}: floating point from {low:g} to {high:g}; expected 0 to 1, or 8 or 16 bits")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if image.mode == "I":
        raise DataError(f"{path}: 32-bit whole numbers; expected 8 or 16 bits a channel, or floating point from 0 to 1")
    return image


def _kind(mode: str) -> str:
    return "16-bit grey" if mode.startswith("I;16") else _KINDS.get(mode, "of another kind")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: cannot be read as an image: it is empty (0 bytes)")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read")
            yield image
    except IMAGE_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image: {_plain(error)}") from None


def _plain(error: BaseException) -> str:
    """What is wrong with a file, in our words."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image, or one of a kind that is not read"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is cut short" if "truncated" in str(error) else "it is damaged"
