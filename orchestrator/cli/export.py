"""`mcc export`: a trained network, or label maps, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli.options import Refine, overrides


class _Exports(TyperGroup):
    """`mcc export CHECKPOINT` is `mcc export network CHECKPOINT`."""

    default = "network"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "--install-completion"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Exports,
    help="Networks and label maps for other programs.\n\n`mcc export CHECKPOINT` exports a network.",
    no_args_is_help=True,
)


@app.command()
def network(
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


@app.command()
def labels(
    source: Annotated[
        str, typer.Argument(metavar="TRIAL|LABELSET", help="Network or trial, or a label set's folder, zip or key.")
    ],
    format: Annotated[str, typer.Option("--format", help="voc, coco, labelme or cvat.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; may not be there yet.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A preset's data or a folder; default: the trained one.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or val.")] = "train",
    kind: Annotated[str, typer.Option("--kind", help="Of a network's label maps, as mcc refine has it.")] = "none",
    set_: Refine = None,
) -> None:
    """Write label maps for annotation tools: VOC, COCO, LabelMe, CVAT.

    mcc data corrected reads them back. Of a network, label maps are made as mcc refine makes them, into OUT-labels.
    """
    from orchestrator.settings import Settings
    from orchestrator.workflows.label_exchange import export_labels

    settings = Settings.from_environment()
    changes = overrides(set_)
    made = export_labels(source, format, out, settings, split=split, kind=kind, changes=changes, data=data)
    print(f"{out}: {made.written.images} label maps as {made.title}")
    for note in made.written.notes:
        print(f"  {note}")
    if without := made.written.without:
        print(f"  {len(without)} images of {split} have no label map, such as {without[0]}")
    for line in made.broken:
        print(f"  not labelled: {line}")
    print(f"back with: mcc data corrected {out} --format {format} --of {made.labels.path} --out NEW")
