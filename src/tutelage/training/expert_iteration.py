"""Expert iteration, also called rejection-sampling fine-tuning: answer, keep the best, learn them by SFT, begin again.

After Anthony et al. 2017 (https://arxiv.org/abs/1705.08439); on language Yuan et al. 2023 (RFT,
https://arxiv.org/abs/2308.01825), Dong et al. 2023 (RAFT, https://arxiv.org/abs/2304.06767), Llama 2
(https://arxiv.org/abs/2307.09288, section 3.2.3).

A step of the run is a round: `prompts_per_step` prompts, `responses_per_prompt` answers each, of which the top share a prompt
is kept and trained on for `epochs`.  A round is whole or absent: a checkpoint stands between two of them, and a resumed run
draws the round that was cut short anew, the same answers from the same weights.

Departures from the papers: (1) every round goes on from the policy as it is, where STaR and ReST-EM begin anew from the base
model; (2) answers that stand twice count twice (RFT keeps distinct ones); (3) only this round's answers are trained on, not
those of earlier rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.algos.best_of_n import top_of_group
from tutelage.core.words import Judgement, Prompt
from tutelage.training.batch import Rollouts
from tutelage.training.best_of_n import differ, imitate, imitation_faults, picked, picked_facts
from tutelage.training.on_policy import RewardSignal, RLConfig, Stats, TrainState, report, scores_of
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertIterationConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: expert_iteration`; `steps` are its rounds."""

    algorithm: Literal["expert_iteration"] = "expert_iteration"
    steps: int = 4
    prompts_per_step: int = 64
    responses_per_prompt: int = 8
    beta: float = 0.0
    top_share: float = 0.25  # of a prompt's answers, rounded up; none of a prompt whose answers all score alike
    threshold: float | None = None  # the score that an answer needs besides; where it is set, it alone decides on such a prompt
    epochs: int = 2  # over the kept answers of a round
    minibatches: int = 4  # optimiser steps an epoch

    def faults(self) -> list[str]:
        out = RLConfig.faults(self) + imitation_faults(self) + self.too_low(epochs=1, minibatches=1)
        if not 0 < self.top_share <= 1:
            out.append(f"top_share must be in (0, 1]; got {self.top_share}")
        elif self.top_share == 1 and self.threshold is None:
            out.append("top_share 1 without a threshold keeps every answer, and nothing is preferred: "
                       "lower it, or set a threshold")
        return out

    def updates_per_step(self) -> int:
        return self.epochs * self.minibatches


def step(state: TrainState, prompts: Sequence[Prompt], config: ExpertIterationConfig) -> Stats:
    """One round: answer, judge, keep the best, SFT on them."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config)
    signal = credit(rollouts, judgements, config)
    sums = imitate(state, rollouts, signal, config, epochs=config.epochs, minibatches=config.minibatches)
    return report(state, responses, judgements, rollouts, signal, sums, in_groups=True, **picked_facts(rollouts, judgements, signal))


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: ExpertIterationConfig) -> RewardSignal:
    """Advantage 1 for the tokens of the answers that are kept, 0 for all others.  Pure."""
    score_B = scores_of(rollouts, judgements, config)
    top_B = top_of_group(score_B, rollouts.group_B, share=config.top_share, threshold=config.threshold)
    if config.threshold is None:  # with one, an answer is good for what it is
        top_B = top_B & differ(score_B, rollouts.group_B)
    return picked(rollouts, score_B, top_B, config)
