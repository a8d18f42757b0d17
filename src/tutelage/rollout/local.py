"""The engine on this machine: prompts in, responses out, with the ids that were sampled and their log-probabilities."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tutelage.core.words import Prompt, Response, Sampling
from tutelage.models.heads import lm_parts, plain_model
from tutelage.rollout.decode import Job, Net, Row, run
from tutelage.rollout.generic import GenericNet
from tutelage.rollout.int8 import can_int8
from tutelage.rollout.llama import ARCHITECTURES, LlamaNet, supports
from tutelage.text.chat import decode, render_prompt, stop_ids
from tutelage.text.mask import answer_row

SCORE_TOKENS = 4096  # padded tokens that `score` runs at once
SCORE_LOGITS = 256  # positions whose logits exist at once


class LocalEngine:
    """An `Engine` (core/protocols.py) over a causal LM of transformers, adapters included.

    The weights are the model's own, so an optimiser step is seen by the next call: `respond` notices changed parameters
    and reads them anew (`refresh` does it at once).  Nothing is left of a call's KV cache when it ends.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        policy: str,
        device: str | torch.device | None = None,
        batch_rows: int = 64,
        prepack: bool = True,
        dtype: torch.dtype | None = None,
        int8: bool = False,
    ):
        """batch_rows: responses in flight at once.  prepack: on a CPU, keep a packed second copy of the weights (faster).
        dtype: decode in another type than the weights' (Llama-shaped models); then the sampler is not quite the policy that
        is trained, and the trainer should watch the gap of their log-probs (RLHF_CORRECTNESS C9).
        int8: decode with matrices rounded to 8 bits (Llama-shaped models on a CPU, else ValueError), likewise."""
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be >= 1; got {batch_rows}")
        if device is not None:
            model.to(device)
        if int8 and not (supports(model) and can_int8(model.device)):
            raise ValueError(f"8-bit weights need a CPU with torch's quantised kernels and a model of {', '.join(ARCHITECTURES)}; got "
                             f"{type(plain_model(model)).__name__} on {model.device}")
        self.model, self.tokenizer, self.policy = model, tokenizer, policy
        self.batch_rows, self.prepack, self.dtype, self.int8 = batch_rows, prepack, dtype, int8
        self.apart = int8  # answers are drawn from another policy than the one that is trained
        self.ends = stop_ids(plain_model(model), tokenizer)
        config = plain_model(model).config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30
        self._net: Net | None = None
        self._seen: list[tuple] = []

    def respond(self, requests: Iterable[tuple[Prompt, Sampling]]) -> Iterator[Response]:
        """Responses as they finish.  `finish` is "stop" (an end token or stop string was drawn), "length" (max_tokens or the
        context is full), or "error" (the prompt alone fills the context: no tokens)."""
        jobs = []
        for prompt, sampling in requests:
            prompt_ids = render_prompt(self.tokenizer, prompt)
            budget = min(sampling.max_tokens, self.context - len(prompt_ids))
            if budget < 1:
                yield from (self._too_long(prompt, sampling, index) for index in range(sampling.n))
            else:
                jobs.append(Job(prompt=prompt, sampling=sampling, prompt_ids=prompt_ids, budget=budget, count=sampling.n))
        if jobs:
            for row in self._draw(jobs):
                yield self._response(row)

    def _draw(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Rows as they finish."""
        return run(self._fresh_net(), jobs, rows=self.batch_rows, ends=self.ends, text_of=self._text)

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[list[float]]:
        """Log-probs in nats at temperature 1, one for each answer token, turn end included."""
        rows = [answer_row(self.tokenizer, prompt, answer, max_tokens=self.context) for prompt, answer in items]
        firsts = [row.weights.index(1.0) for row in rows]
        return self.score_ids([row.token_ids for row in rows], firsts)

    @torch.no_grad()
    def score_ids(
        self, sequences: Sequence[Sequence[int]], firsts: Sequence[int], *, temperature: float = 1.0
    ) -> list[list[float]]:
        """Log-probs in nats of `sequences[i][firsts[i]:]`, each token given all before it, under the live model."""
        decoder, head, post = lm_parts(self.model)
        out: list[list[float]] = [[] for _ in sequences]
        for group in _by_length([len(sequence) for sequence in sequences], SCORE_TOKENS):
            width = max(len(sequences[i]) for i in group)
            token_BT = torch.zeros(len(group), width, dtype=torch.int64)
            asked_BT = torch.zeros(len(group), width, dtype=torch.bool)
            for at, i in enumerate(group):
                token_BT[at, : len(sequences[i])] = torch.tensor(list(sequences[i]))
                asked_BT[at, max(firsts[i], 1): len(sequences[i])] = True
            token_BT, asked_BT = token_BT.to(self.model.device), asked_BT.to(self.model.device)
            hidden_BTD = decoder(input_ids=token_BT, use_cache=False).last_hidden_state  # right padding: see batch.py
            before_ND, target_N = hidden_BTD[:, :-1][asked_BT[:, 1:]], token_BT[asked_BT]
            logps: list[float] = []
            for start in range(0, len(target_N), SCORE_LOGITS):
                logits_NV = post(head(before_ND[start: start + SCORE_LOGITS])).float() / temperature
                logp_NV = torch.log_softmax(logits_NV, dim=-1)
                logps += logp_NV.gather(1, target_N[start: start + SCORE_LOGITS, None])[:, 0].tolist()
            for at, i in enumerate(group):
                count = int(asked_BT[at].sum())
                out[i], logps = logps[:count], logps[count:]
        return out

    def refresh(self) -> None:
        """Read the weights anew, after an optimiser step or a change of adapter."""
        if self._net is not None:
            self._net.refresh()
        self._seen = self._versions()

    def close(self) -> None:
        """Let go of the packed weights; the next `respond` makes them anew."""
        self._net = None

    def _fresh_net(self) -> Net:
        if self._net is None:
            supported = supports(self.model)
            self._net = (LlamaNet(self.model, prepack=self.prepack, dtype=self.dtype, int8=self.int8) if supported
                         else GenericNet(self.model))
            self._seen = self._versions()
        elif self._seen != self._versions():
            self.refresh()
        return self._net

    def _versions(self) -> list[tuple]:
        """Changes whenever a parameter is written in place or replaced, or an adapter is switched."""
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.model.parameters()]
        adapters = [(layer.disable_adapters, tuple(layer.active_adapters)) for layer in self.model.modules()
                    if isinstance(layer, LoraLayer)]
        return weights + adapters

    def _text(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids)

    def _response(self, row: Row) -> Response:
        spoken = row.token_ids[:-1] if row.token_ids[-1] in self.ends else row.token_ids
        text = self._text(spoken)
        for stop in row.sampling.stop:
            text = text.split(stop, 1)[0]
        return Response(
            prompt_id=row.prompt.id, index=row.index, text=text, token_ids=tuple(row.token_ids), logps=tuple(row.logps),
            policy=self.policy, sampling=row.sampling, finish=row.finish,
        )

    def _too_long(self, prompt: Prompt, sampling: Sampling, index: int) -> Response:
        return Response(prompt_id=prompt.id, index=index, text="", token_ids=(), logps=(), policy=self.policy,
                        sampling=sampling, finish="error")


def _by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of like length, whose padded size stays within `budget` tokens (a longer one goes alone)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and lengths[i] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
