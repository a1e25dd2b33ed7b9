"""`mcc doctor`: is everything here that training needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    ray: Annotated[bool, typer.Option("--ray", help="Start Ray and look at its node too (half a minute).")] = False,
    data: Annotated[Path, typer.Option("--data", help="Folder of prepared datasets.")] = Path("data"),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is wrong on this machine, with the fix.

    Looks at packages, GPU, Ray, storage, MLflow, data, weights and disk. Exit code 1 when something failed.
    """
    from dataclasses import asdict

    from orchestrator.cli.records import print_json
    from orchestrator.maintenance.doctor import examine
    from orchestrator.settings import Settings

    found, section = [], ""
    for one in examine(Settings.from_environment(), start_ray=ray, data=data):
        found.append(one)
        if as_json:
            continue
        if one.section != section:
            print(section := one.section)
        print(f"  {one.level:4} {one.detail}", flush=True)
        if one.fix:
            print(f"       fix: {one.fix}")
    counts = {level: sum(one.level == level for one in found) for level in ("fail", "warn")}
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        print(f"{counts['fail']} failed, {counts['warn']} warnings")
    raise typer.Exit(1 if counts["fail"] else 0)
