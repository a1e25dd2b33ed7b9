"""`mcc data`: make an index of a dataset, and check one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from mcc_core.errors import UsageError
from orchestrator.cli import completion
from orchestrator.cli.options import Set, overrides

if TYPE_CHECKING:
    from mcc_core.data.prepare import Prepared, Progress

app = typer.Typer(help="Prepare datasets and check them.", no_args_is_help=True)
prepare = typer.Typer(help="Write a dataset's index, or what is missing of it.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")

_SHOWN = 100  # lines of what is wrong

Sources = Annotated[list[Path], typer.Argument(help="Official archives, or their unpacked folders, in any order.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the index, unpacked archives and masks.")]
Skip = Annotated[bool, typer.Option("--skip-broken", help="Leave broken images out instead of stopping.")]


@prepare.command()
def voc(sources: Sources, out: Out = Path("data/voc"), skip_broken: Skip = False) -> None:
    """PASCAL VOC 2012, with or without SBD.

    train_aug has SBD's masks where they are given.
    """
    from mcc_core.data.prepare import finish
    from mcc_core.data.prepare_voc import draft_voc

    with _bar() as progress:
        made = finish(draft_voc(sources, out, progress), out, skip_broken=skip_broken, progress=progress)
    _print(made)


@prepare.command()
def coco(sources: Sources, out: Out = Path("data/coco"), skip_broken: Skip = False) -> None:
    """MS COCO 2014.

    Masks are drawn from its instances (needs pycocotools).
    """
    from mcc_core.data.prepare import finish
    from mcc_core.data.prepare_coco import draft_coco

    with _bar() as progress:
        draft = draft_coco(sources, out, progress, skip_broken=skip_broken)
        made = finish(draft, out, skip_broken=skip_broken, progress=progress)
    _print(made)


@prepare.command()
def folder(
    images: Annotated[Path, typer.Argument(help="Folder of images; without --labels, with a sub-folder per class.")],
    out: Out = Path("data/folder"),
    labels: Annotated[Path | None, typer.Option("--labels", metavar="CSV", help="Columns image, labels (a;b).")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Folder of masks for evaluation.")] = None,
    classes: Annotated[Path | None, typer.Option("--classes", help="Class names, one a line; default: sorted.")] = None,
    val_share: Annotated[float, typer.Option("--val-share", min=0.0, max=1.0, help="Of the images with masks.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of the val split.")] = 0,
    skip_broken: Skip = False,
) -> None:
    """Your own images with image-level labels."""
    from mcc_core.data.prepare import finish
    from mcc_core.data.prepare_folder import draft_folder
    from mcc_core.data.voc import read_class_file

    names = read_class_file(classes) if classes else None
    draft = draft_folder(images, table=labels, masks=masks, classes=names, val_share=val_share, seed=seed)
    with _bar() as progress:
        made = finish(draft, out, skip_broken=skip_broken, progress=progress)
    _print(made)


@app.command()
def labels(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE", help="Whose images (its data section).", autocompletion=completion.experiments
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the label set.")],
    maps: Annotated[
        Path | None,
        typer.Option("--maps", metavar="FOLDER", help="Label maps, IMAGE.png; default: the dataset's own masks."),
    ] = None,
    confidence: Annotated[
        Path | None, typer.Option("--confidence", metavar="FOLDER", help="Grey IMAGE.png, 255 for certain.")
    ] = None,
    supervision: Annotated[
        str, typer.Option("--supervision", help="full: the maps are masks that people drew; weak.")
    ] = "weak",
    set_: Set = None,
) -> None:
    """Make a label set of a folder of label maps, or of masks.

    `mcc train segmentation --set labels.source=OUT` does.
    """
    from mcc_core.data.index import build_index
    from mcc_core.data.make_labels import label_set_of_folder, label_set_of_masks
    from mcc_core.experiment_files import resolve
    from orchestrator.settings import Settings

    if supervision not in ("weak", "full"):
        raise UsageError(f"--supervision {supervision}: expected weak or full")
    if maps is None and supervision != "full":
        raise UsageError("--supervision full: the dataset's own masks are that; say so, or give --maps FOLDER")
    if maps is None and confidence is not None:
        raise UsageError(f"--confidence {confidence}: goes with --maps FOLDER")
    kind = cast("Literal['weak', 'full']", supervision)
    dataset = resolve(experiment, overrides(set_), source="--set").data
    index = build_index(dataset, Settings.from_environment().home)
    with _bar() as progress:
        if maps is None:
            made, without = label_set_of_masks(index, out, dataset=dataset, progress=progress)
        else:
            made, without = label_set_of_folder(
                index, maps, out, confidence=confidence, supervision=kind, dataset=dataset, progress=progress
            )
    if without:
        print(f"without a map: {len(without)} of {len(index.train)} training images, such as {without[0]}")
    print(f"{out}: {len(made.names)} label maps, {made.supervision} supervision, {made.identity}")
    full = " --set labels.supervision=full" if made.supervision == "full" else ""
    print(f"train with --set labels.source={out}{full}")


@app.command()
def corrected(
    source: Annotated[Path, typer.Argument(help="Folder or file that an annotation tool wrote.")],
    format: Annotated[str, typer.Option("--format", help="voc, coco, labelme or cvat.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the label set; may not be there yet.")],
    of: Annotated[
        str | None, typer.Option("--of", metavar="LABELSET", help="What was corrected: folder, zip, key or trial.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A preset's data or a folder: images by their files, sizes, classes.")
    ] = None,
    supervision: Annotated[
        str | None, typer.Option("--supervision", help="weak or full; default: that of --of, full without it.")
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken images as they were instead of stopping.")
    ] = False,
    set_: Set = None,
) -> None:
    """Make a label set of label maps that people corrected.

    Images that are not in SOURCE keep the maps of --of.
    """
    from orchestrator.settings import Settings
    from orchestrator.workflows.label_exchange import import_labels

    settings = Settings.from_environment()
    made = import_labels(
        source,
        format,
        out,
        settings,
        of=of,
        data=data,
        changes=overrides(set_),
        supervision=supervision,
        skip_broken=skip_broken,
    )
    for problem in made.problems:
        print(f"left as it was: {problem}")
    for note in made.notes:
        print(f"note: {note}")
    some = f", such as {next(iter(made.changed))}" if made.changed else ""
    print(
        f"{len(made.changed)} label maps changed ({sum(made.changed.values())} pixels{some}), {made.same} the same, "
        f"{made.kept} not in {source} and kept, {made.new} new"
    )
    labels = made.labels
    print(f"{out}: {len(labels.names)} label maps, {labels.supervision} supervision, {labels.identity}")
    full = " --set labels.supervision=full" if labels.supervision == "full" else ""
    print(f"train with --set labels.source={out}{full}")


@app.command()
def check(
    index: Annotated[Path, typer.Argument(metavar="FOLDER", help="A prepared dataset: its folder, or its index.json.")],
) -> None:
    """Read every file of a prepared dataset again.

    Names what is missing, has changed, or lies in two splits.
    """
    from mcc_core.data.index_file import INDEX, faults, read_index
    from mcc_core.data.prepare import changed_files

    if index.name == INDEX and index.is_file():
        index = index.parent
    dataset = read_index(index)
    with _bar() as progress:
        problems = changed_files(dataset, index, progress)
    problems += [line for _, _, line in faults(dataset)]
    _print_counts(dataset)
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UsageError("\n".join([*problems[:_SHOWN], *more]))
    print("every file is as it was when the index was made")


def _print(made: Prepared) -> None:
    _print_counts(made.index)
    for note in made.notes:
        print(f"note: {note}")
    for problem in made.problems:
        print(f"left out: {problem}")
    print(f"{made.file}; train with --set data.root={made.file.parent}")


def _print_counts(index: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from mcc_core.data.index_file import IndexFile

    assert isinstance(index, IndexFile)
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for split in index.splits:
        table.add_column(split, justify="right")
    totals = {split: len(names) for split, names in index.splits.items()}
    masks = {split: sum(index.images[n].mask is not None for n in names) for split, names in index.splits.items()}
    table.add_row("images", *map(str, totals.values()))
    table.add_row("with a mask", *map(str, masks.values()))
    for number, name in enumerate(index.classes):
        counts = [sum(number in index.images[n].labels for n in names) for names in index.splits.values()]
        table.add_row(name, *map(str, counts))
    Console().print(table)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
