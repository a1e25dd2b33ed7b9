"""TPE: Optuna proposes the next configuration from the results known by then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.spec.space import Parameter, Tpe, drawn, mixed

if TYPE_CHECKING:
    import optuna


@dataclass
class Proposal:
    """A point of a TPE search and what came of it."""

    number: int
    params: dict[str, Any]  # as Optuna drew them: what the search is rebuilt from
    values: dict[str, Any] = field(default_factory=dict)  # dotted field to value


class TpeSearch:
    """Asks Optuna for points and tells it their results."""

    def __init__(
        self, config: Tpe, parameters: Sequence[Parameter], modes: Sequence[str], base: Callable[[str], Any]
    ) -> None:
        import optuna

        self.config, self.parameters, self.base = config, list(parameters), base
        self._study = study(optuna.samplers.RandomSampler(seed=0), modes)
        self._open: dict[int, optuna.Trial] = {}

    @property
    def proposed(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def propose(self, recorded: Mapping[str, Any] | None = None) -> Proposal:
        """The next point. `recorded` are the parameters that were drawn for it in an earlier launch."""
        import optuna

        number = self.proposed
        seed = mixed(self.config.seed, number)
        if number < self.config.startup:
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.config.startup)
        if recorded is not None:
            self._study.enqueue_trial(dict(recorded))
        trial = self._study.ask()
        values = drawn(self.parameters, lambda name, space: space.suggested(trial, name), self.base)
        self._open[number] = trial
        return Proposal(number, dict(trial.params), values)

    def tell(self, number: int, values: Sequence[float] | None, pruned_at: int | None = None) -> None:
        """The result of a proposal, once: its objectives, or None where it failed.

        Args:
            pruned_at: iteration at which the scheduler ended it (searches with one objective).
        """
        import optuna

        trial = self._open.pop(number, None)
        if trial is None:
            return
        if values is None or any(map(math.isnan, values)):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif pruned_at is not None and len(values) == 1:
            trial.report(values[0], pruned_at)
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, list(values))


def study(
    sampler: optuna.samplers.BaseSampler, modes: Sequence[str], pruner: optuna.pruners.BasePruner | None = None
) -> optuna.Study:
    """An Optuna study in memory; what must outlive the process is recorded by its users."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = [getattr(optuna.study.StudyDirection, f"{mode}imize".upper()) for mode in modes]
    return optuna.create_study(directions=directions, sampler=sampler, pruner=pruner)
