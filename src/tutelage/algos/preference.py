"""Losses that turn judgements into reward and cost models (Bradley-Terry and pointwise).

P = pairs, N = answers.  Scores are on the reward model's own scale; only differences mean anything for pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PairLoss(NamedTuple):
    loss_P: Tensor  # per pair
    right_P: Tensor  # float: 1 chosen scored higher, 0 lower or tie (a tie counts as wrong, C35)


def bradley_terry_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    *,
    margin_P: Tensor | None = None,
    soft_label_P: Tensor | None = None,
    centre: float = 0.0,
) -> PairLoss:
    """-p log s(d - m) - (1 - p) log s(-(d - m)),  d = chosen - rejected  (Bradley & Terry 1952; margin: Llama 2, eq. 2,
    https://arxiv.org/abs/2307.09288; soft label p = probability that chosen is better).

    `centre` c adds c * (chosen + rejected)^2, which pins the scale's free origin (Eisenstein et al. 2023,
    https://arxiv.org/abs/2312.09244, section 2).
    """
    d_P = chosen_P - rejected_P
    if margin_P is not None:
        d_P = d_P - margin_P
    p_P = torch.ones_like(d_P) if soft_label_P is None else soft_label_P
    loss_P = -p_P * F.logsigmoid(d_P) - (1 - p_P) * F.logsigmoid(-d_P)
    if centre:
        loss_P = loss_P + centre * (chosen_P + rejected_P) ** 2
    return PairLoss(loss_P, (chosen_P > rejected_P).float())


def rating_loss(score_N: Tensor, rating_N: Tensor) -> Tensor:
    """Squared error of a pointwise score against a rating on the same scale, per answer."""
    return (score_N - rating_N) ** 2
