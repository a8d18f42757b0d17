"""Decoding for any causal LM of transformers, through its own forward pass and cache.

Rows of one batch begin together, left-padded with explicit position ids (RLHF_CORRECTNESS C2); finished rows are taken
out of the cache; new prompts wait for the next batch.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tutelage.models.heads import lm_parts, plain_model


class GenericNet:
    """A `Net` (decode.py) that calls the model."""

    joins = False

    def __init__(self, model: PreTrainedModel):
        self.lm = plain_model(model)
        self.decoder, self.head, self.post = lm_parts(model)
        self.device = next(self.lm.parameters()).device
        self.says_positions = "position_ids" in inspect.signature(self.decoder.forward).parameters
        self.cache: DynamicCache | None = None
        self.real_RT = torch.zeros(0, 0, dtype=torch.int64)
        self.was_training = False

    def refresh(self) -> None:
        """Nothing to do: the model itself is asked."""

    def open(self, rows: int, length: int) -> None:
        # gradient checkpointing switches the cache off while a model is in training mode
        self.was_training = self.lm.training
        self.lm.eval()

    def close(self) -> None:
        self.cache = None
        self.lm.train(self.was_training)

    @torch.no_grad()
    def admit(self, prompts: Sequence[list[int]], copies: Sequence[int]) -> Tensor:
        width = max(map(len, prompts))
        token_UT = torch.zeros(len(prompts), width, dtype=torch.int64)
        self.real_RT = torch.zeros(len(prompts), width, dtype=torch.int64)
        for at, prompt in enumerate(prompts):
            token_UT[at, width - len(prompt):] = torch.tensor(prompt)
            self.real_RT[at, width - len(prompt):] = 1
        self.real_RT = self.real_RT.to(self.device)
        self.cache = DynamicCache(config=self.lm.config)
        logits_UV = self._forward(token_UT.to(self.device))
        family_R = torch.repeat_interleave(torch.tensor(copies, device=self.device))
        self._select(family_R)
        return logits_UV[family_R]

    @torch.no_grad()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        self.real_RT = torch.cat([self.real_RT, self.real_RT.new_ones(len(token_ids), 1)], dim=1)
        return self._forward(torch.tensor(token_ids, device=self.device)[:, None])

    def keep(self, alive: Sequence[bool]) -> list[int]:
        order = [row for row, lives in enumerate(alive) if lives]
        self._select(torch.tensor(order, dtype=torch.int64, device=self.device))
        return order

    def _forward(self, token_RT: Tensor) -> Tensor:
        extra = {}
        if self.says_positions:
            extra["position_ids"] = (self.real_RT.cumsum(1) - 1).clamp(min=0)[:, -token_RT.shape[1]:]
        out = self.decoder(
            input_ids=token_RT, attention_mask=self.real_RT, past_key_values=self.cache, use_cache=True, **extra
        )
        return self.post(self.head(out.last_hidden_state[:, -1]))

    def _select(self, index_R: Tensor) -> None:
        self.cache.batch_select_indices(index_R)
        self.real_RT = self.real_RT[index_R]
