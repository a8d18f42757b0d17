"""Advantage actor-critic on language (A2C: the synchronous form of A3C, Mnih et al. 2016, https://arxiv.org/abs/1602.01783).

One gradient step on each batch of answers, which are then thrown away: no ratio to an older policy, so no clip.  It is PPO
with one epoch of one minibatch, no standardised advantages and no value clip (Huang et al. 2022,
https://arxiv.org/abs/2205.09123).

Departures from the paper:
1. The advantage is GAE's; `lam: 1` (the default) is the paper's return minus value, with the whole answer as its n steps.
2. The KL to the reference stands in the reward (k1), as in PPO here.
3. AdamW unless `optim.kind: rmsprop` asks for the paper's optimiser.
4. Reference, value head and the reward's scale are as in ppo.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from tutelage.algos.gae import gae
from tutelage.algos.kl import k1
from tutelage.algos.masked import standardize
from tutelage.algos.policy_gradient import policy_gradient_loss
from tutelage.algos.ppo import clipped_value_loss
from tutelage.core.words import Judgement, Prompt
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.dense import token_rewards
from tutelage.training.on_policy import Part, RewardSignal, RLConfig, Stats, TrainState, corrected, report, scores_of
from tutelage.training.on_policy import improve as improve_with
from tutelage.training.optim import OptimConfig
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class A2CConfig(RLConfig):
    """A run of `tutelage rl` with `algorithm: a2c`."""

    HEADS: ClassVar[tuple[str, ...]] = ("value",)

    algorithm: Literal["a2c"] = "a2c"
    normalise_advantage: bool = False  # not in the paper
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 1.0
    value: Literal["shared", "separate"] = "shared"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(
        learning_rate=1e-4, schedule="linear", warmup=0.05, betas=(0.9, 0.95), eps=1e-5, clip=0.5))

    def faults(self) -> list[str]:
        out = RLConfig.faults(self) + self.too_low(value_coef=0, entropy_coef=0)
        return out + [f"{name} must be in [0, 1]; got {getattr(self, name)}" for name in ("gamma", "lam")
                      if not 0 <= getattr(self, name) <= 1]


def step(state: TrainState, prompts: Sequence[Prompt], config: A2CConfig) -> Stats:
    """One iteration: answer, judge, credit, one gradient step."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state, prompts, responses, config, judgements=judgements, policy="held",
                     entropy_grad=config.entropy_coef > 0)
    signal = credit(rollouts, judgements, config, beta=state.kl.beta)
    sums = improve(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, sums)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: A2CConfig, *, beta: float) -> RewardSignal:
    """Scores and KL become token rewards, token rewards become advantages and returns.  Pure."""
    score_B = scores_of(rollouts, judgements, config)
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, rollouts.acted_BT)
    reward_BT = token_rewards(score_B, rollouts) - beta * kl_BT
    out = gae(reward_BT, rollouts.value_BT, rollouts.acted_BT, gamma=config.gamma, lam=config.lam)
    advantage_BT = standardize(out.advantage_BT, rollouts.acted_BT) if config.normalise_advantage else out.advantage_BT
    return RewardSignal(score_B, kl_BT, reward_BT, advantage_BT, out.return_BT)


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: A2CConfig) -> Counter:
    """One gradient step of policy and value on the whole batch.  Returns sums."""
    signal = corrected(signal, rollouts, config)

    def loss(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        policy_BT = policy_gradient_loss(new.logp_BT, part.cut(signal.advantage_BT), part.acted_BT)
        value = clipped_value_loss(new.value_BT, part.cut(rollouts.value_BT), part.cut(signal.return_BT), part.acted_BT,
                                   clip=None)
        loss_BT = policy_BT + config.value_coef * value.loss_BT - config.entropy_coef * new.entropy_BT
        return part.share(loss_BT), {
            "policy_loss": float(policy_BT.detach().sum()), "value_loss": float(value.loss_BT.detach().sum())}

    return improve_with(state, rollouts, config, loss, entropy=config.entropy_coef > 0)
