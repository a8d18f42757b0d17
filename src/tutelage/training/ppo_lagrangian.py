"""PPO under a constraint on a cost: answer, judge twice, move the multiplier, credit, improve.

    maximise the reward  where  the mean cost of an answer stays at or below `threshold`

After "Safe RLHF" (Dai et al. 2023, https://arxiv.org/abs/2310.12773, section 3.3 and appendix B); the upper confidence bound
in the dual step is that of HC-RLHF (Chittepu et al. 2025, https://arxiv.org/abs/2506.08266).

Departures from them:
1. The multiplier is projected at 0, not exponential: where the constraint holds anyway it is exactly 0, and the updates are
   PPO's, bit for bit (with `cost_critic: detached`).
2. The two advantages are combined on their own scales and the sum is standardised, as PPO does with the reward's alone.
   Standardised one by one they would make the multiplier a number without a unit.
3. Costs are taken as the judge gives them: neither centred, nor scaled, nor clipped, and without the penalty for answers
   that never ended, which is the reward's.  Their sign and the threshold mean something.
4. The unit behind the bound is a prompt (the mean cost of its answers in a step): answers to one prompt are not independent.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from tutelage.algos.gae import gae
from tutelage.algos.groups import leave_one_out
from tutelage.algos.kl import k1
from tutelage.algos.lagrangian import dual_step, lagrangian_advantage
from tutelage.algos.masked import rescale, standardize
from tutelage.algos.ppo import clipped_value_loss
from tutelage.core.protocols import Judge
from tutelage.core.words import Judgement, Prompt
from tutelage.stats.intervals import clopper_pearson, mean_upper
from tutelage.training import ppo, ptx
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.dense import token_rewards
from tutelage.training.on_policy import Part, RewardSignal, Stats, TrainState, critic_facts, place_scores, report, scores_of
from tutelage.training.optim import Optimizer
from tutelage.training.rollouts import answer, judge_all, score


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplierConfig:
    """How the price of a unit of cost follows the constraint."""

    learning_rate: float = 0.1  # of the dual step, per unit of cost above the threshold
    initial: float = 0.0  # above 0: cautious from the first step
    maximum: float = 10.0
    window: int = 64  # newest prompts whose mean costs the bound is taken over
    delay_steps: int = 0  # steps before the multiplier first moves, for the critic of costs to learn
    bound: Literal["mean", "ucb"] = "mean"  # ucb: a one-sided t bound, so that luck does not pass for safety
    confidence: float = 0.95  # of the ucb

    def __post_init__(self):
        faults = []
        if self.learning_rate <= 0:
            faults.append(f"learning_rate must be > 0; got {self.learning_rate}")
        if not 0 <= self.initial <= self.maximum:
            faults.append(f"initial must be from 0 to maximum; got {self.initial} and {self.maximum}")
        if self.window < 2 or self.delay_steps < 0:
            faults.append(f"window must be >= 2 and delay_steps >= 0; got {self.window} and {self.delay_steps}")
        if not 0.5 < self.confidence < 1:
            faults.append(f"confidence must be in (0.5, 1), for instance 0.95; got {self.confidence}")
        if faults:
            raise ValueError("\n".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOLagrangianConfig(ppo.PPOConfig):
    """A run of `tutelage rl` with `algorithm: ppo_lagrangian`."""

    HEADS: ClassVar[tuple[str, ...]] = ("value", "cost")

    algorithm: Literal["ppo_lagrangian"] = "ppo_lagrangian"
    cost: str = ""  # the judge of costs, named as `reward` is: above 0 unsafe
    threshold: float = 0.0  # what the mean cost must not exceed
    kl_shaping: Literal["both", "reward"] = "both"  # -beta kl to the reward and +beta kl to the cost, or the former alone
    cost_critic: Literal["detached", "shared"] = "detached"  # shared: its gradient reaches the policy's trunk and clipping
    cost_coef: float = 0.1  # weight of the cost critic's loss
    multiplier: MultiplierConfig = field(default_factory=MultiplierConfig)

    def faults(self) -> list[str]:
        out = ppo.PPOConfig.faults(self) + self.too_low(cost_coef=0)
        if not self.cost:
            out.append("cost must name the judge of costs: the folder of a cost model, rule:NAME or python:FILE.py:FUNCTION")
        return out

    def further_judges(self) -> tuple[str, ...]:
        return (self.cost,)


# -- before the first step ------------------------------------------------------------------------------------------


class Apart:
    """Two optimisers as one, each with its own gradient clipping; what is reported is the first one's."""

    def __init__(self, first: Optimizer, second: Optimizer):
        self.first, self.second = first, second
        self.second_norm = 0.0  # of the newest gradient

    @property
    def updates(self) -> int:
        return self.first.updates

    def step(self) -> tuple[float, float]:
        self.second_norm = self.second.step()[0]
        return self.first.step()

    def state(self) -> dict[str, Tensor]:
        return {**self.first.state(), **self.second.state()}

    def load(self, state: dict[str, Tensor], *, updates: int) -> None:
        self.first.load(state, updates=updates)
        self.second.load(state, updates=updates)

    def close(self) -> None:
        self.first.close()
        self.second.close()


