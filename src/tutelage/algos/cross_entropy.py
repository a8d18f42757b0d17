"""Cross-entropy and token log-probabilities without ever holding all logits.

N = trained positions, D = hidden size, V = vocabulary.  The language-model head is applied to `chunk` positions at a
time, in the head's dtype with float32 log-softmax, and again in the backward pass (torch.utils.checkpoint); the peak is
chunk x V instead of N x V.  The idea is that of Liger-Kernel and Apple's cut cross-entropy
(https://arxiv.org/abs/2411.09009), here in plain torch.

Where the head is one matrix that needs no gradient (a frozen or tied-and-frozen one, or any under no_grad), each token's
gradient with respect to its hidden state is made beside its log-probability, d logp / d h = W[target] - softmax W, and only
multiplied in the backward pass: the logits are made once, not twice (Liger-Kernel does the same with fused kernels).

Where that matrix is trained, the softmax of each position is kept in the matrix's own type (N x V numbers, up to KEPT_BYTES)
and the backward pass multiplies by it in that type: for bfloat16 weights the logits and the log-probabilities are float32, and
the two products of the gradient, whose results are rounded to bfloat16 anyway, run at bfloat16's speed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROWS_IN_CACHE = 32  # x a vocabulary of 49,152 x 4 bytes = 6 MB
KEPT_BYTES = 400_000_000  # of softmaxes that one call keeps for the backward pass; above that logits are made twice instead


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
    """Log-probability of each target and (where wanted) entropy of each distribution, at `temperature` (C8), in chunks.

    head: hidden [n, D] -> logits [n, V].  One that has `matrix()` (float32 [V, D] where its logits are hidden @ matrix.T
    and nothing else, else None), `trained` (whether the matrix needs a gradient) and `parameter()` (that matrix itself, in its
    own type) goes the shorter way where it can.
    """
    matrix_VD = _matrix(head, entropy_grad)
    if matrix_VD is not None:
        return TokenLogps(*_OneMatrix.apply(hidden_ND, target_N, matrix_VD, temperature, chunk, entropy))
    weight_VD = _trained(head, entropy_grad)
    if weight_VD is not None and hidden_ND.shape[0] * weight_VD.shape[0] * weight_VD.element_size() <= KEPT_BYTES:
        return TokenLogps(*_TrainedMatrix.apply(hidden_ND, target_N, weight_VD, temperature, chunk, entropy))
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


def _matrix(head: Callable[[Tensor], Tensor], entropy_grad: bool) -> Tensor | None:
    graded = torch.is_grad_enabled()
    if not hasattr(head, "matrix") or (graded and (head.trained or entropy_grad)):
        return None
    return head.matrix()


def _trained(head: Callable[[Tensor], Tensor], entropy_grad: bool) -> Tensor | None:
    """Asked where there is no way by a matrix without a gradient: the matrix learns, or the entropy has a gradient, too."""
    return None if entropy_grad or not hasattr(head, "parameter") else head.parameter()


def _softmax(logits_nV: Tensor, target_n: Tensor, entropy: bool, graded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy (0 where not wanted) of each row, and its norm; leaves exp(logit - maximum) in `logits_nV`
    where `graded`, whose rows sum to the norm."""
    logp_n, entropy_n, norm_n = (torch.zeros(len(logits_nV), device=logits_nV.device) for _ in range(3))
    for low in range(0, len(logits_nV), ROWS_IN_CACHE):  # several passes over few rows, while they are in the cache
        rows = slice(low, min(low + ROWS_IN_CACHE, len(logits_nV)))
        x = logits_nV[rows].sub_(logits_nV[rows].amax(1, keepdim=True))
        picked = x.gather(1, target_n[rows, None])[:, 0]
        if entropy:
            e = x.exp()
            norm = e.sum(1)
            # the maximum is 0 here, so that the two terms are of one size and no digits cancel away
            entropy_n[rows] = norm.log() - torch.bmm(e[:, None], x[:, :, None])[:, 0, 0] / norm
            if graded:
                x.copy_(e)
        else:
            norm = x.exp_().sum(1)
        logp_n[rows] = picked - norm.log()
        norm_n[rows] = norm
    return logp_n, entropy_n, norm_n


class _OneMatrix(torch.autograd.Function):
    """Log-probabilities and entropies of softmax(h W^T / T), and d logp / d h with them."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, target_N: Tensor, matrix_VD: Tensor, temperature: float, chunk: int, entropy: bool):
        graded = ctx.needs_input_grad[0]
        count = len(hidden_ND)
        logp_N, entropy_N = hidden_ND.new_zeros(count, dtype=torch.float32), hidden_ND.new_zeros(count, dtype=torch.float32)
        slope_ND = torch.empty(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device) if graded else None
        for start in range(0, count, chunk):
            at = slice(start, min(start + chunk, count))
            logits_nV = (hidden_ND[at].float() / temperature) @ matrix_VD.T
            logp_N[at], entropy_N[at], norm_n = _softmax(logits_nV, target_N[at], entropy, graded)
            if graded:
                slope_ND[at] = (matrix_VD[target_N[at]] - (logits_nV @ matrix_VD) / norm_n[:, None]) / temperature
        if graded:
            ctx.save_for_backward(slope_ND)
            ctx.dtype = hidden_ND.dtype
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N: Tensor, _: Tensor):
        (slope_ND,) = ctx.saved_tensors
        return (slope_ND * grad_N[:, None]).to(ctx.dtype), None, None, None, None, None


class _TrainedMatrix(torch.autograd.Function):
    """The same where W has a gradient, too: d logp / d logits = onehot - softmax, kept in W's type, W and h multiplied by it."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, target_N: Tensor, weight_VD: Tensor, temperature: float, chunk: int, entropy: bool):
        count = len(hidden_ND)
        logp_N, entropy_N = hidden_ND.new_zeros(count, dtype=torch.float32), hidden_ND.new_zeros(count, dtype=torch.float32)
        slope_NV = torch.empty(count, len(weight_VD), dtype=weight_VD.dtype, device=hidden_ND.device)
        matrix_VD = weight_VD.float()
        for start in range(0, count, chunk):
            at = slice(start, start + chunk)
            logits_nV = (hidden_ND[at].float() / temperature) @ matrix_VD.T
            logp_N[at], entropy_N[at], norm_n = _softmax(logits_nV, target_N[at], entropy, True)
            torch.div(logits_nV, -norm_n[:, None], out=logits_nV)
            slope_NV[at] = logits_nV.scatter_add_(1, target_N[at, None], torch.ones_like(norm_n)[:, None])
        ctx.save_for_backward(hidden_ND, weight_VD, slope_NV)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N: Tensor, _: Tensor):
        hidden_ND, weight_VD, slope_NV = ctx.saved_tensors
        grad_N1 = (grad_N / ctx.temperature)[:, None]
        # the small factor goes to the small side: rows of N x D are scaled, never N x V
        grad_hidden_ND = ((slope_NV @ weight_VD).float() * grad_N1).to(hidden_ND.dtype)
        grad_weight_VD = slope_NV.T @ (hidden_ND.float() * grad_N1).to(slope_NV.dtype)
        return grad_hidden_ND, None, grad_weight_VD, None, None, None


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
