"""How a trial stands."""

from __future__ import annotations

from enum import StrEnum


class TrialStatus(StrEnum):
    """States of a trial. `running`, `finished`, `failed`, `stopped` and `pruned` are those that event logs hold."""

    NEW = "new"  # never began
    WAITING = "waiting"  # its sweep runs, and it waits for a worker
    RUNNING = "running"
    FINISHED = "finished"  # trained to its last iteration
    FAILED = "failed"
    STOPPED = "stopped"  # with its sweep; goes on from its checkpoint
    PRUNED = "pruned"  # ended by its sweep's scheduler
    INTERRUPTED = "interrupted"  # began and did not end, and no living process runs it


CUT_OFF = "cut off; submit the sweep again to go on from its last checkpoint"  # says an interrupted trial

DONE = frozenset({TrialStatus.FINISHED, TrialStatus.PRUNED})  # nothing is left to do
ENDED = DONE | {TrialStatus.FAILED, TrialStatus.STOPPED}
