"""Which running trials are not worth their time: ASHA and median stopping, by Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.records.events import EventReader
from orchestrator.search.tpe import study
from orchestrator.spec.schedulers import Asha, Median
from orchestrator.storage.store import Storage

if TYPE_CHECKING:
    import optuna


class Pruner:
    """Follows trials by their events and says which should stop. Not for several threads at a time."""

    def __init__(self, config: Asha | Median, metric: str, mode: str, storage: Storage) -> None:
        import optuna

        self.config, self.metric, self.storage = config, metric, storage
        self._study = study(optuna.samplers.RandomSampler(seed=0), [mode], _optuna_pruner(config))
        self._watched: dict[str, _Watched] = {}

    def look(self, identities: Sequence[str]) -> dict[str, str]:
        """Read what is new of these trials. Returns those that should stop, with the reason."""
        scores = {}
        for identity in identities:
            if identity not in self._watched:
                self._watched[identity] = _Watched(self._study.ask(), EventReader(self.storage, identity))
            if reason := self._update(self._watched[identity]):
                scores[identity] = reason
        return scores

    def ended(self, identity: str, *, pruned: bool) -> None:
        """A trial is over; what it reached counts for the others."""
        import optuna

        self.look([identity])
        watched = self._watched[identity]
        if not watched.told:
            watched.told = True
            state = optuna.trial.TrialState
            if watched.value is None or pruned:
                self._study.tell(watched.trial, state=state.FAIL if watched.value is None else state.PRUNED)
            else:
                self._study.tell(watched.trial, watched.value)

    def _update(self, watched: _Watched) -> str | None:
        if watched.told:
            return None
        for _, events in watched.reader:
            for event in events:
                value = event.get("metrics", {}).get(self.metric) if event["kind"] == "metrics" else None
                if value is None or event["iteration"] <= watched.iteration:
                    continue
                watched.value, watched.iteration = value, event["iteration"]
                watched.trial.report(value, event["iteration"])
                if watched.trial.should_prune() and watched.verdict is None:
                    others = len(self._study.get_trials(deepcopy=False)) - 1
                    which = "low" if self._study.direction.name == "MAXIMIZE" else "high"
                    watched.verdict = (
                        f"{self.config.kind}: {self.metric} {value:.4g} at iteration {event['iteration']} is too "
                        f"{which} beside {others} other trials"
                    )
        return watched.verdict


@dataclass
class _Watched:
    trial: optuna.Trial
    reader: EventReader
    iteration: int = 0
    value: float | None = None
    verdict: str | None = None
    told: bool = False


def _optuna_pruner(config: Asha | Median) -> optuna.pruners.BasePruner:
    import optuna

    if isinstance(config, Asha):
        return optuna.pruners.SuccessiveHalvingPruner(config.min_iterations, config.eta)
    return optuna.pruners.MedianPruner(config.min_trials, config.min_iterations)
