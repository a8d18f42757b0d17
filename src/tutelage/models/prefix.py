"""Hidden states of rows that begin alike, with each common beginning run through the trunk once.

B = rows, T = token positions, U = trees, S = positions of a tree, D = hidden size.

Several answers to one prompt become one tree: the prompt, then the answers side by side, each of which sees the prompt and
itself (a block mask, positions counted from the prompt's end).  The result is that of running every row alone, gradient
included, up to rounding; where an answer is about as long as its prompt and there are four of them, it is about half the work.
The idea is that of prefix sharing in tree attention (SpecInfer, Miao et al. 2023, https://arxiv.org/abs/2305.09781, section 4).

Only for trunks whose every layer is plain causal attention through SDPA; any other gets the rows as they are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.models.attention import NAME, segments

PLAIN = frozenset({"llama", "qwen2", "qwen3", "mistral"})  # full causal attention where no window is set
SHARES = (0.4, 0.7)  # of a row that the family's common beginning must be, at least: a system prompt alone is not worth a tree
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
        found = families(token_BT, real_BT)
        if not pads(trunk):
            return _one_row(trunk, token_BT, real_BT.sum(1).tolist(), found)
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


def _one_row(trunk: nn.Module, token_BT: Tensor, lengths: Sequence[int], found: Sequence[Family]) -> Tensor:
    """All trees one after the other in one row, without padding; each looks at itself alone (models/attention.py)."""
    tokens, positions, masks, sizes, place_BT = [], [], [], [], torch.zeros_like(token_BT)
    at = 0
    for rows, common in found:
        tree = at
        tokens.append(token_BT[rows[0], :common])
        positions.append(torch.arange(common))
        branches = [torch.zeros(common, dtype=torch.int64)]
        at += common
        for branch, row in enumerate(rows, start=1):
            own = lengths[row] - common
            tokens.append(token_BT[row, common:lengths[row]])
            positions.append(torch.arange(common, lengths[row]))
            branches.append(torch.full((own,), branch))
            place_BT[row, :common] = torch.arange(tree, tree + common)
            place_BT[row, common:lengths[row]] = torch.arange(at, at + own)
            at += own
        sizes.append(at - tree)
        masks.append(None if len(rows) == 1 else _sees(torch.cat(branches)[None])[0, 0])
    dtype = next(trunk.parameters()).dtype
    # a mask of four dimensions is handed through as it is; what is looked at is said by the segments
    hidden_1ND = trunk(input_ids=torch.cat(tokens)[None], position_ids=torch.cat(positions)[None], use_cache=False,
                       attention_mask=torch.empty(1, 1, 0, 0), segments=segments(sizes, masks, dtype)).last_hidden_state
    return hidden_1ND[0][place_BT]


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
