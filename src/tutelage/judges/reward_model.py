"""A trained reward model as a judge: words in, Judgements out.

The reward model re-tokenises *text* with its own tokenizer (RLHF_CORRECTNESS C37), sees it up to the stop token only,
and reads its score at the last real token, so a score does not depend on what else stood in the batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.models.heads import RewardModel, last_real, load_reward
from tutelage.models.prefix import can_share
from tutelage.text.mask import answer_row
from tutelage.text.pack import begins_of, family_batches


class RewardJudge:
    """Scores on the reward model's own scale, shifted and scaled by `bias` and `gain`: (score - bias) * gain.

    gain and bias put the reference policy's answers at mean 0 and standard deviation 1 before RL (C20).
    """

    def __init__(self, network: RewardModel, tokenizer: Any, *, id: str, max_tokens: int = 512, token_budget: int = 4096,
                 bias: float = 0.0, gain: float = 1.0, progress: Progress = silent):
        self.network, self.tokenizer, self.id = network, tokenizer, id
        self.max_tokens, self.token_budget = max_tokens, token_budget
        self.bias, self.gain, self.progress = bias, gain, progress

    @classmethod
    def load(cls, path: str | Path, *, id: str = "", dtype: str = "auto", device: str = "auto", **more: Any) -> "RewardJudge":
        """From a folder that `tutelage reward` made (or any AutoModelForSequenceClassification with one label)."""
        loaded = load_reward(str(path), dtype=dtype, device=device)
        return cls(loaded.model, loaded.tokenizer, id=id or f"reward:{Path(path).parent.name}", **more)

    @torch.no_grad()
    def scores(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        """One score an answer, in order."""
        out = [0.0] * len(items)
        for group, token_BT, real_BT in self._batches(items):
            for i, score in zip(group, self.network(token_BT, real_BT).tolist(), strict=True):
                out[i] = (score - self.bias) * self.gain
        return out

    @torch.no_grad()
    def features(self, items: Sequence[tuple[Prompt, str]]) -> Tensor:
        """[N, D] float32, on the CPU: the hidden state that an answer's score is read from, score = (head(x) - bias) * gain."""
        out = torch.zeros(len(items), self.network.head.score.in_features)
        for group, token_BT, real_BT in self._batches(items):
            hidden_BTD = self.network.hidden(token_BT, real_BT)
            out[group] = hidden_BTD[torch.arange(len(group), device=hidden_BTD.device), last_real(real_BT)].float().cpu()
        return out

    def _batches(self, items: Sequence[tuple[Prompt, str]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(places in `items`, token_BT, real_BT), answers to one prompt together."""
        rows = [answer_row(self.tokenizer, prompt, text, max_tokens=self.max_tokens).token_ids for prompt, text in items]
        device = next(self.network.parameters()).device
        done = 0
        number = {prompt.id: at for at, (prompt, _) in enumerate(items)}
        families = [number[prompt.id] for prompt, _ in items]
        for group in family_batches([len(row) for row in rows], begins_of(rows, families), families,
                                    token_budget=self.token_budget, shared=can_share(self.network.trunk)):
            token_BT, real_BT = _pad([rows[i] for i in group])
            yield group, token_BT.to(device), real_BT.to(device)
            done += len(group)
            self.progress("judge", done, len(rows))

    def judge(self, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[Judgement]:
        flat = iter(self.scores([(prompt, response.text) for prompt, responses in items for response in responses]))
        return [
            Judgement(judge=self.id, kind="rating", rubric="reward@1", responses=tuple(r.id for r in responses),
                      values=tuple(next(flat) for _ in responses))
            for _, responses in items
        ]


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    token_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    real_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        token_BT[at, :len(row)] = torch.tensor(row)
        real_BT[at, :len(row)] = True
    return token_BT, real_BT
