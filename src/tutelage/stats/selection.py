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

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from tutelage.stats.intervals import Interval, mean_interval

METHODS = ("random", "d-optimal", "uncertainty")
RANDOM_SHARE = 0.2


class Pick(NamedTuple):
    index: int  # row of the candidates
    arm: str  # "random": drawn from all; "active": chosen


class ArmReport(NamedTuple):
    difference: Interval  # accuracy of active - accuracy of random, paired by seed
    better: bool  # True where the interval lies above 0
    text: str


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
    out = mean_interval(a - r)
    figures = f"{out.estimate:+.1%} ({out.low:+.1%} to {out.high:+.1%}, {len(a)} seeds, {labels} labels)"
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
