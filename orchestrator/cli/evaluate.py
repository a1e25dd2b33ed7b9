"""`mcc evaluate`: score a checkpoint by named protocols."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from mcc_core.errors import MCCError, UsageError
from orchestrator.cli.options import Set, overrides

if TYPE_CHECKING:
    from rich.console import Console

    from mcc_core.evaluation.protocols import ProtocolName
    from orchestrator.evaluation.run import Evaluation


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="File, SWEEP/TRIAL, s3://… or models:/NAME@ALIAS.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A preset's data (voc, coco) or a folder; default: the trained one.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split with masks; any with --submission.")] = "val",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="cam, aux_cam, cam_crf, refined, single, ms, ms_crf; several with commas; default: cam,single,ms.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: evaluations/NAME-SPLIT.")] = None,
    set_: Set = None,
    submission: Annotated[
        Path | None, typer.Option("--submission", metavar="FILE.tar.gz", help="For VOC's server; one protocol.")
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Export label maps (OUT/masks), also of unlabelled images.")
    ] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Ray workers; 0: this process.")] = 0,
    processes: Annotated[int, typer.Option("--processes", min=0, help="Per worker, for label maps and CRF.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first images only.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    track: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Log the scores as an MLflow run.")] = True,
) -> None:
    """Score a trained network by named protocols.

    IoU per class, mIoU, pixel accuracy. Goes on where it stopped.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mcc_core.evaluation.protocols import SEGMENTATION
    from mcc_core.methods.registry import supervision_of
    from orchestrator.evaluation.request import evaluation_request
    from orchestrator.evaluation.run import ExecutionOptions, evaluate_checkpoint
    from orchestrator.evaluation.voc_server import write_submission
    from orchestrator.records.lookup import slug
    from orchestrator.settings import Settings
    from orchestrator.tracking.evaluations import track_evaluation
    from orchestrator.workflows.networks import find_network

    names = None if protocol is None else _protocols(protocol)
    if submission is not None and (names is None or len(names) != 1 or names[0] not in SEGMENTATION):
        raise UsageError(f"--protocol {protocol or ''}: --submission takes one of {', '.join(SEGMENTATION)}")
    settings, console = Settings.from_environment(), Console()
    file = find_network(checkpoint, settings)
    request = evaluation_request(
        file,
        names,
        split,
        overrides(set_),
        data=data,
        limit=limit,
        keep_masks=masks or submission is not None,
        blind=masks or submission is not None,
    )
    first = request.settings[0].name
    target = out or Path("evaluations") / f"{slug(checkpoint)}-{split}"
    columns = (TextColumn("evaluating"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=console) as progress:
        task = progress.add_task("", total=None)
        result = evaluate_checkpoint(
            request,
            target,
            settings,
            ExecutionOptions(device, processes, workers),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print(result, console)
    if supervision_of(request.saved.experiment) == "full":
        console.print("full supervision: this network learned from masks that people drew", highlight=False)
    if masks:
        console.print(f"label maps: {result.masks(first).parent}", highlight=False, markup=False, soft_wrap=True)
    if submission is not None:
        write_submission(result.masks(first), result.images, submission)
        console.print(f"{submission}: {len(result.images)} label maps", highlight=False)
    if track and result.metrics:
        try:
            track_evaluation(settings, result, file)
        except MCCError as error:
            console.print(f"not in MLflow: {error}", highlight=False, markup=False, soft_wrap=True)


def _protocols(text: str) -> list[ProtocolName]:
    from mcc_core.evaluation.protocols import ProtocolName

    names = [name.strip() for name in text.split(",")]
    if wrong := [name for name in names if name not in get_args(ProtocolName)]:
        raise UsageError(f"--protocol {wrong[0]}: not one of {', '.join(get_args(ProtocolName))}")
    return cast("list[ProtocolName]", names)


def _print(result: Evaluation, console: Console) -> None:
    from rich.table import Table

    if not result.metrics:
        console.print(f"{len(result.images)} images without masks: nothing to score", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("IoU")
    for protocol in result.metrics:
        table.add_column(protocol, justify="right")
    values = {name: {m.name: m.value for m in metrics} for name, metrics in result.metrics.items()}
    for row in ("miou", "pixel_accuracy", "coverage", *(f"iou/{name}" for name in ("background", *result.classes))):
        cells = [f"{100 * values[p][row]:.1f}" if row in values[p] else "-" for p in result.metrics]
        table.add_row(row.removeprefix("iou/"), *cells)
    console.print(table)
    console.print(f"{len(result.images)} images; {result.folder / 'metrics.json'}, metrics.csv", highlight=False)
