"""`mcc export`: a trained network for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[str, typer.Argument(help="File, SWEEP/TRIAL, s3://… or models:/NAME@ALIAS.")],
    format: Annotated[
        str | None, typer.Option("--format", help="onnx, torch-export or safetensors; default: by --out, else onnx.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File; default: the checkpoint's name.")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="What to check it on; default: noise.")] = None,
) -> None:
    """Write a network as ONNX, exported program or safetensors.

    For any number of images of any size in whole cells of its grid. What was written is run and compared with the
    network.
    """
    import mcc_core
    from mcc_core import checkpoint as checkpoints
    from mcc_core.data.pixels import read_rgb
    from mcc_core.exporting.check import chosen_format, export_checkpoint
    from mcc_core.exporting.formats import SUFFIXES
    from mcc_core.files import file_digest
    from orchestrator.records.lookup import slug, trial_of
    from orchestrator.settings import Settings
    from orchestrator.text import size_text
    from orchestrator.workflows.networks import find_network

    settings = Settings.from_environment()
    chosen = chosen_format(out or Path("x.onnx"), format)
    pixels = None if image is None else read_rgb(image)
    file = find_network(checkpoint, settings)
    target = out or Path(f"{slug(checkpoint)}{SUFFIXES[chosen]}")
    more = {"mcc": mcc_core.__version__, "source": checkpoint, "checkpoint": file_digest(file)}
    more["trial"] = trial_of(checkpoint, settings) or ""
    made = export_checkpoint(checkpoints.load(file), target, chosen, pixels, more)
    stride, least = made.about["stride"], made.about["least_side"]
    print(f"{target}: {chosen}, {size_text(target.stat().st_size)}; sides are multiples of {stride}, from {least}")
    gaps = ", ".join(f"{name} {gap:.1e}" for name, gap in made.gaps.items())
    print(f"largest gap to the network on {image or 'noise'}: {gaps}")
    print(f"{made.other_class} of {made.pixels} pixels get another class")
