"""Intervals: no rate is printed without one.

Sources: Wilson 1927 (score interval), Clopper and Pearson 1934 (exact interval), Efron 1979 (bootstrap, percentile
form); clusters are resampled whole (Cameron, Gelbach and Miller 2008, section 3.1).  Left out: BCa corrections, which
need more units than an evaluation of a few hundred prompts can give them.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 2000
MIN_CLUSTERS = 30  # below this a percentile bootstrap is too narrow, so a rate falls back on Wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and the values that the data do not rule out at `level`."""

    estimate: float
    low: float
    high: float
    n: int  # independent units behind the estimate (prompts, pairs, clusters)
    level: float = 0.95

    def __post_init__(self):
        if not all(math.isfinite(x) for x in (self.estimate, self.low, self.high)):
            raise ValueError(f"an interval needs finite numbers; got {self.low}, {self.estimate}, {self.high}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), for instance 0.95; got {self.level}")

    def excludes(self, value: float) -> bool:
        """True where `value` lies outside the interval: "the win rate excludes 50 %"."""
        return value < self.low or value > self.high

    def overlaps(self, other: "Interval") -> bool:
        return self.low <= other.high and other.low <= self.high


def _check_counts(successes: float, n: float) -> None:
    if n <= 0:
        raise ValueError(f"a rate of nothing is undefined: n must be above 0; got {n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n = {n}; got {successes}")


def wilson(successes: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson score interval for a rate.  Half counts are allowed (a tie is half a success).

    >>> out = wilson(8, 10)
    >>> round(out.low, 4), round(out.high, 4)
    (0.4902, 0.9433)
    """
    _check_counts(successes, n)
    z = float(stats.norm.ppf(0.5 + level / 2))
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    low, high = max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))
    return Interval(estimate=p, low=low, high=high, n=round(n), level=level)


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Exact binomial interval: covers at least `level`, whatever the rate; used for rare harm.

    >>> round(clopper_pearson(0, 30).high, 4)  # 1 - 0.025 ** (1 / 30)
    0.1157
    """
    _check_counts(successes, n)
    alpha = 1 - level
    low = 0.0 if successes == 0 else float(stats.beta.ppf(alpha / 2, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - alpha / 2, successes + 1, n - successes))
    return Interval(estimate=successes / n, low=low, high=high, n=n, level=level)


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student t interval for a mean; needs two values or more."""
    x = _finite(values)
    if len(x) < 2:
        raise ValueError(f"a t interval needs at least 2 values; got {len(x)}")
    mean = float(x.mean())
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(estimate=mean, low=mean - half, high=mean + half, n=len(x), level=level)


def mean_upper(values: ArrayLike, *, confidence: float = 0.95) -> float:
    """One-sided Student t bound: the mean lies below it with probability `confidence`, where the values are independent and
    roughly normal.  Needs two values or more."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be in (0.5, 1), for instance 0.95; got {confidence}")
    return mean_interval(values, level=2 * confidence - 1).high  # the upper end of a two-sided interval, both tails alike


def bootstrap_mean(values: ArrayLike, *, seed: int, clusters: Sequence[Hashable] | None = None, level: float = 0.95,
                   resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of a mean; with `clusters` (one name a value) whole clusters are drawn, so that several
    answers to one prompt do not count as several prompts.  `n` of the result counts clusters."""
    x = _finite(values)
    rows = np.stack([x, np.ones_like(x)], axis=1)
    return bootstrap_total(rows, lambda total: total[0] / total[1],
                           seed=seed, clusters=clusters, level=level, resamples=resamples)


def bootstrap_total(rows: ArrayLike, statistic: Callable[[NDArray], float], *, seed: int,
                    clusters: Sequence[Hashable] | None = None, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of `statistic(sum of rows)`: a mean from (value, 1), corpus BLEU from its n-gram counts.

    rows: (units, columns).  With one cluster there is nothing to resample: ValueError.
    """
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"bootstrap needs a table with at least one row; got shape {table.shape}")
    sums = _sum_by_cluster(table, clusters)
    if len(sums) < 2:
        raise ValueError("a bootstrap needs at least 2 independent units (clusters); got 1")
    draws = np.array([statistic(total) for weights in cluster_draws(len(sums), resamples, seed) for total in weights @ sums])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    estimate = float(statistic(table.sum(axis=0)))
    return Interval(estimate=estimate, low=min(float(low), estimate), high=max(float(high), estimate), n=len(sums), level=level)


def rate_interval(values: ArrayLike, *, seed: int, clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Interval:
    """Interval of a mean of values in [0, 1] (hits, or wins with a tie as one half), clustered.

    Bootstrap over clusters; Wilson with n = clusters where there are fewer than 30 of them or where all values are the
    same (a bootstrap of ten hits out of ten would claim certainty).
    """
    x = _finite(values)
    if len(x) and (x.min() < 0 or x.max() > 1):
        raise ValueError(f"rates come from values in [0, 1]; got {x.min()} to {x.max()}")
    count = len(set(clusters)) if clusters is not None else len(x)
    if count < MIN_CLUSTERS or x.min() == x.max():
        _check_counts(0, count)
        return wilson(float(x.mean()) * count, count, level=level)
    return bootstrap_mean(x, seed=seed, clusters=clusters, level=level)


def win_rate(wins: int, ties: int, losses: int, *, level: float = 0.95) -> Interval:
    """(wins + ties / 2) / all, with Wilson's interval on the half counts: a little too wide where ties are many,
    because a tie varies less than a coin."""
    return wilson(wins + ties / 2, wins + ties + losses, level=level)


def _finite(values: ArrayLike) -> NDArray:
    x = np.asarray(values, dtype=np.float64).ravel()
    if len(x) == 0:
        raise ValueError("a mean of nothing is undefined: no values came")
    if not np.isfinite(x).all():
        where = int(np.flatnonzero(~np.isfinite(x))[0])
        raise ValueError(f"values must be finite; number {where} (from 0) is {x[where]}")
    return x


def _sum_by_cluster(table: NDArray, clusters: Sequence[Hashable] | None) -> NDArray:
    if clusters is None:
        return table
    if len(clusters) != len(table):
        raise ValueError(f"one cluster name a row: {len(table)} rows but {len(clusters)} names")
    index = cluster_index(clusters)
    sums = np.zeros((index.max() + 1, table.shape[1]))
    np.add.at(sums, index, table)
    return sums


def cluster_index(names: Iterable[Hashable]) -> NDArray:
    """Number of the cluster of each row, int64, from 0 in the order of first appearance."""
    place: dict[Hashable, int] = {}
    return np.array([place.setdefault(name, len(place)) for name in names], dtype=np.int64)


def cluster_draws(count: int, resamples: int, seed: int) -> Iterator[NDArray]:
    """Blocks of (draws, count): how often each unit was drawn.  Blocks keep memory under about 32 MB."""
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // count)
    for start in range(0, resamples, block):
        yield generator.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start)).astype(np.float64)
