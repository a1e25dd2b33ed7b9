"""What a sweep has used of its budget, over all of its launches."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import layout
from orchestrator.spec.budget import Budget
from orchestrator.storage.store import Storage


def state_key(sweep: str) -> str:
    """Key of the file that says how a sweep stands and what it used."""
    return layout.state(sweep)


def sweep_state(storage: Storage, sweep: str) -> dict[str, Any]:
    """`state` (running, finished, stopped, incomplete or budget reached), `reason`, `hours`, `worker_hours`, `begun`
    (identities); empty where the sweep never ran."""
    try:
        return dict(json.loads(storage.read(state_key(sweep))))
    except (FileNotFoundError, ValueError):
        return {}


@dataclass
class Meter:
    """Counts what a sweep uses. `tick` often; `save` now and then and at the end."""

    storage: Storage
    sweep: str
    budget: Budget
    hours: float = 0.0
    worker_hours: float = 0.0
    begun: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        before = sweep_state(self.storage, self.sweep)
        self.hours, self.worker_hours = before.get("hours", 0.0), before.get("worker_hours", 0.0)
        self.begun = set(before.get("begun", ()))
        self._last = time.monotonic()

    def tick(self, workers: Iterable[int]) -> None:
        """Count the time since the last tick for these running trials' numbers of workers."""
        now, busy = time.monotonic(), list(workers)
        if busy:
            self.hours += (now - self._last) / 3600
            self.worker_hours += sum(busy) * (now - self._last) / 3600
        self._last = now

    def reached(self) -> str | None:
        """Which limit of time is reached, for people."""
        for name, unit in (("hours", "hours"), ("worker_hours", "worker-hours")):
            limit = getattr(self.budget, name)
            if limit is not None and getattr(self, name) >= limit:
                return f"{getattr(self, name):.3g} of {limit:g} {unit}; raise budget.{name} to go on"
        return None

    def may_begin(self, identity: str) -> bool:
        """Whether a trial may run: it has begun before, or the number of trials allows another."""
        limit = self.budget.trials
        return limit is None or identity in self.begun or len(self.begun) < limit

    def out_of_trials(self, left: Collection[str]) -> str | None:
        """That trials are left which the budget does not let begin, for people."""
        if left:
            begun = f"{len(self.begun)} of {self.budget.trials} trials begun"
            return f"{begun}, {len(left)} left; raise budget.trials to go on"
        return None

    def save(self, state: str, reason: str = "") -> None:
        """Write the sweep's state."""
        content = {"state": state, "reason": reason, "hours": self.hours, "worker_hours": self.worker_hours}
        content |= {"begun": sorted(self.begun), "t": round(time.time(), 3)}
        self.storage.write(state_key(self.sweep), json.dumps(content, indent=1).encode())
