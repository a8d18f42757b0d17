"""The door between tokens and tensors: padding, the one shift, and what a forward pass says of each token.

B = responses, T = token positions of prompt + response, right-padded, position ids from 0.  Column t is the step at
which token t was chosen: logp_BT[:, t] and value_BT[:, t] come from the hidden state of position t - 1.  The shift
happens in `forward`, once, and nowhere else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.cross_entropy import token_logps
from tutelage.models.prefix import hidden_states
from tutelage.text.mask import Row


class Batch(NamedTuple):
    """Right-padded rows."""

    token_BT: Tensor  # int64
    real_BT: Tensor  # bool, True where not padding
    weight_BT: Tensor  # float32, loss weight; 0 = not acted

    @property
    def acted_BT(self) -> Tensor:  # bool, True where the token is trained on (or was chosen by the policy)
        return self.weight_BT > 0


class Forward(NamedTuple):
    """What the networks say of each acted token; 0 where not acted."""

    logp_BT: Tensor  # float32 nats, at the given temperature
    entropy_BT: Tensor  # float32 nats; 0 where not wanted
    value_BT: Tensor | None  # float32, on the reward's scale
    cost_value_BT: Tensor | None = None  # float32, on the cost's scale


def collate(rows: Sequence[Row], *, device: torch.device | str = "cpu", pad_to: int | None = None, pad_id: int = 0) -> Batch:
    """Rows side by side, padded at the right; what stands in the padding is never looked at."""
    width = max(max(len(row.token_ids) for row in rows), pad_to or 0)
    token_BT = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    weight_BT = torch.zeros(len(rows), width)
    real_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        length = len(row.token_ids)
        token_BT[at, :length] = torch.tensor(row.token_ids, dtype=torch.int64)
        weight_BT[at, :length] = torch.tensor(row.weights, dtype=torch.float32)
        real_BT[at, :length] = True
    weight_BT[:, 0] = 0  # nothing stands before the first token, so nothing predicts it
    return Batch(token_BT.to(device), real_BT.to(device), weight_BT.to(device))


def forward(
    decoder: Callable[..., Any],
    head: Callable[[Tensor], Tensor],
    token_BT: Tensor,
    acted_BT: Tensor,
    *,
    temperature: float = 1.0,
    value_head: Callable[[Tensor], Tensor] | None = None,
    cost_head: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 256,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> Forward:
    """Log-probability, entropy and value of every acted token in one pass; logits exist for acted tokens only, in chunks.

    head: hidden [N, D] -> logits [N, V].  value_head, cost_head: hidden [N, D] -> [N].
    """
    assert not acted_BT[:, 0].any(), "the first token of a row has no predecessor and cannot be acted"
    hidden_BTD = hidden_states(decoder, token_BT, up_to_last(acted_BT))
    before_ND = hidden_BTD[:, :-1][acted_BT[:, 1:]]  # the one shift
    logp_N, entropy_N = token_logps(before_ND, token_BT[acted_BT], head, temperature=temperature, chunk=chunk,
                                   entropy=entropy, entropy_grad=entropy_grad)
    value_BT, cost_value_BT = (None if each is None else spread(each(before_ND), acted_BT) for each in (value_head, cost_head))
    return Forward(spread(logp_N, acted_BT), spread(entropy_N, acted_BT), value_BT, cost_value_BT)


def up_to_last(acted_BT: Tensor) -> Tensor:
    """bool [B, T], True up to each row's last acted token: what a pass needs to look at.  At least one token a row."""
    needed_BT = acted_BT.flip(1).cumsum(1).flip(1) > 0
    needed_BT[:, 0] = True
    return needed_BT


def spread(x_N: Tensor, mask_BT: Tensor) -> Tensor:
    """Values of the masked positions back in their places, 0 elsewhere."""
    out_BT = torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device)
    return out_BT.masked_scatter(mask_BT, x_N)


class Held(NamedTuple):
    """What the policy said of some rows before the update, with what its backward pass needs."""

    rows: list[int]
    said: Forward


class Rollouts(NamedTuple):
    """A batch of answered prompts, all of the length of the longest, as tensors."""

    token_BT: Tensor  # int64
    real_BT: Tensor  # bool, not padding
    acted_BT: Tensor  # bool, True where the policy chose the token: the only loss mask there is
    sampler_logp_BT: Tensor  # float32 nats as the sampler reported them, 0 where not acted
    logp_BT: Tensor  # float32 nats under the policy before the update, 0 where not acted
    ref_logp_BT: Tensor  # float32 nats under the reference
    value_BT: Tensor | None  # float32, before the update; None without a critic
    entropy_BT: Tensor  # float32 nats
    group_B: Tensor  # int64, same prompt same number
    stopped_B: Tensor  # bool, True where the response ended by itself, False where the length limit cut it
    cost_value_BT: Tensor | None = None  # float32, of the critic of costs, before the update
    dense_BT: Tensor | None = None  # float32, what judges said of single tokens; None where they spoke of whole answers alone
    held: Held | None = None  # the scoring pass itself, for the first update to go backwards through; None where it was not kept
    scored: bool = True  # False: logp_BT and entropy_BT hold zeros until the only update writes them

    def lengths(self) -> list[int]:
        return self.real_BT.sum(1).tolist()

    def begins(self) -> list[int]:
        """Tokens of each row before the first that was acted on: its prompt."""
        return torch.where(self.acted_BT.any(1), self.acted_BT.int().argmax(1), self.real_BT.sum(1)).tolist()
