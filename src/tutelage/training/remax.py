"""ReMax (Li et al. 2023, https://arxiv.org/abs/2310.10505, algorithm 1): the greedy answer's score as the baseline.

    A_i = score_i - beta * sum of k1 over its tokens - score of the greedy answer to the same prompt

No value head, and one answer a prompt suffices: each prompt is its own measure.  The price is one more answer a prompt,
which is judged but not trained on.  A greedy answer that the length limit cut off is scored as a sampled one would be.

The KL to the reference is in the return of the sampled answer alone: a baseline may be any function of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tutelage.core.words import Judgement, Prompt
from tutelage.training.batch import Rollouts
from tutelage.training.on_policy import RewardSignal, RLConfig, Stats, TrainState, report, scores_of_answers
from tutelage.training.reinforce import compared, improve, plain_credit
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class ReMaxConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: remax`."""

    algorithm: Literal["remax"] = "remax"
    responses_per_prompt: int = 1  # sampled ones; the greedy answer comes on top


def step(state: TrainState, prompts: Sequence[Prompt], config: ReMaxConfig) -> Stats:
    """One iteration: answer, answer greedily, judge both, one gradient step on the difference."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    greedy_P = greedy_scores(state, prompts, config)
    rollouts = score(state, prompts, responses, config, policy="held")
    signal = credit(rollouts, judgements, greedy_P, config, beta=state.kl.beta)
    sums = improve(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, sums, baseline=float(greedy_P.mean()))


def greedy_scores(state: TrainState, prompts: Sequence[Prompt], config: ReMaxConfig) -> Tensor:
    """Score of the likeliest answer to each prompt, [P], clipped and penalised like those of sampled ones."""
    greedy = answer(state.engine, prompts, replace(config.sampling(state.step), n=1, temperature=0.0))
    stopped_P = torch.tensor([not response.is_truncated() for response in greedy])
    length_P = torch.tensor([len(response.token_ids) for response in greedy])
    return scores_of_answers(judge_all(state.judge, prompts, greedy), stopped_P, length_P, config)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], greedy_P: Tensor, config: ReMaxConfig, *,
           beta: float) -> RewardSignal:
    """Every token is credited with its response's return minus the greedy score of its prompt.  Pure.

    greedy_P: in the order of the prompts, which `rollouts.group_B` counts.
    """
    signal = plain_credit(rollouts, judgements, config, beta=beta)
    return compared(signal, greedy_P.to(signal.score_B.device)[rollouts.group_B], rollouts.acted_BT)
