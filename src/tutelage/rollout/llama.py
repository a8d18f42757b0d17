"""Decoding for Llama-shaped models (Llama, SmolLM2, Qwen2, Mistral without a window) with a preallocated KV cache.

R = rows, T = positions, H = key-value heads, G = query heads for each of them, D = head size, V = vocabulary.

On a CPU the linear layers are packed once into oneDNN's own layout, which made float32 decoding of SmolLM2-135M about
twice as fast on an AVX-512 machine (private torch operators: where they are missing, plain linears take their place).
Adapters are merged into the packed copy.  Prompts are right-padded: causal attention never lets a real token see padding.

Left out: sliding windows, dynamic RoPE, attention biases other than Qwen2's: those models take the way of `generic.py`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tutelage.models.heads import plain_model
from tutelage.models.lora import merged_weight
from tutelage.models.norms import quotient
from tutelage.rollout.int8 import Int8Linear

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM")
STEPS = 32  # positions by which the cache grows
FIXED_ROPE = ("default", "linear", "llama3")  # frequencies that do not depend on the length


def supports(model: nn.Module) -> bool:
    """Whether this file computes what `model` computes."""
    lm = plain_model(model)
    config = lm.config
    if type(lm).__name__ not in ARCHITECTURES or getattr(lm, "hf_device_map", None):
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) and type(lm).__name__ == "MistralForCausalLM"
    rope = getattr(config, "rope_parameters", None) or {}
    return kinds == {"full_attention"} and not window and rope.get("rope_type", "default") in FIXED_ROPE


def can_prepack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN's packed linear works here for `dtype` (tried on a small product)."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, weight = torch.ones(2, 32, dtype=dtype), torch.ones(16, 32, dtype=dtype)
        y = _packed_linear(x, torch.ops.mkldnn._reorder_linear_weight(weight, None), None)
        return torch.equal(y, torch.full((2, 16), 32.0, dtype=dtype))
    except (AttributeError, RuntimeError, TypeError):  # the operators are private: absent, or with another signature
        return False


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear:
    """One or more linear layers of the model that share their input, as one product (packed) or side by side (not)."""

    def __init__(self, modules: Sequence[nn.Module], *, prepack: bool, dtype: torch.dtype):
        self.modules, self.prepack, self.dtype = modules, prepack, dtype
        self.refresh()

    def refresh(self) -> None:
        """Read the weights anew, adapters merged.  Without packing, adapters or a change of dtype this copies nothing."""
        weights = [merged_weight(module).to(self.dtype) for module in self.modules]
        biases = [getattr(module, "base_layer", module).bias for module in self.modules]
        biases = [None if bias is None else bias.detach().to(self.dtype) for bias in biases]
        if not self.prepack:
            self.parts = list(zip(weights, biases, strict=True))
            return
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        some = any(bias is not None for bias in biases)
        parts = [weights[i].new_zeros(len(weights[i])) if bias is None else bias for i, bias in enumerate(biases)]
        self.parts = [(torch.ops.mkldnn._reorder_linear_weight(weight, None), torch.cat(parts) if some else None)]

    def __call__(self, x: Tensor) -> Tensor:
        product = _packed_linear if self.prepack else F.linear
        if len(self.parts) == 1:
            return product(x, *self.parts[0])
        return torch.cat([product(x, weight, bias) for weight, bias in self.parts], dim=-1)


class LlamaNet:
    """A `Net` (decode.py) over the weights of a transformers model."""

    joins = True

    def __init__(self, model: PreTrainedModel, *, prepack: bool = True, dtype: torch.dtype | None = None, int8: bool = False):
        """dtype: the trunk's type while decoding (None: the weights' own).  int8: all matrices rounded to 8 bits (int8.py)."""
        lm = plain_model(model)
        config, body = lm.config, lm.model
        self.body = body
        self.device, self.dtype = body.embed_tokens.weight.device, dtype or body.embed_tokens.weight.dtype
        prepack = prepack and can_prepack(self.dtype, self.device) and can_prepack(torch.float32, self.device)
        self.query_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def linear(*modules: nn.Module, dtype: torch.dtype = self.dtype) -> Linear | Int8Linear:
            return Int8Linear(modules, dtype=dtype) if int8 else Linear(modules, prepack=prepack, dtype=dtype)

        self.layers = [
            (layer, linear(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
             linear(layer.self_attn.o_proj), linear(layer.mlp.gate_proj, layer.mlp.up_proj), linear(layer.mlp.down_proj))
            for layer in body.layers
        ]
        # logits in float32 whatever the trunk's type (RLHF_CORRECTNESS C11)
        self.head = linear(lm.get_output_embeddings(), dtype=torch.float32)
        self.key: list[Tensor] = []  # each layer [rows, H, length, D]
        self.value: list[Tensor] = []
        self.lengths: list[int] = []  # tokens in the cache, row by row

    def refresh(self) -> None:
        """Read the model's weights anew, after an optimiser step or a change of adapter."""
        for _, *linears in self.layers:
            for linear in linears:
                linear.refresh()
        self.head.refresh()

    def open(self, rows: int, length: int) -> None:
        self.longest, self.lengths = length, []
        self.key, self.value = ([self._room(rows, 0) for _ in self.layers] for _ in range(2))
        positions = torch.arange(length, device=self.device)[None]
        cos, sin = self.body.rotary_emb(torch.zeros(1, dtype=self.dtype, device=self.device), positions)
        half = self.head_dim // 2
        self.cos_TD, self.sin_TD = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)  # signs: see _rotate

    def _room(self, rows: int, length: int) -> Tensor:
        # zeros, not empty: what stands beyond a row's end is multiplied by 0, and 0 * NaN is NaN
        return torch.zeros(rows, self.kv_heads, length, self.head_dim, dtype=self.dtype, device=self.device)

    def _fit(self, width: int) -> int:
        """Give the cache room for `width` positions and a few more, which is returned: with all of it in use, products take it as it
        is, and with a part of it they would copy that part first."""
        room = min(-(-width // STEPS) * STEPS, self.longest)
        held, rows = self.key[0].shape[2], len(self.lengths)
        if room != held:
            for caches in (self.key, self.value):
                for layer, old in enumerate(caches):
                    caches[layer] = self._room(len(old), room)
                    caches[layer][:rows, :, :min(room, held)] = old[:rows, :, :min(room, held)]
        return room

    def close(self) -> None:
        self.key, self.value, self.lengths = [], [], []

    @torch.no_grad()
    def admit(self, prompts: Sequence[list[int]], copies: Sequence[int]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        token_UT = torch.zeros(len(prompts), width, dtype=torch.int64)
        for at, prompt in enumerate(prompts):
            token_UT[at, : len(prompt)] = torch.tensor(prompt)
        copies_U = torch.tensor(copies, device=self.device)
        self._fit(max([width, *self.lengths]))
        begin, end = len(self.lengths), len(self.lengths) + sum(copies)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """q [U, Q, T, D], k and v [U, H, T, D]"""
            self.key[layer][begin:end, :, :width] = k.repeat_interleave(copies_U, dim=0)
            self.value[layer][begin:end, :, :width] = v.repeat_interleave(copies_U, dim=0)
            groups = self.query_heads // self.kv_heads
            return F.scaled_dot_product_attention(
                q, k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), is_causal=True
            )

        hidden_UTE = self._trunk(token_UT.to(self.device), self.cos_TD[:width], self.sin_TD[:width], attend)
        last_U = torch.tensor(lengths, device=self.device) - 1
        logits_UV = self._logits(hidden_UTE[torch.arange(len(prompts), device=self.device), last_U])
        self.lengths += [length for length, count in zip(lengths, copies, strict=True) for _ in range(count)]
        return logits_UV.repeat_interleave(copies_U, dim=0)

    @torch.no_grad()
    def step(self, token_ids: Sequence[int]) -> Tensor:
        rows, width = len(self.lengths), self._fit(max(self.lengths) + 1)
        position_R = torch.tensor(self.lengths, device=self.device)
        unseen_RT = torch.arange(width, device=self.device) > position_R[:, None]
        bias_RT = torch.zeros(rows, width, dtype=self.dtype, device=self.device).masked_fill_(unseen_RT, -torch.inf)
        bias_N1T = bias_RT.repeat_interleave(self.kv_heads, dim=0)[:, None]  # N = R x H
        row_RH = torch.arange(rows * self.kv_heads, device=self.device).view(rows, -1)
        place_N = (row_RH * width + position_R[:, None]).flatten()  # of the new tokens among all of the cache
        scale = self.head_dim**-0.5

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """q [R, Q, 1, D], k and v [R, H, 1, D]"""
            for cache, new in ((self.key[layer], k), (self.value[layer], v)):
                cache.view(-1, self.head_dim).index_copy_(0, place_N, new.reshape(-1, self.head_dim))
            key_NTD, value_NTD = (cache[:rows].flatten(0, 1) for cache in (self.key[layer], self.value[layer]))
            # the G query heads of a key-value head stand where positions stand elsewhere: no copy of the keys is made
            q_NGD = q.reshape(rows * self.kv_heads, -1, self.head_dim)
            score_NGT = torch.baddbmm(bias_N1T, q_NGD, key_NTD.transpose(1, 2), alpha=scale)
            # a softmax in float32 inside, whatever the type
            return torch.bmm(torch.softmax(score_NGT, dim=-1), value_NTD).view(rows, self.query_heads, 1, -1)

        token_R1 = torch.tensor(token_ids, device=self.device)[:, None]
        cos, sin = self.cos_TD[position_R][:, None, None], self.sin_TD[position_R][:, None, None]  # [R, 1, 1, D]
        hidden_R1E = self._trunk(token_R1, cos, sin, attend)
        self.lengths = [length + 1 for length in self.lengths]
        return self._logits(hidden_R1E[:, 0])

    def keep(self, alive: Sequence[bool]) -> list[int]:
        """Survivors from the end move into the gaps: few rows are copied."""
        survivors = [row for row, lives in enumerate(alive) if lives]
        count = len(survivors)
        gaps = [row for row in range(count) if not alive[row]]
        movers = [row for row in survivors if row >= count]
        order = list(range(count))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if movers:
            width = max(self.lengths[mover] for mover in movers)
            for cache in (*self.key, *self.value):
                cache[gaps, :, :width] = cache[movers, :, :width]
        self.lengths = [self.lengths[old] for old in order]
        return order

    def _trunk(
        self, token_RT: Tensor, cos: Tensor, sin: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Hidden states [R, T, E] after the final norm; `attend` stores keys and values and looks back."""
        rows, width = token_RT.shape
        x = F.embedding(token_RT, self.body.embed_tokens.weight.detach()).to(self.dtype)
        heads = (self.query_heads, self.kv_heads, self.kv_heads)
        for number, (layer, qkv, out, gate_up, down) in enumerate(self.layers):
            mixed = qkv(_norm(x, layer.input_layernorm)).view(rows, width, sum(heads), self.head_dim).transpose(1, 2)
            turned = _rotate(mixed[:, : heads[0] + heads[1]], cos, sin)
            seen = attend(number, turned[:, : heads[0]], turned[:, heads[0]:], mixed[:, heads[0] + heads[1]:])
            x = x + out(seen.transpose(1, 2).reshape(rows, width, -1))
            gate, up = gate_up(_norm(x, layer.post_attention_layernorm)).chunk(2, dim=-1)
            x = x + down(layer.mlp.act_fn(gate) * up)
        return _norm(x, self.body.norm)

    def _logits(self, hidden_RE: Tensor) -> Tensor:
        return self.head(hidden_RE.float())


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    """RMSNorm in float32, rounded before the weight is applied, as transformers does it, in few calls."""
    return quotient(x, norm.variance_epsilon)[0].mul_(norm.weight.detach().to(x.dtype))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), halves paired as in Llama's transformers port; the first half of `sin` is negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