def begin(state: TrainState, config: PPOLagrangianConfig, judge: Judge) -> None:
    """Put the judge of costs and the multiplier beside the common state, and the critic of costs apart where it is to be."""
    ppo.begin(state, config)
    state.extra["cost"] = judge
    state.facts = {"multiplier": config.multiplier.initial, "window": []}
    if config.cost_critic == "detached":
        state.networks.cost_head.register_forward_pre_hook(_cut)
        named, total = list(state.networks.named_parameters()), state.optimizer.total_updates
        state.optimizer.close()
        state.optimizer = Apart(*(
            Optimizer([(name, p) for name, p in named if name.startswith("cost_head.") is own], config.optim,
                      total_updates=total)
            for own in (False, True)))


def _cut(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The hidden states without their history: what the head learns from them does not reach the trunk."""
    return tuple(x.detach() for x in arguments)


# -- the step -------------------------------------------------------------------------------------------------------


def step(state: TrainState, prompts: Sequence[Prompt], config: PPOLagrangianConfig) -> Stats:
    """One iteration: answer, judge reward and cost, move the multiplier, credit, improve."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    costs = judge_all(state.extra["cost"], prompts, responses)
    dual = follow(state.facts, costs, config, step=state.step)
    rollouts = score(state, prompts, responses, config, judgements=judgements,
                     policy="held" if config.minibatches == 1 else "now", entropy_grad=config.entropy_coef > 0)
    signals = credit(rollouts, judgements, costs, config, beta=state.kl.beta, multiplier=dual.multiplier)
    sums = improve(state, rollouts, signals, config)
    state.facts = {"multiplier": dual.multiplier, "window": dual.window}
    return report(state, responses, judgements, rollouts, signals.reward, sums,
                  in_groups=config.baseline == "leave_one_out", **ptx.facts(sums),
                  **cost_facts(rollouts, signals.cost, dual, sums), **critic_norm(state.optimizer))


class Dual(NamedTuple):
    """Where the multiplier stands after a step's costs."""

    multiplier: float
    window: list[float]  # mean costs of the newest prompts
    bound: float  # what was compared with the threshold


def follow(facts: dict[str, Any], costs: Sequence[Judgement], config: PPOLagrangianConfig, *, step: int) -> Dual:
    """The dual step: a bound on the newest prompts' mean cost, and the multiplier that follows it.  Pure."""
    rule = config.multiplier
    window = [*facts["window"], *(statistics.fmean(j.values) for j in costs)][-rule.window:]
    # a single prompt bounds nothing: its mean, until the next step brings another
    bound = statistics.fmean(window) if rule.bound == "mean" or len(window) < 2 else upper(window, rule.confidence)
    if step < rule.delay_steps:
        return Dual(facts["multiplier"], window, bound)
    moved = dual_step(facts["multiplier"], bound, threshold=config.threshold, learning_rate=rule.learning_rate,
                      maximum=rule.maximum)
    return Dual(moved, window, bound)


def upper(costs: Sequence[float], confidence: float) -> float:
    """One-sided upper bound of a mean: Student's t, and of 0/1 costs at least the exact one (Clopper and Pearson 1934), since
    a window without a single unsafe answer has no spread and would prove itself safe."""
    bound = mean_upper(costs, confidence=confidence)
    if all(cost in (0.0, 1.0) for cost in costs):
        bound = max(bound, clopper_pearson(int(sum(costs)), len(costs), level=2 * confidence - 1).high)
    return bound


class Signals(NamedTuple):
    """What each token is worth to the two critics; the policy follows the first one's advantage, which holds both."""

    reward: RewardSignal  # its advantage is the Lagrangian's, standardised
    cost: RewardSignal  # its advantage is the cost's own, on the cost's scale


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], costs: Sequence[Judgement], config: PPOLagrangianConfig, *,
           beta: float, multiplier: float) -> Signals:
    """Scores, costs and KL become the advantage of the Lagrangian and the returns of two critics.  Pure."""
    acted_BT = rollouts.acted_BT
    score_B = scores_of(rollouts, judgements, config)
    cost_B = score_B.new_tensor([value for j in costs for value in j.values])
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, acted_BT)

    def less_baseline(x_B: Tensor) -> Tensor:
        return leave_one_out(x_B, rollouts.group_B) if config.baseline == "leave_one_out" else x_B

    reward_BT = token_rewards(less_baseline(score_B), rollouts) - beta * kl_BT
    # in both, the price of KL stays beta whatever lam is, since (1 + lam) beta is divided by 1 + lam
    cost_BT = place_scores(less_baseline(cost_B), acted_BT) + (beta if config.kl_shaping == "both" else 0.0) * kl_BT
    if config.whiten_rewards:
        reward_BT = rescale(reward_BT, acted_BT)
    reward = gae(reward_BT, rollouts.value_BT, acted_BT, gamma=config.gamma, lam=config.lam)
    cost = gae(cost_BT, rollouts.cost_value_BT, acted_BT, gamma=config.gamma, lam=config.lam)
    advantage_BT = lagrangian_advantage(reward.advantage_BT, cost.advantage_BT, multiplier=multiplier)
    return Signals(RewardSignal(score_B, kl_BT, reward_BT, standardize(advantage_BT, acted_BT), reward.return_BT),
                   RewardSignal(cost_B, kl_BT, cost_BT, cost.advantage_BT, cost.return_BT))


