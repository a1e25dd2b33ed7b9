"""Everything that storage has on a sweep, read once: what its report is made of."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.analysis.ablation import reference
from orchestrator.analysis.leaderboard import Row, leaderboard
from orchestrator.records import layout
from orchestrator.records import sweeps as catalog
from orchestrator.records.events import Event, EventReader, settled
from orchestrator.records.plans import PlanRecord
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.records.usage import Span, spans
from orchestrator.storage.store import Storage


@dataclass(frozen=True)
class Record:
    """What one trial left."""

    events: Sequence[Event]  # settled
    spans: Sequence[Span]
    bytes: int
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """A sweep's plan, results and records."""

    storage: Storage
    document: PlanRecord
    results: Sequence[Result]
    records: Mapping[str, Record]  # by identity

    @property
    def file(self) -> Mapping[str, Any]:
        return self.document["file"]

    @property
    def posthoc(self) -> bool:
        """Whether nothing was trained: evaluation settings of a trained network were varied."""
        return "of" in self.file

    @cached_property
    def rows(self) -> list[Row]:
        """The leaderboard."""
        return leaderboard(self.results, self.file["metric"], self.file["mode"])

    @cached_property
    def experiments(self) -> dict[str, Mapping[str, Any]]:
        """Experiment of each configuration."""
        return {trial["point"]: trial["experiment"] for trial in self.document["trials"]}

    @cached_property
    def refinements(self) -> dict[str, Mapping[str, Any]]:
        """Refinement of each configuration that makes labels."""
        trials = self.document["trials"]
        return {t["point"]: refine for t in trials if (refine := t.get("refine")) is not None}

    @property
    def reference(self) -> str | None:
        """The configuration that others are compared with: the sweep's own, else the last of the leaderboard."""
        named = reference(self.file)
        if named in {row.point for row in self.rows}:
            return named
        return self.rows[-1].point if len(self.rows) > 1 else None

    def ranked(self) -> list[Result]:
        """Finished trials, best first."""
        metric = self.file["metric"]
        done = [r for r in self.results if r.compared and r.status == TrialStatus.FINISHED]
        scored = [r for r in done if r.score(metric) is not None]
        return sorted(scored, key=lambda r: r.metrics[metric], reverse=self.file["mode"] == "max")


def gather(storage: Storage, sweep: catalog.Sweep) -> Evidence:
    """Read a sweep and all its trials."""
    results = catalog.results(storage, sweep.document)
    trials = sweep.document["trials"]
    records = storage.each(lambda trial: _record(storage, trial), trials)
    identities = [trial["identity"] for trial in trials]
    return Evidence(storage, sweep.document, results, dict(zip(identities, records, strict=True)))


def _record(storage: Storage, trial: Mapping[str, Any]) -> Record:
    identity = trial["identity"]
    logged = list(EventReader(storage, identity))
    environment: Mapping[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        environment = json.loads(storage.read(layout.environment(identity)))
    return Record(
        settled(event for _, events in logged for event in events),
        spans(logged, 1 if trial.get("refine") is not None else trial["experiment"]["train"]["workers"]),
        sum(stored.size for stored in storage.files(layout.trial(identity))),
        environment,
    )


def panels(evidence: Evidence, identity: str) -> dict[str, tuple[int, str]]:
    """Name of each validation image to (iteration, key of its newest panel)."""
    pictures = [e for e in evidence.records[identity].events if e["kind"] == "image" and e["key"].startswith("panel/")]
    return {e["key"].removeprefix("panel/"): (e["iteration"], e["path"]) for e in pictures}


def jpeg(storage: Storage, key: str) -> bytes | None:
    """A stored picture, small enough to be inlined; None where it was cleared away."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(storage.read(key))).convert("RGB")
    except FileNotFoundError:
        return None
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
