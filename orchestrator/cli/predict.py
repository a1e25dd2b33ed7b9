"""`mcc predict`: segment image files with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcc_core.errors import UsageError

if TYPE_CHECKING:
    pass


def predict(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint file, or SWEEP/TRIAL.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders, patterns, or a .txt list of files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overlays, panels and scores.csv.")],
    protocol: Annotated[str, typer.Option("--protocol", help="single, ms or ms_crf: what masks are.")] = "ms",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images of one size at a time.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment image files with a trained network.

    Writes palette masks, overlays, CAM panels and class scores; goes on where it stopped.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mcc_core.evaluation.inference import image_files, predict_files
    from mcc_core.evaluation.protocols import SEGMENTATION
    from orchestrator.records.lookup import find_checkpoint
    from orchestrator.settings import Settings

    if protocol not in SEGMENTATION:
        raise UsageError(f"--protocol {protocol}: not one of {', '.join(SEGMENTATION)}")
    file, files = find_checkpoint(checkpoint, Settings.from_environment()), image_files(images)
    columns = (TextColumn("predicting"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(files))
        written = predict_files(
            file,
            files,
            out,
            device,
            on_image=lambda _: progress.advance(task),
            protocol=protocol,
            batch=batch,
        )
    print(f"{len(written)} images in {out}")
