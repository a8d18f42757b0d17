"""Attention for training on a CPU: a few batched matrix products forwards and backwards.

B = rows, Q = query heads, H = key-value heads, G = Q / H query heads for each of them, T = positions, D = head size.

torch's fused attention is written for long rows: on rows of 80 to 250 tokens, which is what conversations are, its backward
pass takes several times as long as the five products that it consists of (docs/benchmarks.md has the figures).  Here they are
made one by one, for a few rows at a time so that the scores stay in the cache; the G query heads of a key-value head stand
where positions stand elsewhere, so keys and values are not copied.  Scores are in the weights' type with a float32 softmax
inside, as torch's are.  Above KEEP positions the probabilities are made again in the backward pass and not kept.

Rows of several lengths need no padding: they may stand one after the other in one row, with `segments` saying where each begins and
what its tokens look at besides one another (models/prefix.py); those of like lengths are worked on side by side.  Then every other
layer works on real tokens alone, and on those that several rows begin with only once.

Any call that this file does not know (a cache, dropout, other shapes, another device) goes to transformers' own `sdpa`.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tutelage.models.norms import quicken_norms

NAME = "tutelage"
KEEP = 256  # positions: up to here the probabilities are kept for the backward pass (2 B Q T T bytes a layer in bfloat16)
AT_ONCE = 2**19  # scores that are worked on at a time: 1 MB in bfloat16
PADDED = 0.2  # of the scores of segments side by side: so many may be added by padding them,
WORTH = 2**13  # or so many, of one head: about what the calls for a batch of its own cost


class Segment(NamedTuple):
    """A stretch of a row whose tokens look at some earlier stretches, whole, and causally at one another."""

    begin: int
    end: int
    before: tuple[tuple[int, int], ...] = ()  # (begin, end) of what is looked at, in the order of the positions


class Batch(NamedTuple):
    """Some segments side by side: g of them, each of at most `own` tokens that look at `span` tokens at most.

    What is looked at stands before a segment's own tokens, padded at its beginning; own tokens are padded at the end.
    """

    count: int  # g
    own: int
    span: int
    query_N: Tensor  # int64 [g own], where each token stands; any token at padding
    key_N: Tensor  # int64 [g span]
    real_N: Tensor | None  # int64, which of the g own are no padding; None where all are
    pads: Tensor | None  # bool [g, 1, own, 1], True at padding; None where there is none
    hidden: Tensor  # bool [g or 1, own, span], True where a token may not look


class Segments:
    """All of a row, in order, each after those that it looks at."""

    def __init__(self, parts: Sequence[Segment]):
        self.parts = tuple(parts)
        self._batches: dict[int, list[Batch]] = {}
        self._biases: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def batches(self, heads: int) -> list[Batch]:
        """Segments of like sizes side by side, as many as have AT_ONCE scores."""
        if heads not in self._batches:
            sized = sorted(((part.end - part.begin, sum(b - a for a, b in part.before), part) for part in self.parts),
                           key=lambda each: each[:2], reverse=True)
            groups: list[list[tuple[int, int, Segment]]] = []
            for each in sized:
                if groups and self._fits([*groups[-1], each], heads):
                    groups[-1].append(each)
                else:
                    groups.append([each])
            self._batches[heads] = [_batch(group) for group in groups]
        return self._batches[heads]

    @staticmethod
    def _fits(group: Sequence[tuple[int, int, Segment]], heads: int) -> bool:
        own, earlier = (max(each[at] for each in group) for at in (0, 1))
        padded, real = len(group) * own * (own + earlier), sum(own * (own + earlier) for own, earlier, _ in group)
        return heads * padded <= AT_ONCE and padded - real <= max(PADDED * real, WORTH)

    def bias(self, number: int, batch: Batch, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [g or 1, 1, own, span]: the lowest number where a token may not look."""
        key = (number, batch.own, dtype)
        if key not in self._biases:
            lowest = torch.finfo(dtype).min
            self._biases[key] = torch.zeros(batch.hidden.shape, dtype=dtype).masked_fill_(batch.hidden, lowest)[:, None]
        return self._biases[key]


def _batch(group: Sequence[tuple[int, int, Segment]]) -> Batch:
    own, earlier = (max(each[at] for each in group) for at in (0, 1))
    queries, keys, real, pads = [], [], [], []
    for number, (size, before, (begin, end, stretches)) in enumerate(group):
        queries += [*range(begin, end), *[begin] * (own - size)]
        keys += [*[begin] * (earlier - before), *itertools.chain.from_iterable(range(*each) for each in stretches),
                 *range(begin, end), *[begin] * (own - size)]
        real += range(number * own, number * own + size)
        pads.append(earlier - before)
    later = torch.ones(own, own, dtype=torch.bool).triu(1)
    hidden = torch.zeros(len(group) if any(pads) else 1, own, earlier + own, dtype=torch.bool)
    hidden[:, :, earlier:] = later
    for row, pad in zip(hidden, pads, strict=False):
        row[:, :pad] = True
    if len(real) == len(queries):
        return Batch(len(group), own, earlier + own, torch.tensor(queries), torch.tensor(keys), None, None, hidden)
    padding = torch.ones(len(queries), dtype=torch.bool).index_fill_(0, torch.tensor(real), False)
    return Batch(len(group), own, earlier + own, torch.tensor(queries), torch.tensor(keys), torch.tensor(real),
                 padding.view(len(group), 1, own, 1), hidden)


