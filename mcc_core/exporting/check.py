"""Exporting a checkpoint, and how far what was written is from the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mcc_core.checkpoint import Checkpoint
from mcc_core.data.colours import normalise
from mcc_core.errors import MCCError, UsageError
from mcc_core.exporting.deployed import LEAST_CELLS, Deployed, description
from mcc_core.exporting.formats import SUFFIXES, Format, Run, write
from mcc_core.files import whole

_TOLERANCE = 1e-3  # times the largest value of an output, or 1


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what its check found."""

    file: Path
    about: dict[str, Any]  # what stands in it beside the weights
    gaps: dict[str, float]  # by output: the largest absolute difference to the network
    pixels: int  # that were compared
    other_class: int  # of them, those that get another class


def export_checkpoint(
    saved: Checkpoint, file: Path, kind: str | None, image: np.ndarray | None, more: dict[str, Any] | None = None
) -> Exported:
    """Write a network as `kind` (default: by the file's suffix), for any number of images of any size in whole cells.

    What was written is run on the image at its size and, twice, at another, and compared with the network.

    Args:
        image: H,W,3 uint8; default: noise.
        more: what the file says of where the checkpoint comes from.

    Raises UsageError for an unknown format or a missing library; MCCError, and writes nothing, where the network cannot
    be expressed or what was written computes something else.
    """
    chosen = chosen_format(file, kind)
    network = Deployed(saved.network())
    about = description(saved, network.network.stride, more or {})
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        named = partial.with_name(f"{partial.name}{SUFFIXES[chosen]}")  # readers go by the suffix
        try:
            run = write(chosen, network, saved, about, named)
            gaps, pixels, other = _compared(network, run, _inputs(image, network.network.stride))
            named.replace(partial)
        finally:
            named.unlink(missing_ok=True)
    return Exported(file, about, gaps, pixels, other)


def chosen_format(file: Path, kind: str | None) -> Format:
    """The format of a name, or of a file's suffix. Raises UsageError."""
    known = ", ".join(get_args(Format))
    if kind is not None and kind not in get_args(Format):
        raise UsageError(f"--format {kind}: not one of {known}")
    by_suffix = next((name for name, suffix in SUFFIXES.items() if suffix == file.suffix), None)
    given = next((name for name in SUFFIXES if name == kind), by_suffix)
    if given is None:
        raise UsageError(f"{file}: no format has the suffix {file.suffix!r}; --format is one of {known}")
    return given


def _inputs(image: np.ndarray | None, stride: int) -> list[Tensor]:
    """Normalised images of whole cells: one of the image's size, and two of another."""
    if image is None:
        image = np.random.default_rng(0).integers(0, 256, (5 * stride, 9 * stride, 3), dtype=np.uint8)
    tensor = normalise(torch.from_numpy(image).permute(2, 0, 1))[None]
    height, width = (max(LEAST_CELLS, -(-side // stride)) * stride for side in tensor.shape[-2:])
    padded = F.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))
    smaller = [max(LEAST_CELLS + 1, side // stride // 2) * stride for side in (width, height)]
    two = F.interpolate(padded, size=smaller, mode="bilinear", align_corners=False)
    return [padded, torch.cat([two, two.flip(-1)])]


def _answered(run: Run, images: Tensor) -> tuple[Tensor, ...]:
    """What was written says of images. Raises MCCError where it does not take their size."""
    try:
        return run(images)
    except (RuntimeError, ValueError, TypeError, OSError):
        raise
    except Exception:  # onnxruntime's own
        size = "x".join(map(str, images.shape[-2:]))
        raise MCCError(
            f"what was written does not run on {size} pixels: the format has no layer of the network for any size; "
            "nothing is written; --format torch-export may have"
        ) from None


@torch.no_grad()
def _compared(network: Deployed, run: Run, inputs: list[Tensor]) -> tuple[dict[str, float], int, int]:
    gaps, pixels, other = dict.fromkeys(network.outputs, 0.0), 0, 0
    for images in inputs:
        wanted, answered = network(images), _answered(run, images)
        for name, first, two in zip(network.outputs, wanted, answered, strict=True):
            gap = float((first - two).abs().max())
            gaps[name] = max(gaps[name], gap)
            if not gap <= _TOLERANCE * max(1.0, float(first.abs().max())):
                raise MCCError(f"the exported {name} differs from the network's by up to {gap:.2g}; nothing is written")
        pixels += wanted[0][:, 0].numel()
        other += int((wanted[0].argmax(1) != answered[0].argmax(1)).sum())
    return gaps, pixels, other
