"""Rewards on parts of an answer as rewards on tokens.

    reward_t = rest of the score at the last token  +  sum over spans j of value_j [t = last token that j covers]  -  beta kl_t

(Wu et al. 2023, https://arxiv.org/abs/2306.01693, eq. 1.)  The rest is what the spans leave of the score, so that an answer is
paid its score however much of it stands elsewhere: a clipped score stays clipped, and an answer that never ended earns no more
by its spans than `missing_eos` says.  B = responses, T = token positions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Response, Span
from tutelage.judges.spans import steps_of
from tutelage.text.offsets import tokens_reaching
from tutelage.training.batch import Rollouts
from tutelage.training.on_policy import place_scores


def span_rewards(tokenizer: Any, responses: Sequence[Response], judgements: Sequence[Judgement], acted_BT: Tensor) -> Tensor:
    """float32 [B, T]: the value of each span at the last acted token that it covers, 0 elsewhere; values at one token add up.

    acted_BT: bool, True at the tokens of the responses, in order.  UserError for a span that is none of its response's.
    """
    return _placed(tokenizer, responses, [(span, j.judge) for j in judgements for span in j.spans], acted_BT)


def step_rewards(
    tokenizer: Any, responses: Sequence[Response], values: Sequence[Sequence[float]], acted_BT: Tensor, *, mark: str = "\n"
) -> Tensor:
    """float32 [B, T]: one value for each step of each response, at the last token of the step (that of its mark)."""
    spans = []
    for response, numbers in zip(responses, values, strict=True):
        steps = steps_of(response.text, mark)
        if len(steps) != len(numbers):
            raise UserError(f"response {response.id}: {len(steps)} steps end with {mark!r} or with the text, "
                            f"but {len(numbers)} values")
        spans += [(Span(response=response.id, start=start, end=end, label="step", value=value), "steps")
                  for (start, end), value in zip(steps, numbers, strict=True)]
    return _placed(tokenizer, responses, spans, acted_BT)


def token_rewards(score_B: Tensor, rollouts: Rollouts) -> Tensor:
    """What each token earned, [B, T]: spans at their last tokens, the rest of the score at the last one.  Rows sum to score_B."""
    if rollouts.dense_BT is None:
        return place_scores(score_B, rollouts.acted_BT)
    return place_scores(score_B - rollouts.dense_BT.sum(1), rollouts.acted_BT) + rollouts.dense_BT


def _placed(tokenizer: Any, responses: Sequence[Response], spans: Iterable[tuple[Span, str]], acted_BT: Tensor) -> Tensor:
    place = {response.id: row for row, response in enumerate(responses)}
    by_row: dict[int, list[Span]] = {}
    for span, judge in spans:
        if span.response not in place:
            raise UserError(f"{judge} gave a span for response {span.response}, which it was not asked about")
        length = len(responses[place[span.response]].text)
        if not 0 <= span.start < span.end <= length:
            raise UserError(f"{judge}: the span {span.start} to {span.end} does not lie inside response {span.response} of "
                            f"{length} characters; wanted 0 <= start < end <= length")
        by_row.setdefault(place[span.response], []).append(span)
    out_BT = torch.zeros(acted_BT.shape, dtype=torch.float32, device=acted_BT.device)
    for row, members in by_row.items():
        columns = acted_BT[row].nonzero()[:, 0]
        assert len(columns) == len(responses[row].token_ids), "one acted position for each token of the response"
        places = tokens_reaching(tokenizer, responses[row].token_ids, [span.end for span in members])
        for span, at in zip(members, places, strict=True):
            out_BT[row, columns[at]] += span.value
    return out_BT
