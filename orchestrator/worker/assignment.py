"""What the runner tells a trial's workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.settings import Settings


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do; plain values, so that it travels anywhere."""

    identity: str
    name: str
    experiment: dict[str, Any]
    seed: int
    fingerprint: str
    metric: str
    mode: str
    storage: str
    home: str | None  # None: the worker's own, on a cluster whose machines have their own folders
    stop_key: str
    launch: str  # which run of the sweep this is
    cpus_per_worker: float  # reserved
    gpus_per_worker: float
    threads: float = 1.0  # that compute
    prune_key: str = ""  # a file under this key asks this trial alone to stop, and says why
    until: int | None = None  # pause after so many iterations (population based training)
    clone: dict[str, Any] | None = None  # whose weights the trial goes on with: donor, iteration, fields
    input: str | None = None  # identity of the trial whose product this one takes
    refine: dict[str, Any] | None = None  # fields of a refinement: labels are made, nothing is trained
    network: str | None = None  # identity of the trial whose network the refinement brings along
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file it reads, when planned
    fields: dict[str, float] | None = None  # changing hyper-parameters, for the log

    @property
    def processes(self) -> int:
        """Workers that run it."""
        return 1 if self.refine is not None else int(self.experiment["train"]["workers"])

    def local_home(self) -> Path:
        """The MCC home of the machine that asks."""
        return Path(self.home) if self.home is not None else Settings.from_environment().home
