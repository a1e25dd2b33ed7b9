"""Names as MLflow accepts them, and what it makes of them. Its pages sort by name: `_` comes first."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

SETTLED = "mcc.settled"  # tag: why a run was ended by another process than its own


def metric_name(key: str) -> str:
    """A metric's key: letters, digits and `_-. :`, in parts between single slashes."""
    return posixpath.normpath(re.sub(r"[^\w\-. /:]", "_", key).replace("..", "__").strip("/"))[:250]


def varied_first(trials: Iterable[Mapping[str, Any]], values: Mapping[str, str]) -> dict[str, str]:
    """What differs within a sweep, once more, of a trial with such `values` by field: also of one for which a field was
    not varied, or pages that compare runs would have no value of it."""
    keys = dict.fromkeys(key for trial in trials for key in trial["varied"])
    return {f"_varied/{key}": values[key] for key in keys if key in values}


def score_first(metrics: Mapping[str, float], metric: str | None) -> dict[str, float]:
    """Metrics with what their sweep compares by, once more, as `_score`."""
    first = {} if metric is None or metric not in metrics else {"_score": metrics[metric]}
    return first | dict(metrics)


def picture_name(key: str) -> str:
    """A picture's key: ASCII, and short enough for a file name."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key)[:120]


def pictures(paths: Iterable[str]) -> set[tuple[str, int]]:
    """(key, step) of the pictures among a run's artifacts. MLflow puts both in the file name:
    `panel~a+step+5+timestamp+…`, with `#` for `~` and `%` for `+` in older versions."""
    keys = set()
    for path in paths:
        parts = re.split(r"[+%]", path.rsplit("/", 1)[-1])
        if len(parts) > 3 and parts[1] == "step" and path.endswith(".webp"):  # the small copy, written last
            keys.add((re.sub(r"[~#]", "/", parts[0]), int(parts[2])))
    return keys
