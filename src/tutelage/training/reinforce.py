"""REINFORCE with a baseline on language (Williams 1992, https://doi.org/10.1007/BF00992696): a whole response is one action.

    R_i = score_i - beta * sum of k1 over its tokens        loss = mean over responses of -(R_i - b) * sum of log p

The baseline b is a running mean of R (Sutton's reinforcement comparison, Williams section 4), the batch's own mean, or 0.

Departures from the paper: the KL to the reference in R, AdamW, and the norm of the gradient clipped.
What RLOO and ReMax share with it (`plain_credit`, `compared`, `improve`) stands here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

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
    corrected,
    over_tokens,
    place_scores,
    report,
    scores_of,
)
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: reinforce`."""

    algorithm: Literal["reinforce"] = "reinforce"
    baseline: Literal["running", "batch", "none"] = "running"
    baseline_decay: float = 0.9  # share of the running mean that a step keeps

    def faults(self) -> list[str]:
        out = RLConfig.faults(self)
        if self.baseline != "running":
            out += self.idle(baseline_decay=f"baseline running, and baseline is {self.baseline}")
        if not 0 <= self.baseline_decay < 1:
            out.append(f"baseline_decay must be in [0, 1); got {self.baseline_decay}")
        return out


def step(state: TrainState, prompts: Sequence[Prompt], config: ReinforceConfig) -> Stats:
    """One iteration: answer, judge, compare with the baseline, one gradient step, move the baseline."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config, policy="held")
    past = state.facts.get("baseline")
    signal = credit(rollouts, judgements, config, beta=state.kl.beta, past=past)
    sums = improve(state, rollouts, signal, config)
    mean = float(signal.reward_BT.sum(1).mean())
    state.facts["baseline"] = moved(past, mean, config.baseline_decay)
    return report(state, responses, judgements, rollouts, signal, sums,
                  baseline=baseline_of(config.baseline, past=past, mean=mean))


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: ReinforceConfig, *, beta: float,
           past: float | None = None) -> RewardSignal:
    """Every token is credited with R - b of its response.  `past`: the running mean of earlier steps.  Pure."""
    signal = plain_credit(rollouts, judgements, config, beta=beta)
    baseline = baseline_of(config.baseline, past=past, mean=float(signal.reward_BT.sum(1).mean()))
    return compared(signal, baseline, rollouts.acted_BT)


def baseline_of(kind: str, *, past: float | None, mean: float) -> float:
    """What is taken off each return.  `past`: None before the first step; `mean`: of this step's returns.

    The first step has no past and uses its own mean.  That shrinks the expected gradient by (n - 1) / n and turns it nowhere.
    """
    if kind == "none":
        return 0.0
    return mean if kind == "batch" or past is None else past


def moved(past: float | None, mean: float, decay: float) -> float:
    """The running mean after a step whose returns had this mean.

    >>> moved(None, 4.0, 0.75), moved(4.0, 8.0, 0.75)
    (4.0, 5.0)
    """
    return mean if past is None else decay * past + (1 - decay) * mean


def plain_credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: RLConfig, *, beta: float) -> RewardSignal:
    """Without a baseline: every token is credited with its response's whole return, score - beta * KL.  Pure."""
    score_B = scores_of(rollouts, judgements, config)
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, rollouts.acted_BT)
    reward_BT = place_scores(score_B, rollouts.acted_BT) - beta * kl_BT
    return RewardSignal(score_B, kl_BT, reward_BT, over_tokens(reward_BT.sum(1), rollouts.acted_BT))


def compared(signal: RewardSignal, baseline: float | Tensor, acted_BT: Tensor) -> RewardSignal:
    """The same with a baseline, a number or one for each response, taken off the return."""
    return signal._replace(advantage_BT=over_tokens(signal.reward_BT.sum(1) - baseline, acted_BT))


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: RLConfig) -> Counter:
    """One gradient step on the mean over responses of -A * sum of log p.  Returns sums."""
    signal = corrected(signal, rollouts, config)

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        loss_BT = policy_gradient_loss(new.logp_BT, part.cut(signal.advantage_BT), part.acted_BT)
        return part.share(loss_BT, "sequence_sum"), {"policy_loss": float(loss_BT.detach().sum())}

    return improve_with(state, rollouts, config, loss)
