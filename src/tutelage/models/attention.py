"""Attention for training on a CPU: a few batched matrix products forwards and backwards.

B = rows, Q = query heads, H = key-value heads, G = Q / H query heads for each of them, T = positions, D = head size.

torch's fused attention is written for long rows: on rows of 80 to 250 tokens, which is what conversations are, its backward
pass takes several times as long as the five products that it consists of (docs/benchmarks.md has the figures).  Here they are
made one by one, for a few rows at a time so that the scores stay in the cache; the G query heads of a key-value head stand
where positions stand elsewhere, so keys and values are not copied.  Scores are in the weights' type with a float32 softmax
inside, as torch's are.  Above KEEP positions the probabilities are made again in the backward pass and not kept.

Rows of several lengths need no padding: they may stand one after the other in one row, with `segments` saying where each begins and
what its tokens may look at (models/prefix.py).  Then every other layer works on real tokens alone.

Any call that this file does not know (a cache, dropout, other shapes, another device) goes to transformers' own `sdpa`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "tutelage"
KEEP = 256  # positions: up to here the probabilities are kept for the backward pass (2 B Q T T bytes a layer in bfloat16)
AT_ONCE = 2**19  # scores that are worked on at a time: 1 MB in bfloat16


class Segment(NamedTuple):
    """A stretch of a row in which tokens look at one another and at no others."""

    begin: int
    end: int
    bias: Tensor  # [T, T], added to its scores: 0 or the lowest number


class Segments(list[Segment]):
    """All of a row, in order.  A type of its own, so that nothing looks into it on its way through the layers."""


def segments(lengths: Sequence[int], masks: Sequence[Tensor | None], dtype: torch.dtype) -> Segments:
    """Segments one after the other.  masks: bool [T, T], True where a token may look; None = causal."""
    out, begin, causal = Segments(), 0, {}
    for length, mask in zip(lengths, masks, strict=True):
        if mask is None and length not in causal:
            causal[length] = _bias(None, length, dtype)[0]
        bias = causal[length] if mask is None else _bias(mask[None, None], length, dtype)[0]
        out.append(Segment(begin, begin + length, bias))
        begin += length
    return out


def quicken(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model that uses `sdpa` on a CPU use this attention; any other stays as it is."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and getattr(model.config, "_attn_implementation", "") == "sdpa" and not getattr(model, "is_quantized", False):
        model.set_attn_implementation(NAME)
    return model


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
           scaling: float | None = None, is_causal: bool | None = None, **more: Any) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, Q, T, D], key and value [B, H, T, D] -> [B, T, Q, D].

    attention_mask: None (causal), or [B or 1, 1, T, T], bool (True: may be looked at) or added to the scores.
    """
    if more.get("segments") is not None:
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        return _InSegments.apply(query, key, value, more["segments"], scale), None
    length = query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    known = (query.device.type == "cpu" and query.dtype == key.dtype and length > 1 and length == key.shape[2] and not dropout
             and key.shape == value.shape and query.shape[3] == key.shape[3] and query.shape[1] % key.shape[1] == 0
             and more.get("softcap") is None and more.get("position_bias") is None and more.get("cache") is None)
    if attention_mask is None:
        known = known and bool(causal)
    else:
        known = known and attention_mask.shape[1:] == (1, length, length) and not attention_mask.requires_grad
    if not known:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      is_causal=is_causal, **more)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    out_BQTD = _Attention.apply(query, key, value, _bias(attention_mask, length, query.dtype), scale)
    return out_BQTD.transpose(1, 2).contiguous(), None


