"""Where a checkpoint is, by any name of it: a file, or what an installed package knows how to fetch.

A package offers a kind of name as an entry point of the group `mcc.checkpoints`: a function from the name to a local
file, which raises UsageError. The entry point is called after the address's scheme (`s3` for `s3://...`, `models` for
`models:/...`), and `trial` for names without one.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

from mcc_core.errors import UsageError

GROUP = "mcc.checkpoints"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/")


def checkpoint_file(name: str | Path) -> Path:
    """The local file of a checkpoint, fetched where it lies elsewhere.

    Args:
        name: a file, `SWEEP/TRIAL`, or an address such as `s3://bucket/file.pt` or `models:/name@alias`.

    Raises UsageError when there is none, or nothing installed knows such names.
    """
    if Path(name).is_file():
        return Path(name)
    text = str(name)
    scheme = _SCHEME.match(text)
    kind = scheme[1] if scheme else "trial"
    offered = entry_points(group=GROUP)
    if kind not in offered.names:
        if scheme is None:
            raise UsageError(
                f"{text}: no such checkpoint file, and names of trials are read by the package `mcc`, which is not "
                "installed here (pip install -e .)"
            )
        known = (
            ", ".join(f"{scheme_name}:/" for scheme_name in sorted(offered.names) if scheme_name != "trial") or "none"
        )
        raise UsageError(f"{text}: no installed package reads {kind}: addresses (readable here: {known})")
    try:
        resolve = offered[kind].load()
    except (ImportError, AttributeError) as error:
        reader = offered[kind].value
        raise UsageError(f"{text}: {reader}, which reads such names, cannot be imported: {error}") from None
    return Path(resolve(text))
