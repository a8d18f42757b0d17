"""Scores of items from graded pairs: one ordered logit for 7 levels, 4 levels, win / tie / loss, and plain wins.

    P(Y <= k) = sigma(c_k - d),   d = score[left] - score[right] + position + style . z

(McCullagh 1980; graded pairs with symmetric cuts c_{-k-1} = -c_k: Agresti 1992, Applied Statistics 41:287-297.)  Without
ties and grades it is Bradley-Terry; with ties and no grades it is Rao and Kupper 1967.  `position` above 0 means that the
left side is liked for being left.  The log-likelihood is concave in scores and cuts together (Pratt 1981), so Newton's
method with halved steps finds its one maximum.  Covariances: `stats.clustered`.  Rank intervals: all differences to the other
items at once, Bonferroni (the idea of Mogstad, Romano, Shaikh and Wilhelm; a review: https://arxiv.org/abs/2401.15205).

N = votes, K = items, F = free cuts, P = K - 1 + position + style + F parameters.

Departures:
1. A ridge of 0.01 / 2 |parameters|^2 (cuts not), as if each score had a normal prior of standard deviation 10 nats: it moves
   nothing where there are data and keeps an item that never lost finite.
2. Grades that nobody used are left out of the scale, so an unused "tie" makes a scale without ties.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.linalg import helmert
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from tutelage.stats.clustered import covariance
from tutelage.stats.intervals import Interval, cluster_index
from tutelage.stats.votes import PairVote, check_votes

RIDGE = 0.01
MOST_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrderedFit:
    """Scores in nats, mean 0; a difference of 1 makes a win against a loss (no tie) e times likelier."""

    scores: dict[str, Interval]  # best first
    ranks: dict[str, tuple[int, int]]  # first and last place that the data allow, 1 = best; each item at `level`
    position: Interval | None  # nats in favour of the left side; None where not asked for
    style: dict[str, Interval]  # nats for one unit of left minus right of the feature as given
    cuts: dict[str, float]  # "0|1": where a tie turns into "slightly better", on the scale of score differences
    covariance_KK: NDArray  # of the scores, in the order of `scores`
    df: int
    level: float
    votes: int
    raters: int
    log_likelihood: float  # without the ridge
    notes: tuple[str, ...]

    def difference(self, a: str, b: str) -> Interval:
        """score[a] - score[b]."""
        names = list(self.scores)
        i, j, V = names.index(a), names.index(b), self.covariance_KK
        return _interval(self.scores[a].estimate - self.scores[b].estimate, V[i, i] + V[j, j] - 2 * V[i, j],
                         self.df, self.level, self.scores[a].n)


def ordered_scores(votes: Iterable[PairVote], *, position: bool = True, style: Sequence[str] = (), by_unit: bool = False,
                   ridge: float = RIDGE, level: float = 0.95, variance: str = "jackknife") -> OrderedFit:
    """Fit the model.

    style: names of the features that the votes carry, to be taken into account; the default leaves them aside.
    by_unit: cluster by prompt as well as by rater, where both repeat.
    """
    votes = check_votes(votes)
    design = make_design(votes, position=position, style=style, ridge=ridge)
    point = maximise(design)
    cluster = covariance(design.scores_of(point), design.information(point), lambda rows: design.information(point, rows),
                         cluster_index(v.rater for v in votes), cluster_index(v.unit for v in votes) if by_unit else None,
                         variance=variance)
    K = len(design.items)
    scale_P = np.concatenate([np.ones(K - 1 + position), 1 / design.style_scale, np.ones(design.cuts)])
    point_P, V_PP = point * scale_P, cluster.covariance_PP * np.outer(scale_P, scale_P)
    score_K, V_KK = design.basis @ point_P[: K - 1], design.basis @ V_PP[: K - 1, : K - 1] @ design.basis.T
    order = np.argsort(-score_K, kind="stable")
    intervals = [_interval(x, v, cluster.df, level, cluster.clusters) for x, v in zip(point_P, np.diag(V_PP), strict=True)]
    first_style = K - 1 + position
    return OrderedFit(
        scores={design.items[k]: _interval(score_K[k], V_KK[k, k], cluster.df, level, cluster.clusters) for k in order},
        ranks=_ranks([design.items[k] for k in order], score_K[order], V_KK[np.ix_(order, order)], cluster.df, level),
        position=intervals[K - 1] if position else None,
        style=dict(zip(style, intervals[first_style: first_style + len(style)], strict=True)),
        cuts=dict(zip(design.cut_names, (float(c) for c in point_P[len(point_P) - design.cuts:]), strict=True)),
        covariance_KK=V_KK[np.ix_(order, order)], df=cluster.df, level=level, votes=len(votes),
        raters=len({v.rater for v in votes}), log_likelihood=design.log_likelihood(point),
        notes=(*cluster.notes, *_warnings(votes, design, position)),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """The votes as numbers.  Parameters: K - 1 contrasts of scores, position, style (scaled to root mean square 1), cuts."""

    items: tuple[str, ...]
    basis: NDArray  # (K, K - 1), orthonormal, columns sum to 0: scores = basis @ contrasts
    x_ND: NDArray  # D = P - F
    low_N: NDArray  # row of cut_LF below the category of each vote
    cut_LF: NDArray  # cuts = cut_LF @ free cuts, first and last row stand for -inf and inf
    cut_names: tuple[str, ...]
    style_scale: NDArray
    weight_N: NDArray  # 0 = as if the vote were not there
    ridge_P: NDArray

    @property
    def cuts(self) -> int:
        return self.cut_LF.shape[1]

    def edges(self, point: NDArray, rows: NDArray | slice = slice(None)) -> tuple[NDArray, NDArray, NDArray]:
        """(lower cut, upper cut, d) of each vote, or of some."""
        D = self.x_ND.shape[1]
        cut_L = self.cut_LF @ point[D:]
        cut_L[0], cut_L[-1] = -np.inf, np.inf
        return cut_L[self.low_N[rows]], cut_L[self.low_N[rows] + 1], self.x_ND[rows] @ point[:D]

    def log_likelihood(self, point: NDArray) -> float:
        """-inf where cuts are out of order."""
        low, up, d = self.edges(point)
        if not (up > low).all():
            return -np.inf
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^(b - a)): exact in both tails
        return float(self.weight_N @ (log_expit(up - d) + log_expit(d - low) + np.log1p(-np.exp(low - up))))

    def penalised(self, point: NDArray) -> float:
        return self.log_likelihood(point) - float(self.ridge_P @ point**2) / 2

    def scores_of(self, point: NDArray) -> NDArray:
        """(N, P) gradient of each vote's log-likelihood."""
        low, up, d = self.edges(point)
        above, below, h = expit(d - up), expit(low - d), 1 / np.expm1(up - low)
        cut_NF = (above + h)[:, None] * self.cut_LF[self.low_N + 1] - (below + h)[:, None] * self.cut_LF[self.low_N]
        return self.weight_N[:, None] * np.hstack([(below - above)[:, None] * self.x_ND, cut_NF])

    def information(self, point: NDArray, rows: NDArray | None = None) -> NDArray:
        """(P, P) minus the Hessian: of everything and the ridge, or of some votes alone."""
        picked = slice(None) if rows is None else rows
        low, up, d = self.edges(point, picked)
        f_up, f_low, h = expit(up - d) * expit(d - up), expit(low - d) * expit(d - low), 1 / np.expm1(up - low)
        x, row = self.x_ND[picked], self.low_N[picked]
        up_NP, low_NP = np.hstack([-x, self.cut_LF[row + 1]]), np.hstack([-x, self.cut_LF[row]])
        H = np.diag(self.ridge_P) if rows is None else 0.0
        for side, f in ((up_NP, f_up), (low_NP, f_low), (up_NP - low_NP, h * (1 + h))):
            H = H + (side * (self.weight_N[picked] * f)[:, None]).T @ side
        return H


