"""Attention for training on a CPU: a few batched matrix products forwards and backwards.

B = rows, Q = query heads, H = key-value heads, G = Q / H query heads for each of them, T = positions, D = head size.

torch's fused attention is written for long rows: on rows of 80 to 250 tokens, which is what conversations are, its backward
pass takes several times as long as the five products that it consists of (docs/benchmarks.md has the figures).  Here they are
made one by one, for a few rows at a time so that the scores stay in the cache; the G query heads of a key-value head stand
where positions stand elsewhere, so keys and values are not copied.  Scores are in the weights' type with a float32 softmax
inside, as torch's are.  Above KEEP positions the probabilities are made again in the backward pass and not kept.

Rows of several lengths need no padding: they may stand one after the other in one row, with `segments` saying where each begins and
what its tokens look at besides one another (models/prefix.py).  Then every other layer works on real tokens alone, and on those that
several rows begin with only once.

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
    """A stretch of a row whose tokens look at some earlier stretches, whole, and causally at one another."""

    begin: int
    end: int
    before: tuple[tuple[int, int], ...] = ()  # (begin, end) of what is looked at, in the order of the positions


class Segments:
    """All of a row, in order, each after those that it looks at."""

    def __init__(self, parts: Sequence[Segment]):
        self.parts = tuple(parts)
        self._biases: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def bias(self, own: int, earlier: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [1, own, earlier + own]."""
        if (own, earlier, dtype) not in self._biases:
            later = torch.ones(own, own, dtype=torch.bool).triu(1)
            bias = torch.zeros(1, own, earlier + own, dtype=dtype)
            bias[0, :, earlier:].masked_fill_(later, torch.finfo(dtype).min)
            self._biases[own, earlier, dtype] = bias
        return self._biases[own, earlier, dtype]


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
        out = query.new_empty(1, query.shape[2], heads, size)
        kept: list[Tensor | None] = []
        graded = any(ctx.needs_input_grad)
        for part in among.parts:
            own = part.end - part.begin
            queries, keys, values = _of_segment(query, key, value, part, scale)
            earlier = keys.shape[2] - own
            weight = _probabilities(queries, keys, among.bias(own, earlier, query.dtype), (kv_heads, heads // kv_heads))
            out[0, part.begin:part.end] = torch.matmul(weight, values).view(heads, own, size).transpose(0, 1)
            kept.append(weight if graded and own * (earlier + own) <= KEEP * KEEP else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.among, ctx.scale = among, scale
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, *kept = ctx.saved_tensors
        heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
        grads = [torch.empty_like(each.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
                 for each in (query, key, value)]
        shared: dict[tuple[int, int], list[Tensor]] = {}  # of keys and values that several look at: float32, or their sum loses digits
        for part, weight in zip(ctx.among.parts, kept, strict=True):
            own = part.end - part.begin
            queries, keys, values = _of_segment(query, key, value, part, ctx.scale)
            earlier = keys.shape[2] - own
            if weight is None:
                weight = _probabilities(queries, keys, ctx.among.bias(own, earlier, query.dtype), (kv_heads, heads // kv_heads))
            up = grad[0, part.begin:part.end].transpose(0, 1).reshape(1, kv_heads, -1, size)
            grad_values = torch.matmul(weight.transpose(2, 3), up)
            grad_weight = torch.matmul(up, values.transpose(2, 3))
            grad_score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            grads[0][:, :, part.begin:part.end] = torch.matmul(grad_score, keys).mul_(ctx.scale).view(1, heads, own, size)
            grad_keys = torch.matmul(grad_score.transpose(2, 3), queries)
            at = 0
            for stretch in part.before:
                here = slice(at, at + stretch[1] - stretch[0])
                at = here.stop
                if stretch not in shared:
                    exact = torch.promote_types(query.dtype, torch.float32)
                    shared[stretch] = [each[:, :, here].to(exact) for each in (grad_keys, grad_values)]
                else:
                    for total, each in zip(shared[stretch], (grad_keys, grad_values), strict=True):
                        total += each[:, :, here]
            grads[1][:, :, part.begin:part.end] = grad_keys[:, :, earlier:]
            grads[2][:, :, part.begin:part.end] = grad_values[:, :, earlier:]
        for (begin, end), totals in shared.items():
            for each, total in zip(grads[1:], totals, strict=True):
                each[:, :, begin:end] = total.add_(each[:, :, begin:end])
        return *grads, None, None


def _of_segment(query: Tensor, key: Tensor, value: Tensor, part: Segment, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [1, H, G own, D] of a segment's tokens, and the keys and values [1, H, earlier + own, D] that they look at."""
    queries = (query[:, :, part.begin:part.end] * scale).reshape(1, key.shape[1], -1, key.shape[3])
    return queries, _looked_at(key, part), _looked_at(value, part)


def _looked_at(x: Tensor, part: Segment) -> Tensor:
    """Keys or values [1, H, earlier + own, D] of what a segment's tokens look at."""
    own = x[:, :, part.begin:part.end]
    return torch.cat([*(x[:, :, begin:end] for begin, end in part.before), own], 2) if part.before else own


def _parts(rows: int, scores: int) -> list[slice]:
    """Rows a few at a time; `scores`: how many numbers one row's scores are."""
    size = max(1, AT_ONCE // scores)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _of(bias: Tensor, at: slice) -> Tensor:
    return bias[at] if len(bias) > 1 else bias


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
