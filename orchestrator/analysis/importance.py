"""Which parameters of a sweep mattered: their share of the variance between configurations, and means by value."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

FEWEST = 10  # configurations
_PER_PARAMETER = 4
_MOST_VALUES = 12  # of a parameter in the table of means: a search that draws from a range has a value a trial


@dataclass(frozen=True)
class Configuration:
    """A configuration's parameters, as text, and its mean score."""

    values: Mapping[str, str]
    score: float


def needed(parameters: int) -> int:
    """Configurations below which importance is not computed: it would be noise."""
    return max(FEWEST, _PER_PARAMETER * parameters)


def importances(configurations: Sequence[Configuration], mode: str = "max") -> tuple[str, dict[str, float]]:
    """(name of the method, parameter to its share, greatest first) by Optuna.

    fANOVA where scikit-learn is installed, else PED-ANOVA. No shares where fewer than `needed` configurations or all
    scores equal.
    """
    keys = [
        k
        for k in dict.fromkeys(k for c in configurations for k in c.values)
        if len({c.values.get(k) for c in configurations}) > 1
    ]
    complete = [c for c in configurations if all(k in c.values for k in keys)]
    if not keys or len(complete) < needed(len(keys)) or len({c.score for c in complete}) < 2:
        return "", {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {key: _space([c.values[key] for c in complete]) for key in keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
        for configuration in complete:
            values = {
                k: float(v) if isinstance(spaces[k], optuna.distributions.FloatDistribution) else v
                for k, v in configuration.values.items()
                if k in spaces
            }
            study.add_trial(optuna.trial.create_trial(params=values, distributions=spaces, value=configuration.score))
        try:
            return "fANOVA", get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        except ImportError:
            return "PED-ANOVA", get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def means_by_value(configurations: Sequence[Configuration]) -> list[tuple[str, str, float, int]]:
    """(parameter, value, mean score, configurations) over everything else that varied, for parameters of few values."""
    rows = []
    for key in dict.fromkeys(k for c in configurations for k in c.values):
        values = sorted({c.values[key] for c in configurations if key in c.values}, key=_order)
        if 1 < len(values) <= _MOST_VALUES:
            for value in values:
                scores = [c.score for c in configurations if c.values.get(key) == value]
                rows.append((key, value, mean(scores), len(scores)))
    return rows


def _order(text: str) -> tuple[int, float, str]:
    number = _number(text)
    return (1, 0.0, text) if number is None else (0, number, text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _space(texts: Sequence[str]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [_number(text) for text in texts]
    if any(n is None for n in numbers):
        return CategoricalDistribution(sorted(set(texts)))
    return FloatDistribution(min(n for n in numbers if n is not None), max(n for n in numbers if n is not None))