def make_design(votes: Sequence[PairVote], *, position: bool, style: Sequence[str], ridge: float) -> Design:
    """ValueError where there is nothing to fit."""
    items = tuple(sorted({v.left for v in votes} | {v.right for v in votes}))
    sizes = sorted({abs(v.level) for v in votes})
    if len(items) < 2 or sizes == [0]:
        raise ValueError(f"scores need votes that prefer something: got {len(votes)} votes on {len(items)} items"
                         + (", all of them ties" if sizes == [0] else ""))
    if ridge <= 0:
        raise ValueError(f"ridge must be above 0 (1e-9 is next to none); got {ridge}")
    tied = sizes[0] == 0
    categories = {c: k for k, c in enumerate(sorted({s * z for z in sizes for s in (1, -1)}))}
    F = len(sizes) - 1
    # Inner cuts, from the lowest: -c_F ... -c_1 (0, where there is no tie) c_1 ... c_F.
    upper = np.eye(F)
    middle = np.zeros((0 if tied else 1, F))
    edge = np.zeros((1, F))
    basis = helmert(len(items)).T
    place = {item: k for k, item in enumerate(items)}
    x = basis[[place[v.left] for v in votes]] - basis[[place[v.right] for v in votes]]
    z = np.array([v.style[: len(style)] for v in votes], dtype=np.float64) if style else np.zeros((len(votes), 0))
    if z.ndim != 2 or z.shape[1] != len(style):
        raise ValueError(f"every vote must carry {len(style)} style differences ({', '.join(style)})")
    scale = np.sqrt((z**2).mean(axis=0))
    if (scale == 0).any():
        raise ValueError(f"style feature {style[int(np.argmin(scale))]!r} never differs; leave it out")
    columns = [x] + ([np.ones((len(votes), 1))] if position else []) + [z / scale]
    x_ND = np.hstack(columns)
    return Design(
        items=items, basis=basis, x_ND=x_ND, low_N=np.array([categories[v.level] for v in votes]),
        cut_LF=np.vstack([edge, -upper[::-1], middle, upper, edge]),
        cut_names=tuple(f"{a:g}|{b:g}" for a, b in zip(sizes, sizes[1:], strict=False)), style_scale=scale,
        weight_N=np.ones(len(votes)), ridge_P=np.concatenate([np.full(x_ND.shape[1], ridge), np.zeros(F)]),
    )


