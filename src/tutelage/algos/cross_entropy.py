"""Cross-entropy and token log-probabilities without ever holding all logits.

N = trained positions, D = hidden size, V = vocabulary.  The language-model head is applied to `chunk` positions at a
time, in the head's dtype with float32 log-softmax, and again in the backward pass (torch.utils.checkpoint); the peak is
chunk x V instead of N x V.  The idea is that of Liger-Kernel and Apple's cut cross-entropy
(https://arxiv.org/abs/2411.09009), here in plain torch.

Where the head is one matrix that needs no gradient (a frozen or tied-and-frozen one, or any under no_grad), each token's
gradient with respect to its hidden state is made beside its log-probability, d logp / d h = W[target] - softmax W, and only
multiplied in the backward pass: the logits are made once, not twice (Liger-Kernel does the same with fused kernels).

Where that matrix is trained, the softmax of each position (not divided by its norm) is kept in the matrix's own type (N x V numbers,
up to KEPT_BYTES) and the backward pass multiplies by it in that type: for bfloat16 weights the logits and the log-probabilities are
float32, and the two products of the gradient, whose results are rounded to bfloat16 anyway, run at bfloat16's speed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE, ROWS = 2048, 1024  # tokens of the vocabulary and positions that are worked on at a time: 8 MB of logits
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

    head: hidden [n, D] -> logits [n, V].  One that has `matrix()` ([V, D] without gradient where its logits are hidden @ matrix.T
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
    weight_VD = None if entropy_grad or not hasattr(head, "parameter") else head.parameter()
    return None if weight_VD is None or weight_VD.dtype == torch.float16 else weight_VD  # whose exponentials overflow


class _Read(NamedTuple):
    """What the softmax of n positions said."""

    logp_n: Tensor
    entropy_n: Tensor  # 0 where not wanted
    lead_n: Tensor  # logit of the target less the position's reference
    norm_n: Tensor  # sum of exp(logit - reference)


def _read(hidden_nD: Tensor, target_n: Tensor, weight_VD: Tensor, temperature: float, entropy: bool,
          each: Callable[[int, Tensor, Tensor], None] | None = None, reference_n1: Tensor | None = None) -> _Read:
    """The softmax of hidden W^T / temperature in float32, TILE tokens of the vocabulary at a time, which stay in the cache.

    each(number of the tile, exp(logit - reference) [n, t], float32 [t, D] of the matrix): called tile by tile.  The reference is the
    largest logit of the first tile, or the largest of all (`reference_n1`) where that is so much larger that the exponential overflows.
    """
    x_nD, count, first = hidden_nD.float() / temperature, len(hidden_nD), reference_n1
    norm_n, crossed_n, lead_n = (torch.zeros(count, device=hidden_nD.device) for _ in range(3))
    room = x_nD.new_empty(count * TILE)  # for all tiles: new memory for each would cost more than its use
    room_of_e = torch.empty_like(room) if entropy else room
    for number, tile_tD in enumerate(weight_VD.split(TILE)):
        part_tD = tile_tD.float()
        logits_nt, e_nt = (whole[:count * len(part_tD)].view(count, -1) for whole in (room, room_of_e))
        torch.mm(x_nD, part_tD.T, out=logits_nt)
        first = logits_nt.amax(1, keepdim=True) if first is None else first
        logits_nt.sub_(first)
        at_n = (target_n % TILE).clamp(max=len(part_tD) - 1)
        lead_n = torch.where(target_n // TILE == number, logits_nt.gather(1, at_n[:, None])[:, 0], lead_n)
        torch.exp(logits_nt, out=e_nt)
        if entropy:
            crossed_n += torch.linalg.vecdot(e_nt, logits_nt)
        norm_n += e_nt.sum(1)
        if each is not None:
            each(number, e_nt, part_tD)
    if reference_n1 is None and not norm_n.isfinite().all():
        largest = [(x_nD @ tile_tD.float().T).amax(1) for tile_tD in weight_VD.split(TILE)]
        return _read(hidden_nD, target_n, weight_VD, temperature, entropy, each, torch.stack(largest).amax(0)[:, None])
    log_z_n = norm_n.log()
    return _Read(lead_n - log_z_n, log_z_n - crossed_n / norm_n if entropy else torch.zeros_like(norm_n), lead_n, norm_n)


def _parts(count: int, vocabulary: int, chunk: int) -> list[slice]:
    """Positions in turn: `chunk`, or more where their tiles are far smaller than all logits of a chunk."""
    rows = max(chunk, ROWS) if vocabulary >= 4 * TILE else chunk
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


class _OneMatrix(torch.autograd.Function):
    """Log-probabilities and entropies of softmax(h W^T / T), and d logp / d h with them."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, target_N: Tensor, matrix_VD: Tensor, temperature: float, chunk: int, entropy: bool):
        graded = ctx.needs_input_grad[0]
        count = len(hidden_ND)
        logp_N, entropy_N = hidden_ND.new_zeros(count, dtype=torch.float32), hidden_ND.new_zeros(count, dtype=torch.float32)
        slope_ND = torch.empty(hidden_ND.shape, dtype=torch.float32, device=hidden_ND.device) if graded else None
        for at in _parts(count, len(matrix_VD), chunk):
            def average(number: int, e_nt: Tensor, part_tD: Tensor, at: slice = at) -> None:
                """slope = e W, not divided by the norm"""
                torch.addmm(slope_ND[at], e_nt, part_tD, beta=float(number > 0), out=slope_ND[at])

            read = _read(hidden_ND[at], target_N[at], matrix_VD, temperature, entropy, average if graded else None)
            logp_N[at], entropy_N[at] = read.logp_n, read.entropy_n
            if graded:
                slope_ND[at] = (matrix_VD[target_N[at]].float() - slope_ND[at] / read.norm_n[:, None]) / temperature
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
    """The same where W has a gradient, too: -norm d logp / d logits = exp(logit - reference) - norm onehot is kept in W's type, and W
    and h are multiplied by it."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, target_N: Tensor, weight_VD: Tensor, temperature: float, chunk: int, entropy: bool):
        count = len(hidden_ND)
        logp_N, entropy_N, norm_N = (hidden_ND.new_zeros(count, dtype=torch.float32) for _ in range(3))
        e_NV = torch.empty(count, len(weight_VD), dtype=weight_VD.dtype, device=hidden_ND.device)
        for at in _parts(count, len(weight_VD), chunk):
            def keep(number: int, e_nt: Tensor, _: Tensor, at: slice = at) -> None:
                e_NV[at, number * TILE:][:, :e_nt.shape[1]] = e_nt

            read = _read(hidden_ND[at], target_N[at], weight_VD, temperature, entropy, keep)
            logp_N[at], entropy_N[at], norm_N[at] = read.logp_n, read.entropy_n, read.norm_n
            # scatter_ would copy all of it
            e_NV[at][torch.arange(len(e_NV[at]), device=e_NV.device), target_N[at]] = (read.lead_n.exp() - read.norm_n).to(e_NV.dtype)
        ctx.save_for_backward(hidden_ND, weight_VD, e_NV, norm_N)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, grad_N: Tensor, _: Tensor):
        hidden_ND, weight_VD, e_NV, norm_N = ctx.saved_tensors
        grad_N1 = (-grad_N / norm_N / ctx.temperature)[:, None]
        # the small factor goes to the small side: rows of N x D are scaled, never N x V
        grad_hidden_ND = ((e_NV @ weight_VD).float() * grad_N1).to(hidden_ND.dtype)
        grad_weight_VD = e_NV.T @ (hidden_ND.float() * grad_N1).to(e_NV.dtype)
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
