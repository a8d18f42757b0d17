"""Made-up judgements of made-up people, to see whether the statistics keep their promise.  Never data: raters are named
"simulated:...", and nothing here stands for a person.

Rater a prefers left by  d = score_a[left] - score_a[right] + position_a + length . z  plus logistic noise, graded by cuts,
where score_a = score + taste_a and position_a = position + habit_a differ from person to person (normal).  A careless share
of the raters answers at random.  The truth that intervals should cover is what the same fit says of a very large crowd:
with tastes that differ, the crowd's score difference is smaller than the average person's (Neuhaus, Kalbfleisch and Hauck
1991), and the crowd's is what a win rate by people is about.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from tutelage.stats.intervals import Interval, wilson
from tutelage.stats.ordered import ordered_scores
from tutelage.stats.people_winrate import people_win_rate
from tutelage.stats.votes import PairVote


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    scores: tuple[float, ...] = (0.8, 0.3, 0.0, -0.4, -0.7)  # of items m0, m1, ..., nats
    cuts: tuple[float, ...] = (0.4, 1.2, 2.2)  # tie | slightly | clearly | much; one cut: win, tie, loss; none: no ties
    raters: int = 20
    votes_each: int = 50
    votes_spread: float = 0.3  # standard deviation of log(votes) between raters: some do far more than others
    taste: float = 0.4  # nats, standard deviation of each rater's own score of each item
    position: float = 0.3  # nats in favour of the left side, on average
    habit: float = 0.3  # nats, standard deviation of that between raters
    length: float = 0.4  # nats for each unit by which the left answer is longer
    prompts: int = 200
    careless: float = 0.0  # share of raters who answer at random


def simulate(crowd: Crowd, *, seed: int) -> list[PairVote]:
    """Votes in random order of items and sides; `style` is (length difference,), standard normal."""
    random = np.random.default_rng(seed)
    K, votes = len(crowd.scores), []
    cuts = np.array(crowd.cuts)
    for r in range(crowd.raters):
        n = max(2, round(crowd.votes_each * float(np.exp(random.normal(0, crowd.votes_spread)))))
        score = np.array(crowd.scores) + random.normal(0, crowd.taste, K)
        position = random.normal(crowd.position, crowd.habit)
        attention = float(random.random() >= crowd.careless)
        left = random.integers(K, size=n)
        right = (left + random.integers(1, K, size=n)) % K
        z = random.normal(size=n)
        d = attention * (score[left] - score[right] + position + crowd.length * z) + random.logistic(size=n)
        size = np.searchsorted(cuts, np.abs(d)) if len(cuts) else np.ones(n, dtype=int)
        level = (np.sign(d) * size).astype(int)
        unit = random.integers(crowd.prompts, size=n)
        votes += [PairVote(f"m{a}", f"m{b}", g, f"simulated:{r:04d}", f"q{u}", (x,)) for a, b, g, u, x in
                  zip(left.tolist(), right.tolist(), level.tolist(), unit.tolist(), z.tolist(), strict=True)]
    return votes


def measure(votes: list[PairVote], *, variance: str = "jackknife", by_unit: bool = False) -> dict[str, Interval]:
    """The intervals under test, by name: scores, one difference, position, length, and the win rate of m0 over m1."""
    fit = ordered_scores(votes, style=("length",), variance=variance, by_unit=by_unit)
    assert fit.position is not None
    out = {f"score {name}": fit.scores[name] for name in sorted(fit.scores)}
    out |= {"m0 - m1": fit.difference("m0", "m1"), "position": fit.position, "length": fit.style["length"]}
    return out | {"win rate m0, m1": people_win_rate(votes, "m0", "m1", variance=variance, by_unit=by_unit).rate}


class Covered(NamedTuple):
    share: Interval  # runs whose interval held the truth, of all runs
    truth: float
    bias: float  # mean estimate - truth
    half_width: float  # mean


def coverage(crowd: Crowd, *, runs: int, seed: int, variance: str = "jackknife", by_unit: bool = False,
             large: int = 3000, measure: Callable[..., dict[str, Interval]] = measure) -> dict[str, Covered]:
    """How often each interval of `measure` holds the truth, over `runs` crowds drawn like `crowd`.

    large: raters of the crowd that stands for the truth.  About 40 ms a run for 20 raters of 50 votes.
    """
    interval_of = partial(measure, variance=variance, by_unit=by_unit)
    everybody = simulate(replace(crowd, raters=large), seed=seed)
    truth = {name: interval.estimate for name, interval in measure(everybody, variance="sandwich").items()}
    seen: dict[str, list[Interval]] = {name: [] for name in truth}
    for run in range(1, runs + 1):
        for name, interval in interval_of(simulate(crowd, seed=seed + run)).items():
            seen[name].append(interval)
    return {
        name: Covered(wilson(sum(not i.excludes(truth[name]) for i in intervals), runs), truth[name],
                      float(np.mean([i.estimate for i in intervals])) - truth[name],
                      float(np.mean([i.high - i.low for i in intervals])) / 2)
        for name, intervals in seen.items()
    }


def coverage_table(found: dict[str, Covered]) -> str:
    """The result of `coverage` as a table to print."""
    lines = [f"{'':<18}{'covered':>8}{'truth':>8}{'bias':>8}{'+-':>7}"]
    lines += [f"{name:<18}{c.share.estimate:>8.1%}{c.truth:>8.3f}{c.bias:>+8.3f}{c.half_width:>7.3f}"
              for name, c in found.items()]
    return "\n".join(lines)
