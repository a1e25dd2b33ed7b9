"""`mcc import-weights`: foreign checkpoints into ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcc_core.errors import UsageError


def import_weights(
    file: Annotated[Path, typer.Argument(help="Checkpoint of published code of one of the methods, or a backbone.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: the file's name with .mcc.pt.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Preset or experiment file for what the weights do not say.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Whose network it is. Default: --base's, or as its tensors say."),
    ] = None,
) -> None:
    """Turn a published weights file into a checkpoint.

    Says what the file holds, and writes a checkpoint for predict and evaluate.
    """
    from mcc_core.checkpoint import save
    from mcc_core.import_weights import import_weights as read

    target = out or file.with_suffix(".mcc.pt")
    if target.exists():
        raise UsageError(f"--out {target}: is there already and is kept; give another --out or remove it")
    imported = read(file, base, method)
    saved = imported.checkpoint
    save(saved, target)
    print(f"{file}: {imported.kind}")
    print(f"  method    {saved.experiment.method}")
    print(f"  backbone  {saved.experiment.model.backbone}")
    print(f"  classes   {len(saved.classes)}: {', '.join(saved.classes[:5])}, ...")
    print(f"  used      {len(saved.model) - len(imported.fresh)} tensors")
    print(f"  not used  {_short(imported.unused)}")
    print(f"  drawn new {_short(imported.fresh)}")
    print(f"written: {target}")


def _short(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else "none"
