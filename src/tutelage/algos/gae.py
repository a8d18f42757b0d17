"""Generalized advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16).

B = responses, T = token positions.  Over positions that the policy did not choose (a tool's output between two turns)
the next value and the advantage are carried, not zeroed: they belong to no step.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    advantage_BT: Tensor  # float, 0 where not acted
    return_BT: Tensor  # advantage + value, before any whitening; 0 where not acted


def gae(reward_BT: Tensor, value_BT: Tensor, acted_BT: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Advantages and returns, computed from the last acted token backwards; V and A after it are 0.

    delta_t = r_t + gamma * V_{t+1} - V_t;  A_t = delta_t + gamma * lam * A_{t+1}.  A response that was cut off at the
    length limit is treated as ended there, as lm-human-preferences does; give it a penalty in the reward.
    """
    rows = reward_BT.shape[0]
    next_value_B = value_BT.new_zeros(rows)
    next_advantage_B = value_BT.new_zeros(rows)
    advantage_BT = torch.zeros_like(value_BT)
    for t in reversed(range(reward_BT.shape[1])):
        acted_B = acted_BT[:, t]
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantage_BT[:, t] = torch.where(acted_B, advantage_B, 0.0)
        next_advantage_B = torch.where(acted_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(acted_B, value_BT[:, t], next_value_B)
    return_BT = torch.where(acted_BT, advantage_BT + value_BT, 0.0)
    return Advantages(advantage_BT, return_BT)