def maximise(design: Design, start: NDArray | None = None) -> NDArray:
    """The (P,) parameters at the maximum.  A point of the same design with other weights is a good start."""
    if start is None:
        # Scores 0 and cuts where the grades would fall if all items were equal; (i + 1) keeps them apart where grades are rare.
        start = np.concatenate([np.zeros(design.x_ND.shape[1]), 0.5 * (np.arange(design.cuts) + 1)])
    point, value = start, design.penalised(start)
    for _ in range(MOST_STEPS):
        gradient = design.scores_of(point).sum(axis=0) - design.ridge_P * point
        step = np.linalg.solve(design.information(point), gradient)
        gain = float(gradient @ step)  # twice what is still to be won, in nats
        if gain < 1e-18:
            return point + step
        # So close to the maximum a whole step is right, and a difference of likelihoods would be rounding.
        size, after = 1.0, value
        while gain > 1e-8 and (after := design.penalised(point + size * step)) < value:
            size /= 2
        point, value = point + size * step, after
    raise ValueError(f"no convergence in {MOST_STEPS} Newton steps; a larger ridge steadies the fit "
                     f"(now {design.ridge_P.max():g})")


def _interval(estimate: float, variance: float, df: int, level: float, n: int) -> Interval:
    half = float(stats.t.ppf(0.5 + level / 2, df)) * float(np.sqrt(max(variance, 0.0)))
    return Interval(estimate=float(estimate), low=float(estimate) - half, high=float(estimate) + half, n=n, level=level)


def _ranks(names: list[str], score_K: NDArray, V_KK: NDArray, df: int, level: float) -> dict[str, tuple[int, int]]:
    K = len(names)
    t = float(stats.t.ppf(1 - (1 - level) / (2 * (K - 1)), df))
    var_K = np.diag(V_KK)
    half_KK = t * np.sqrt(np.clip(var_K[:, None] + var_K[None, :] - 2 * V_KK, 0, None))
    better_KK = score_K[:, None] - score_K[None, :] > half_KK  # row surely above column
    return {name: (1 + int(better_KK[:, k].sum()), K - int(better_KK[k].sum())) for k, name in enumerate(names)}


