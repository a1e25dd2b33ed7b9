"""The network that a refinement brings along, of the trial that trained it."""

from __future__ import annotations

from pathlib import Path

from mcc_core.errors import MCCError
from mcc_core.refinement.base import Refinement
from mcc_core.refinement.kinds import with_network
from orchestrator.records.checkpoints import newest_checkpoint
from orchestrator.storage.store import Storage, retry
from orchestrator.worker.assignment import Assignment


def brought(refinement: Refinement, task: Assignment, storage: Storage, work: Path) -> Refinement:
    """The refinement with the last checkpoint of the trial whose network it brings along, if it brings one.

    Raises MCCError where storage has none.
    """
    if (identity := task.network) is None:
        return refinement
    folder = work / "network"
    folder.mkdir(exist_ok=True)
    _, file, complaints = retry(lambda: newest_checkpoint(storage, identity, folder))
    if file is None:
        why = "; ".join(complaints) or "storage has none"
        raise MCCError(f"{task.name}: no checkpoint of {identity}, whose network it brings along: {why}")
    return with_network(refinement, file)