def quicken(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model on a CPU use the norms of norms.py and, where it uses `sdpa`, this attention."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu:
        quicken_norms(model)
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
        heads, size = query.shape[1], query.shape[3]
        kv_heads = key.shape[1]
        out_NQD = query.new_empty(query.shape[2], heads, size)
        kept: list[Tensor | None] = []
        graded = any(ctx.needs_input_grad)
        for number, batch in enumerate(among.batches(heads)):
            queries, keys, values = _of_batch(query, key, value, batch, scale)
            weight = _weights(queries, keys, among.bias(number, batch, query.dtype), batch, kv_heads)
            _put(out_NQD, batch, torch.bmm(weight, values), kv_heads)
            kept.append(weight if graded and batch.own * batch.span <= KEEP * KEEP else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.among, ctx.scale = among, scale
        return out_NQD[None]

    @staticmethod
    def backward(ctx, grad: Tensor):
        query, key, value, *kept = ctx.saved_tensors
        kv_heads, length, size = key.shape[1:]
        grad_NQD = query.new_empty(length, query.shape[1], size)
        # float32: several segments look at the same keys and values, and their sum would lose digits
        exact = torch.promote_types(query.dtype, torch.float32)
        grad_keys, grad_values = (torch.zeros(length, kv_heads, size, dtype=exact) for _ in range(2))
        for number, (batch, weight) in enumerate(zip(ctx.among.batches(query.shape[1]), kept, strict=True)):
            queries, keys, values = _of_batch(query, key, value, batch, ctx.scale)
            if weight is None:
                weight = _weights(queries, keys, ctx.among.bias(number, batch, query.dtype), batch, kv_heads)
            up = _taken(grad.transpose(1, 2), batch.query_N, batch.count, kv_heads)
            if batch.pads is not None:
                up.view(kv_heads, batch.count, -1, batch.own, size).masked_fill_(batch.pads, 0.0)
            grad_weight = torch.bmm(up, values.transpose(1, 2))
            grad_score = torch._softmax_backward_data(grad_weight, weight, -1, weight.dtype)
            _put(grad_NQD, batch, torch.bmm(grad_score, keys).mul_(ctx.scale), kv_heads)
            for total, part in ((grad_values, torch.bmm(weight.transpose(1, 2), up)),
                                (grad_keys, torch.bmm(grad_score.transpose(1, 2), queries))):
                by_token = part.view(kv_heads, batch.count * batch.span, size).transpose(0, 1)
                total.index_add_(0, batch.key_N, by_token.to(exact, memory_format=torch.contiguous_format))
        return *(each.to(query.dtype).transpose(0, 1)[None] for each in (grad_NQD, grad_keys, grad_values)), None, None


def _of_batch(query: Tensor, key: Tensor, value: Tensor, batch: Batch, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [H g, G own, D] of some segments' tokens, and the keys and values [H g, span, D] that they look at."""
    kv_heads = key.shape[1]
    return (_taken(query, batch.query_N, batch.count, kv_heads).mul_(scale), _taken(key, batch.key_N, batch.count, kv_heads),
            _taken(value, batch.key_N, batch.count, kv_heads))


def _taken(x: Tensor, at_N: Tensor, count: int, kv_heads: int) -> Tensor:
    """Those positions of [1, H G, N, D], as [H g, G n, D]; a copy."""
    taken = x[0].transpose(0, 1).index_select(0, at_N).view(count, len(at_N) // count, kv_heads, -1, x.shape[3])
    return taken.permute(2, 0, 3, 1, 4).reshape(kv_heads * count, -1, x.shape[3])


def _put(out_NQD: Tensor, batch: Batch, found: Tensor, kv_heads: int) -> None:
    """Writes [H g, G own, D] to where its tokens stand."""
    _, heads, size = out_NQD.shape
    by_token = found.view(kv_heads, batch.count, heads // kv_heads, batch.own, size).permute(1, 3, 0, 2, 4).reshape(-1, heads, size)
    if batch.real_N is None:
        out_NQD.index_copy_(0, batch.query_N, by_token)
    else:
        out_NQD.index_copy_(0, batch.query_N[batch.real_N], by_token[batch.real_N])


def _weights(queries: Tensor, keys: Tensor, bias: Tensor, batch: Batch, kv_heads: int) -> Tensor:
    """Probabilities [H g, G own, span]."""
    score = torch.bmm(queries, keys.transpose(1, 2))
    score.view(kv_heads, batch.count, -1, batch.own, batch.span).add_(bias)
    return torch.softmax(score, -1)


def _parts(rows: int, scores: int) -> list[slice]:
    """Rows a few at a time; `scores`: how many numbers one row's scores are."""
    size = max(1, AT_ONCE // scores)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _of(bias: Tensor, at: slice) -> Tensor:
    return bias[at] if len(bias) > 1 else bias


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
