"""Online DPO: the policy answers, a judge prefers, and one DPO step follows.

After Guo et al. 2024, https://arxiv.org/abs/2402.04792.

Of each prompt's answers the best and the worst make a pair; a prompt whose answers all score alike makes none.  The
reference is the frozen one (adapters off, or a copy), as in offline DPO.

One update a step, at the very policy that answered.  There the gradient of the DPO loss is a policy gradient:

    grad L = -beta s(-beta h) (grad log p(chosen) - grad log p(rejected)),     h the difference of the log-ratios

so `credit` takes the weights beta s(-beta h) from the log-probs that the rollouts hold anyway (by autograd of the very loss
of algos/direct_preference.py), and the two answers of a pair need not ride in one micro-batch.

Departure from the paper: its judge is a language model that is asked which of two is better; ours scores each answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.best_of_n import best_and_worst
from tutelage.algos.direct_preference import Pairs, dpo_loss
from tutelage.algos.kl import k1
from tutelage.algos.policy_gradient import policy_gradient_loss
from tutelage.core.words import Judgement, Prompt
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.on_policy import (
    Part,
    RewardSignal,
    RLConfig,
    Stats,
    TrainState,
    over_tokens,
    place_scores,
    report,
    scores_of,
)
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineDPOConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: online_dpo`."""

    algorithm: Literal["online_dpo"] = "online_dpo"
    beta: float = 0.1  # of the DPO loss

    def faults(self) -> list[str]:
        out = RLConfig.faults(self)
        if self.responses_per_prompt == 1:
            out.append("online_dpo compares the responses of a prompt: set responses_per_prompt to 2 or more")
        if self.beta == 0:
            out.append("beta must be > 0 for online_dpo: at 0 its loss has no gradient")
        if self.kl_target is not None:
            out.append("kl_target adapts the price of a KL penalty, which online_dpo has not: leave it out and set beta")
        return out


class Preferred(NamedTuple):
    """What a step learns from."""

    signal: RewardSignal  # its advantages are -d(sum of the pairs' losses) / d(log p of the response)
    rows: list[int]  # of the answers in pairs, chosen ones first; two a pair
    facts: dict[str, float]  # metrics of the pairs


def step(state: TrainState, prompts: Sequence[Prompt], config: OnlineDPOConfig) -> Stats:
    """One iteration: answer, judge, pair the best with the worst, one DPO step."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config)
    preferred = credit(rollouts, judgements, config)
    sums = improve(state, rollouts, preferred, config)
    return report(state, responses, judgements, rollouts, preferred.signal, sums, in_groups=True, **preferred.facts)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: OnlineDPOConfig) -> Preferred:
    """Pairs of the best and the worst answer, and what the DPO loss says of each answer's log-probability.  Pure."""
    acted_BT = rollouts.acted_BT
    score_B = scores_of(rollouts, judgements, config)
    pair = best_and_worst(score_B, rollouts.group_B)
    logp_B = torch.where(acted_BT, rollouts.logp_BT, 0.0).sum(1).requires_grad_()
    ref_logp_B = torch.where(acted_BT, rollouts.ref_logp_BT, 0.0).sum(1)
    count_B = acted_BT.sum(1)
    out = dpo_loss(Pairs(*(x_B[side_P] for x_B in (logp_B, ref_logp_B, count_B) for side_P in pair),
                         soft_label_P=torch.ones(len(pair.chosen_P), device=logp_B.device)), beta=config.beta)
    (gradient_B,) = torch.autograd.grad(out.loss_P.sum(), logp_B)
    signal = RewardSignal(score_B, k1(rollouts.logp_BT, rollouts.ref_logp_BT, acted_BT), place_scores(score_B, acted_BT),
                          over_tokens(-gradient_B, acted_BT))
    facts: dict[str, float] = {"pairs": len(pair.chosen_P)}
    if facts["pairs"]:
        facts |= {"policy_loss": float(out.loss_P.detach().mean()), "accuracy": float(out.right_P.mean()),
                  "margin": float((out.chosen_reward_P - out.rejected_reward_P).mean())}
    return Preferred(signal, [*pair.chosen_P.tolist(), *pair.rejected_P.tolist()], facts)


def improve(state: TrainState, rollouts: Rollouts, preferred: Preferred, config: OnlineDPOConfig) -> Counter:
    """One update, by the mean over pairs of the DPO loss.  Returns sums."""

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        loss_BT = policy_gradient_loss(new.logp_BT, part.cut(preferred.signal.advantage_BT), part.acted_BT)
        return 2 * part.share(loss_BT, "sequence_sum"), {}  # a pair is two of the step's rows

    return improve_with(state, rollouts, config, loss, rows=preferred.rows)
