"""`mcc refine`: label maps of a network's seeds, to look at and to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcc_core.errors import MCCError
from orchestrator.cli.options import Refine, overrides

if TYPE_CHECKING:
    from rich.console import Console

    from mcc_core.refinement.make import Refined


def refine(
    seeds: Annotated[str, typer.Argument(help="Checkpoint, SWEEP/TRIAL, a label set's folder or zip, or clip.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the label set; may not be there yet.")],
    kind: Annotated[
        str, typer.Option("--kind", help="none, par, crf, random_walk, irn or psa; a chain: irn,crf.")
    ] = "none",
    set_: Refine = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A preset's data or a folder; default: the trained one.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val, or both with a comma.")] = "train",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first images of a split only.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="For CRF and PAR; 0: this one.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make a label set: class maps refined and thresholded.

    --set takes the refinement's fields, such as threshold=0.3 or irn.network=SWEEP/TRIAL. Prints how seeds and refined
    labels agree with masks, where there are any. Exit code 1 where images could not be read. With `clip` the maps are
    those of a frozen CLIP, without training; --set takes its fields too, such as clip.prompts=FILE. A run that was cut
    off goes on with the same command.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from orchestrator.settings import Settings
    from orchestrator.workflows.refinement import make, prepared, split_names

    console = Console()
    splits = split_names(split)
    asked = prepared(seeds, kind, overrides(set_), Settings.from_environment(), data=data, device=device)
    columns = (TextColumn("refining"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("", total=None)

        def on_image(done: int, total: int) -> None:
            if progress.tasks[0].total is None and done:
                progress.console.print(f"{done} of {total} images have labels from a run that was cut off")
            progress.update(task, completed=done, total=total)

        made = make(
            asked,
            out,
            splits=splits,
            limit=limit,
            processes=processes,
            on_image=on_image,
        )
    _print(made, console)
    if made.broken:
        raise MCCError("\n".join([*made.broken[:20], f"{len(made.broken)} files could not be read"]))


def _print(made: Refined, console: Console) -> None:
    from rich.table import Table

    values = {
        f"{split} {name}": {m.name: m.value for m in metrics}
        for split in made.scored
        for name, metrics in (("seeds", made.seeds[split]), ("refined", made.refined[split]))
    }
    if values:
        table = Table(box=None, pad_edge=False)
        table.add_column("IoU")
        for column in values:
            table.add_column(column, justify="right")
        classes = ("background", *made.labels.classes)
        for row in ("miou", "pixel_accuracy", "coverage", *(f"iou/{name}" for name in classes)):
            cells = [f"{100 * found[row]:.1f}" if row in found else "-" for found in values.values()]
            table.add_row(row.removeprefix("iou/"), *cells)
        console.print(table)
        counts = ", ".join(f"{number} of {split}" for split, number in made.scored.items())
        console.print(f"scored on the masks of {counts}", highlight=False)
    else:
        console.print("no masks: nothing to score", highlight=False)
    for line in made.left_out:
        console.print(f"left out by the index: {line}", highlight=False, markup=False, soft_wrap=True)
    said = f"{len(made.labels.names)} label maps in {made.labels.path}, label set {made.labels.identity}"
    said += ", full supervision" if made.labels.supervision == "full" else ""
    console.print(said, highlight=False, markup=False, soft_wrap=True)
