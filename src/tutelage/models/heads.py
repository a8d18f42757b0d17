"""The trunk and the heads: a language-model head where logits are wanted, and scalar heads for value, reward and cost.

B = responses, T = token positions, D = hidden size, V = vocabulary.

A scalar model is saved as transformers' AutoModelForSequenceClassification with one label, so that plain transformers
loads it.  Two things that the format cannot say are mended: its `score` layer has no bias (ours stands in the config as
`score_bias`, and moves every score alike), and it finds the last token by pad id, which cuts off the turn end where
pad = eos (the saved tokenizer and config get another pad token, one that never ends a text).
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.models.attention import quicken
from tutelage.models.load import (
    Loaded,
    best_device,
    best_dtype,
    dropout_off,
    obtain,
    quiet_transformers,
    save_files,
    unpad_embedding,
    weights_digest,
)
from tutelage.models.lora import merged_state
from tutelage.models.prefix import hidden_states

# Architectures whose logits are post(lm_head(decoder(...))), as the tests check; any other is compared once when it comes.
CHECKED = frozenset({"llama", "gemma3_text", "gpt2", "gpt_neox", "qwen2"})


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper (its adapters stay in place and active)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Head:
    """Hidden states [..., D] -> logits [..., V], float32: the language-model head with what the model does after it."""

    def __init__(self, output: nn.Module, post: Callable[[Tensor], Tensor] | None):
        self.output, self.post = output, post
        self._copy: tuple[tuple[int, int], Tensor] | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        raw = self.raw(hidden)
        return raw if self.post is None else self.post(raw)

    def raw(self, hidden: Tensor) -> Tensor:
        """Before what the model does after its head."""
        if type(self.output) is not nn.Linear:
            return self.output(hidden).float()
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.output.bias is None else self.output.bias.float()
            return F.linear(hidden.float(), self._weight(), bias)

    @property
    def trained(self) -> bool:
        return any(p.requires_grad for p in self.output.parameters())

    def matrix(self) -> Tensor | None:
        """[V, D] in its own type, without gradient, where the logits are hidden @ matrix.T and nothing else; None for any other head."""
        return self.output.weight.detach() if self._is_matrix() else None

    def parameter(self) -> nn.Parameter | None:
        """The matrix of `matrix()` itself, in its own type; None for any other head."""
        return self.output.weight if self._is_matrix() else None

    def _is_matrix(self) -> bool:
        return type(self.output) is nn.Linear and self.output.bias is None and self.post is None

    def _weight(self) -> Tensor:
        """The weight in float32; a copy of one that is not trained is kept until it changes."""
        weight = self.output.weight
        if weight.dtype == torch.float32 or (weight.requires_grad and torch.is_grad_enabled()):
            return weight.float()
        key = (weight.data_ptr(), weight._version)
        if self._copy is None or self._copy[0] != key:
            self._copy = (key, weight.detach().float())
        return self._copy[1]


class LMParts(NamedTuple):
    decoder: nn.Module  # input_ids [B, T] -> .last_hidden_state [B, T, D], final norm included
    lm_head: Callable[[Tensor], Tensor]  # hidden [..., D] -> raw logits [..., V], float32
    post: Callable[[Tensor], Tensor]  # raw logits -> logits (soft cap, scale)


def lm_parts(model: PreTrainedModel | PeftModel) -> LMParts:
    """Split a causal LM so that the LM head runs only where logits are wanted, always in float32 (RLHF_CORRECTNESS C11).

    UserError for an architecture whose logits are made in another way.
    """
    lm = plain_model(model)
    decoder, output = lm.base_model, lm.get_output_embeddings()
    if decoder is lm or output is None:
        raise UserError(f"{type(lm).__name__} has no separate trunk and language-model head, so it cannot be trained here")
    post = _post(lm.config.get_text_config())
    head = Head(output, post)
    parts = LMParts(decoder, head.raw, post or (lambda logits: logits))
    if lm.config.model_type not in CHECKED:
        _compare_once(lm, parts)
    return parts


def decoder_and_head(model: PreTrainedModel | PeftModel) -> tuple[nn.Module, Head]:
    """`lm_parts` with the head in one piece, which algos/cross_entropy.py can look into."""
    parts = lm_parts(model)
    return parts.decoder, parts.lm_head.__self__


def _post(config: Any) -> Callable[[Tensor], Tensor] | None:
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    if cap is None and scale == 1.0:
        return None

    def post(logits: Tensor) -> Tensor:
        logits = logits * scale
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return post


def _compare_once(lm: PreTrainedModel, parts: LMParts) -> None:
    if getattr(lm, "_tutelage_compared", False):
        return
    token_BT = torch.arange(5, device=next(lm.parameters()).device)[None]
    training = lm.training
    lm.eval()
    with torch.no_grad():
        want = lm(input_ids=token_BT, use_cache=False).logits.float()
        got = parts.post(parts.lm_head(parts.decoder(input_ids=token_BT, use_cache=False).last_hidden_state))
    lm.train(training)
    loose = 1e-3 if next(lm.parameters()).dtype == torch.float32 else 0.1
    if want.shape != got.shape or not torch.allclose(want, got, rtol=loose, atol=loose):
        raise UserError(f"{type(lm).__name__} makes its logits in a way that is not known here (they differ by up to "
                        f"{(want - got).abs().max():.3g}); use another architecture, or report this one")
    lm._tutelage_compared = True


class ScalarHead(nn.Module):
    """One float32 number for each hidden state: [..., D] -> [...]."""

    def __init__(self, hidden_size: int, *, init: str = "zero", generator: torch.Generator | None = None):
        """init "zero": the value head on a shared trunk starts silent (lm-human-preferences).
        init "orm": weights N(0, 1 / (D + 1)), the fresh reward head of Stiennon et al. 2020 and of "The N+ implementation
        details of RLHF with PPO" (https://arxiv.org/abs/2403.17031); std 1 / sqrt(D + 1), bias 0 (C34)."""
        super().__init__()
        if init not in ("zero", "orm"):
            raise ValueError(f'init must be "zero" or "orm"; got {init!r}')
        self.score = nn.Linear(hidden_size, 1, dtype=torch.float32)
        with torch.no_grad():
            self.score.bias.zero_()
            if init == "zero":
                self.score.weight.zero_()
            else:
                self.score.weight.normal_(0.0, 1 / math.sqrt(hidden_size + 1), generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(hidden.float())[..., 0]


class _ScalarModel(nn.Module):
    """A trunk and a scalar head.  The trunk may be another network's (shared) or its own."""

    def __init__(self, trunk: nn.Module, head: ScalarHead):
        super().__init__()
        self.trunk, self.head = trunk, head

    @property
    def config(self) -> Any:
        return self.trunk.config

    def hidden(self, token_BT: Tensor, real_BT: Tensor) -> Tensor:
        """Last hidden states [B, T, D]; padding may stand on either side."""
        if bool((real_BT[:, 1:] <= real_BT[:, :-1]).all()) and bool(real_BT[:, 0].all()):
            return hidden_states(self.trunk, token_BT, real_BT)
        position_BT = (real_BT.long().cumsum(1) - 1).clamp(min=0)
        return self.trunk(
            input_ids=token_BT, attention_mask=real_BT.long(), position_ids=position_BT, use_cache=False
        ).last_hidden_state


class ValueModel(_ScalarModel):
    """What is still to come, read at every token: [B, T] -> [B, T], at the hidden state of the same column (no shift)."""

    def forward(self, token_BT: Tensor, real_BT: Tensor) -> Tensor:
        return self.head(self.hidden(token_BT, real_BT))


class RewardModel(_ScalarModel):
    """One score a row, read at its last real token, found by the mask and never by pad id (RLHF_CORRECTNESS C33)."""

    def forward(self, token_BT: Tensor, real_BT: Tensor) -> Tensor:
        hidden_BTD = self.hidden(token_BT, real_BT)
        return self.head(hidden_BTD[torch.arange(len(token_BT), device=token_BT.device), last_real(real_BT)])


def last_real(real_BT: Tensor) -> Tensor:
    """Index of the last True of each row.

    >>> last_real(torch.tensor([[True, True, False], [False, True, True]])).tolist()
    [1, 2]
    """
    return (real_BT * torch.arange(real_BT.shape[1], device=real_BT.device)).argmax(1)


def _with_head(kind: type[_ScalarModel], model: PreTrainedModel | PeftModel, init: str, seed: int) -> Any:
    trunk = plain_model(model).base_model
    head = ScalarHead(trunk.config.get_text_config().hidden_size, init=init, generator=torch.Generator().manual_seed(seed))
    return kind(trunk, head.to(next(trunk.parameters()).device)).train(model.training)


def reward_model(model: PreTrainedModel | PeftModel, *, init: str = "orm", seed: int = 0) -> RewardModel:
    """A reward (or cost) model on the trunk of a causal LM, whose adapters stay active."""
    return _with_head(RewardModel, model, init, seed)


def value_model(model: PreTrainedModel | PeftModel, *, init: str = "zero", seed: int = 0) -> ValueModel:
    """A value model on the trunk of a causal LM."""
    return _with_head(ValueModel, model, init, seed)


def value_from_reward(reward: RewardModel) -> ValueModel:
    """A critic that starts from the reward model's weights (InstructGPT, C27), sharing them: copy first to keep the judge."""
    return ValueModel(reward.trunk, reward.head)


def harmless_pad(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """A pad id that never ends a text, for programs that look for the last token by pad id; pad = eos only if none is left."""
    eos = getattr(config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(eos if isinstance(eos, (list, tuple)) else [eos])}
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.all_special_ids)):
        if token is not None and token not in ends:
            return token
    special = sorted(id_ for id_, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special)
    return next((token for token in special if token not in ends), tokenizer.eos_token_id)


