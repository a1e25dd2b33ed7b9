"""`mcc predict`: segment image files with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mcc_core.errors import MCCError, UsageError


def predict(
    checkpoint: Annotated[str, typer.Argument(help="File, SWEEP/TRIAL, s3://… or models:/NAME@ALIAS.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, patterns, or a .txt list of files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overlays, panels and scores.csv.")],
    protocol: Annotated[str, typer.Option("--protocol", help="single, ms or ms_crf: what masks are.")] = "ms",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images of one size at a time.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment image files with a trained network.

    Writes palette masks, overlays, CAM panels and class scores; goes on where it stopped. An image is known by its
    content. Exit code 1 where images could not be read.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mcc_core.data.image_files import image_files
    from mcc_core.data.pixels import SIMPLIFIED
    from mcc_core.evaluation.inference import predict_files
    from mcc_core.evaluation.protocols import SEGMENTATION
    from orchestrator.settings import Settings
    from orchestrator.workflows.networks import find_network

    if protocol not in SEGMENTATION:
        raise UsageError(f"--protocol {protocol}: not one of {', '.join(SEGMENTATION)}")
    file, (files, left_out) = find_network(checkpoint, Settings.from_environment()), image_files(images)
    columns = (TextColumn("predicting"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(files))
        predicted = predict_files(
            file,
            files,
            out,
            device,
            on_image=lambda _: progress.advance(task),
            protocol=protocol,
            batch=batch,
        )
    print(f"{len(predicted.masks)} images in {out}{f' ({predicted.before} were there)' if predicted.before else ''}")
    _print("predicted again, because the file has changed", predicted.changed)
    renamed = [f"{path} as {name}" for path, name in predicted.renamed]
    _print("numbered, because another image has the name", renamed)
    for kind, paths in predicted.simplified.items():
        _print(f"with {SIMPLIFIED[kind]}", paths)
    _print("named more than once", predicted.repeated)
    _print("left out, because predictions wrote them", predicted.own)
    for line in left_out:
        print(f"  {line}")
    if predicted.broken:
        raise MCCError(
            "\n".join([*predicted.broken, f"{len(predicted.broken)} of {len(files)} images are not predicted"])
        )


def _print(what: str, which: Sequence[object]) -> None:
    if which:
        more = ", ..." if len(which) > 3 else ""
        print(f"  {len(which)} {what}: {', '.join(map(str, which[:3]))}{more}")
