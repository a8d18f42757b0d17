"""The networks of actor-critic RL: policy, reference, value; one trunk where LoRA allows it, else three.

    LoRA on:   reference = the trunk with its adapters off; no second model is held
    LoRA off:  reference = a frozen copy of the policy as it was at the start
    value "shared": a zero-initialised linear head on the policy's last hidden state (Ziegler et al. 2019)
    value "separate": a trunk of its own, from the reward model where there is one (InstructGPT), trained in full
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tutelage.models.heads import ScalarHead, decoder_and_head
from tutelage.models.lora import adapter_off
from tutelage.models.prefix import can_share, hidden_states
from tutelage.training.batch import Forward, forward, spread, up_to_last


class Networks(nn.Module):
    """Policy and values in one pass; `reference_logps` in another, without gradient."""

    def __init__(self, policy: nn.Module, *, reference: nn.Module | None, value_trunk: nn.Module | None = None,
                 heads: Sequence[str] = ("value",), chunk: int = 256):
        """`heads`: the scalar heads wanted, of "value" and "cost"; none for algorithms without a critic."""
        super().__init__()
        self.policy = policy
        self.value_trunk = value_trunk  # what the value head reads; None = the policy's trunk
        device = next(policy.parameters()).device
        hidden_size = policy.config.get_text_config().hidden_size
        self.value_head, self.cost_head = (
            ScalarHead(hidden_size, init="zero").to(device) if name in heads else None for name in ("value", "cost"))
        # kept out of the module tree: never trained, never saved with the state
        self._reference = (reference.requires_grad_(False).eval(),) if reference is not None else ()
        self.chunk = chunk
        self._policy_parts = decoder_and_head(policy)
        self._reference_parts = self._policy_parts if reference is None else decoder_and_head(reference)
        self.shares = can_share(self._policy_parts[0]) and can_share(self._reference_parts[0])

    def forward(self, token_BT: Tensor, acted_BT: Tensor, *, temperature: float, entropy: bool = True,
                entropy_grad: bool = False) -> Forward:
        """Log-probability, entropy and values of every acted token; see training/batch.py for the columns."""
        decoder, head = self._policy_parts
        shared = self.value_trunk is None
        out = forward(decoder, head, token_BT, acted_BT, temperature=temperature, chunk=self.chunk, entropy=entropy,
                      entropy_grad=entropy_grad, value_head=self.value_head if shared else None, cost_head=self.cost_head)
        if shared or self.value_head is None:
            return out
        before_ND = hidden_states(self.value_trunk, token_BT, up_to_last(acted_BT))[:, :-1][acted_BT[:, 1:]]
        return out._replace(value_BT=spread(self.value_head(before_ND), acted_BT))

    @torch.no_grad()
    def reference_logps(self, token_BT: Tensor, acted_BT: Tensor, *, temperature: float) -> Tensor:
        """float32 nats [B, T] under the reference, 0 where not acted."""
        decoder, head = self._reference_parts
        with nullcontext() if self._reference else adapter_off(self.policy):
            return forward(decoder, head, token_BT, acted_BT, temperature=temperature, chunk=self.chunk,
                           entropy=False).logp_BT
