"""Cross-entropy and token log-probabilities without ever holding all logits.

N = trained positions, D = hidden size, V = vocabulary.  The language-model head is applied to `chunk` positions at a
time, in the head's dtype with float32 log-softmax, and again in the backward pass (torch.utils.checkpoint); the peak is
chunk x V instead of N x V.  The idea is that of Liger-Kernel and Apple's cut cross-entropy
(https://arxiv.org/abs/2411.09009), here in plain torch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenLogps(NamedTuple):
    logp_N: Tensor  # nats, float32
    entropy_N: Tensor  # nats, float32; carries a gradient only where asked; 0 where not wanted


def _logps(
    hidden_ND: Tensor, target_N: Tensor, head: Callable[[Tensor], Tensor], temperature: float, entropy: bool, entropy_grad: bool
) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_ND).float()
    if temperature != 1.0:  # a pass over N x V numbers, saved where it changes nothing
        logits_NV = logits_NV / temperature
    log_z_N = torch.logsumexp(logits_NV, dim=-1)
    logp_N = logits_NV.gather(1, target_N[:, None])[:, 0] - log_z_N
    if not entropy:
        return logp_N, torch.zeros_like(log_z_N)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        all_logps_NV = logits_NV - log_z_N[:, None]
        entropy_N = -(all_logps_NV.exp() * all_logps_NV).sum(-1)  # not log_z - E[logit]: that cancels digits away
    return logp_N, entropy_N


def token_logps(
    hidden_ND: Tensor,
    target_N: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    temperature: float = 1.0,
    chunk: int = 256,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> TokenLogps:
    """Log-probability of each target and (where wanted) entropy of each distribution, at `temperature` (C8), in chunks."""
    logps, entropies = [], []
    for start in range(0, hidden_ND.shape[0], chunk):
        args = (hidden_ND[start:start + chunk], target_N[start:start + chunk], head, temperature, entropy, entropy_grad)
        if torch.is_grad_enabled() and hidden_ND.shape[0] > chunk:  # one chunk alone is no larger kept than made twice
            logp_N, entropy_N = checkpoint(_logps, *args, use_reentrant=False)
        else:
            logp_N, entropy_N = _logps(*args)
        logps.append(logp_N)
        entropies.append(entropy_N)
    if not logps:
        empty = hidden_ND.new_zeros(0, dtype=torch.float32)
        return TokenLogps(empty, empty)
    return TokenLogps(torch.cat(logps), torch.cat(entropies))


def normalisers(kind: str, row_weights: list[float]) -> list[float]:
    """What each row's summed loss is divided by.  `row_weights`: trained weight of each row of the WHOLE optimiser step.

    `token`: the weight of the whole step (every token counts alike); `example`: rows x the row's own weight (every row
    counts alike); `sum`: 1.

    >>> normalisers("token", [10, 2]), normalisers("example", [10, 2]), normalisers("sum", [10, 2])
    ([12, 12], [20, 4], [1.0, 1.0])
    """
    if kind == "token":
        return [max(sum(row_weights), 1e-8)] * len(row_weights)
    if kind == "example":
        return [max(len(row_weights) * weight, 1e-8) for weight in row_weights]
    if kind == "sum":
        return [1.0] * len(row_weights)
    raise ValueError(f'normaliser must be "token", "example" or "sum", got "{kind}"')
