"""The sections of a sweep's report that tell how it was run: trials, cost, environment, the command that repeats it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.records.status import DONE
from orchestrator.records.usage import usage
from orchestrator.redaction import redact
from orchestrator.reports.document import Code, Grid, Part, Section, Text
from orchestrator.reports.evidence import Evidence
from orchestrator.spec.posthoc_file import PosthocFile
from orchestrator.spec.stages_file import StagesFile
from orchestrator.spec.sweep_file import SweepFile
from orchestrator.text import duration, network_text, seeds_text, size_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray", "mlflow", "optuna")


def numbers(evidence: Evidence, most: int) -> list[str]:
    """A line beside each of the best scores: on what, how, from which weights, over how many seeds."""
    metric = evidence.file["metric"]
    if evidence.posthoc:
        how = f"{evidence.file['protocol']} on {evidence.file['split']} of the network {evidence.file['of']}"
    else:
        how = metric
    records = {r.point: evidence.records[r.identity] for r in evidence.results}
    lines = []
    for row in evidence.rows[:most]:
        parts, experiment = [how], evidence.experiments[row.point]
        if not evidence.posthoc:
            data, model = experiment["data"], experiment["model"]
            starts = [e["info"] for e in records[row.point].events if e["kind"] == "start" and e.get("info")]
            images = next((i["certificate"]["validation_images"] for i in starts if i.get("certificate")), None)
            count = "" if images is None else f"{images} images of "
            on = "generated shapes" if data["name"] == "shapes" else Path(str(data.get("root") or "voc")).name
            trained = network_text(model["backbone"], model["weights"], experiment["train"]["iterations"])
            parts += [f"{count}{on}", trained]
        lines.append(f"{row.point} {row.text(metric)}: {'; '.join([*parts, seeds_text(row.seeds)])}")
    return lines


def trials(evidence: Evidence) -> Section:
    """Each trial's state, why some have no result, what populations copied."""
    rows = [["trial", "state", "score", "seconds", "attempts", "identity"]]
    metric = evidence.file["metric"]
    for r in evidence.results:
        spent = usage(evidence.records[r.identity].spans)
        score = f"{100 * r.metrics[metric]:.1f}" if metric in r.metrics else ""
        rows.append(
            [
                r.name,
                r.status + (f"-{r.cause}" if r.cause else ""),
                score,
                f"{spent.wall_s:.0f}",
                str(spent.attempts),
                r.identity,
            ]
        )
    parts: list[Part] = [Grid(rows)]
    reasons = [f"{r.name}: {r.status}: {r.message}" for r in evidence.results if r.message]
    if reasons:
        parts.append(Code("\n".join(reasons)))
    copies = [["trial", "iteration", "went on from", "changed"]]
    for r in evidence.results:
        for e in evidence.records[r.identity].events:
            if e["kind"] == "clone":
                fields = ", ".join(f"{k}={v}" for k, v in (e.get("fields") or {}).items())
                copies.append([r.name, str(e["iteration"]), str(e.get("donor_name", e.get("donor"))), fields])
    if len(copies) > 1:
        parts += [Text("Trials that went on with the weights of a better one:"), Grid(copies)]
    return Section("Trials", parts)


def cost(evidence: Evidence) -> Section:
    """Predicted against actual."""
    document = evidence.document
    estimate: Mapping[str, Any] = document.get("estimate") or {}
    every = [span for record in evidence.records.values() for span in record.spans]
    since, whole = usage(every, document["created"]), usage(every)
    ran = [r for r in evidence.records.values() if any(span.end > document["created"] for span in r.spans)]
    done = all(r.status in DONE for r in evidence.results)
    lines = [["", "predicted", "actual" if done else "actual so far", "actual / predicted"]]

    def line(name: str, predicted: float | None, actual: float, text: Any) -> None:
        ratio = f"{actual / predicted:.2f}" if predicted and done else ""
        lines.append([name, text(predicted) if predicted is not None else "-", text(actual), ratio])

    line("time", estimate.get("total_s"), since.wall_s, duration)
    line("worker-hours", _hours(estimate.get("worker_s")), since.worker_s / 3600, lambda h: f"{h:.3g}")
    line("disk in storage", document.get("disk_bytes"), sum(record.bytes for record in ran), size_text)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(document["created"]))
    source = f", by {estimate['source']}" if estimate.get("source") else ""
    parts: list[Part] = [
        Grid(lines),
        Text(
            f"Predicted when the sweep was last submitted ({when}){source}, held against the trials that ran since. "
            "The predicted disk is the most that checkpoints and pictures can take. All attempts together took "
            f"{duration(whole.wall_s)} and {whole.worker_s / 3600:.3g} worker-hours."
        ),
    ]
    return Section("Predicted and actual cost", parts)


