"""From logits to a token: temperature, top-k, top-p, and a draw that depends on the response alone.

R = rows, V = vocabulary.  Each response has its own stream of uniform numbers, a counter-based generator (Philox; Salmon
et al. 2011) keyed by (seed, prompt id, index, step), and takes one number a token by inverse CDF.  So what a response
says does not depend on the batch that it rode in, up to floating-point noise in the logits.

Left out on purpose: repetition penalty, min-length, min-p; they make the sampler another policy than the one trained
(RLHF_CORRECTNESS C8).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Sampling


class Drawn(NamedTuple):
    token_R: Tensor  # int64
    logp_R: Tensor  # float32 nats, under the distribution drawn from; where greedy, under temperature 1


def uniforms(count: int, *, seed: int, prompt_id: str, index: int, step: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of a response's stream, float64.

    >>> a, b = (uniforms(n, seed=1, prompt_id="p", index=0, step=0) for n in (3, 5))
    >>> bool((a == b[:3]).all())
    True
    """
    key = sha256_bytes(canonical_json([seed, prompt_id, index, step]).encode("utf-8"))
    return np.random.Generator(np.random.Philox(key=int(key[:32], 16))).random(count)


def log_probs(logits_RV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Log-probabilities [R, V] of the distribution that each row is drawn from, float32; -inf outside top-k and top-p.

    Order: temperature, then top-k, then top-p on what is left, then renormalise.  Rows at temperature 0 get temperature 1
    and no cut, since that is what their log-probs are reported under.
    """
    temperatures = [s.temperature or 1.0 for s in samplings]
    x_RV = logits_RV.float()
    if any(t != 1.0 for t in temperatures):
        x_RV = x_RV / torch.tensor(temperatures, dtype=torch.float32, device=x_RV.device)[:, None]
    cut = [row for row, s in enumerate(samplings) if s.temperature > 0 and (s.top_k > 0 or s.top_p < 1)]
    if cut:
        x_RV = x_RV.clone()
        for row in cut:
            x_RV[row] = support(x_RV[row], top_k=samplings[row].top_k, top_p=samplings[row].top_p)
    return torch.log_softmax(x_RV, dim=-1)


def support(x_V: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """`x_V` with -inf outside the k likeliest tokens and outside the smallest set of likeliest tokens that holds top_p.

    >>> support(torch.tensor([2.0, 1.0, 0.0]), top_k=2, top_p=1.0).tolist()
    [2.0, 1.0, -inf]
    """
    sorted_V, order_V = x_V.sort(descending=True, stable=True)
    keep_V = torch.ones_like(sorted_V, dtype=torch.bool)
    if top_k > 0:
        keep_V[top_k:] = False
    if top_p < 1:
        p_V = torch.softmax(sorted_V.masked_fill(~keep_V, -torch.inf), dim=-1)
        keep_V &= p_V.cumsum(-1) - p_V < top_p  # the mass before a token; the likeliest one always stays
    kept_V = torch.zeros_like(keep_V).scatter_(0, order_V, keep_V)
    return x_V.masked_fill(~kept_V, -torch.inf)


def inverse_cdf(p_RV: Tensor, u_R: Tensor) -> Tensor:
    """Token of each row where the cumulated probability first exceeds u; never one of probability 0.  u in [0, 1), float64.

    Sums in float64 in two levels (blocks of 64 tokens, then within one block): as exact as a full cumulative sum over the
    vocabulary and many times cheaper.
    """
    rows, vocabulary = p_RV.shape
    blocks_RKC = torch.nn.functional.pad(p_RV, (0, -vocabulary % 64)).view(rows, -1, 64)
    cdf_RK = blocks_RKC.sum(-1, dtype=torch.float64).cumsum(-1)
    target_R = (u_R * cdf_RK[:, -1])[:, None]
    block_R = torch.searchsorted(cdf_RK, target_R, right=True)[:, 0].clamp(max=cdf_RK.shape[1] - 1)
    before_R = torch.where(block_R > 0, cdf_RK.gather(1, (block_R - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    within_RC = blocks_RKC[torch.arange(rows, device=p_RV.device), block_R].double().cumsum(-1)
    # the two levels round apart: keep the remainder below the block's own total, or it would point past the last token
    rest_R = torch.minimum(target_R[:, 0] - before_R, within_RC[:, -1] * (1 - 2**-50))
    return block_R * 64 + torch.searchsorted(within_RC, rest_R[:, None], right=True)[:, 0]


def draw(logits_RV: Tensor, samplings: Sequence[Sampling], u_R: Sequence[float]) -> Drawn:
    """One token a row: the likeliest at temperature 0, else by inverse CDF at u."""
    if all(s.temperature == 1 and s.top_k <= 0 and s.top_p >= 1 for s in samplings):
        return _draw_plainly(logits_RV.float(), torch.tensor(u_R, dtype=torch.float64, device=logits_RV.device))
    logp_RV = log_probs(logits_RV, samplings)
    greedy = [s.temperature == 0 for s in samplings]
    if all(greedy):
        token_R = logp_RV.argmax(-1)
    else:
        u_R = torch.tensor(u_R, dtype=torch.float64, device=logp_RV.device)
        token_R = inverse_cdf(logp_RV.exp(), u_R)
        if any(greedy):
            token_R = torch.where(torch.tensor(greedy, device=token_R.device), logp_RV.argmax(-1), token_R)
    return Drawn(token_R, logp_RV.gather(1, token_R[:, None])[:, 0])


def _draw_plainly(x_RV: Tensor, u_R: Tensor) -> Drawn:
    """The same for the whole distribution at temperature 1, in fewer passes over the vocabulary: nothing is normalised but what
    is drawn."""
    most_R1 = x_RV.amax(-1, keepdim=True)
    weight_RV = (x_RV - most_R1).exp_()
    token_R = inverse_cdf(weight_RV, u_R)
    picked_R = x_RV.gather(1, token_R[:, None])[:, 0]
    return Drawn(token_R, picked_R - most_R1[:, 0] - weight_RV.sum(-1).log())
