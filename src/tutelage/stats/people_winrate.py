"""How often people prefer A to B, with an interval that knows that many votes of one person are not so many people.

Rate = the mean of two rates, with A on the left and with A on the right, so that a liking for a side cancels even where the
sides are not balanced; a tie is half.  It is the intercept of a least-squares fit of the score on +1 (A left) or -1 (A
right), and the interval is that fit's, clustered by rater (`stats.clustered`), Student's t with raters - 1 degrees.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tutelage.stats.clustered import covariance
from tutelage.stats.intervals import Interval, cluster_index, wilson
from tutelage.stats.votes import PairVote, check_votes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleWinRate:
    rate: Interval  # of A over B, sides balanced
    raw: float  # (wins + ties / 2) / all, as the votes came
    left_bonus: float | None  # added to the rate by standing on the left, taken off by standing on the right; None: unknown
    wins: int
    ties: int
    losses: int
    raters: int
    notes: tuple[str, ...]


def people_win_rate(votes: Iterable[PairVote], a: str, b: str, *, by_unit: bool = False, level: float = 0.95,
                    variance: str = "jackknife") -> PeopleWinRate:
    """Win rate of item a over item b; votes on other items are passed over."""
    votes = [v for v in check_votes(votes) if {v.left, v.right} == {a, b}]
    if not votes:
        raise ValueError(f"no vote compares {a!r} with {b!r}")
    side = np.array([1.0 if v.left == a else -1.0 for v in votes])
    score = np.array([0.5 + 0.5 * s * np.sign(v.level) for s, v in zip(side, votes, strict=True)])
    raters = len({v.rater for v in votes})
    both = len(set(side)) == 2
    x = np.stack([np.ones(len(votes)), side], axis=1) if both else np.ones((len(votes), 1))
    H = x.T @ x
    point = np.linalg.solve(H, x.T @ score)
    notes: tuple[str, ...] = ()
    if not both:
        where = "left" if side[0] > 0 else "right"
        notes = (f"{a} stood on the {where} every time: a liking for that side is in the rate",)
    if np.ptp(score) == 0:
        rate = wilson(score[0] * raters, raters, level=level)
        notes += ("all votes are the same: Wilson's interval, each rater one vote",)
    else:
        cluster = covariance(x * (score - x @ point)[:, None], H, lambda rows: x[rows].T @ x[rows],
                             cluster_index(v.rater for v in votes),
                             cluster_index(v.unit for v in votes) if by_unit else None, variance=variance)
        half = float(stats.t.ppf(0.5 + level / 2, cluster.df) * np.sqrt(cluster.covariance_PP[0, 0]))
        middle = float(np.clip(point[0], 0, 1))  # a straight line may leave [0, 1] by rounding
        rate = Interval(estimate=middle, low=max(0.0, middle - half), high=min(1.0, middle + half), n=cluster.clusters,
                        level=level)
        notes += cluster.notes
    return PeopleWinRate(rate=rate, raw=float(score.mean()), left_bonus=float(point[1]) if both else None,
                         wins=int((score == 1).sum()), ties=int((score == 0.5).sum()), losses=int((score == 0).sum()),
                         raters=raters, notes=notes)
