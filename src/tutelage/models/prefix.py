"""Hidden states of rows that begin alike, with each common beginning run through the trunk once.

B = rows, T = token positions, U = trees, S = positions of a tree, D = hidden size.

Several answers to one prompt become one tree: the prompt, then the answers side by side, each of which sees the prompt and
itself (a block mask, positions counted from the prompt's end).  The result is that of running every row alone, gradient
included, up to rounding; where an answer is about as long as its prompt and there are four of them, it is about half the work.
The idea is that of prefix sharing in tree attention (SpecInfer, Miao et al. 2023, https://arxiv.org/abs/2305.09781, section 4).

Only for trunks whose every layer is plain causal attention through SDPA; any other gets the rows as they are.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.models.attention import NAME, Segment, Segments

PLAIN = frozenset({"llama", "qwen2", "qwen3", "mistral"})  # full causal attention where no window is set
SHARES = (0.4, 0.7)  # of a row that the family's common beginning must be, at least: a system prompt alone is not worth a tree
SPARED = 16  # tokens that a common beginning must spare to be run once, where nothing is padded: a stretch costs a few calls a layer
ROOMS = (2.0, 4.0, math.inf)  # of the longest row that a tree may be: the widest tree is what all others are padded to


class Family(NamedTuple):
    """Neighbouring rows that begin with the same `common` tokens."""

    rows: list[int]
    common: int


def can_share(trunk: nn.Module) -> bool:
    """Whether `trunk` is of a kind that takes a block mask."""
    config = getattr(trunk, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (getattr(config, "model_type", "") in PLAIN and kinds == {"full_attention"}
            and getattr(config, "_attn_implementation", "") in ("sdpa", NAME) and not _window(config))


def pads(trunk: Any) -> bool:
    """Whether rows of several lengths are padded on their way through `trunk`."""
    return not (can_share(trunk) and trunk.config._attn_implementation == NAME)


def _window(config: Any) -> bool:
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


def hidden_states(trunk: Callable[..., Any], token_BT: Tensor, real_BT: Tensor | None = None) -> Tensor:
    """Last hidden states [B, T, D] of right-padded rows; what stands at padding is undefined.

    real_BT: bool, True where not padding; without it nothing is shared.  Rows of a family must be neighbours.
    """
    if real_BT is not None and len(token_BT) > 1 and can_share(trunk):
        if not pads(trunk):
            return _one_row(trunk, token_BT, real_BT.sum(1).tolist())
        found = families(token_BT, real_BT)
        if len(found) < len(token_BT):
            return _through_trees(trunk, token_BT, real_BT.sum(1).tolist(), found)
    # right padding under causal attention needs no mask: real tokens never look right
    return trunk(input_ids=token_BT, use_cache=False).last_hidden_state


def families(token_BT: Tensor, real_BT: Tensor) -> list[Family]:
    """Neighbouring rows gathered, in the way that leaves the fewest positions, padding included; each alone where none does."""
    alike_BT = (token_BT[1:] == token_BT[:-1]) & real_BT[1:] & real_BT[:-1]
    alike = alike_BT.long().cumprod(1).sum(1).tolist()  # with the row before
    lengths = real_BT.sum(1).tolist()
    ways = [_gathered(alike, lengths, share=share, room=room * max(lengths)) for share in SHARES for room in ROOMS]
    alone = [Family([row], length) for row, length in enumerate(lengths)]
    return min([alone, *ways], key=lambda found: len(found) * max(tree_size(family, lengths) for family in found))


def tree_size(family: Family, lengths: Sequence[int]) -> int:
    """Positions that a family takes: its common beginning once, and what each row has of its own."""
    return family.common + sum(lengths[row] - family.common for row in family.rows)


def _gathered(alike: Sequence[int], lengths: Sequence[int], *, share: float, room: float) -> list[Family]:
    """Neighbouring rows gathered where that saves tokens, greedily from the first row on, into trees of at most `room`."""
    out = [Family([0], lengths[0])]
    for row, with_last in enumerate(alike, start=1):
        last = out[-1]
        common = min(last.common, with_last)
        saved = last.common * (1 - len(last.rows)) + len(last.rows) * common
        grown = Family([*last.rows, row], common)
        if saved > 0 and common >= share * lengths[row] and tree_size(grown, lengths) <= room:
            out[-1] = grown
        else:
            out.append(Family([row], lengths[row]))
    return out


def _one_row(trunk: nn.Module, token_BT: Tensor, lengths: Sequence[int]) -> Tensor:
    """All rows in one, without padding, each stretch that several begin with once: every token looks at the stretches on the way
    from the root to its own (models/attention.py)."""
    stretches, ways = trie([row[:length] for row, length in zip(token_BT.tolist(), lengths, strict=True)])
    tokens, positions, parts, places = [], [], [], []
    begin = 0
    for row, first, last, before in stretches:
        tokens.append(token_BT[row, first:last])
        positions.append(torch.arange(first, last))
        places.append(torch.arange(begin, begin + last - first))
        parts.append(Segment(begin, begin + last - first, tuple((parts[at].begin, parts[at].end) for at in before)))
        begin += last - first
    place_BT = torch.zeros_like(token_BT)
    for row, way in enumerate(ways):
        place_BT[row, :lengths[row]] = torch.cat([places[at] for at in way])
    # a mask of four dimensions is handed through as it is; what is looked at is said by the segments
    hidden_1ND = trunk(input_ids=torch.cat(tokens)[None], position_ids=torch.cat(positions)[None], use_cache=False,
                       attention_mask=torch.empty(1, 1, 0, 0), segments=Segments(parts)).last_hidden_state
    return hidden_1ND[0][place_BT]


class Stretch(NamedTuple):
    """Tokens `first` to `last` of a row, and of all rows that go on alike so far."""

    row: int
    first: int
    last: int
    before: tuple[int, ...]  # the stretches that lead to it, by number


def trie(rows: Sequence[Sequence[int]]) -> tuple[list[Stretch], list[tuple[int, ...]]]:
    """The stretches of a prefix tree, parents first, and each row's way through them.  A common beginning is a stretch of its own
    where that spares SPARED tokens at least.

    >>> stretches, ways = trie([[7] * 20 + [1], [7] * 20 + [2], [3]])
    >>> [(each.first, each.last, each.before) for each in stretches], ways
    ([(0, 1, ()), (0, 20, ()), (20, 21, (1,)), (20, 21, (1,))], [(1, 2), (1, 3), (0,)])
    """
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    alike = [0] + [_common(rows[a], rows[b]) for a, b in itertools.pairwise(order)]  # with the one before
    stretches: list[Stretch] = []
    ways: list[tuple[int, ...]] = [()] * len(rows)
    waiting = [(0, len(order), 0, ())]  # rows of `order` that are alike up to a depth, which a way has led to
    while waiting:
        low, high, depth, way = waiting.pop()
        row = order[low]
        common = len(rows[row]) if high - low == 1 else min(alike[low + 1:high])
        if high - low == 1 or (high - low - 1) * (common - depth) >= SPARED:
            if common > depth:
                stretches.append(Stretch(row, depth, common, way))
                way = (*way, len(stretches) - 1)
            depth = common
        if high - low == 1:
            ways[row] = way
            continue
        cuts = [low, *(at for at in range(low + 1, high) if alike[at] == common), high]
        waiting += [(*cut, depth, way) for cut in reversed(list(itertools.pairwise(cuts)))]
    return stretches, ways


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _through_trees(trunk: Callable[..., Any], token_BT: Tensor, lengths: Sequence[int], found: Sequence[Family]) -> Tensor:
    device = token_BT.device
    width = max(tree_size(family, lengths) for family in found)
    token_US = torch.zeros(len(found), width, dtype=torch.int64, device=device)
    position_US = torch.zeros_like(token_US)
    branch_US = torch.full_like(token_US, -1)  # 0 = the common beginning, k = the k-th row's own tokens, -1 = padding
    # where in the trees (flattened) each token of each row stands
    place_BT = torch.zeros_like(token_BT)
    for tree, (rows, common) in enumerate(found):
        token_US[tree, :common] = token_BT[rows[0], :common]
        position_US[tree, :common] = torch.arange(common, device=device)
        branch_US[tree, :common] = 0
        at = common
        for branch, row in enumerate(rows, start=1):
            own = lengths[row] - common
            token_US[tree, at:at + own] = token_BT[row, common:lengths[row]]
            position_US[tree, at:at + own] = torch.arange(common, lengths[row], device=device)
            branch_US[tree, at:at + own] = branch
            place_BT[row, :common] = torch.arange(common, device=device) + tree * width
            place_BT[row, common:lengths[row]] = torch.arange(at, at + own, device=device) + tree * width
            at += own
    hidden_USD = trunk(input_ids=token_US, attention_mask=_sees(branch_US), position_ids=position_US,
                       use_cache=False).last_hidden_state
    return hidden_USD.flatten(0, 1)[place_BT]


def _sees(branch_US: Tensor) -> Tensor:
    """bool [U, 1, S, S], True where the token of a row of the matrix may look at that of a column."""
    ask_US1, told_U1S = branch_US[:, :, None], branch_US[:, None, :]
    causal_SS = torch.ones(branch_US.shape[1], branch_US.shape[1], dtype=torch.bool, device=branch_US.device).tril()
    # padding looks at earlier padding (itself at least): a row of the softmax without any entry would be NaN
    return (causal_SS & ((told_U1S == 0) | (told_U1S == ask_US1)))[:, None]
