"""Does a model that says 80 % turn out right 80 times in 100?  (Guo et al. 2017, https://arxiv.org/abs/1706.04599)"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.stats.intervals import Interval, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityRow:
    """One bin of a reliability table: what was promised beside what happened."""

    low: float  # edges of the bin; the upper one belongs to the next bin, but 1 to the last
    high: float
    n: int
    probability: float  # mean promise in the bin
    outcome: Interval  # share that came true


def pair_confidence(margins: Sequence[float]) -> tuple[list[float], list[float]]:
    """(confidence, correct) of a pairwise model from margins = score of chosen - score of rejected.

    confidence = sigmoid(|margin|) in [0.5, 1]; correct = 1 where the margin is above 0, 0 where below, 0.5 at 0.
    "Chosen first" always would make every outcome 1, and the table mean nothing.
    """
    confidence = [1 / (1 + math.exp(-min(abs(m), 700.0))) for m in margins]
    return confidence, [0.5 if m == 0 else float(m > 0) for m in margins]


def reliability(
    probabilities: Sequence[float], outcomes: Sequence[float], *, bins: int = 10, low: float = 0.0
) -> list[ReliabilityRow]:
    """Equal-width bins from `low` (0.5 for pair confidences) to 1; empty bins are left out."""
    _check(probabilities, outcomes, low)
    width = (1 - low) / bins
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, p in enumerate(probabilities):
        members[min(int((p - low) / width), bins - 1)].append(i)
    return [
        ReliabilityRow(low=low + k * width, high=low + (k + 1) * width, n=len(rows),
                       probability=sum(probabilities[i] for i in rows) / len(rows),
                       outcome=wilson(sum(outcomes[i] for i in rows), len(rows)))
        for k, rows in enumerate(members) if rows
    ]


def ece(probabilities: Sequence[float], outcomes: Sequence[float], *, bins: int = 10, low: float = 0.0) -> float:
    """Expected calibration error: mean over all items of |promise - outcome| of their bin; 0 is perfect.

    >>> round(ece([0.8, 0.8, 0.8, 0.8, 0.8], [1, 1, 1, 1, 0]), 9)
    0.0
    """
    rows = reliability(probabilities, outcomes, bins=bins, low=low)
    return sum(row.n * abs(row.probability - row.outcome.estimate) for row in rows) / len(probabilities)


def _check(probabilities: Sequence[float], outcomes: Sequence[float], low: float) -> None:
    if len(probabilities) != len(outcomes) or not probabilities:
        raise ValueError(f"one outcome a probability, at least one; got {len(probabilities)} and {len(outcomes)}")
    for i, p in enumerate(probabilities):
        if not low <= p <= 1:
            raise ValueError(f"probability number {i} (from 0) must lie in [{low}, 1]; got {p}")
