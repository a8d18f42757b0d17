"""Picking among a prompt's answers: the best, the best and the worst, the top share; and what best-of-n is worth.

Best-of-n: Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325); its KL: Hilton 2023 and Beirami et al. 2024
(https://arxiv.org/abs/2401.01879); the estimator from more samples: Nakano et al. 2021 (https://arxiv.org/abs/2112.09332).

B = responses, P = pairs, G = prompts, N = samples of a prompt; group_B: the same number for responses to the same prompt.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Picked(NamedTuple):
    """Rows of the better and the worse answer of each pair."""

    chosen_P: Tensor  # int64, into the responses
    rejected_P: Tensor


def rank_in_group(score_B: Tensor, group_B: Tensor) -> Tensor:
    """int64 [B]: 0 for the best answer to its prompt, 1 for the next; of equal ones the earlier comes first."""
    at_B = torch.arange(len(score_B), device=score_B.device)
    same_BB = group_B[:, None] == group_B[None, :]
    higher_BB = score_B[None, :] > score_B[:, None]
    earlier_BB = (score_B[None, :] == score_B[:, None]) & (at_B[None, :] < at_B[:, None])
    return (same_BB & (higher_BB | earlier_BB)).sum(1)


def group_size(group_B: Tensor) -> Tensor:
    """int64 [B]: how many answers each response's prompt has."""
    _, at_B, count_G = torch.unique(group_B, return_inverse=True, return_counts=True)
    return count_G[at_B]


def best_of_group(score_B: Tensor, group_B: Tensor) -> Tensor:
    """bool [B], True for one answer a prompt: the best, of equal ones the first."""
    return rank_in_group(score_B, group_B) == 0


def top_of_group(score_B: Tensor, group_B: Tensor, *, share: float, threshold: float | None = None) -> Tensor:
    """bool [B], True for the best ceil(share x k) of a prompt's k answers, as far as they score at least `threshold`."""
    kept_B = (share * group_size(group_B).double() - 1e-9).ceil()  # 0.28 x 25 is 7.000000000000001 and means 7
    top_B = rank_in_group(score_B, group_B) < kept_B
    return top_B if threshold is None else top_B & (score_B >= threshold)


def best_and_worst(score_B: Tensor, group_B: Tensor) -> Picked:
    """A pair a prompt: its best and its worst answer; none where all are equal, since nothing was preferred."""
    rank_B = rank_in_group(score_B, group_B)
    last_B = group_size(group_B) - 1
    order_B = torch.argsort(group_B)  # both lists in the order of the groups; each has one answer of a group
    chosen_G, rejected_G = (order_B[mask_B[order_B]] for mask_B in (rank_B == 0, rank_B == last_B))
    differ_G = score_B[chosen_G] > score_B[rejected_G]
    return Picked(chosen_G[differ_G], rejected_G[differ_G])


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, nats: KL(best of n || one sample) is at most this, whatever the score.

    Equal to it where no two answers score alike and each is rare.

    >>> round(kl_bound(4), 4)
    0.6363
    """
    if n < 1:
        raise ValueError(f"n must be >= 1; got {n}")
    return math.log(n) - (n - 1) / n


def expected_best(score_GN: Tensor, k: int, *, worth_GN: Tensor | None = None) -> Tensor:
    """What the best of k answers scores on average, [G], unbiased, from N >= k samples of each prompt.

    The i-th smallest of N (from 1) is the best of k drawn without replacement with probability C(i - 1, k - 1) / C(N, k).
    `worth_GN`: answers are picked by `score_GN` and counted by this (another judge), to see a score over-optimised.
    """
    n = score_GN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to the {n} samples of a prompt; got {k}")
    order_GN = score_GN.argsort(dim=1, stable=True)
    chances = [math.comb(smaller, k - 1) / math.comb(n, k) for smaller in range(n)]
    sorted_GN = (score_GN if worth_GN is None else worth_GN).gather(1, order_GN)
    chance_N = torch.tensor(chances, dtype=torch.float64, device=score_GN.device)
    return (sorted_GN.double() @ chance_N).to(sorted_GN.dtype)
