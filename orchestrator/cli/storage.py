"""`mcc storage`: whether the storage is in order, and what in it can go."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.text import size_text

app = typer.Typer(help="Look after the storage (MCC_STORAGE).", no_args_is_help=True)


@app.command()
def check(
    create: Annotated[bool, typer.Option("--create", help="Make the bucket if it is missing.")] = False,
) -> None:
    """Try what trials do with the storage.

    One line each, with the fix where one is needed.
    """
    from orchestrator.maintenance import storage_care
    from orchestrator.settings import Settings

    settings = Settings.from_environment()
    print(settings.storage)
    good = True
    for finding in storage_care.check(settings, create=create):
        good = good and finding.good
        print(f"  {'ok  ' if finding.good else 'FAIL'} {finding.name}: {finding.detail}")
        if not finding.good:
            print(f"       fix: {finding.fix}")
    raise typer.Exit(0 if good else 1)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep: Annotated[int, typer.Option("--keep", min=2, help="Newest checkpoints to keep beside the best.")] = 2,
    older: Annotated[float, typer.Option("--older", min=0, metavar="HOURS", help="Spare what is younger.")] = 1.0,
) -> None:
    """Remove what no sweep refers to.

    Never anything of a trial that is being run.
    """
    from orchestrator.maintenance import storage_care
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage

    settings = Settings.from_environment()
    storage = Storage(settings.storage)
    garbage, notes = storage_care.garbage(storage, settings.home, keep=keep, older_s=3600 * older)
    for item in garbage:
        print(f"{size_text(item.size):>12}  {item.what}: {item.key}")
    if not dry_run:
        garbage = storage_care.remove(storage, garbage)
    for note in notes:
        print(f"kept: {note}")
    total = size_text(sum(item.size for item in garbage))
    print(f"{len(garbage)} things, {total}: {'would be removed' if dry_run else 'removed'}")
