"""`mcc predict`: segment image files with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcc_core.errors import UsageError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file; `mcc sweep best` names one.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks, overlays, panels and scores.csv.")],
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Segment image files: palette masks, overlays, CAM panels, class scores. Goes on where it stopped."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mcc_core.inference import predict_files

    files = _files(images)
    columns = (TextColumn("predicting"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=len(files))
        written = predict_files(checkpoint, files, out, device, on_image=lambda _: progress.advance(task))
    print(f"{len(written)} images in {out}")


def _files(paths: list[Path]) -> list[Path]:
    """Files as given, and the images directly in folders. Raises UsageError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise UsageError(f"{path}: no images in this folder ({', '.join(sorted(_SUFFIXES))})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such file or folder")
    return found
