"""How far raters agree: raw share, Cohen's kappa, Krippendorff's alpha; with intervals over units.

Sources: Cohen 1960; Fleiss 1971, eq. 2 (raw agreement of many raters); Krippendorff, Content Analysis, 4th ed., chapter 12
(coincidence matrix; nominal, ordinal and interval differences); percentile bootstrap over units or clusters of units
(Efron 1979; Zapf et al. 2016, https://doi.org/10.1186/s12874-016-0200-9, compare it with asymptotic intervals and advise it).
A coefficient that cannot be computed says why instead of being NaN.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.stats.intervals import RESAMPLES, Interval, bootstrap_mean, cluster_draws, cluster_index

FEW_CLUSTERS = 30  # below this a percentile bootstrap is too narrow, and the note says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`value`: 1 = perfect, 0 = as chance would (kappa, alpha); None where undefined, and `undefined` says why."""

    value: float | None
    n: int  # units that at least two raters judged
    undefined: str = ""
    interval: Interval | None = None  # over units, or clusters of units; None where not asked for or not to be had
    note: str = ""  # what to know before believing the interval, or why there is none

    def __str__(self) -> str:
        if self.value is None:
            return f"undefined: {self.undefined}"
        between = f", {self.interval.level:.0%} {self.interval.low:.3f} to {self.interval.high:.3f}" if self.interval else ""
        return f"{self.value:.3f} (n = {self.n}{between})"


class RatingsTable(NamedTuple):
    rows: list[list[Hashable | None]]  # one row a rater, one column a unit, None = did not rate
    raters: list[str]
    units: list[Hashable]


def ratings_table(records: Iterable[tuple[Hashable, str, Hashable]]) -> RatingsTable:
    """(unit, rater, value) records as a table.  A rater who rated a unit twice is refused: fold or split them first."""
    cells: dict[tuple[Hashable, str], Hashable] = {}
    for unit, rater, value in records:
        if (unit, rater) in cells:
            raise ValueError(f"rater {rater!r} rated unit {unit!r} twice; keep one rating, or name the second showing a unit")
        cells[unit, rater] = value
    units = list(dict.fromkeys(unit for unit, _ in cells))
    raters = sorted({rater for _, rater in cells})
    return RatingsTable([[cells.get((unit, rater)) for unit in units] for rater in raters], raters, units)


def raw_agreement(a: Sequence[Hashable | None], b: Sequence[Hashable | None]) -> Agreement:
    """Share of units on which two raters said the same; None = did not rate."""
    pairs = _both(a, b)
    if not pairs:
        return Agreement(value=None, n=0, undefined="no unit was rated by both raters")
    return Agreement(value=sum(x == y for x, y in pairs) / len(pairs), n=len(pairs))


def cohens_kappa(a: Sequence[Hashable | None], b: Sequence[Hashable | None]) -> Agreement:
    """(observed - expected) / (1 - expected) agreement of two raters over the units that both rated.

    >>> cohens_kappa(["y", "y", "n", "n"], ["y", "n", "n", "n"]).value
    0.5
    """
    pairs = _both(a, b)
    if not pairs:
        return Agreement(value=None, n=0, undefined="no unit was rated by both raters")
    n = len(pairs)
    left, right = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    expected = sum(left[word] * right[word] for word in left) / n**2
    if expected == 1:
        return Agreement(value=None, n=n, undefined="both raters gave one and the same value every time, as chance would")
    return Agreement(value=(sum(x == y for x, y in pairs) / n - expected) / (1 - expected), n=n)


def shared_agreement(ratings: Sequence[Sequence[Hashable | None]], *, seed: int | None = None,
                     clusters: Sequence[Hashable] | None = None, level: float = 0.95, resamples: int = RESAMPLES) -> Agreement:
    """Raw agreement of any number of raters: in each unit the share of its pairs of raters who said the same, then the mean
    over units (Fleiss 1971, eq. 2).  Not corrected for chance.

    ratings, seed, clusters: as in `krippendorff_alpha`.

    >>> shared_agreement([[1, 1], [1, 2], [1, 2]]).value  # all three agree, then one pair of three
    0.6666666666666666
    """
    found = _counted(ratings)
    if not len(found.units):
        return Agreement(value=None, n=0, undefined="no unit was rated by two raters or more")
    rated = found.counts_UK.sum(axis=1)
    shares = (found.counts_UK * (found.counts_UK - 1)).sum(axis=1) / (rated * (rated - 1))
    out = Agreement(value=float(shares.mean()), n=len(shares))
    if seed is None:
        return out
    names = _names(clusters, found.units, len(ratings[0]))
    if len(set(names)) < 2:
        return replace(out, note="no interval: fewer than 2 independent units")
    interval = bootstrap_mean(shares, seed=seed, clusters=names, level=level, resamples=resamples)
    return replace(out, interval=interval, note=_note(len(set(names)), 0, resamples))


