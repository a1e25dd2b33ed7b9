"""`mcc track`: the view of sweeps in MLflow."""

from __future__ import annotations

import typer

from orchestrator.cli.options import SweepName

app = typer.Typer(help="Work on the view of sweeps in MLflow.", no_args_is_help=True)


@app.command()
def rebuild(sweep: SweepName = None) -> None:
    """Make a sweep's MLflow runs again.

    From the event logs in storage.
    """
    from orchestrator.records import sweeps as catalog
    from orchestrator.settings import Settings
    from orchestrator.storage.store import Storage
    from orchestrator.tracking import rebuilding as tracking

    settings = Settings.from_environment()
    chosen = catalog.find(Storage(settings.storage), sweep)
    for complaint in tracking.rebuild(settings, chosen.document):
        print(f"not in MLflow: {complaint}")
    print(f"{chosen.id}: {len(chosen.document['trials'])} trials written to MLflow")
