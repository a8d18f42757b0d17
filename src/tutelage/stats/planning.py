"""What to ask people for next: more labels, more people, more overlap, or more training.

Sources: one-way random effects by analysis of variance (Searle, Casella and McCulloch 1992, section 3.6) for people and
votes; power-law learning curves error = a n^-b + c (Hestness et al. 2017, https://arxiv.org/abs/1712.00409; Figueroa et al.
2012, https://doi.org/10.1186/1472-6947-12-8, for planning with them); Condorcet 1785 for majorities.  A plan is a forecast:
it says what would hold if the next labels were like the last.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tutelage.stats.intervals import cluster_index
from tutelage.stats.raters import RaterModel, chance_below, gold_accuracy

MOST_VOTES_EACH = 100_000
MOST_RATERS = 10_000
MIN_POINTS = 4
EXPONENTS = np.geomspace(0.05, 2.0, 120)


class IntervalPlan(NamedTuple):
    half_width: float  # expected now
    between: float  # standard deviation between raters' own rates
    within: float  # of single votes of one rater
    more_labels: int | None  # from the same people; None where no number is enough
    raters: int | None  # people wanted in all, if each gives as many votes as now on average
    text: str


def plan_interval(values: ArrayLike, raters: Sequence[str], half_width: float, *, level: float = 0.95) -> IntervalPlan:
    """How many more labels until the interval of a mean (a win rate: 1, 1/2, 0) is `half_width` to each side.

    With G raters of m votes each the half-width is t_{G-1} sqrt(between^2 / G + within^2 / (G m)): more votes of the same
    people shrink the second part only.
    """
    x = np.asarray(values, dtype=np.float64)
    group = cluster_index(raters)
    if len(x) != len(group) or half_width <= 0:
        raise ValueError(f"one rater a value and a half-width above 0 wanted; got {len(group)}, {len(x)} and {half_width}")
    count = np.bincount(group)
    G, N = len(count), len(x)
    if G < 2 or N <= G:
        raise ValueError(f"people differ from noise only by 2 raters or more, with more votes than raters; got {G} and {N}")
    mean = np.bincount(group, x) / count
    within_ss, between_ss = float(((x - mean[group]) ** 2).sum()), float((count * (mean - x.mean()) ** 2).sum())
    within = within_ss / (N - G)
    typical = (N - float((count**2).sum()) / N) / (G - 1)
    between = max(0.0, (between_ss / (G - 1) - within) / typical)

    def half(people: float, each: float) -> float:
        return float(stats.t.ppf(0.5 + level / 2, people - 1)) * math.sqrt((between + within / each) / people)

    # Unequal shares weigh people unequally: as if there were fewer.
    people, each = N**2 / float((count**2).sum()), N / G
    now = float(stats.t.ppf(0.5 + level / 2, G - 1)) * math.sqrt(between / people + within / N)
    more = 0 if now <= half_width else _first(lambda m: half(G, m) <= half_width, math.ceil(each), MOST_VOTES_EACH)
    wanted = G if now <= half_width else _first(lambda g: half(g, each) <= half_width, 2, MOST_RATERS)
    labels = None if more is None else max(0, more * G - N)
    sizes = f"now +-{now:.3f}, wanted +-{half_width:.3f}"
    if now <= half_width:
        text = f"{sizes}: enough"
    elif labels is None:
        text = (f"{sizes}: these {G} raters differ too much among themselves; no number of further votes of theirs is enough. "
                + (f"{wanted} raters of {each:.0f} votes each would do" if wanted else "Ask for less"))
    else:
        text = f"{sizes}: {labels} more labels of these {G} raters"
        text += f", or {wanted} raters of {each:.0f} votes each" if wanted else ""
    return IntervalPlan(now, math.sqrt(between), math.sqrt(within), labels, wanted, text)


def _first(good, low: int, most: int) -> int | None:
    """Smallest whole number from `low` to `most` for which `good` (False below, True from there on) holds."""
    if not good(most):
        return None
    while low < most:
        middle = (low + most) // 2
        low, most = (low, middle) if good(middle) else (middle + 1, most)
    return low


class CurvePlan(NamedTuple):
    labels: int | None  # wanted in all; None where it cannot be reached or told
    low: int | None  # 90 % interval of that; None = no telling how few
    high: int | None  # None = perhaps never
    ceiling: float | None  # accuracy that the curve tends to
    text: str


def plan_accuracy(labels: ArrayLike, accuracy: ArrayLike, wanted: float, *, seed: int, resamples: int = 200) -> CurvePlan:
    """Labels until a reward model reaches the held-out accuracy `wanted`, from accuracies at some smaller numbers of labels.

    Fits error = a n^-b + c with a, c >= 0 by least squares; the interval is from refits to shuffled residuals.  Fewer than
    four sizes say nothing.
    """
    n, y = np.asarray(labels, dtype=np.float64), 1 - np.asarray(accuracy, dtype=np.float64)
    if n.shape != y.shape or (len(n) and (n.min() <= 0 or y.min() < 0 or y.max() > 1)) or not 0 < wanted < 1:
        raise ValueError(f"one accuracy in [0, 1] a number of labels above 0, and a wanted accuracy in (0, 1); got {labels}, "
                         f"{accuracy} and {wanted}")
    sizes = len(set(n.tolist()))
    if sizes < MIN_POINTS:
        return CurvePlan(None, None, None, None,
                         f"{sizes} sizes are too few for a learning curve; measure the model at {MIN_POINTS} sizes or more")
    curve = _fit_curve(n, y)
    random, fitted = np.random.default_rng(seed), curve.error(n)
    # Residuals of a fit with three parameters are too small by this much.
    spread = (y - fitted) * math.sqrt(len(n) / max(1, len(n) - 3))
    refits = [_fit_curve(n, np.clip(fitted + random.choice(spread, len(n)), 0, 1)) for _ in range(resamples)]
    needed = sorted(refit.labels_for(1 - wanted) for refit in refits)
    low, high = needed[int(0.05 * resamples)], needed[min(resamples - 1, int(0.95 * resamples))]
    middle = curve.labels_for(1 - wanted)
    ceiling = 1 - curve.c
    seen, flat = int(n.max()), float(np.polyfit(np.log(n), y, 1)[0]) >= 0
    out = CurvePlan(_whole(middle), _whole(low), _whole(high), ceiling, "")
    if flat:
        return out._replace(labels=None, low=None, high=None,
                            text="accuracy does not rise with labels so far; there is no curve to follow")
    if out.labels is None:
        maybe = f"at best {out.low:,} labels" if out.low is not None else "no refit reaches it either"
        return out._replace(text=f"{wanted:.1%} lies above the {ceiling:.1%} that the curve tends to ({maybe}); better labels, "
                                 "features or a larger model, not more of the same")
    far = f"; more than ten times the {seen:,} labels seen, so a guess" if out.labels > 10 * seen else ""
    upper = f"{out.high:,}" if out.high is not None else "perhaps never"
    return out._replace(text=f"{wanted:.1%} at about {out.labels:,} labels (90 %: {out.low:,} to {upper}){far}")


class _Curve(NamedTuple):
    a: float
    b: float
    c: float

    def error(self, n: NDArray) -> NDArray:
        return self.a * n**-self.b + self.c

    def labels_for(self, error: float) -> float:
        if error <= self.c:
            return math.inf
        if self.a == 0:
            return 0.0
        # In logs: a small b makes the power overflow.
        log = (math.log(self.a) - math.log(error - self.c)) / self.b
        return math.exp(log) if log < math.log(1e12) else math.inf


def _fit_curve(n: NDArray, y: NDArray) -> _Curve:
    """Least squares: for each b on a grid the best a, c >= 0 (a line through u = n^-b, or one of its two edges), then the
    best b."""
    u = (n / n.min()) ** -EXPONENTS[:, None]
    away = u - u.mean(axis=1, keepdims=True)
    slope = np.maximum((away @ y) / (away**2).sum(axis=1), 0.0)
    floor = y.mean() - slope * u.mean(axis=1)
    slope = np.where(floor < 0, (u @ y) / (u**2).sum(axis=1), slope)
    floor = np.maximum(floor, 0.0)
    best = int(np.argmin(((y - slope[:, None] * u - floor[:, None]) ** 2).sum(axis=1)))
    b = float(EXPONENTS[best])
    return _Curve(float(slope[best]) * n.min() ** b, b, float(floor[best]))


def _whole(x: float) -> int | None:
    return math.ceil(x) if math.isfinite(x) else None


def majority_accuracy(accuracy: float, votes: int) -> float:
    """Chance that most of an odd number of independent votes between two answers are right (Condorcet).

    >>> round(majority_accuracy(0.75, 3), 4)  # p^2 (3 - 2p)
    0.8438
    """
    if votes < 1 or votes % 2 == 0:
        raise ValueError(f"a majority needs an odd number of votes; got {votes}")
    return float(stats.binom.sf(votes // 2, votes, accuracy))


def next_vote_gain(model: RaterModel, unit: object) -> float:
    """How much likelier the best answer on a unit becomes to be right by one more vote of an average rater, 0 to 1/2.

    Preposterior: sum over what the rater may say of the best posterior, minus the best now (Raiffa and Schlaifer 1961).
    """
    now_K = model.posterior[unit]
    weight_W = np.array([model.votes[w] for w in model.confusion], dtype=np.float64)
    said_KK = np.average(np.stack(list(model.confusion.values())), axis=0, weights=weight_W)
    return float((now_K[:, None] * said_KK).max(axis=0).sum() - now_K.max())


class OverlapRow(NamedTuple):
    unit: object
    votes: int
    chance: float  # of the best answer now
    gain: float  # by one more vote


def overlap_worth(model: RaterModel, votes_of: Mapping[object, int], *, least: float = 0.02) -> list[OverlapRow]:
    """Units where one more vote lifts the chance of the best answer by `least` or more, best first.

    A second vote on a unit with one is worth next to nothing alone: it can only confirm or draw; read it as a step to three.
    """
    rows = [OverlapRow(unit, votes_of[unit], float(p.max()), next_vote_gain(model, unit))
            for unit, p in model.posterior.items()]
    return sorted((row for row in rows if row.gain >= least), key=lambda row: -row.gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    rater: str
    right: int
    n: int
    low: float
    high: float  # 95 % posterior interval of the accuracy
    below: float  # posterior probability that it lies below the level
    advice: str  # train / fine / more gold


def whom_to_train(gold: Mapping[str, tuple[int, int]], *, level: float = 0.8, sure: float = 0.9) -> list[TrainingRow]:
    """From gold answers (rater -> right, n): who is below `level` with probability `sure`, likeliest first.

    "more gold" where the answers so far leave it open.
    """
    rows = []
    for rater, (right, n) in gold.items():
        interval, below = gold_accuracy(right, n), chance_below(right, n, level)
        advice = "train" if below >= sure else "fine" if below <= 1 - sure else "more gold"
        rows.append(TrainingRow(rater=rater, right=right, n=n, low=interval.low, high=interval.high, below=below,
                                advice=advice))
    return sorted(rows, key=lambda row: (-row.below, row.rater))
