"""Proximal policy optimization (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), as used for language models by
Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593).

B = responses, T = token positions.  No model, no config, no logging: tensors in, tensors out.  Losses are per token;
the caller sums them and divides by the count of the whole optimiser step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # keeps exp finite in float32 (C30)


class PolicyLoss(NamedTuple):
    loss_BT: Tensor  # per token, 0 where not acted
    clipped_BT: Tensor  # bool, True where the clip removed the gradient
    kl_old_BT: Tensor  # nats, KL(old || new), the k3 estimate: http://joschu.net/blog/kl-approx.html; 0 where not acted
    ratio_BT: Tensor  # new / old probability, detached; 1 where not acted


class ValueLoss(NamedTuple):
    loss_BT: Tensor  # per token, 0 where not acted
    clipped_BT: Tensor  # bool, True where the clipped error was the larger


def clipped_policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantage_BT: Tensor,
    acted_BT: Tensor,
    *,
    clip: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Clipped surrogate objective, eq. 7, negated, token by token.

    `dual_clip` c > 1 bounds the loss of bad actions from above by -c * A (Ye et al. 2020,
    https://arxiv.org/abs/1912.09729, eq. 5).
    """
    # where, not *: NaN * 0 is NaN
    log_ratio_BT = torch.where(acted_BT, logp_BT - old_logp_BT, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = ratio_BT * advantage_BT
    limited_BT = ratio_BT.clamp(1 - clip, 1 + clip) * advantage_BT
    objective_BT = torch.minimum(plain_BT, limited_BT)
    clipped_BT = limited_BT < plain_BT
    if dual_clip is not None:
        floor_BT = dual_clip * advantage_BT
        below_BT = (advantage_BT < 0) & (objective_BT < floor_BT)
        objective_BT = torch.where(below_BT, floor_BT, objective_BT)
        clipped_BT = clipped_BT | below_BT
    loss_BT = torch.where(acted_BT, -objective_BT, 0.0)
    with torch.no_grad():
        kl_old_BT = torch.where(acted_BT, torch.expm1(log_ratio_BT) - log_ratio_BT, 0.0)
    return PolicyLoss(loss_BT, acted_BT & clipped_BT, kl_old_BT, ratio_BT.detach())


def clipped_value_loss(
    value_BT: Tensor, old_value_BT: Tensor, return_BT: Tensor, acted_BT: Tensor, *, clip: float | None = 0.2
) -> ValueLoss:
    """0.5 * max((V - G)^2, (V_clipped - G)^2), token by token; `clip=None` is the plain squared error.

    The clip keeps V within `clip` of the value at sampling time (openai/baselines ppo2, not in the paper).
    """
    # where before any arithmetic, so that garbage in uncounted positions reaches neither loss nor gradient
    value_BT, old_value_BT, return_BT = (torch.where(acted_BT, x, 0.0) for x in (value_BT, old_value_BT, return_BT))
    error_BT = (value_BT - return_BT) ** 2
    if clip is None:
        clipped_BT = torch.zeros_like(acted_BT)
    else:
        near_BT = old_value_BT + (value_BT - old_value_BT).clamp(-clip, clip)
        near_error_BT = (near_BT - return_BT) ** 2
        clipped_BT = acted_BT & (near_error_BT > error_BT)
        error_BT = torch.maximum(error_BT, near_error_BT)
    return ValueLoss(torch.where(acted_BT, 0.5 * error_BT, 0.0), clipped_BT)
