"""Which queue a plan needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.execution.queue import Assign, PopulationQueue, SearchQueue, TrialQueue
from orchestrator.execution.stage_queue import StageQueue
from orchestrator.planning.configurations import Trial
from orchestrator.planning.plan import Plan
from orchestrator.records.budget import Meter
from orchestrator.spec.schedulers import Pbt
from orchestrator.spec.stages_file import StagesFile
from orchestrator.storage.store import Storage


def queue_of(plan: Plan, todo: Sequence[Trial], storage: Storage, assign: Assign, meter: Meter) -> TrialQueue:
    """The trials of a plan as its search, its stages or its population hand them out."""
    kind: Callable[..., TrialQueue] = TrialQueue
    if plan.open is not None:
        kind = SearchQueue
    elif isinstance(plan.file, StagesFile):
        kind = StageQueue
    elif isinstance(plan.file.scheduler, Pbt):
        kind = PopulationQueue
    return kind(plan, todo, storage, assign, meter)