def improve(state: TrainState, rollouts: Rollouts, signals: Signals, config: PPOLagrangianConfig) -> Counter:
    """PPO's updates, with the critic of costs.  Returns sums over updates."""

    def critic(part: Part, new: Forward) -> tuple[Tensor, dict[str, float]]:
        # no clip: costs are on their judge's scale, for which value_clip was not chosen
        out = clipped_value_loss(new.cost_value_BT, part.cut(rollouts.cost_value_BT), part.cut(signals.cost.return_BT),
                                 part.acted_BT, clip=None)
        return config.cost_coef * part.share(out.loss_BT), {"cost_value_loss": float(out.loss_BT.detach().sum())}

    return ppo.improve(state, rollouts, signals.reward, config, also=critic)


def critic_norm(optimizer: Any) -> dict[str, float]:
    """The gradient norm of a critic of costs that is trained apart."""
    return {"cost_grad_norm": optimizer.second_norm} if isinstance(optimizer, Apart) else {}


def cost_facts(rollouts: Rollouts, cost: RewardSignal, dual: Dual, sums: Counter) -> dict[str, float]:
    """What is logged of the constraint; `unsafe`: share of the step's answers that cost more than 0, exactly bounded."""
    unsafe = clopper_pearson(int((cost.score_B > 0).sum()), len(cost.score_B))
    critic = critic_facts(rollouts.cost_value_BT, cost.return_BT, rollouts.acted_BT)
    return {"cost": float(cost.score_B.mean()), "cost_bound": dual.bound, "multiplier": dual.multiplier,
            "unsafe": unsafe.estimate, "unsafe_low": unsafe.low, "unsafe_high": unsafe.high,
            "cost_value_loss": sums["cost_value_loss"] / max(sums["tokens"], 1.0),
            "cost_explained_variance": critic["explained_variance"]}
