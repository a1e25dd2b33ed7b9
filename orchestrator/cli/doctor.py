"""`mcc doctor`: whether everything is here that training needs."""

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

    findings, section = [], ""
    for finding in examine(Settings.from_environment(), start_ray=ray, data=data):
        findings.append(finding)
        if as_json:
            continue
        if finding.section != section:
            print(section := finding.section)
        print(f"  {finding.level:4} {finding.detail}", flush=True)
        if finding.fix:
            print(f"       fix: {finding.fix}")
    counts = {level: sum(finding.level == level for finding in findings) for level in ("fail", "warn")}
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print(f"{counts['fail']} failed, {counts['warn']} warnings")
    raise typer.Exit(1 if counts["fail"] else 0)
