"""Proximal policy optimization on language: answer, judge, credit, improve.

After Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593) and Stiennon et al. 2020 (https://arxiv.org/abs/2009.01325);
details of Huang et al. 2024, "The N+ implementation details of RLHF with PPO" (https://arxiv.org/abs/2403.17031).

Departures from them:
1. Reference and policy share one trunk when LoRA is on: the reference is the trunk with the adapters off.
2. The value head reads the policy's trunk (`value: shared`, zero-initialised) unless `value: separate` asks for its own.
3. Rewards are put at mean 0 and standard deviation 1 on the reference's own answers (C20) before the first step.
4. `baseline: leave_one_out` takes the mean score of a prompt's other responses off each score (RLOO, Ahmadian et al. 2024,
   https://arxiv.org/abs/2402.14740, eq. 7), so that the value head need not learn which prompts are hard: for short runs.
5. Responses are padded at the right, positions counted from 0; the score stands at the last token that was sampled.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tutelage.algos.gae import gae
from tutelage.algos.groups import leave_one_out
from tutelage.algos.kl import k1
from tutelage.algos.masked import rescale, standardize
from tutelage.algos.ppo import clipped_policy_loss, clipped_value_loss
from tutelage.core.words import Judgement, Prompt
from tutelage.training import ptx
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.dense import token_rewards
from tutelage.training.on_policy import (
    ClippedConfig,
    Loss,
    Part,
    RewardSignal,
    Stats,
    TrainState,
    corrected,
    report,
    scores_of,
)
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig(ClippedConfig):
    """A run of `tutelage rl` with `algorithm: ppo`."""

    HEADS: ClassVar[tuple[str, ...]] = ("value",)

    algorithm: Literal["ppo"] = "ppo"
    baseline: Literal["none", "leave_one_out"] = "none"  # leave_one_out needs responses_per_prompt >= 2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    value: Literal["shared", "separate"] = "shared"
    ptx_coef: float = 0.0  # weight of the demonstrations' loss in each update (PPO-ptx); 0 = none
    ptx_data: str = "starter:instructions"  # snapshot, file, hf:NAME or starter:NAME, read as conversations
    ptx_rows: int = 8  # demonstrations of an optimiser step

    def faults(self) -> list[str]:
        out = ClippedConfig.faults(self) + self.too_low(value_coef=0, entropy_coef=0, ptx_coef=0, ptx_rows=1)
        if self.value_clip is not None and self.value_clip <= 0:
            out.append(f"value_clip must be > 0 (null = off); got {self.value_clip}")
        if not self.ptx_coef:
            out += self.idle(ptx_data="ptx_coef above 0, and that is 0", ptx_rows="ptx_coef above 0, and that is 0")
        if self.baseline == "leave_one_out" and self.responses_per_prompt < 2:
            out.append("baseline leave_one_out compares the responses of a prompt: set responses_per_prompt to 2 or more")
        if self.dual_clip is not None and self.dual_clip <= 1:
            out.append(f"dual_clip must be > 1; got {self.dual_clip}")
        return out + [f"{name} must be in [0, 1]; got {getattr(self, name)}" for name in ("gamma", "lam")
                      if not 0 <= getattr(self, name) <= 1]


def begin(state: TrainState, config: PPOConfig) -> None:
    """Demonstrations as rows of tokens, where they are to be mixed in."""
    if config.ptx_coef:
        state.extra["ptx"] = ptx.demonstrations(state.engine.tokenizer, state.extra["pretrain"], config)


def step(state: TrainState, prompts: Sequence[Prompt], config: PPOConfig) -> Stats:
    """One PPO iteration: answer, judge, credit, improve."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config, judgements=judgements,
                     policy="held" if config.minibatches == 1 else "now", entropy_grad=config.entropy_coef > 0)
    signal = credit(rollouts, judgements, config, beta=state.kl.beta)
    sums = improve(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, sums,
                  in_groups=config.baseline == "leave_one_out", **ptx.facts(sums))


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: PPOConfig, *, beta: float) -> RewardSignal:
    """Scores and KL become token rewards, token rewards become advantages and returns.  Pure."""
    score_B = scores_of(rollouts, judgements, config)
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, rollouts.acted_BT)
    credit_B = leave_one_out(score_B, rollouts.group_B) if config.baseline == "leave_one_out" else score_B
    reward_BT = token_rewards(credit_B, rollouts) - beta * kl_BT
    if config.whiten_rewards:
        reward_BT = rescale(reward_BT, rollouts.acted_BT)
    out = gae(reward_BT, rollouts.value_BT, rollouts.acted_BT, gamma=config.gamma, lam=config.lam)
    return RewardSignal(score_B, kl_BT, reward_BT, standardize(out.advantage_BT, rollouts.acted_BT), out.return_BT)


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: PPOConfig, *,
            also: Loss | None = None) -> Counter:
    """Epochs of clipped updates of policy and value on frozen rollouts.  Returns sums over updates.

    `also`: a further loss of each part (of another critic).
    """
    signal = corrected(signal, rollouts, config)

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        policy = clipped_policy_loss(new.logp_BT, part.cut(rollouts.logp_BT), part.cut(signal.advantage_BT), part.acted_BT,
                                     clip=config.clip, dual_clip=config.dual_clip)
        value = clipped_value_loss(new.value_BT, part.cut(rollouts.value_BT), part.cut(signal.return_BT), part.acted_BT,
                                   clip=config.value_clip)
        loss_BT = policy.loss_BT + config.value_coef * value.loss_BT - config.entropy_coef * new.entropy_BT
        share, more = also(part, new) if also else (0.0, {})
        return part.share(loss_BT) + share, {
            "policy_loss": float(policy.loss_BT.detach().sum()), "value_loss": float(value.loss_BT.detach().sum()),
            "clipped": float(policy.clipped_BT.sum()), "kl_old": float(policy.kl_old_BT.sum()),
            "value_clipped": float(value.clipped_BT.sum()),
            "ratio": float(torch.where(part.acted_BT, policy.ratio_BT, 0.0).sum()), **more}

    mix = partial(ptx.shares, state.networks, state.extra["ptx"], config) if config.ptx_coef else None
    return improve_with(state, rollouts, config, loss, epochs=config.epochs, minibatches=config.minibatches,
                        kl_stop=config.kl_stop, entropy=config.entropy_coef > 0, mix=mix)
