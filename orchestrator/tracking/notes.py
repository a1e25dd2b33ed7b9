"""What MLflow's pages say of a run beside its numbers: where it is from (the column Source), and what it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcc_core.methods.registry import DEFAULT
from orchestrator.records.plans import PlanRecord
from orchestrator.text import network_text

_LIMIT = 8000  # characters of a tag that any version of MLflow takes


def source(document: PlanRecord, commit: str | None) -> dict[str, str]:
    """Tags that name the sweep file and the commit of the code, where it lay in a checkout."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": str(document["source"])}
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def note(document: PlanRecord, trial: Mapping[str, Any]) -> str:
    """A trial in Markdown: what is trained on what, what varies, how to use the network."""
    experiment, file = trial["experiment"], document["file"]
    data, model = experiment["data"], experiment["model"]
    on = "generated shapes" if data["name"] == "shapes" else Path(str(data["root"] or data["name"])).name
    if file.get("protocol"):  # of a post-hoc sweep, which scores a network of another
        what = f"{file['of']} by {file['protocol']}, on {file['split']} of {on}"
    elif trial.get("refine"):
        kind = trial["refine"]["kind"]
        what = f"labels of {on}; refinement: {kind if isinstance(kind, str) else ', '.join(kind)}"
    else:
        trained = network_text(model["backbone"], model["weights"], experiment["train"]["iterations"])
        what = f"{experiment.get('method', DEFAULT)} on {on}: {trained}"
    lines = [f"**{trial['name']}**, seed {trial['seed']}: {what}"]
    if file.get("description"):
        lines.append(str(file["description"]))
    if trial["varied"]:
        rows = [f"| `{key}` | {value} |" for key, value in trial["varied"].items()]
        lines.append("\n".join(["| varied | |", "|---|---|", *rows]))
    if not trial.get("refine") and not file.get("protocol"):
        lines.append(f"`mcc predict {shlex.quote(document['sweep'] + '/' + trial['name'])} IMAGE`")
    return "\n\n".join(lines)[:_LIMIT]