def _warnings(votes: Sequence[PairVote], design: Design, position: bool) -> list[str]:
    """What the ridge alone decides, in words."""
    place, K = {item: k for k, item in enumerate(design.items)}, len(design.items)
    over = np.zeros((K, K))
    for v in votes:
        a, b = place[v.left], place[v.right]
        over[a, b] += v.level >= 0
        over[b, a] += v.level <= 0
    notes = []
    for kind, what in (("weak", "never compared with each other, even through others"),
                       ("strong", "one won every time against the other; the size of the gap is the prior's, not the data's")):
        count, group = connected_components(over > 0, directed=True, connection=kind)
        if count > 1:
            groups = [[item for item, g in zip(design.items, group, strict=True) if g == k] for k in range(count)]
            notes.append(f"groups {groups}: {what}")
            break
    D = design.x_ND.shape[1]
    if not notes and np.linalg.matrix_rank(design.x_ND) < D:
        blame = "position and scores: some item stood on one side every time" if position else "style and scores"
        notes.append(f"the votes cannot tell apart {blame}; shuffle sides")
    return notes


class Fragility(NamedTuple):
    first: str
    rival: str | None  # who would be first; None where `votes` is None
    votes: int | None  # so few votes, dropped, put the rival first (an upper bound); None = not within the limit
    share: float  # of all votes; of the limit where votes is None
    dropped: tuple[int, ...]  # which: their numbers in the order given

    def __str__(self) -> str:
        if self.votes is None:
            return f"{self.first} stays first whichever {self.share:.0%} of the votes are dropped, as far as was found"
        return f"dropping {self.votes} votes ({self.share:.2%}) would put {self.rival} before {self.first}"


def fragility(votes: Iterable[PairVote], *, position: bool = True, style: Sequence[str] = (), ridge: float = RIDGE,
              most: float = 0.2) -> Fragility:
    """How few votes, dropped, change who is first (Huang et al. 2025, https://arxiv.org/abs/2508.11847).

    The votes that hold the leader up most by their influence (Broderick, Giordano and Meager 2020,
    https://arxiv.org/abs/2011.14999) go first, a few at a time with a new fit in between: the recursive greedy form, which
    found what others missed (https://arxiv.org/abs/2408.09008).
    most: the share of votes to try up to.
    """
    votes = check_votes(votes)
    design = make_design(votes, position=position, style=style, ridge=ridge)
    point = maximise(design)
    score_K = design.basis @ point[: len(design.items) - 1]
    first, limit = int(np.argmax(score_K)), max(1, int(most * len(votes)))
    best: tuple[int, NDArray] | None = None
    for rival in np.argsort(-score_K, kind="stable"):
        if rival != first:
            dropped = _drop_until(design, point, first, int(rival), limit if best is None else len(best[1]) - 1)
            best = best if dropped is None else (int(rival), dropped)
    leader = design.items[first]
    if best is None:
        return Fragility(leader, None, None, limit / len(votes), ())
    return Fragility(leader, design.items[best[0]], len(best[1]), len(best[1]) / len(votes), tuple(sorted(map(int, best[1]))))


def _drop_until(design: Design, point: NDArray, first: int, rival: int, limit: int) -> NDArray | None:
    """Votes whose loss puts `rival` above `first`, or None within `limit`."""
    contrast = np.zeros(len(point))
    contrast[: design.basis.shape[1]] = design.basis[first] - design.basis[rival]
    weight, dropped = design.weight_N, np.array([], dtype=np.int64)
    while len(dropped) < limit:
        here = replace(design, weight_N=weight)
        gap = float(contrast @ point)
        help_N = here.scores_of(point) @ np.linalg.solve(here.information(point), contrast)
        order = np.argsort(-help_N, kind="stable")
        falls = np.cumsum(help_N[order])
        if falls.max() <= 0:
            return None
        # Most of the way that the linear forecast asks for, at least one: it overshoots less, and is asked again.
        wanted = int(np.searchsorted(np.maximum.accumulate(falls), gap)) + 1
        if wanted > 2 * (limit - len(dropped)) + 10:
            return None
        take = order[: max(1, min(int(0.7 * wanted), limit - len(dropped)))]
        weight = weight.copy()
        weight[take] = 0.0
        dropped = np.concatenate([dropped, take])
        point = maximise(replace(design, weight_N=weight), point)
        if float(contrast @ point) < -1e-9:
            return dropped
    return None
