"""Which pairs to ask people about next, from vectors of a reward model.

A pair's x = features(a) - features(b) and p = sigma(score(a) - score(b)); with a linear last layer a label on it adds
p (1 - p) x x' to the information H about that layer.  D-optimal: take the pair that raises log det H most, again and again
(Chaloner and Verdinelli 1995; for preferences Shen et al. 2025, https://arxiv.org/abs/2502.04354):

    gain = log(1 + w x' H^-1 x),   w = p (1 - p)               (matrix determinant lemma)
    H^-1 <- H^-1 - w (H^-1 x)(H^-1 x)' / (1 + w x' H^-1 x)     (Sherman and Morrison 1950)

A share of the questions (20 %) is drawn at random *first*, from all candidates: only those give unbiased win rates, and only
by them can it be told whether choosing pays.  Uncertainty sampling (largest w) stands here for comparison and is no default:
where many pairs are alike it asks the same thing over and over.  N = candidates, D = features.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import norm

from tutelage.stats.intervals import Interval, cluster_index, mean_interval

METHODS = ("random", "d-optimal", "uncertainty")
RANDOM_SHARE = 0.2
LEAST_RANDOM, LEAST_ACTIVE = 20, 10  # labels of each arm, for `gain_over_random`
FOLDS, REPEATS, REPLICATES = 5, 20, 100


class Pick(NamedTuple):
    index: int  # row of the candidates
    arm: str  # "random": drawn from all; "active": chosen


class ArmReport(NamedTuple):
    difference: Interval  # accuracy of active - accuracy of random, paired by seed or by held-out pair
    better: bool  # True where the interval lies above 0
    text: str


def scaled(x_ND: ArrayLike) -> NDArray:
    """Columns divided by their root mean square and by sqrt(D), so that a row's squared length is 1 in the mean: hidden states
    have a few huge columns, and the prior is the same for all."""
    x = np.asarray(x_ND, dtype=np.float64)
    size = np.sqrt((x**2).mean(axis=0))
    return x / np.where(size > 0, size, 1.0) / np.sqrt(x.shape[1])


def fit_head(x_ND: ArrayLike, better_N: ArrayLike, *, prior: float = 1.0) -> NDArray:
    """(D,) weights w of P(a better) = sigma(w . x), x = features(a) - features(b): Bradley and Terry with scores linear in the
    features, most probable under a normal prior of precision `prior`; Newton's method.  better_N: 1, 0, or 1/2 for a tie."""
    x, better = np.asarray(x_ND, dtype=np.float64), np.asarray(better_N, dtype=np.float64)
    if 0 < len(x) < x.shape[1]:  # the solution lies in the span of the rows, where the system is small
        span_DN = np.linalg.qr(x.T)[0]
        return span_DN @ fit_head(x @ span_DN, better, prior=prior)
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = expit(x @ w)
        step = np.linalg.solve(prior * np.eye(len(w)) + (x * (p * (1 - p))[:, None]).T @ x, x.T @ (better - p) - prior * w)
        w += step / max(1.0, float(np.abs(x @ step).max(initial=0.0)) / 2)  # no margin moves by more than 2 nats at once
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    return w


def right(margin_N: ArrayLike, better_N: ArrayLike) -> NDArray:
    """(N,) 1 where the sign of the margin is that of the label, 1/2 where the margin is 0."""
    said = np.sign(np.asarray(better_N, dtype=np.float64) - 0.5)
    return 0.5 + 0.5 * np.sign(np.asarray(margin_N, dtype=np.float64)) * said


