"""The networks of actor-critic RL: policy, reference, value; one trunk where LoRA allows it, else three.

    LoRA on:   reference = the trunk with its adapters off; no second model is held
    LoRA off:  reference = a frozen copy of the policy as it was at the start
    value "shared": a zero-initialised linear head on the policy's last hidden state (Ziegler et al. 2019)
    value "separate": a trunk of its own, from the reward model where there is one (InstructGPT), trained in full
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.models.heads import ScalarHead, lm_parts
from tutelage.models.lora import adapter_off
from tutelage.training.batch import Forward, forward, hidden_states, spread


class Networks(nn.Module):
    """Policy and value in one pass; `reference_logps` in another, without gradient."""

    def __init__(self, policy: nn.Module, *, reference: nn.Module | None, value_trunk: nn.Module | None, chunk: int = 256):
        super().__init__()
        self.policy = policy
        self.value_trunk = value_trunk
        self.value_head = ScalarHead(policy.config.get_text_config().hidden_size, init="zero").to(next(policy.parameters()).device)
        # kept out of the module tree: never trained, never saved with the state
        self._reference = (reference.requires_grad_(False).eval(),) if reference is not None else ()
        self.chunk = chunk

    def forward(self, token_BT: Tensor, acted_BT: Tensor, *, temperature: float, entropy: bool = True,
                entropy_grad: bool = False) -> Forward:
        """Log-probability, entropy and value of every acted token; see training/batch.py for the columns."""
        decoder, head = _parts(self.policy)
        shared = self.value_trunk is None
        out = forward(decoder, head, token_BT, acted_BT, temperature=temperature, chunk=self.chunk, entropy=entropy,
                      entropy_grad=entropy_grad,
                      value_head=self.value_head if shared else None)
        if shared:
            return out
        before_ND = hidden_states(self.value_trunk, token_BT)[:, :-1][acted_BT[:, 1:]]
        return out._replace(value_BT=spread(self.value_head(before_ND), acted_BT))

    @torch.no_grad()
    def reference_logps(self, token_BT: Tensor, acted_BT: Tensor, *, temperature: float) -> Tensor:
        """float32 nats [B, T] under the reference, 0 where not acted."""
        model = self._reference[0] if self._reference else self.policy
        decoder, head = _parts(model)
        with nullcontext() if self._reference else adapter_off(model):
            return forward(decoder, head, token_BT, acted_BT, temperature=temperature, chunk=self.chunk,
                           entropy=False).logp_BT


def _parts(model: nn.Module) -> tuple[Callable[..., Any], Callable[[Tensor], Tensor]]:
    decoder, lm_head, post = lm_parts(model)
    return decoder, lambda hidden: post(lm_head(hidden))