def _bias(mask: Tensor | None, length: int, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, [B or 1, T, T]: 0, or the lowest number where nothing may be seen (not -inf: a row of padding
    may see nothing at all, and its softmax must stay a number)."""
    if mask is None:
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask[:, 0].to(dtype)


def _probabilities(query: Tensor, key: Tensor, bias: Tensor, heads: tuple[int, int]) -> Tensor:
    """[b, H, G T, T] from scaled queries [b, H, G T, D], keys [b, H, T, D] and what is added, [b or 1, T, T]."""
    kv_heads, groups = heads
    score = torch.matmul(query, key.transpose(2, 3))
    score.view(len(query), kv_heads, groups, *bias.shape[1:]).add_(bias[:, None, None])
    return torch.softmax(score, -1)


class _Attention(torch.autograd.Function):

    @staticmethod
    def forward(ctx, query_BQTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, bias: Tensor, scale: float) -> Tensor:
        rows, heads, length, size = query_BQTD.shape
        kv_heads = key_BHTD.shape[1]
        groups = heads // kv_heads
        query = (query_BQTD * scale).reshape(rows, kv_heads, groups * length, size)
        key, value = key_BHTD.contiguous(), value_BHTD.contiguous()
        keep = length <= KEEP and any(ctx.needs_input_grad)
        kept = query.new_empty(rows, kv_heads, groups * length, length) if keep else None
        out = torch.empty_like(query)
        for at in _parts(rows, heads * length * length):
            weight = _probabilities(query[at], key[at], _of(bias, at), (kv_heads, groups))
            torch.matmul(weight, value[at], out=out[at])
            if kept is not None:
                kept[at] = weight
        ctx.save_for_backward(query, key, value, bias, kept)
        ctx.scale, ctx.heads = scale, (kv_heads, groups)
        return out.view(rows, heads, length, size)

    @staticmethod
    def backward(ctx, grad_BQTD: Tensor):
        query, key, value, bias, kept = ctx.saved_tensors
        rows, _, length, _ = grad_BQTD.shape
        grad = grad_BQTD.reshape(query.shape)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for at in _parts(rows, ctx.heads[0] * ctx.heads[1] * length * length):
            weight = _probabilities(query[at], key[at], _of(bias, at), ctx.heads) if kept is None else kept[at]
            torch.matmul(weight.transpose(2, 3), grad[at], out=grad_value[at])
            grad_weight = torch.matmul(grad[at], value[at].transpose(2, 3))
            grad_score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            torch.matmul(grad_score, key[at], out=grad_query[at])
            torch.matmul(grad_score.transpose(2, 3), query[at], out=grad_key[at])
        return grad_query.mul_(ctx.scale).view(grad_BQTD.shape), grad_key, grad_value, None, None


class _InSegments(torch.autograd.Function):
    """query [1, Q, N, D], key and value [1, H, N, D] -> [1, N, Q, D]."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, among: Segments, scale: float) -> Tensor:
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
        groups = heads // kv_heads
        out = query.new_empty(1, query.shape[2], heads, size)
        kept: list[Tensor | None] = []
        graded = any(ctx.needs_input_grad)
        for begin, end, bias in among:
            weight = _probabilities(*_stretch(query, key, begin, end, scale), bias[None], (kv_heads, groups))
            seen = torch.matmul(weight, value[:, :, begin:end])
            out[0, begin:end] = seen.view(heads, end - begin, size).transpose(0, 1)
            kept.append(weight if graded and end - begin <= KEEP else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.among, ctx.scale, ctx.heads = among, scale, (kv_heads, groups)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, *kept = ctx.saved_tensors
        kv_heads, groups = ctx.heads
        grads = [torch.empty_like(each.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2) for each in (query, key, value)]
        for (begin, end, bias), weight in zip(ctx.among, kept, strict=True):
            length = end - begin
            queries, keys = _stretch(query, key, begin, end, ctx.scale)
            if weight is None:
                weight = _probabilities(queries, keys, bias[None], ctx.heads)
            up = grad[0, begin:end].transpose(0, 1).reshape(1, kv_heads, groups * length, -1)
            grads[2][:, :, begin:end] = torch.matmul(weight.transpose(2, 3), up)
            grad_weight = torch.matmul(up, value[:, :, begin:end].transpose(2, 3))
            grad_score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            grads[0][:, :, begin:end] = torch.matmul(grad_score, keys).mul_(ctx.scale).view(1, kv_heads * groups, length, -1)
            grads[1][:, :, begin:end] = torch.matmul(grad_score.transpose(2, 3), queries)
        return *grads, None, None


def _stretch(query: Tensor, key: Tensor, begin: int, end: int, scale: float) -> tuple[Tensor, Tensor]:
    """Scaled queries [1, H, G T, D] and keys [1, H, T, D] of a segment."""
    kv_heads, size = key.shape[1], key.shape[3]
    return (query[:, :, begin:end] * scale).reshape(1, kv_heads, -1, size), key[:, :, begin:end]


def _parts(rows: int, scores: int) -> list[slice]:
    """Rows a few at a time; `scores`: how many numbers one row's scores are."""
    size = max(1, AT_ONCE // scores)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _of(bias: Tensor, at: slice) -> Tensor:
    return bias[at] if len(bias) > 1 else bias


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