def choose(x_ND: ArrayLike, margin_N: ArrayLike, count: int, *, seed: int, method: str = "random",
           random_share: float = RANDOM_SHARE, prior: float = 1.0, asked_x: ArrayLike | None = None,
           asked_margin: ArrayLike | None = None) -> list[Pick]:
    """`count` candidates to ask, in random order.  Same arguments, same answer.

    margin_N: score(a) - score(b), nats.  prior: H starts as prior * identity.
    asked_x, asked_margin: pairs that already have labels; D-optimal looks elsewhere.
    random_share: at least one question, even where it rounds to none; 1.0 is what "random" does.
    """
    x, margin = np.asarray(x_ND, dtype=np.float64), np.asarray(margin_N, dtype=np.float64)
    _check(x, margin, method)
    if not 0 <= count <= len(x):
        raise ValueError(f"cannot choose {count} of {len(x)} candidates")
    if not 0 < random_share <= 1:
        raise ValueError(f"the random arm is always on: random_share must be in (0, 1]; got {random_share}")
    random = np.random.default_rng(seed)
    control = count if method == "random" else min(count, max(1, round(random_share * count)))
    drawn = random.permutation(len(x))[:control]
    weight = expit(margin) * expit(-margin)
    picks = [Pick(int(i), "random") for i in drawn]
    if count > control:
        inverse = np.eye(x.shape[1]) / prior
        if asked_x is not None and asked_margin is not None:
            ax, am = np.asarray(asked_x, dtype=np.float64), np.asarray(asked_margin, dtype=np.float64)
            _check(ax, am, method)
            inverse = np.linalg.inv(information(ax, am, prior=prior))
        for i in drawn:  # the control arm informs too
            inverse = _learn(inverse, x[i], float(weight[i]))
        free = np.ones(len(x), dtype=bool)
        free[drawn] = False
        chosen = (_most_uncertain(weight, free, count - control) if method == "uncertainty"
                  else _d_optimal(x, weight, free, inverse, count - control))
        picks += [Pick(i, "active") for i in chosen]
    # Shuffled, so that nobody can tell the arms apart by when a question comes.
    return [picks[k] for k in random.permutation(len(picks))]


def information(x_ND: ArrayLike, margin_N: ArrayLike, *, prior: float = 1.0) -> NDArray:
    """(D, D) Fisher information of labels on these pairs, with the prior."""
    x, margin = np.asarray(x_ND, dtype=np.float64), np.asarray(margin_N, dtype=np.float64)
    return prior * np.eye(x.shape[1]) + (x * (expit(margin) * expit(-margin))[:, None]).T @ x


def log_det_gain(x_ND: ArrayLike, margin_N: ArrayLike, picks: Sequence[Pick], *, prior: float = 1.0) -> float:
    """Nats by which labels on the picks raise log det of the information: twice what the model is expected to learn."""
    x, margin = np.asarray(x_ND, dtype=np.float64), np.asarray(margin_N, dtype=np.float64)
    rows = [pick.index for pick in picks]
    return float(np.linalg.slogdet(information(x[rows], margin[rows], prior=prior))[1] - x.shape[1] * np.log(prior))


def arm_report(active: ArrayLike, random: ArrayLike, *, labels: int) -> ArmReport:
    """Did choosing pay?  Held-out accuracies of both arms at equal labels, paired by seed, three seeds or more."""
    a, r = np.asarray(active, dtype=np.float64), np.asarray(random, dtype=np.float64)
    if a.shape != r.shape or a.ndim != 1 or len(a) < 3:
        raise ValueError(f"both arms need one accuracy a seed, three seeds or more; got {a.shape} and {r.shape}")
    return _verdict(mean_interval(a - r), f"{len(a)} seeds, {labels} labels")


