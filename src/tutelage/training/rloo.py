"""REINFORCE leave-one-out (RLOO: Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740; Kool, van Hoof & Welling 2019).

    R_i = score_i - beta * sum of k1 over its tokens        A_i = R_i - mean of the R of the other responses to the prompt

The KL is in R before the comparison, and a whole response is one action: one ratio, one clip, the mean over responses.
With one epoch of one minibatch (the default, and the paper's form) the ratio is 1 and the gradient that of REINFORCE.

Departure from the paper: `epochs` and `minibatches` above 1, which need the ratio and PPO's clip on it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.algos.groups import leave_one_out
from tutelage.algos.policy_gradient import clipped_sequence_loss
from tutelage.core.words import Judgement, Prompt
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.on_policy import ClippedConfig, Part, RewardSignal, Stats, TrainState, corrected, over_tokens, report
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.reinforce import plain_credit
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class RLOOConfig(ClippedConfig):
    """A run of `tutelage rl` with `algorithm: rloo`."""

    algorithm: Literal["rloo"] = "rloo"
    responses_per_prompt: int = 4
    epochs: int = 1
    minibatches: int = 1

    def faults(self) -> list[str]:
        out = ClippedConfig.faults(self)
        if self.responses_per_prompt == 1:
            out.append("rloo compares the responses of a prompt with one another: set responses_per_prompt to 2 or more, "
                       "or take algorithm reinforce")
        return out


def step(state: TrainState, prompts: Sequence[Prompt], config: RLOOConfig) -> Stats:
    """One iteration: answer each prompt several times, judge, compare with the others, improve."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config, policy="held" if config.minibatches == 1 else "now")
    signal = credit(rollouts, judgements, config, beta=state.kl.beta)
    sums = improve(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, sums, in_groups=True)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: RLOOConfig, *, beta: float) -> RewardSignal:
    """Every token is credited with its response's return minus the mean return of the others to the prompt.  Pure."""
    signal = plain_credit(rollouts, judgements, config, beta=beta)
    advantage_B = leave_one_out(signal.reward_BT.sum(1), rollouts.group_B)
    return signal._replace(advantage_BT=over_tokens(advantage_B, rollouts.acted_BT))


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: RLOOConfig) -> Counter:
    """Updates on frozen rollouts, clipped by the ratio of whole responses.  Returns sums over updates."""
    signal = corrected(signal, rollouts, config, whole=True)

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        policy = clipped_sequence_loss(new.logp_BT, part.cut(rollouts.logp_BT), part.cut(signal.advantage_BT), part.acted_BT,
                                       clip=config.clip)
        return part.share(policy.loss_BT, "sequence_sum"), {
            "policy_loss": float(policy.loss_BT.detach().sum()), "clipped": float(policy.clipped_BT.sum()),
            "kl_old": float(policy.kl_old_BT.sum())}

    return improve_with(state, rollouts, config, loss, epochs=config.epochs, minibatches=config.minibatches,
                        kl_stop=config.kl_stop)
