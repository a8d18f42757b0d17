"""Covariance of estimates when votes come in clusters: many votes of one person are not so many people.

With g_n the score (gradient of the log-likelihood) of vote n, H minus its Hessian summed over the votes, c a cluster:

    sandwich   H^-1 [ G/(G-1) sum_c g_c g_c' ] H^-1       Liang and Zeger 1986; "CV1" without its (N-1)/(N-k)
    jackknife  (G-1)/G sum_c d_c d_c',  d_c = (H - H_c)^-1 g_c    MacKinnon, Nielsen and Webb 2023,
               https://arxiv.org/abs/2301.04527 ("CV3"; Bell and McCaffrey 2002); for a likelihood that is not quadratic
               d_c is one Newton step instead of another fit: https://arxiv.org/abs/2406.00650 (their linearised jackknife)
    two-way    V_rater + (V_prompt - V_both)              Cameron, Gelbach and Miller 2011, eq. 2.11

Departure: in the two-way form negative eigenvalues of the bracket become 0 (they set those of the whole sum to 0), so that
prompts can widen an interval by raters and never narrow it.

The jackknife is the default up to 200 clusters: where people are few the sandwich is a little too narrow
(docs/stats-people.md has both measured).  Intervals take Student's t with G - 1 degrees of freedom.

N = votes, P = parameters, G = clusters.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

JACKKNIFE_UP_TO = 200  # clusters; beyond, the two agree and the sandwich is a hundred times faster
FEW_RATERS = 15


class Clustered(NamedTuple):
    covariance_PP: NDArray
    df: int
    clusters: int  # of the smallest clustering, usually the raters
    notes: tuple[str, ...] = ()


def one_way(score_NP: NDArray, information_PP: NDArray, information_of: Callable[[NDArray], NDArray], cluster_N: NDArray, *,
            jackknife: bool) -> NDArray:
    """(P, P).  information_of(rows) = minus the Hessian of those votes alone; cluster_N numbers the clusters from 0.

    LinAlgError where the jackknife cannot leave out a cluster, as without it nothing would be known of some parameter.
    """
    G = int(cluster_N.max()) + 1
    score_GP = np.zeros((G, score_NP.shape[1]))
    np.add.at(score_GP, cluster_N, score_NP)
    if jackknife:
        rows_G = [np.flatnonzero(cluster_N == g) for g in range(G)]
        moved_GP = np.stack([_solve(information_PP - information_of(rows), score, information_PP)
                             for rows, score in zip(rows_G, score_GP, strict=True)])
        return (G - 1) / G * moved_GP.T @ moved_GP
    moved_GP = np.linalg.solve(information_PP, score_GP.T).T
    return G / (G - 1) * moved_GP.T @ moved_GP


def _solve(rest_PP: NDArray, score_P: NDArray, all_PP: NDArray) -> NDArray:
    # What is left of the information in the direction that loses most, as a share of what there was.
    if scipy.linalg.eigh(rest_PP, all_PP, eigvals_only=True, subset_by_index=[0, 0])[0] < 1e-9:
        raise np.linalg.LinAlgError("singular without this cluster")
    return np.linalg.solve(rest_PP, score_P)


def covariance(score_NP: NDArray, information_PP: NDArray, information_of: Callable[[NDArray], NDArray],
               rater_N: NDArray, unit_N: NDArray | None = None, *, variance: str = "jackknife") -> Clustered:
    """Clustered by rater, or by rater and unit where unit_N is given.

    variance: "jackknife", "sandwich", or "votes" (every vote a cluster of its own: only to show what that gets wrong).
    """
    if variance not in ("jackknife", "sandwich", "votes"):
        raise ValueError(f'variance must be "jackknife", "sandwich" or "votes"; got {variance!r}')
    fallen_back: list[str] = []

    def one(cluster_N: NDArray) -> NDArray:
        if variance == "jackknife" and len(np.unique(cluster_N)) <= JACKKNIFE_UP_TO:
            try:
                return one_way(score_NP, information_PP, information_of, cluster_N, jackknife=True)
            except np.linalg.LinAlgError:
                fallen_back[:] = ["one rater or prompt alone tells about some part of the model: the plain sandwich stands in "
                                  "for the jackknife, and the interval may be too narrow"]
        return one_way(score_NP, information_PP, information_of, cluster_N, jackknife=False)

    if len(score_NP) < 2:
        raise ValueError("an interval needs 2 votes or more; got 1")
    votes_N = np.arange(len(score_NP))
    raters = len(np.unique(rater_N))
    if variance == "votes":
        return Clustered(one(votes_N), len(votes_N) - 1, len(votes_N), ("votes are taken as independent",))
    if raters == 1:
        note = "one rater only: the interval speaks of more votes of this person, not of people"
        if unit_N is not None and (units := len(np.unique(unit_N))) > 1:
            return Clustered(one(unit_N), units - 1, 1, (note, *fallen_back))
        return Clustered(one(votes_N), len(votes_N) - 1, 1, (note, *fallen_back))
    notes = (f"{raters} raters: below {FEW_RATERS} the interval is rough",) if raters < FEW_RATERS else ()
    if unit_N is None:
        return Clustered(one(rater_N), raters - 1, raters, (*notes, *fallen_back))
    units = len(np.unique(unit_N))
    if units == 1:
        return Clustered(one(rater_N), raters - 1, raters, (*notes, "one prompt only: not clustered by prompt"))
    both_N = np.unique(rater_N * (int(unit_N.max()) + 1) + unit_N, return_inverse=True)[1]
    values, vectors = np.linalg.eigh(one(unit_N) - one(both_N))
    total_PP = one(rater_N) + (vectors * np.clip(values, 0, None)) @ vectors.T
    return Clustered(total_PP, min(raters, units) - 1, min(raters, units), (*notes, *fallen_back))