def gain_over_random(x_ND: ArrayLike, better_N: ArrayLike, active_N: ArrayLike, groups: Sequence[Hashable], *, seed: int,
                     prior: float = 1.0, level: float = 0.95) -> ArmReport:
    """Did choosing pay, by the labels that have come?  ValueError where they are too few to tell.

    Labels of the random arm are held out, a fold of groups at a time; one head learns from n active labels, another from n of the
    other random ones, n as large as both arms allow, and the held-out pairs tell which head is right more often: the mean of
    REPEATS draws.  The interval is normal, with the variance over REPLICATES samples of whole groups with replacement (Efron 1979):
    it knows that other labels to learn from would have given other heads.  It is somewhat too wide rather than too narrow.
    """
    x, better, active = np.asarray(x_ND, dtype=np.float64), np.asarray(better_N, dtype=np.float64), np.asarray(active_N, dtype=bool)
    use = better != 0.5  # ties have no right side
    arms = [np.flatnonzero(use & active), np.flatnonzero(use & ~active)]
    if len(arms[1]) < LEAST_RANDOM or len(arms[0]) < LEAST_ACTIVE:
        raise ValueError(f"too early to tell: {len(arms[0])} labels on chosen and {len(arms[1])} on random pairs with features; wanted "
                         f"{LEAST_ACTIVE} and {LEAST_RANDOM} or more")
    random, group = np.random.default_rng(seed), cluster_index(groups)
    members = [[rows[group[rows] == g] for g in np.unique(group[rows])] for rows in arms]
    if len(members[1]) < FOLDS or len(members[0]) < 2:
        raise ValueError(f"too early to tell: the random pairs are of {len(members[1])} prompts; wanted {FOLDS} or more")
    once = lambda rows: _gain_once(x, better, group, rows, random, prior)
    draws = [once(arms) for _ in range(REPEATS)]
    draw = lambda sets: np.concatenate([sets[i] for i in random.integers(len(sets), size=len(sets))])
    between = np.var([once([draw(sets) for sets in members]) for _ in range(REPLICATES)], ddof=1)
    within = np.var(draws, ddof=1)  # of drawing folds and labels alone, which stands in `between` too, and once in REPEATS in the mean
    gain, spread = float(np.mean(draws)), float(np.sqrt(max(between - within, 0.0) + within / REPEATS))
    half = float(norm.ppf(0.5 + level / 2)) * spread
    out = Interval(estimate=gain, low=gain - half, high=gain + half, n=len(members[1]), level=level)
    labels = min(len(arms[0]), len(arms[1]) * (FOLDS - 1) // FOLDS)
    return _verdict(out, f"{len(arms[1])} held-out pairs, {labels} labels each")


def _gain_once(x: NDArray, better: NDArray, group: NDArray, arms: Sequence[NDArray], random: np.random.Generator, prior: float) -> float:
    """Accuracy of the active head minus that of the random one on held-out rows of the random arm, over all folds."""
    fold = random.permutation(group.max() + 1) % FOLDS
    gain = 0.0
    for k in range(FOLDS):
        held = arms[1][fold[group[arms[1]]] == k]
        others = [rows[fold[group[rows]] != k] for rows in arms]  # no group is learned from and held out
        n = min(map(len, others))
        if len(held) and n:
            by_active, by_random = (right(x[held] @ fit_head(x[rows], better[rows], prior=prior), better[held]).sum()
                                    for rows in (random.permutation(each)[:n] for each in others))
            gain += by_active - by_random
    return gain / len(arms[1])


def _verdict(out: Interval, of: str) -> ArmReport:
    figures = f"{100 * out.estimate:+.1f} points of accuracy ({100 * out.low:+.1f} to {100 * out.high:+.1f}; {of})"
    if out.low > 0:
        return ArmReport(out, True, f"choosing beats random: {figures}")
    worse = "random beats choosing" if out.high < 0 else "choosing does not beat random"
    return ArmReport(out, False, f"{worse}: {figures}; leave the default on random")


def _d_optimal(x: NDArray, weight: NDArray, free: NDArray, inverse: NDArray, count: int) -> list[int]:
    # x' H^-1 x is kept for all candidates and updated, O(N D) a pick.
    spread, chosen = np.einsum("nd,de,ne->n", x, inverse, x), []
    free = free.copy()
    for _ in range(count):
        i = int(np.argmax(np.where(free, weight * spread, -1.0)))
        along = x @ (inverse @ x[i])
        spread = np.maximum(spread - weight[i] * along**2 / (1 + weight[i] * along[i]), 0.0)
        inverse = _learn(inverse, x[i], float(weight[i]))
        free[i] = False
        chosen.append(i)
    return chosen


def _learn(inverse: NDArray, x: NDArray, weight: float) -> NDArray:
    v = inverse @ x
    return inverse - weight * np.outer(v, v) / (1 + weight * float(x @ v))


def _most_uncertain(weight: NDArray, free: NDArray, count: int) -> list[int]:
    order = np.argsort(-weight, kind="stable")
    return [int(i) for i in order if free[i]][:count]


def _check(x: NDArray, margin: NDArray, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if x.ndim != 2 or margin.shape != (len(x),):
        raise ValueError(f"features are (N, D) and margins (N,); got {x.shape} and {margin.shape}")
    for name, values in (("features", x), ("margins", margin)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite; row {int(np.argwhere(~np.isfinite(values))[0][0])} (from 0) is not")
