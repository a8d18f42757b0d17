"""How far raters agree: raw share, Cohen's kappa, Krippendorff's alpha.

Sources: Cohen 1960; Krippendorff, Content Analysis, 4th ed., chapter 12 (coincidence matrix; nominal, ordinal and
interval differences).  A coefficient that cannot be computed says why instead of being NaN.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`value`: 1 = perfect, 0 = as chance would (kappa, alpha); None where undefined, and `undefined` says why."""

    value: float | None
    n: int  # units that at least two raters judged
    undefined: str = ""

    def __str__(self) -> str:
        return f"undefined: {self.undefined}" if self.value is None else f"{self.value:.3f} (n = {self.n})"


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


def krippendorff_alpha(ratings: Sequence[Sequence[Hashable | None]], *, scale: str = "nominal") -> Agreement:
    """1 - observed / expected disagreement.

    ratings: one row a rater, one column a unit, None = did not rate.
    scale: nominal (same or not), ordinal (ranks: values are sorted), interval (numbers).
    """
    if scale not in _DISTANCES:
        raise ValueError(f"scale must be one of {', '.join(_DISTANCES)}; got {scale!r}")
    widths = {len(row) for row in ratings}
    if len(widths) > 1:
        raise ValueError(f"every rater needs one entry a unit (None where not rated); rows have lengths {sorted(widths)}")
    units = [[value for value in column if value is not None] for column in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) >= 2]
    if not units:
        return Agreement(value=None, n=0, undefined="no unit was rated by two raters or more")
    seen = {value for unit in units for value in unit}
    # Names have no order; for them any fixed order serves.
    values = sorted(seen, key=repr) if scale == "nominal" else sorted(seen)
    if len(values) == 1:
        why = f"every rating is {values[0]!r}; without variation there is nothing to agree on"
        return Agreement(value=None, n=len(units), undefined=why)
    place = {value: i for i, value in enumerate(values)}
    # Coincidences: each ordered pair of ratings in a unit, with weight 1 / (raters of the unit - 1).
    together = np.zeros((len(values), len(values)))
    for unit in units:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        together += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    total = together.sum(axis=1)
    distance = _DISTANCES[scale](values, total)
    expected = (np.outer(total, total) * distance).sum() / (total.sum() - 1)
    return Agreement(value=float(1 - (together * distance).sum() / expected), n=len(units))


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


def _both(a: Sequence, b: Sequence) -> list[tuple]:
    if len(a) != len(b):
        raise ValueError(f"both raters need one entry a unit; got {len(a)} and {len(b)}")
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