def environment(evidence: Evidence) -> Section:
    """What the trials ran on, and the certificate that training saw no masks."""
    parts: list[Part] = []
    seen: dict[str, list[str]] = {}
    for r in evidence.results:
        record = evidence.records[r.identity]
        starts = [e["info"] for e in record.events if e["kind"] == "start" and e.get("info")]
        if record.environment or starts:
            text = "\n".join(_environment(record.environment, starts))
            seen.setdefault(text, []).append(r.name)
    if not seen:
        return Section("Environment", [Text("Nothing is on record: no trial of this sweep was begun.")])
    if len(seen) > 1:
        parts.append(Text(f"The trials ran in {len(seen)} different environments:"))
    for text, names in seen.items():
        parts.append(Code((f"# {', '.join(names)}\n" if len(seen) > 1 else "") + text))
    packages: Mapping[str, str] = next(
        (rec.environment["packages"] for rec in evidence.records.values() if rec.environment.get("packages")), {}
    )
    if packages:
        parts.append(
            Code("\n".join(f"{name}=={version}" for name, version in packages.items()), f"All {len(packages)} packages")
        )
    parts.append(Text(f"Storage: {redact(evidence.storage.url)}"))
    return Section("Environment", parts)


def repeat(evidence: Evidence) -> Section:
    """The command that repeats the sweep."""
    document = evidence.document
    checkout = f"git checkout {document['commit']}\n" if document.get("commit") else ""
    told = "sweep.yaml, beside this report and below, is the sweep with every option that its command line had."
    parts: list[Part] = [Text(told), Code(f"{checkout}mcc sweep submit sweep.yaml")]
    if command := list(document["command"]):
        ran = shlex.join([Path(command[0]).name, *map(redact, command[1:])])
        parts.append(Text(f"It was started by: {ran}"))
    parts.append(Code(sweep_yaml(evidence), "sweep.yaml"))
    return Section("Repeat it", parts)


def sweep_yaml(evidence: Evidence) -> str:
    """The sweep as a file for `mcc sweep submit`, without what it leaves at its defaults."""
    content = dict(evidence.file)
    if evidence.posthoc:
        content["metric"] = "/".join(content["metric"].split("/")[3:])
    else:
        content.pop("bases", None)  # the chosen one is in the other fields
    try:
        model = PosthocFile if evidence.posthoc else StagesFile if "stages" in content else SweepFile
        content = model.model_validate(content).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:  # of another version of this package: as it was written
        pass
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


def _environment(recorded: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> list[str]:
    git, packages = recorded.get("git") or {}, recorded.get("packages") or {}
    lines = [f"mcc {recorded.get('mcc', '?')}, Python {recorded.get('python', '?')}, {recorded.get('platform', '')}"]
    if git.get("commit"):
        changed = f" with {len(git['diff'].splitlines())} lines of uncommitted changes" if git.get("diff") else ""
        lines.append(f"commit {git['commit']}{changed}")
    lines.append(", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages))
    for info in dict.fromkeys(_machine(info) for info in starts):
        lines.append(info)
    certificates = [info["certificate"] for info in starts if info.get("certificate")]
    if certificate := next(iter(certificates), None):
        masks = "reads masks" if any(c["training_reads_masks"] for c in certificates) else "reads no masks"
        lines.append(
            f"supervision: training {masks}; {certificate['training_images']} training and "
            f"{certificate['validation_images']} validation images, {certificate['images_in_both']} in both; data "
            f"{certificate['data_fingerprint'][:12]}"
        )
    known = {c["label_maps"]["identity"]: c["label_maps"]["supervision"] for c in certificates if "label_maps" in c}
    lines += [f"label maps {identity}: {supervision} supervision" for identity, supervision in known.items()]
    return [line for line in lines if line]


def _machine(info: Mapping[str, Any]) -> str:
    if "device" not in info:
        return ""
    gpu = f" ({info['gpu']})" if info.get("gpu") else ""
    workers = info.get("world_size", 1)
    return f"host {info.get('host', '?')}, device {info['device']}{gpu}, {workers} worker{'s' if workers > 1 else ''}"
