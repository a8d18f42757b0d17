"""How good each rater is, told from overlapping votes: expectation-maximisation of Dawid and Skene.

Dawid and Skene 1979 (Applied Statistics 28:20-28), eq. 2.3-2.5: the true class of a unit is unknown, rater w says l where j
is true with probability pi^w_jl.  The one-coin model ties pi^w to one accuracy a rater, wrong answers spread evenly
(Zhang, Chen, Zhou and Jordan 2016, JMLR 17:1-44); it is the better one below about 50 votes a rater.

U = units, K = classes, W = raters, N = votes.

Departures from the paper:
1. Pseudo-counts: each rater starts with `right` right and `wrong` wrong answers, each class with one unit, so a rater of
   three votes is neither perfect nor hopeless.  The result is a maximum a posteriori estimate.
2. The start is the share of votes a unit got, not random: same votes, same answer.  Where most raters are wrong in the
   same way, the model believes them; only gold items can tell.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp, xlogy

from tutelage.stats.intervals import Interval, cluster_index

MOST_ROUNDS = 2000


class LabelVote(NamedTuple):
    unit: Hashable
    rater: str
    label: Hashable  # of the unit ("a is better"), never of a side of the screen


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RaterModel:
    """What the votes say of units and raters together."""

    labels: tuple[Hashable, ...]  # the K classes
    posterior: dict[Hashable, NDArray]  # unit -> (K,) probability of each class
    accuracy: dict[str, float]  # rater -> chance to be right, classes weighted by how common they are
    confusion: dict[str, NDArray]  # rater -> (K, K), row = true class, column = what the rater said; rows sum to 1
    votes: dict[str, int]  # rater -> how many votes stand behind that
    class_share: NDArray  # (K,)
    rounds: int
    converged: bool
    note: str = ""

    def best(self, unit: Hashable) -> Hashable:
        """Most probable class; of equals the first in `labels`."""
        return self.labels[int(np.argmax(self.posterior[unit]))]


def one_coin(votes: Iterable[LabelVote], *, labels: Sequence[Hashable] | None = None, right: float = 2.0,
             wrong: float = 1.0, tolerance: float = 1e-9) -> RaterModel:
    """One accuracy a rater.  `labels`: all classes there are, where some may not occur among the votes."""
    def confusions(said_WKK: NDArray) -> NDArray:
        classes = said_WKK.shape[1]
        hits, all_ = np.trace(said_WKK, axis1=1, axis2=2), said_WKK.sum(axis=(1, 2))
        accuracy_W = (hits + right) / (all_ + right + wrong)
        wrong_W = (1 - accuracy_W) / (classes - 1)
        return wrong_W[:, None, None] + (accuracy_W - wrong_W)[:, None, None] * np.eye(classes)
    return _fit(votes, labels, confusions, right=right, wrong=wrong, tolerance=tolerance)


def dawid_skene(votes: Iterable[LabelVote], *, labels: Sequence[Hashable] | None = None, right: float = 2.0,
                wrong: float = 1.0, tolerance: float = 1e-9) -> RaterModel:
    """One confusion matrix a rater: also sees who never says "tie", or says "safe" to everything."""
    def confusions(said_WKK: NDArray) -> NDArray:
        classes = said_WKK.shape[1]
        prior = wrong / (classes - 1) + (right - wrong / (classes - 1)) * np.eye(classes)
        counts = said_WKK + prior
        return counts / counts.sum(axis=2, keepdims=True)
    return _fit(votes, labels, confusions, right=right, wrong=wrong, tolerance=tolerance)


def _fit(votes: Iterable[LabelVote], labels: Sequence[Hashable] | None, confusions: Callable[[NDArray], NDArray], *,
         right: float, wrong: float, tolerance: float) -> RaterModel:
    votes = list(votes)
    if not votes:
        raise ValueError("no votes came; a model of raters needs some")
    if right <= 0 or wrong <= 0:
        raise ValueError(f"right and wrong are pseudo-counts above 0, for instance 2 and 1; got {right} and {wrong}")
    seen = {vote.label for vote in votes}
    labels = tuple(labels) if labels is not None else tuple(sorted(seen, key=repr))
    if seen - set(labels):
        raise ValueError(f"votes carry labels that are not among {labels}: {sorted(seen - set(labels), key=repr)}")
    if len(labels) < 2:
        raise ValueError(f"every vote is {labels[0]!r}: with one class nobody can be told right from wrong; "
                         "give labels= with all the classes that there are")
    place = {label: k for k, label in enumerate(labels)}
    unit_N, rater_N = cluster_index(vote.unit for vote in votes), cluster_index(vote.rater for vote in votes)
    label_N = np.array([place[vote.label] for vote in votes])
    units, raters = list(dict.fromkeys(v.unit for v in votes)), list(dict.fromkeys(v.rater for v in votes))
    U, W, K = len(units), len(raters), len(labels)

    chance_UK = np.zeros((U, K))
    np.add.at(chance_UK, (unit_N, label_N), 1.0)
    chance_UK /= chance_UK.sum(axis=1, keepdims=True)
    converged, rounds = False, 0
    while not converged and rounds < MOST_ROUNDS:
        rounds += 1
        share_K = (chance_UK.sum(axis=0) + 1) / (U + K)
        said_WKK = np.zeros((W, K, K))  # how often w said l where j is thought true
        for j in range(K):
            np.add.at(said_WKK[:, j, :], (rater_N, label_N), chance_UK[unit_N, j])
        confusion_WKK = confusions(said_WKK)
        log_UK = np.tile(np.log(share_K), (U, 1))
        np.add.at(log_UK, unit_N, np.log(confusion_WKK)[rater_N, :, label_N])
        after_UK = np.exp(log_UK - logsumexp(log_UK, axis=1, keepdims=True))
        converged = float(np.abs(after_UK - chance_UK).max()) < tolerance
        chance_UK = after_UK
    accuracy_W = np.einsum("j,wjj->w", share_K, confusion_WKK)
    # Without overlap there is no second opinion: what comes out is the prior.
    alone = U == len(votes)
    note = "no unit has two votes, so nothing is known of the raters but the prior" if alone else ""
    return RaterModel(
        labels=labels, posterior=dict(zip(units, chance_UK, strict=True)), class_share=share_K,
        accuracy={w: float(a) for w, a in zip(raters, accuracy_W, strict=True)},
        confusion=dict(zip(raters, confusion_WKK, strict=True)),
        votes={w: int(n) for w, n in zip(raters, np.bincount(rater_N, minlength=W), strict=True)},
        rounds=rounds, converged=converged, note=note,
    )


def entropy(posterior_K: NDArray) -> float:
    """Nats of doubt left about a unit; 0 = certain."""
    return float(-xlogy(posterior_K, posterior_K).sum())


def gold_accuracy(right: int, n: int, *, prior: tuple[float, float] = (1.0, 1.0), level: float = 0.95) -> Interval:
    """Accuracy on items whose answer is known: mean and equal-tailed interval of the Beta(right + a, wrong + b) posterior.

    prior: (a, b); (1, 1) is flat.

    >>> out = gold_accuracy(9, 10)
    >>> round(out.estimate, 4), round(out.low, 4), round(out.high, 4)
    (0.8333, 0.5872, 0.9772)
    """
    after = _posterior(right, n, prior)
    low, high = (float(after.ppf(q)) for q in ((1 - level) / 2, (1 + level) / 2))
    # A mean may lie outside equal tails only in extreme cases (no wrong answers and a heavy prior); keep the record valid.
    mean = float(after.mean())
    return Interval(estimate=mean, low=min(low, mean), high=max(high, mean), n=n, level=level)


def chance_below(right: int, n: int, wanted: float, *, prior: tuple[float, float] = (1.0, 1.0)) -> float:
    """Posterior probability that the accuracy lies below `wanted`."""
    return float(_posterior(right, n, prior).cdf(wanted))


def _posterior(right: int, n: int, prior: tuple[float, float]):
    if not 0 <= right <= n or min(prior) <= 0:
        raise ValueError(f"0 <= right <= n and a prior above 0 are needed; got right = {right}, n = {n}, prior = {prior}")
    return stats.beta(right + prior[0], n - right + prior[1])
