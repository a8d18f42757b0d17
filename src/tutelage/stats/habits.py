"""Checks of one person's votes: do they hold when the sides are swapped, when put in a circle, and how fast do they come?

Sources: Kendall and Babington Smith 1940 (circular triads); Iglewicz and Hoaglin 1993 (modified z from the median absolute
deviation, 3.5 as the mark); Brysbaert 2019, https://doi.org/10.1016/j.jml.2019.104047 (silent reading of English: 238 words
a minute on average).  All are hints to look closer, none is a verdict.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tutelage.stats.intervals import Interval, wilson
from tutelage.stats.votes import PairVote

OUTLIER = 3.5  # modified z
MIN_TIMES = 8  # fewer times have no spread to speak of
LEAST_SECONDS = 3.0
FASTEST_WORDS = 1000.0  # a minute: four times the usual speed, beyond skimming


class Flips(NamedTuple):
    rate: Interval | None  # share of pairs shown again with the sides swapped on which the same answer was preferred
    same_side: int  # of the others, how often the same *side* was preferred both times
    n: int
    undefined: str = ""


class Cycles(NamedTuple):
    rate: Interval | None  # share of triples that go round: a over b, b over c, c over a
    n: int  # triples of which all three pairs were judged; a coin would send 1 in 4 round
    undefined: str = ""


class LeftRate(NamedTuple):
    rate: Interval | None  # share of left among votes that preferred a side
    p_value: float | None  # exact two-sided binomial test of one half; asks for shuffled sides
    n: int
    ties: int  # left out
    undefined: str = ""


class Timing(NamedTuple):
    rater: str
    seconds: float  # active time
    words: int  # of all that was to be read
    key: str = ""  # which judgement


class TimeCheck(NamedTuple):
    votes: list[tuple[Timing, float]]  # judgements far from the same person's usual pace, with modified z (below 0: fast)
    raters: list[tuple[str, float]]  # people whose median pace is far from the others', with modified z
    unchecked: list[str]  # people with too few times, or no spread, to say anything


def flip_consistency(votes: Iterable[PairVote]) -> Flips:
    """Of pairs that one rater saw both ways round, how often the verdict stayed with the answer.

    Ties count as a verdict of their own.  Each rater, unit and pair counts once: its first vote each way.
    """
    first: dict[tuple, dict[str, int]] = defaultdict(dict)
    for vote in votes:
        first[vote.rater, vote.unit, frozenset((vote.left, vote.right))].setdefault(vote.left, _sign(vote.level))
    both = [tuple(seen.values()) for seen in first.values() if len(seen) == 2]
    if not both:
        return Flips(None, 0, 0, "no rater saw the same pair both ways round")
    held = sum(a == -b for a, b in both)
    return Flips(wilson(held, len(both)), sum(a == b != 0 for a, b in both), len(both))


def intransitivity(votes: Iterable[PairVote]) -> Cycles:
    """Share of triples of one rater and unit that no order can explain: following "at least as good as" leads round in a
    circle with at least one "better" in it.  The last vote on a pair counts."""
    verdicts: dict[tuple, dict[tuple[str, str], int]] = defaultdict(dict)
    for vote in votes:
        seen = verdicts[vote.rater, vote.unit]
        seen[vote.left, vote.right], seen[vote.right, vote.left] = _sign(vote.level), -_sign(vote.level)
    around = n = 0
    for seen in verdicts.values():
        for a, b, c in combinations(sorted({item for pair in seen for item in pair}), 3):
            if (a, b) in seen and (b, c) in seen and (c, a) in seen:
                circle = (seen[a, b], seen[b, c], seen[c, a])
                n += 1
                around += any(circle) and (min(circle) >= 0 or max(circle) <= 0)
    if not n:
        return Cycles(None, 0, "no rater judged all three pairs of any three answers")
    return Cycles(wilson(around, n), n)


def left_rate(votes: Iterable[PairVote]) -> LeftRate:
    """Does the left side win more than half?  Only where sides were shuffled does that speak of the rater."""
    signs = [_sign(vote.level) for vote in votes]
    left, n = signs.count(1), len(signs) - signs.count(0)
    if not n:
        return LeftRate(None, None, 0, len(signs), "no vote preferred a side")
    return LeftRate(wilson(left, n), float(stats.binomtest(left, n, 0.5).pvalue), n, signs.count(0))


def time_outliers(times: Iterable[Timing], *, mark: float = OUTLIER) -> TimeCheck:
    """Pace = log(active seconds / words).  A vote is compared with the same rater's others, a rater with the other raters."""
    paces: dict[str, list[tuple[Timing, float]]] = defaultdict(list)
    for time in times:
        if time.seconds <= 0:
            raise ValueError(f"active seconds must be above 0; got {time.seconds} of {time.rater} ({time.key})")
        paces[time.rater].append((time, float(np.log(time.seconds / max(time.words, 1)))))
    odd, unchecked, medians = [], [], {}
    for rater, rows in sorted(paces.items()):
        pace = np.array([x for _, x in rows])
        z = modified_z(pace) if len(rows) >= MIN_TIMES else None
        if z is None:
            unchecked.append(rater)
            continue
        medians[rater] = float(np.median(pace))
        odd += [(rows[i][0], float(z[i])) for i in np.flatnonzero(np.abs(z) > mark)]
    people = modified_z(np.array(list(medians.values()))) if len(medians) >= MIN_TIMES else None
    far = [] if people is None else [(r, float(z)) for r, z in zip(medians, people, strict=True) if abs(z) > mark]
    return TimeCheck(odd, far, unchecked)


def modified_z(x: NDArray) -> NDArray | None:
    """(x - median) / (1.4826 MAD); where half the values are one and the same, the mean deviation times 1.2533 stands in
    for the MAD; None where all are.  Both are standard deviations if x is normal."""
    away = x - np.median(x)
    scale = 1.4826 * float(np.median(np.abs(away))) or 1.2533 * float(np.abs(away).mean())
    return away / scale if scale else None


def too_fast(times: Sequence[Timing], *, least_seconds: float = LEAST_SECONDS, fastest_words: float = FASTEST_WORDS,
             share: float = 0.1) -> dict[str, str]:
    """rater -> a warning, where more than `share` of the judgements came faster than anybody reads."""
    seen: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for time in times:
        counts = seen[time.rater]
        counts[0] += 1
        counts[1] += time.seconds < least_seconds
        counts[2] += time.seconds >= least_seconds and time.words / time.seconds * 60 > fastest_words
    return {
        rater: f"{short} of {n} judgements took less than {least_seconds:g} s, and {quick} more would mean reading over "
               f"{fastest_words:g} words a minute (people read about 240)"
        for rater, (n, short, quick) in sorted(seen.items()) if (short + quick) > share * n
    }


def _sign(level: float) -> int:
    return int(level > 0) - int(level < 0)