def krippendorff_alpha(ratings: Sequence[Sequence[Hashable | None]], *, scale: str = "nominal", seed: int | None = None,
                       clusters: Sequence[Hashable] | None = None, level: float = 0.95,
                       resamples: int = RESAMPLES) -> Agreement:
    """1 - observed / expected disagreement.

    ratings: one row a rater, one column a unit, None = did not rate.
    scale: nominal (same or not), ordinal (ranks: values are sorted), interval (numbers).
    seed: gives a percentile bootstrap interval over units; without it there is none.
    clusters: one name a unit; units of one name (answers to one prompt) are drawn together.
    """
    if scale not in _DISTANCES:
        raise ValueError(f"scale must be one of {', '.join(_DISTANCES)}; got {scale!r}")
    found = _counted(ratings, ordered=scale != "nominal")
    n = len(found.units)
    if not n:
        return Agreement(value=None, n=0, undefined="no unit was rated by two raters or more")
    if len(found.values) == 1:
        why = f"every rating is {found.values[0]!r}; without variation there is nothing to agree on"
        return Agreement(value=None, n=n, undefined=why)
    distance = _DISTANCES[scale]
    alpha = _alpha(found.counts_UK, np.ones(n), distance, found.values)
    assert alpha is not None
    out = Agreement(value=alpha, n=n)
    if seed is None:
        return out
    names = _names(clusters, found.units, len(ratings[0]))
    index = cluster_index(names)
    count = int(index.max()) + 1
    if count < 2:
        return replace(out, note="no interval: fewer than 2 independent units")
    draws = [_alpha(found.counts_UK, weights[index], distance, found.values)
             for block in cluster_draws(count, resamples, seed) for weights in block]
    defined = [draw for draw in draws if draw is not None]
    if len(defined) < 0.9 * resamples:
        why = f"no interval: in {resamples - len(defined)} of {resamples} bootstrap samples all ratings were equal"
        return replace(out, note=why)
    low, high = (float(x) for x in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    interval = Interval(estimate=alpha, low=min(low, alpha), high=max(high, alpha), n=count, level=level)
    return replace(out, interval=interval, note=_note(count, resamples - len(defined), resamples))


class _Counted(NamedTuple):
    counts_UK: NDArray  # float, (units with two ratings or more, values): how often each value was given
    units: list[int]  # columns of the table that those units come from
    values: list  # the K values that occur in them, in order


def _counted(ratings: Sequence[Sequence[Hashable | None]], *, ordered: bool = False) -> _Counted:
    widths = {len(row) for row in ratings}
    if len(widths) > 1:
        raise ValueError(f"every rater needs one entry a unit (None where not rated); rows have lengths {sorted(widths)}")
    given = [[value for value in column if value is not None] for column in zip(*ratings, strict=True)]
    units = [u for u, values in enumerate(given) if len(values) >= 2]
    seen = {value for u in units for value in given[u]}
    # Names have no order; for them any fixed order serves.
    values = sorted(seen) if ordered else sorted(seen, key=repr)
    place = {value: k for k, value in enumerate(values)}
    counts = np.zeros((len(units), len(values)))
    for row, u in enumerate(units):
        for value in given[u]:
            counts[row, place[value]] += 1
    return _Counted(counts, units, values)


def _alpha(counts_UK: NDArray, weight_U: NDArray, distance, values: list) -> float | None:
    """Alpha with unit u standing weight_U[u] times in the sample; None where all its ratings are equal."""
    # Coincidences: each ordered pair of ratings in a unit, with weight 1 / (raters of the unit - 1).
    share_U = weight_U / (counts_UK.sum(axis=1) - 1)
    together = (counts_UK * share_U[:, None]).T @ counts_UK - np.diag(share_U @ counts_UK)
    total = together.sum(axis=1)
    apart = distance(values, total)
    expected = (np.outer(total, total) * apart).sum() / (total.sum() - 1)
    return None if expected == 0 else float(1 - (together * apart).sum() / expected)


def _nominal(values: list, total: NDArray) -> NDArray:
    return 1.0 - np.eye(len(values))


def _ordinal(values: list, total: NDArray) -> NDArray:
    # Ratings passed on the way from c to k, the two ends counted half.
    upto = np.cumsum(total) - total / 2
    return (upto[:, None] - upto[None, :]) ** 2


def _interval(values: list, total: NDArray) -> NDArray:
    x = np.asarray(values, dtype=np.float64)
    return (x[:, None] - x[None, :]) ** 2


_DISTANCES = {"nominal": _nominal, "ordinal": _ordinal, "interval": _interval}


def _names(clusters: Sequence[Hashable] | None, units: list[int], width: int) -> list[Hashable]:
    if clusters is None:
        return list(units)
    if len(clusters) != width:
        raise ValueError(f"one cluster name a unit: {width} units but {len(clusters)} names")
    return [clusters[u] for u in units]


def _note(clusters: int, undefined: int, resamples: int) -> str:
    notes = [f"only {clusters} independent units: the interval is rough"] if clusters < FEW_CLUSTERS else []
    if undefined:
        notes.append(f"{undefined} of {resamples} bootstrap samples had equal ratings only and were left out")
    return "; ".join(notes)


def _both(a: Sequence, b: Sequence) -> list[tuple]:
    if len(a) != len(b):
        raise ValueError(f"both raters need one entry a unit; got {len(a)} and {len(b)}")
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
