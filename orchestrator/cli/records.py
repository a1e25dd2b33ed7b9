"""Sweeps and trials as JSON, for `--json`."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mcc_core.errors import UsageError
from orchestrator.analysis.leaderboard import leaderboard
from orchestrator.records import layout
from orchestrator.records.checkpoints import best_saved, saved_checkpoints
from orchestrator.records.results import Result
from orchestrator.records.status import TrialStatus
from orchestrator.records.sweeps import Sweep
from orchestrator.storage.store import Storage


def sweep_record(sweep: Sweep, results: Sequence[Result]) -> dict[str, Any]:
    """A sweep with the number of trials in each state, and its best configuration."""
    rows = leaderboard(results, sweep.metric, sweep.mode)
    return {
        "sweep": sweep.id,
        "name": sweep.document["name"],
        "created": sweep.created,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "states": dict(Counter(result.status for result in results)),
        "best": {"configuration": rows[0].point, "score": rows[0].score} if rows else None,
    }


def trial_record(result: Result) -> dict[str, Any]:
    """A trial with everything that was measured last."""
    return {
        "name": result.name,
        **({"stage": result.stage} if result.stage else {}),
        "identity": result.identity,
        "configuration": result.point,
        "method": result.method,
        "varied": result.varied,
        "seed": result.seed,
        "status": result.status,
        "cause": result.cause,
        "message": result.message,
        "metrics": {key: None if math.isnan(value) else value for key, value in result.metrics.items()},
    }


def best_record(
    sweep: Sweep, results: Sequence[Result], runs: Mapping[str, str], storage: Storage, metric: str
) -> dict[str, Any]:
    """The best trial by a metric, its MLflow run and its checkpoint. Raises UsageError when nothing was measured."""
    done = [r for r in results if r.compared and r.status == TrialStatus.FINISHED and r.score(metric) is not None]
    if not done:
        raise no_score(sweep, results, metric)
    top = (max if sweep.mode == "max" else min)(done, key=lambda r: r.metrics[metric])
    saved = best_saved(saved_checkpoints(storage, top.identity), sweep.mode)
    key = saved.key(top.identity) if saved else None
    labels = layout.label_set(top.identity)
    more = {"labels": storage.where(labels)} if storage.exists(labels) else {}
    found = {"run": runs.get(top.identity), "checkpoint": storage.where(key) if key else None}
    return trial_record(top) | found | more


def no_score(sweep: Sweep, results: Sequence[Result], metric: str) -> UsageError:
    """That no finished trial has a metric, with those that it may have been meant for."""
    known = sorted({key for r in results for key in r.metrics if r.score(key) is not None})
    close = difflib.get_close_matches(metric, known, n=1)
    some = [key for key in known if key.endswith("/miou")] or known[:5]
    hint = f", did you mean {close[0]}?" if close else f"; such as {', '.join(some)}" if some else ""
    return UsageError(f"{sweep.id}: no finished trial has {metric!r}{hint}")


def print_json(content: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(content, indent=1))
