"""Truncated importance weights, for answers that another policy drew than the one that is trained: one with 8-bit weights, an
engine with other kernels, older weights.

B = responses, T = token positions.  Truncation: Ionides 2008, "Truncated importance sampling", eq. 3; between sampler and trainer of
language models: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training",
https://fengyao.notion.site/off-policy-rl.
"""

import torch
from torch import Tensor

from tutelage.algos.ppo import LOG_RATIO_LIMIT


def truncated_importance(trainer_logp_BT: Tensor, sampler_logp_BT: Tensor, acted_BT: Tensor, *, cap: float,
                         whole: bool = False) -> Tensor:
    """min(trainer / sampler probability, cap) of each acted token, 1 elsewhere; no gradient.

    `whole`: the ratio is that of the whole response, at each of its tokens, for losses that clip whole responses.
    """
    log_ratio_BT = torch.where(acted_BT, trainer_logp_BT - sampler_logp_BT, 0.0).detach()
    if whole:
        log_ratio_BT = torch.where(acted_BT, log_ratio_BT.sum(1, keepdim=True), 0.0)
    return log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp(max=cap)
