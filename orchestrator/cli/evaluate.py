"""`mcc evaluate`: score a checkpoint by named protocols."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from mcc_core.errors import UsageError
from orchestrator.cli.options import Set, overrides

if TYPE_CHECKING:
    from orchestrator.evaluation_run import Evaluation


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file; `mcc sweep best` names one.")],
    split: Annotated[str, typer.Option("--split", help="Split with masks.")] = "val",
    protocol: Annotated[
        str, typer.Option("--protocol", help="cam, aux_cam, single, ms, ms_crf; several with commas.")
    ] = "cam,single,ms",
    out: Annotated[Path | None, typer.Option("--out", help="Default: evaluations/NAME-SPLIT.")] = None,
    set_: Set = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="For label maps and CRF.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first images only.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Score a checkpoint: IoU per class, mIoU, pixel accuracy. Goes on where it stopped."""
    import torch
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mcc_core import checkpoint as checkpoints
    from mcc_core.config import Experiment
    from mcc_core.experiment_files import merge
    from mcc_core.protocols import ProtocolName
    from mcc_core.validation import validate
    from orchestrator.evaluation_run import evaluate_checkpoint
    from orchestrator.settings import Settings

    names = [name.strip() for name in protocol.split(",")]
    if wrong := [name for name in names if name not in get_args(ProtocolName)]:
        raise UsageError(f"--protocol {wrong[0]}: not one of {', '.join(get_args(ProtocolName))}")
    fields = checkpoints.load(checkpoint).experiment.model_dump(mode="json")
    experiment = validate(Experiment, merge(fields, overrides(set_), "--set"), f"{checkpoint} with --set")
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    target = out or Path("evaluations") / f"{checkpoint.stem}-{split}"
    with Progress(TextColumn("evaluating"), MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task("", total=None)
        result = evaluate_checkpoint(
            checkpoint,
            experiment.data,
            split,
            cast("list[ProtocolName]", names),
            target,
            Settings.from_environment().home,
            device=chosen,
            processes=processes,
            limit=limit,
            on_image=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print(result, Console())


def _print(result: Evaluation, console: object) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    table = Table(box=None, pad_edge=False)
    table.add_column("IoU")
    for protocol in result.metrics:
        table.add_column(protocol, justify="right")
    values = {name: {m.name: m.value for m in found} for name, found in result.metrics.items()}
    for row in ("miou", "pixel_accuracy", *(f"iou/{name}" for name in ("background", *result.classes))):
        cells = [f"{100 * values[p][row]:.1f}" if row in values[p] else "-" for p in result.metrics]
        table.add_row(row.removeprefix("iou/"), *cells)
    console.print(table)
    console.print(f"{result.images} images; {result.folder / 'metrics.json'}, metrics.csv", highlight=False)
