"""`mcc compare`: two trained networks, or two evaluations, on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.analysis.images import ImageComparison


def compare(
    first: Annotated[
        str, typer.Argument(help="Checkpoint file, SWEEP/TRIAL, SWEEP/CONFIGURATION, or an evaluation's folder.")
    ],
    second: Annotated[str, typer.Argument(help="The same, compared with the first.")],
    split: Annotated[str, typer.Option("--split", help="Split with masks, for networks.")] = "val",
    protocol: Annotated[str | None, typer.Option("--protocol", help="Default: ms, or a folder's only one.")] = None,
    gallery: Annotated[
        Path | None, typer.Option("--gallery", metavar="DIR", help="Page of the images that moved most.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first images only.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="For label maps and CRF.")] = 0,
) -> None:
    """Compare two trained networks image by image.

    Difference of mIoU with an interval, classes, the images that moved most. Unlike measurements are refused.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orchestrator.reports.pages import require_ours
    from orchestrator.settings import Settings
    from orchestrator.workflows.compare import compare_networks, draw_gallery

    if gallery is not None:
        require_ours(gallery, ("index.html",), "--gallery")
    console, settings = Console(), Settings.from_environment()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("scoring", total=None)

        def on_image(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        comparison, sides = compare_networks(
            first, second, settings, split=split, protocol=protocol, limit=limit, processes=processes, on_image=on_image
        )
        page = None
        if gallery is not None:
            progress.update(task, description="drawing", completed=0, total=None)
            page = draw_gallery(comparison, sides, settings, split, gallery, on_image)
    _print(comparison, console)
    if page is not None:
        console.print(f"gallery: {page}", highlight=False, soft_wrap=True)


def _print(comparison: ImageComparison, console: Console) -> None:
    from rich.table import Table

    d = comparison.difference
    seeds = f", mean of {comparison.seeds} shared seeds" if comparison.seeds > 1 else ""
    console.print(f"{comparison.first.measures}, {d.n} images{seeds}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("IoU", comparison.first.label, comparison.second.label, "difference"):
        table.add_column(name, justify="left" if name == "IoU" else "right")
    for name, first, other in (("mIoU", *comparison.scores), *comparison.classes):
        table.add_row(name, f"{100 * first:.1f}", f"{100 * other:.1f}", f"{100 * (other - first):+.1f}")
    console.print(table)
    words = "differs" if d.decided else "cannot be told from"
    interval = f"95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}, resampled over images"
    console.print(
        f"{comparison.second.label} {words} {comparison.first.label}: {interval}, p {d.p:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    console.print("images that moved most: " + ", ".join(name for name, _, _ in comparison.moved[:5]), highlight=False)
