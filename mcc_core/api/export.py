"""A trained network for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

import mcc_core
from mcc_core.api.model import Model, load, pixels_of
from mcc_core.exporting.check import Exported, export_checkpoint


def export(
    model: Model | str | Path,
    file: str | Path,
    format: str | None = None,
    *,
    image: str | Path | np.ndarray | PIL.Image.Image | None = None,
) -> Exported:
    """Write a network for other programs, and check what was written against the network.

    Args:
        model: a Model, or what `load` takes.
        file: what to write.
        format: onnx, torch-export or safetensors; default: by the suffix (.onnx, .pt2, .safetensors).
        image: what the check looks at; default: noise.

    Raises UsageError for an unknown format, or where a library is missing; MCCError, and writes nothing, where the
    network cannot be expressed or what was written computes something else.
    """
    model = model if isinstance(model, Model) else load(model, device="cpu")
    pixels = None if image is None else pixels_of(image, "image")
    return export_checkpoint(
        model.checkpoint(), Path(file), format, pixels, {"mcc": mcc_core.__version__, "source": model.source}
    )
