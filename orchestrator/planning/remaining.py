"""How long a sweep that runs will still take: by the pace of its own trials, where they have one, else as planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from orchestrator.planning.configurations import Trial
from orchestrator.planning.stage_estimate import makespan
from orchestrator.records.status import ENDED, TrialStatus


@dataclass(frozen=True)
class Going:
    """How far a trial is."""

    status: TrialStatus
    spent_s: float = 0.0  # by its newest attempt, until its last event
    loop_s: float | None = None  # of all of its iterations at its speed; None: not known yet
    left_s: float | None = None  # of those that are left

    @property
    def whole_s(self) -> float | None:
        """Of the whole trial: the loop, and what has been spent beside it so far, as on evaluations."""
        return None if self.loop_s is None else max(self.loop_s, self.spent_s + (self.left_s or 0.0))


def remaining_s(
    trials: Sequence[Trial], going: Mapping[str, Going], planned: Mapping[str, float], slots: int
) -> float | None:
    """Seconds until all trials have ended, each after its inputs and so many at a time; None while nothing is known.

    Args:
        going: by identity.
        planned: seconds by identity of trials of stages, which are unlike each other.
    """
    known = {t.identity: whole for t in trials if (whole := going[t.identity].whole_s) is not None}
    if not known:
        return None
    paces = [known[i] / planned[i] for i in known if planned.get(i)]
    pace = median(paces) if paces else 1.0
    over, kin = dict[str, list[float]](), dict[str, list[float]]()  # by stage: of those that finished; of all
    for trial in trials:
        if (whole := known.get(trial.identity)) is not None:
            kin.setdefault(trial.stage, []).append(whole)
            if going[trial.identity].status == TrialStatus.FINISHED:
                over.setdefault(trial.stage, []).append(whole)
    left: dict[str, float] = {}
    for trial in sorted(trials, key=lambda t: going[t.identity].status != TrialStatus.RUNNING):  # those have a place
        state, identity = going[trial.identity], trial.identity
        if state.status in ENDED:
            continue
        like = over.get(trial.stage) or kin.get(trial.stage)
        if like is None:
            whole = pace * planned[identity] if identity in planned else mean(known.values())
        else:
            whole = mean(like)
        if state.status == TrialStatus.RUNNING:  # others that finished tell how long its last evaluation takes
            rest = whole - state.spent_s if trial.stage in over else 0.0
            left[identity] = max(state.left_s or 0.0, rest)
        else:
            left[identity] = whole
    return makespan(left, {t.identity: t.inputs for t in trials}, slots) or None
