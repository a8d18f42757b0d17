"""Group relative policy optimization on language, and its variants by choice: Dr. GRPO, DAPO, GSPO, CISPO.

The answers to a prompt are compared with one another, and the comparison is every token's advantage: no critic.  Sources
stand in algos/grpo.py; which settings make which variant, in recipes/{grpo,dr_grpo,dapo,gspo}_starter.yaml.

Departures from the papers:
1. The advantage is exactly 0 in a group whose answers are all credited alike; its KL term and its tokens still count.
2. `dynamic_sampling` asks such a prompt again, where DAPO asks another one: a step keeps its prompts, so that a resumed run
   asks what the uninterrupted one would have.  A group that stays flat after the last round stays in the step.
3. The KL penalty of later epochs is not weighted by the ratio (nor is the papers').
4. Answers that the length limit cut off are credited with `missing_eos` (C12), and `overlong_buffer` comes on top of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.groups import flat_groups
from tutelage.algos.grpo import cispo_loss, group_advantages, grpo_loss, gspo_loss, overlong_penalty
from tutelage.algos.kl import k1, k2, k3
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.on_policy import (
    ClippedConfig,
    Part,
    RewardSignal,
    Stats,
    TrainState,
    corrected,
    over_tokens,
    place_scores,
    report,
    scores_of_answers,
)
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.rollouts import answer, judge_all, score

LOSSES = {"token": grpo_loss, "sequence": gspo_loss, "weight": cispo_loss}  # `ratio`
PENALTIES = {"k2": k2, "k3": k3}  # `kl_estimator`, where the KL stands in the loss
ROUND = 2**20  # step numbers between two rounds of dynamic sampling: each has random streams of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPOConfig(ClippedConfig):
    """A run of `tutelage rl` with `algorithm: grpo`."""

    algorithm: Literal["grpo"] = "grpo"
    responses_per_prompt: int = 4
    scale: Literal["group_std", "none"] = "group_std"  # what a group's differences are divided by; none: Dr. GRPO
    unbiased_std: bool = True  # divisor k - 1, as most implementations have it; false: k
    ratio: Literal["token", "sequence", "weight"] = "token"  # sequence: GSPO; weight: CISPO, a weight without gradient
    clip_low: float | None = None  # null = clip
    clip_high: float | None = None  # null = clip; DAPO: 0.28
    aggregate: Literal["token", "sequence", "sequence_sum", "constant"] = "sequence"
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # null = k3 in the loss (the paper's), k1 in the reward
    overlong_buffer: int = 0  # tokens before max_tokens over which the score falls by 1; 0 = off
    dynamic_sampling: int = 0  # how often prompts are asked again whose answers are all credited alike; 0 = never

    def faults(self) -> list[str]:
        out = ClippedConfig.faults(self) + self.too_low(overlong_buffer=0, dynamic_sampling=0)
        if self.responses_per_prompt == 1:
            out.append("grpo compares the responses of a prompt with one another: set responses_per_prompt to 2 or more")
        if self.clip_low is not None and not 0 < self.clip_low < 1:
            out.append(f"clip_low must be in (0, 1), or null to be clip; got {self.clip_low}")
        if self.clip_high is not None and self.clip_high <= 0:
            out.append(f"clip_high must be > 0, or null to be clip; got {self.clip_high}")
        if self.overlong_buffer > self.max_tokens:
            out.append(f"overlong_buffer ({self.overlong_buffer}) is the last part of max_tokens ({self.max_tokens}) "
                       "and cannot exceed it")
        if self.scale == "none":
            out += self.idle(unbiased_std="scale group_std, and scale is none")
        if self.clip_low is not None and self.clip_high is not None:
            out += self.idle(clip="clip_low and clip_high where they are null, and both are set")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            out.append("kl_estimator k1 in the loss has no gradient in expectation: take k2 (reverse KL) or k3 (forward KL), "
                       "or put it into the reward with kl_in: reward")
        if self.kl_in == "reward" and self.kl_estimator in ("k2", "k3"):
            out.append(f"kl_estimator {self.kl_estimator} in the reward does not give the gradient of the KL: take k1, "
                       "or kl_in: loss")
        return out

    def late(self) -> bool:
        """Whether the policy's log-probs before the update need no pass of their own: there is one update, whose own pass makes
        them, and nothing is credited by them."""
        return self.updates_per_step() == 1 and self.kl_in == "loss" and not self.apart()

    def std(self) -> str:
        """What algos/grpo.py calls it."""
        return "none" if self.scale == "none" else "unbiased" if self.unbiased_std else "population"


class Answers(NamedTuple):
    """What was answered and judged, in the order of the prompts."""

    responses: list[Response]
    judgements: list[Judgement]
    asked_again: int  # groups that were thrown away for new ones, over all rounds


def step(state: TrainState, prompts: Sequence[Prompt], config: GRPOConfig) -> Stats:
    """One iteration: answer each prompt several times, judge, compare within the group, improve."""
    responses, judgements, asked_again = answers(state, prompts, config)
    rollouts = score(state, prompts, responses, config, policy="later" if config.late() else "now")
    signal = credit(rollouts, judgements, config, beta=state.kl.beta)
    sums = improve(state, rollouts, signal, config, beta=state.kl.beta)
    if not rollouts.scored:
        signal = signal._replace(kl_BT=k1(rollouts.logp_BT, rollouts.ref_logp_BT, rollouts.acted_BT))
    more = {"asked_again": asked_again} if config.dynamic_sampling else {}
    return report(state, responses, judgements, rollouts, signal, sums, in_groups=True, **more)


def answers(state: TrainState, prompts: Sequence[Prompt], config: GRPOConfig) -> Answers:
    """Answers to all prompts; those to prompts whose answers are all credited alike are drawn anew, a few rounds at most."""
    found: dict[str, tuple[list[Response], Judgement]] = {}
    asked, asked_again, n = list(prompts), 0, config.responses_per_prompt
    for number in range(config.dynamic_sampling + 1):
        responses = answer(state.engine, asked, replace(config.sampling(state.step), step=state.step + number * ROUND))
        groups = [responses[start:start + n] for start in range(0, len(responses), n)]
        judgements = judge_all(state.judge, asked, responses)
        found |= {prompt.id: (group, judgement) for prompt, group, judgement in zip(asked, groups, judgements, strict=True)}
        asked_again += len(asked) if number else 0
        asked = [prompt for prompt in asked if flat(*found[prompt.id], config)]
        if not asked:
            break
    groups, judgements = zip(*(found[prompt.id] for prompt in prompts), strict=True)
    return Answers([response for group in groups for response in group], list(judgements), asked_again)


def flat(group: Sequence[Response], judgement: Judgement, config: GRPOConfig) -> bool:
    """Nothing can be learned from these answers to a prompt: all are credited alike."""
    stopped_B = torch.tensor([not response.is_truncated() for response in group])
    score_B = credited([judgement], stopped_B, torch.tensor([len(response.token_ids) for response in group]), config)
    return bool(flat_groups(score_B.double(), torch.zeros(len(group), dtype=torch.int64)).all())


def credited(judgements: Sequence[Judgement], stopped_B: Tensor, length_B: Tensor, config: GRPOConfig) -> Tensor:
    """The scores that are compared: the judge's, clipped, with what an answer without an end or near the limit is charged."""
    score_B = scores_of_answers(judgements, stopped_B, length_B, config)
    if not config.overlong_buffer:
        return score_B
    return score_B + overlong_penalty(length_B, max_tokens=config.max_tokens, buffer=config.overlong_buffer)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: GRPOConfig, *, beta: float) -> RewardSignal:
    """Every token is credited with how its response compares with the others to the prompt.  Pure.

    With `kl_in: reward`, what is compared is the score minus beta times the response's KL.
    """
    acted_BT = rollouts.acted_BT
    score_B = credited(judgements, rollouts.stopped_B, acted_BT.sum(1), config)
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, acted_BT)
    charged_BT = beta * kl_BT if config.kl_in == "reward" else torch.zeros_like(kl_BT)
    advantage_B = group_advantages(score_B - charged_BT.sum(1), rollouts.group_B, std=config.std())
    return RewardSignal(score_B, kl_BT, place_scores(score_B, acted_BT) - charged_BT, over_tokens(advantage_B, acted_BT))


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: GRPOConfig, *, beta: float) -> Counter:
    """Epochs of clipped updates on frozen rollouts.  Returns sums over updates."""
    signal = corrected(signal, rollouts, config, whole=config.ratio == "sequence")
    policy_loss = LOSSES[config.ratio]
    clip_low, clip_high = (config.clip if each is None else each for each in (config.clip_low, config.clip_high))
    penalty = PENALTIES[config.kl_estimator or "k3"] if config.kl_in == "loss" and beta else None

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        policy = policy_loss(new.logp_BT, part.cut(rollouts.logp_BT), part.cut(signal.advantage_BT), part.acted_BT,
                             clip_low=clip_low, clip_high=clip_high)
        facts = {"policy_loss": float(policy.loss_BT.detach().sum()), "clipped": float(policy.clipped_BT.sum()),
                 "kl_old": float(policy.kl_old_BT.sum())}
        if penalty is None:
            return part.share(policy.loss_BT, config.aggregate), facts
        kl_BT = penalty(new.logp_BT, part.cut(rollouts.ref_logp_BT), part.acted_BT)
        facts["kl_loss"] = float(kl_BT.detach().sum())
        return part.share(policy.loss_BT + beta * kl_BT, config.aggregate), facts

    return improve_with(state, rollouts, config, loss, epochs=config.epochs, minibatches=config.minibatches,
                        kl_stop=config.kl_stop)
