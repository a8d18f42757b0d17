"""Sums, means and standard scores over the positions that count.

B = responses, T = token positions; acted_BT: bool, True where the policy chose the token.  Uncounted positions may hold
anything, NaN included: they are selected away with `where`, never multiplied by 0.
"""

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the positions where mask is True; shape []."""
    # where, not *: NaN * 0 is NaN
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where mask is True; 0 where there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divides by n, as tf.nn.moments does in lm-human-preferences); 0 for one position."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def standardize(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the masked positions, 0 elsewhere (RLHF_CORRECTNESS C17, C18).

    Call it on the whole optimiser batch, not on a micro-batch.
    """
    out = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps)
    return torch.where(mask, out, 0.0)


def rescale(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Like `standardize`, but the mean stays: reward whitening with shift_mean=False of lm-human-preferences."""
    mean = masked_mean(x, mask)
    out = (x - mean) * torch.rsqrt(masked_var(x, mask) + eps) + mean
    return torch.where(mask, out, 0.0)


def last_true(mask_BT: Tensor) -> Tensor:
    """Column of the last True of each row; -1 for a row without one.  Shape [B], int64."""
    columns = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, columns, -1).amax(dim=1)
