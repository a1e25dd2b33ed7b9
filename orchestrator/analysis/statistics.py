"""What may be said of a difference: means with spreads, paired tests over shared seeds, a bootstrap over images, ties.

Trials with the same seed share their initial weights, batches and masks, so differences are taken seed by seed. Images
are a second source of chance: `bootstrap` resamples those that both were scored on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000
_CHUNK = 64  # resamples computed at once


@dataclass(frozen=True)
class Difference:
    """Of two configurations, in the metric's own unit: first less second."""

    mean: float
    low: float  # ends of the 95 % interval; NaN with a single seed
    high: float
    p: float  # two-sided; NaN with a single seed
    n: int  # shared seeds, or images
    spread: float  # standard deviation of the seeds' differences; NaN with a single seed

    @property
    def decided(self) -> bool:
        """Whether the difference is not 0, at the 5 % level."""
        return self.p < ALPHA


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Paired t test of two configurations' scores by seed, over the seeds that both have. None without any."""
    from scipy import stats

    shared = sorted(first.keys() & second.keys())
    values = np.array([first[s] - second[s] for s in shared])
    if not len(values):
        return None
    mean = float(values.mean())
    if len(values) == 1:
        return Difference(mean, math.nan, math.nan, math.nan, 1, math.nan)
    spread = float(values.std(ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):  # equal in every seed: no chance is left to test against
        return Difference(mean, mean, mean, 1.0 if abs(mean) <= 1e-12 else 0.0, len(values), 0.0)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(1 - ALPHA)
    return Difference(mean, float(low), float(high), float(test.pvalue), len(values), spread)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % interval (t) of the mean of two values or more, in their unit."""
    from scipy import stats

    numbers = np.asarray(values, np.float64)
    half = float(stats.t.ppf(1 - ALPHA / 2, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers)))
    return float(numbers.mean()) - half, float(numbers.mean()) + half


def percent(difference: Difference) -> str:
    """A difference of shares as percent text, with its interval where there is one: `+1.4 [+0.7, +2.2]`."""
    text = f"{100 * difference.mean:+.1f}"
    if math.isnan(difference.low):
        return text
    return f"{text} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def holm(ps: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm), in the same order; NaN stays and does not count."""
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    adjusted, highest = [math.nan] * len(ps), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * ps[i]))
        adjusted[i] = highest
    return adjusted


@lru_cache(maxsize=4096)
def seeds_to_decide(mean: float, spread: float) -> int | None:
    """The fewest shared seeds with which a paired t test at 5 % finds such a difference with probability 0.8.

    Args:
        mean: difference as it is estimated now.
        spread: standard deviation of the seeds' differences.

    None for more than 1000, or where it cannot be told (no spread known, no difference).
    """
    if math.isnan(mean) or math.isnan(spread) or mean == 0:
        return None
    if spread == 0:
        return 2
    effect = abs(mean) / spread
    if _power(effect, MOST_SEEDS) < POWER:
        return None
    low, high = 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle) >= POWER else (middle + 1, high)
    return low


def _power(effect: float, n: int) -> float:
    """Probability that a two-sided paired t test over n differences rejects; `effect` is mean over deviation."""
    from scipy import stats

    limit = stats.t.ppf(1 - ALPHA / 2, n - 1)
    shifted = stats.nct(n - 1, effect * math.sqrt(n))
    upper, lower = shifted.sf(limit), shifted.cdf(-limit)
    return float(upper + (0.0 if math.isnan(lower) else lower))


Counts = NDArray[np.int64]


def mean_iou(counts: Counts) -> NDArray[np.float64]:
    """Mean IoU of ...,images,classes,2 (intersection, union) over the classes that occur: shape `...`."""
    summed = counts.sum(axis=-3)
    return _miou(summed[..., 0], summed[..., 1])


def bootstrap(first: Counts, second: Counts, *, draws: int = 2000, seed: int = 0) -> Difference:
    """Difference of two mean IoUs with a percentile interval over resampled images, the same images for both.

    Args:
        first: images,classes,2 or seeds,images,classes,2: pixels of (intersection, union) per image. With seeds the
            mean IoU is that of each seed, averaged; the second must have the same seeds in the same order.

    The p value is twice the share of resamples whose difference has the other sign. Raises ValueError for arrays of
    different shapes or without images.
    """
    a, b = (np.asarray(x)[None] if np.ndim(x) == 3 else np.asarray(x) for x in (first, second))
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 2:
        raise ValueError(f"counts of shapes {np.shape(first)} and {np.shape(second)}: not images x classes x 2, alike")
    seeds, images, classes, _ = a.shape
    if not images:
        raise ValueError("no image was counted")
    rng = np.random.default_rng(seed)
    means = []
    stacked = np.stack([a, b]).transpose(2, 0, 1, 3, 4).reshape(images, -1).astype(np.float64)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)
        summed = (weights @ stacked).reshape(size, 2, seeds, classes, 2)
        scores = _miou(summed[..., 0], summed[..., 1]).mean(axis=-1)
        means.append(scores[:, 0] - scores[:, 1])
    differences = np.concatenate(means)
    low, high = np.quantile(differences, [ALPHA / 2, 1 - ALPHA / 2])
    mean = float((mean_iou(a) - mean_iou(b)).mean())
    share = min((differences <= 0).mean(), (differences >= 0).mean())
    p = min(1.0, 2 * max(share, 1 / (2 * draws)))
    return Difference(mean, float(low), float(high), float(p), images, float(differences.std(ddof=1)))


def _miou(intersection: NDArray[np.float64], union: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of intersection over union, where there is a union."""
    here = union > 0
    ratios = np.divide(intersection, union, out=np.zeros(np.shape(union)), where=here)
    return ratios.sum(axis=-1) / np.maximum(1, here.sum(axis=-1))


def verdict(difference: Difference | None, p: float | None = None) -> str:
    """What a difference comes to, in words; `p` replaces its own (where several are tested)."""
    if difference is None:
        return "no shared seed"
    if difference.n == 1 or math.isnan(difference.spread):
        return "one seed: undecided"
    if (difference.p if p is None else p) < ALPHA:
        return "decided"
    if difference.mean == 0 and difference.spread == 0:
        return "equal"
    needed = seeds_to_decide(difference.mean, difference.spread)
    if needed is None:
        return f"tie; more than {MOST_SEEDS} seeds to decide"
    return f"tie; {max(needed, difference.n + 1)} seeds would decide"


def pareto(points: Sequence[Sequence[float]], modes: Sequence[str]) -> list[bool]:
    """Which of several points no other is at least as good as in every objective and better in one."""
    signed = [[v if mode == "max" else -v for v, mode in zip(point, modes, strict=True)] for point in points]

    def beaten(i: int) -> bool:
        pairs = (list(zip(other, signed[i], strict=True)) for j, other in enumerate(signed) if j != i)
        return any(all(o >= m for o, m in pair) and any(o > m for o, m in pair) for pair in pairs)

    return [not beaten(i) for i in range(len(signed))]