def save_scalar(
    model: _ScalarModel, tokenizer: PreTrainedTokenizerBase, folder: Path | str, *, manifest: dict[str, Any]
) -> Path:
    """Write a reward, cost or value model as AutoModelForSequenceClassification with num_labels = 1; adapters are merged."""
    config = type(model.config).from_dict(model.config.to_dict())
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"transformers has no sequence classifier for {config.model_type}: this model cannot be saved")
    config.num_labels = 1
    config.pad_token_id = harmless_pad(tokenizer, config)
    config.score_bias = model.head.score.bias.item()
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    prefix = classifier.base_model_prefix
    dtype = next(model.trunk.parameters()).dtype
    state = {f"{prefix}.{key}": value for key, value in merged_state(model.trunk).items()}
    # float32 beside a bfloat16 trunk, where plain transformers would give both the trunk's type
    state["score.weight"] = model.head.score.weight.detach()
    classifier.load_state_dict(state, assign=True)
    classifier.config.dtype = dtype
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)

    def fill(scratch: Path) -> None:
        classifier.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)

    return save_files(folder, fill, manifest=manifest)


def _stored(path: Path, key: str) -> Tensor | None:
    """One tensor of a model folder with the precision that it has on disk."""
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if key in tensors.keys():
                return tensors.get_tensor(key)
    return None


def load_reward(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    kind: type[_ScalarModel] = RewardModel,
    progress: Progress = silent,
) -> Loaded:
    """A saved reward, cost or value model: ours, or any one-label decoder classifier of a local folder or hf:org/name."""
    path = obtain(name, progress=progress)
    device = best_device(device)
    try:
        with quiet_transformers():
            classifier = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=best_dtype(dtype, device=device), use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be loaded as a reward model: {str(error).splitlines()[0]}") from error
    score = getattr(classifier, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        raise UserError(f"{path} is no reward model: wanted a decoder with a `score` layer of one label, got "
                        f"{type(classifier).__name__} with {classifier.config.num_labels} labels")
    head = ScalarHead(score.in_features)
    with torch.no_grad():
        weight = _stored(path, "score.weight")  # transformers would have rounded it to the trunk's dtype
        head.score.weight.copy_((score.weight if weight is None else weight).float())
        head.score.bias.fill_(getattr(classifier.config, "score_bias", None) or 0.0)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    unpad_embedding(classifier)
    quicken(classifier)
    model = kind(dropout_off(classifier.base_model), head).to(device).eval()
    return Loaded(model=model, tokenizer=tokenizer, name=name, path=path, digest=weights_digest(path))
