"""Names as MLflow accepts them, and what it makes of them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

SETTLED = "mcc.settled"  # tag: why a run was ended by another process than its own


def metric_name(key: str) -> str:
    """A metric's key: letters, digits and `_-. :`, in parts between single slashes."""
    return posixpath.normpath(re.sub(r"[^\w\-. /:]", "_", key).replace("..", "__").strip("/"))[:250]


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
