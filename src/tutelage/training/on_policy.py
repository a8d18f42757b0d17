"""What the on-policy algorithms share: their common settings, what a step holds, and updates on frozen rollouts.

An algorithm is a file beside this one: a configuration, `credit` (pure: scores become advantages), the loss of a part of the
batch, and a `step` that reads like its paper:

    answer -> judge -> score (log-probs of policy and reference, values) -> credit -> improve -> report
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.aggregate import Whole, aggregate
from tutelage.algos.groups import flat_groups
from tutelage.algos.importance import truncated_importance
from tutelage.algos.kl import AdaptiveKL
from tutelage.algos.masked import last_true, masked_mean, masked_var
from tutelage.core.protocols import Judge
from tutelage.core.words import Judgement, Response, Sampling
from tutelage.text.pack import family_batches
from tutelage.training.actor_critic import Networks
from tutelage.training.batch import Forward, Rollouts
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig, Optimizer
from tutelage.training.state import SaveConfig

REWARD = "rule:length"


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardPart:
    """One of several rewards, and what it counts."""

    reward: str  # named as `reward` is
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RLConfig:
    """What every run of `tutelage rl` can say; each algorithm adds its own."""

    HEADS: ClassVar[tuple[str, ...]] = ()  # scalar heads on the policy's trunk: "value", "cost"
    REFUSED: ClassVar[dict[str, str]] = dict.fromkeys(
        ("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "min_tokens", "min_new_tokens", "min_length"),
        "it changes the distribution that is sampled from, while the trainer's log-probs are those of the whole one, so that "
        "ratio and KL would be wrong; answers are drawn by temperature alone")

    algorithm: str
    model: str = "smollm2-135m"
    reward: str = REWARD  # folder of a reward model, rule:NAME, python:, python-spans: or python-steps:FILE.py:FUNCTION
    rewards: dict[str, RewardPart] = field(default_factory=dict)  # several by name instead, each normalised, then weighed
    data: str = "starter:instructions"  # prompts; the answers in it are not looked at
    seed: int = 0
    steps: int = 50
    prompts_per_step: int = 16
    responses_per_prompt: int = 2
    max_tokens: int = 48  # of a response
    max_prompt_tokens: int = 256  # longer prompts are left out, and counted
    temperature: float = 1.0
    missing_eos: float | None = -1.0  # the (normalised) score of a response that the length limit cut off; null = its own
    score_clip: float | None = 5.0  # in standard deviations of the reference's scores; null = off
    length_penalty: float = 0.0  # taken off the score for each token above length_target
    length_target: int = 0
    normalise_on: int = 64  # prompts whose reference answers set the reward's mean and scale; 0 = leave it as it is
    rollout_weights: Literal["same", "int8"] = "same"  # int8: answers are drawn with rounded weights, on a CPU, and corrected for it
    rollout_address: str | None = None  # http://host:8000/v1 of a vLLM server that draws the answers with the weights of each step
    importance_cap: float = 2.0  # of that correction, min(trainer / sampler probability, cap) of a token
    beta: float = 0.05  # KL penalty, per nat
    kl_target: float | None = None  # nats per response; beta follows it; None = beta stays fixed
    kl_horizon: float = 10_000.0  # responses
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    frozen_layers: int = 0  # lowest layers (and the embedding) that stay as they are; for lora.rank 0
    token_budget: int = 1024  # of a micro-batch
    chunk: int = 512
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(rank=16))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(
        learning_rate=1e-4, schedule="linear", warmup=0.05, betas=(0.9, 0.95), eps=1e-5))
    save: SaveConfig = field(default_factory=SaveConfig)

    def __post_init__(self):
        faults = self.faults()
        if faults:
            raise ValueError("\n".join(faults))

    def faults(self) -> list[str]:
        """Everything that is wrong with the settings; an algorithm adds to its parent's."""
        least = {"steps": 1, "prompts_per_step": 1, "responses_per_prompt": 1, "max_tokens": 1, "max_prompt_tokens": 1,
                 "token_budget": 1, "chunk": 1, "beta": 0, "normalise_on": 0, "length_penalty": 0, "length_target": 0}
        out = self.too_low(**least)
        if self.temperature <= 0:
            out.append(f"temperature must be > 0 to explore; got {self.temperature}")
        if self.score_clip is not None and self.score_clip <= 0:
            out.append(f"score_clip must be > 0 (null = off); got {self.score_clip}")
        if self.importance_cap < 1:
            out.append(f"importance_cap must be >= 1, or no answer would count in full; got {self.importance_cap:g}")
        if not self.apart():
            out += self.idle(importance_cap="rollout_weights: int8 or to rollout_address; sampler and trainer are the same here")
        if self.rollout_address is not None and self.rollout_weights != "same":
            out.append("rollout_weights int8 is for answers that are drawn here, and rollout_address names a server: leave one out")
        if self.rollout_address is not None and not self.rollout_address.startswith(("http://", "https://")):
            out.append("rollout_address must be the address of a vLLM server, such as http://localhost:8000/v1; "
                       f"got {self.rollout_address!r}")
        return out + self._kl_faults() + self._reward_faults()

    def apart(self) -> bool:
        """Whether answers are drawn from another policy than the one that is trained, for which the update must be corrected."""
        return self.rollout_weights != "same" or self.rollout_address is not None

    def _kl_faults(self) -> list[str]:
        if self.kl_target is None:
            return self.idle(kl_horizon="kl_target, which is null: beta stays as it is")
        responses = self.prompts_per_step * self.responses_per_prompt
        out = []
        if self.kl_target <= 0:
            out.append(f"kl_target must be > 0 nats a response (null = beta stays as it is); got {self.kl_target}")
        if self.beta == 0:
            out.append("beta 0 stays 0 whatever kl_target is, since it is multiplied: begin with a small beta, for instance 0.05")
        if self.kl_horizon < responses:  # a step moves beta by at most 0.2 x responses / horizon of itself
            out.append(f"kl_horizon must be at least the {responses} responses of a step; got {self.kl_horizon:g}")
        return out

    def _reward_faults(self) -> list[str]:
        out = []
        if self.rewards and self.reward != REWARD:
            out.append(f"give reward or rewards, not both; got reward {self.reward!r} and rewards {', '.join(self.rewards)}")
        if self.length_target and not self.length_penalty:
            out.append("length_target without length_penalty does nothing; set length_penalty, for instance 0.02 a token")
        for name, part in self.rewards.items():
            if not name.isidentifier() or name == "spans":
                out.append(f"rewards: a reward is named by letters, digits and underscores, and not 'spans'; got {name!r}")
            if not math.isfinite(part.weight) or part.weight == 0:
                out.append(f"rewards.{name}.weight must be a finite number other than 0; got {part.weight}")
        return out

    def too_low(self, **least: float) -> list[str]:
        return [f"{name} must be >= {low}; got {getattr(self, name)}" for name, low in least.items() if getattr(self, name) < low]

    def idle(self, **why: str) -> list[str]:
        """Settings that were changed and that nothing reads; `why`: what they belong to, and why that is off."""
        default = {each.name: each.default for each in fields(self)}
        return [f"{name} belongs to {reason}; leave it out" for name, reason in why.items() if getattr(self, name) != default[name]]

    def sampling(self, step: int) -> Sampling:
        # top-k, top-p and the like stay off: the policy that is trained is the one that was sampled from (C8)
        return Sampling(n=self.responses_per_prompt, max_tokens=self.max_tokens, temperature=self.temperature,
                        seed=self.seed, step=step)

    def reward_names(self) -> tuple[str, ...]:
        """Of all rewards, as a run's parents."""
        return tuple(part.reward for part in self.rewards.values()) or (self.reward,)

    def further_judges(self) -> tuple[str, ...]:
        """Names of judges besides the rewards."""
        return ()

    def updates_per_step(self) -> int:
        """Optimiser updates that one step makes (fewer where the epochs stop early)."""
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedConfig(RLConfig):
    """Algorithms that go over frozen rollouts several times and keep the ratio of new to old probability near 1."""

    epochs: int = 2  # passes over the rollouts
    minibatches: int = 2  # optimiser steps per pass
    clip: float = 0.2
    kl_stop: float | None = None  # stop the epochs when KL(old || new), nats per token, passes 1.5 x this

    def faults(self) -> list[str]:
        out = RLConfig.faults(self) + self.too_low(epochs=1, minibatches=1)
        if not 0 < self.clip < 1:
            out.append(f"clip must be in (0, 1); got {self.clip}")
        if self.minibatches > self.prompts_per_step * self.responses_per_prompt:
            out.append(f"minibatches ({self.minibatches}) cannot exceed the responses of a step "
                       f"({self.prompts_per_step * self.responses_per_prompt})")
        return out

    def updates_per_step(self) -> int:
        return self.epochs * self.minibatches


class RewardSignal(NamedTuple):
    """What each token is worth, for one objective."""

    score_B: Tensor  # what the judge said, normalised and clipped
    kl_BT: Tensor  # nats, k1, 0 where not acted
    reward_BT: Tensor  # what is credited, token by token
    advantage_BT: Tensor  # 0 where not acted
    return_BT: Tensor | None = None  # what a critic should say, before any standardisation; None without a critic


@dataclass(slots=True)
class TrainState:
    """Everything that a checkpoint of the loop must hold, and the tools that the step needs."""

    networks: Networks
    optimizer: Optimizer
    engine: Any
    judge: Judge
    kl: AdaptiveKL
    step: int = 0
    responses: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # an algorithm's own (multiplier, running baseline): plain JSON values
    extra: dict[str, Any] = field(default_factory=dict)  # an algorithm's own tools (a second judge), not saved


class Stats(NamedTuple):
    row: dict[str, float]


# -- credit: what the algorithms share ------------------------------------------------------------------------------


def scores_of(rollouts: Rollouts, judgements: Sequence[Judgement], config: RLConfig) -> Tensor:
    """The judge's values in the order of the responses, [B]: clipped, less the penalties for length and for never ending."""
    return scores_of_answers(judgements, rollouts.stopped_B, rollouts.acted_BT.sum(1), config)


def scores_of_answers(judgements: Sequence[Judgement], stopped_B: Tensor, length_B: Tensor, config: RLConfig) -> Tensor:
    """The same for answers that are judged and not trained on.

    stopped_B: bool, False where the length limit cut one off.  length_B: tokens.
    """
    score_B = torch.tensor([value for j in judgements for value in j.values], device=stopped_B.device)
    if config.score_clip is not None:
        score_B = score_B.clamp(-config.score_clip, config.score_clip)
    if config.length_penalty:
        score_B = score_B - config.length_penalty * (length_B - config.length_target).clamp(min=0)
    if config.missing_eos is None:
        return score_B
    # EOS trick: an answer that never ended has not earned the score of an answer (Stiennon et al.; N+ detail 4.3)
    return torch.where(stopped_B, score_B, config.missing_eos)


def place_scores(score_B: Tensor, acted_BT: Tensor) -> Tensor:
    """Each response's score at its last acted token (the stop token where there is one), 0 elsewhere (C14)."""
    out_BT = torch.zeros(acted_BT.shape, dtype=score_B.dtype, device=score_B.device)
    last_B = last_true(acted_BT)
    some_B = last_B >= 0
    out_BT[some_B.nonzero()[:, 0], last_B[some_B]] = score_B[some_B]
    return out_BT


def over_tokens(x_B: Tensor, acted_BT: Tensor) -> Tensor:
    """One number a response at each of its acted tokens, 0 elsewhere: [B] -> [B, T]."""
    return torch.where(acted_BT, x_B[:, None], 0.0)


# -- improve: what the algorithms share -----------------------------------------------------------------------------


class Part(NamedTuple):
    """Some rows of the rollouts, cut to the longest of them, and what the whole optimiser step holds."""

    rows: list[int]
    width: int
    acted_BT: Tensor
    whole: Whole

    def cut(self, x: Tensor) -> Tensor:
        """These rows of a tensor of the whole batch: [B, T] or [B]."""
        return x[self.rows, :self.width] if x.ndim == 2 else x[self.rows]

    def share(self, loss_BT: Tensor, kind: str = "token") -> Tensor:
        """Share of the step's loss, by the named aggregate."""
        return aggregate(loss_BT, self.acted_BT, self.whole, kind=kind)


Loss = Callable[[Part, Forward], tuple[Tensor, dict[str, float]]]  # -> (share of the step's loss, sums to log)
Mix = Callable[[int], Iterable[tuple[Tensor, dict[str, float]]]]  # number of the update -> more shares of its loss, likewise


def improve(state: TrainState, rollouts: Rollouts, config: RLConfig, loss: Loss, *, epochs: int = 1, minibatches: int = 1,
            kl_stop: float | None = None, entropy: bool = False, rows: Sequence[int] | None = None,
            mix: Mix | None = None) -> Counter:
    """Epochs of updates on frozen rollouts; holds the only `backward` of on-policy training.  Returns sums over updates.

    Epochs outer, a fresh permutation each, a minibatch is an optimiser step, a micro-batch only accumulates (C23).
    `entropy`: the loss wants the entropy's gradient.  `rows`: only these responses take part (None = all).
    `mix`: what else each update learns from (PPO-ptx).  Where the rollouts hold the pass that scored them, the first update goes
    backwards through it: the policy has not moved since.  Where the policy has not scored them yet, this is the only update, and its
    log-probs and entropies are written into them before the loss is made.
    """
    sums: Counter = Counter()
    lengths, begins, groups = rollouts.lengths(), rollouts.begins(), rollouts.group_B.tolist()
    taken = list(range(len(lengths))) if rows is None else list(rows)
    held = rollouts.held
    state.networks.train()
    for epoch in range(epochs):
        before = sums["kl_old"], sums["tokens"]
        for at in _minibatches(taken, groups, minibatches, seed=_mix(config.seed, state.step, epoch)):
            whole = Whole(float(rollouts.acted_BT[at].sum()), len(at), config.max_tokens)
            held = held if held and sorted(held.rows) == sorted(at) else None
            cut = family_batches([lengths[i] for i in at], [begins[i] for i in at], [groups[i] for i in at],
                                 token_budget=config.token_budget, shared=state.networks.shares)
            for members in [held.rows] if held else [[at[i] for i in group] for group in cut]:
                part = part_of(rollouts, members, whole)
                new = held.said if held else state.networks.forward(
                    part.cut(rollouts.token_BT), part.acted_BT, temperature=config.temperature, entropy=entropy or not rollouts.scored,
                    entropy_grad=entropy)
                if not rollouts.scored:
                    rollouts.logp_BT[part.rows, :part.width] = new.logp_BT.detach()
                    rollouts.entropy_BT[part.rows, :part.width] = new.entropy_BT.detach()
                share, facts = loss(part, new)
                share.backward()
                sums.update({"tokens": float(part.acted_BT.sum()), "rows": len(part.rows), **facts})
            for share, facts in mix(state.optimizer.updates) if mix else ():
                share.backward()
                sums.update(facts)
            held = None
            norm, lr = state.optimizer.step()
            sums.update({"updates": 1, "grad_norm": norm})
            sums["lr"] = lr
        if kl_stop and (sums["kl_old"] - before[0]) / max(sums["tokens"] - before[1], 1.0) > 1.5 * kl_stop:  # of this epoch
            sums["stopped_early"] = 1
            break
    state.networks.eval()
    return sums


def corrected(signal: RewardSignal, rollouts: Rollouts, config: RLConfig, *, whole: bool = False) -> RewardSignal:
    """For the policy's loss: advantages weighed by how much likelier the trainer finds what another sampler drew, truncated.

    `whole`: by the ratio of whole responses.  Returns and KL stay as they are.
    """
    if not config.apart():
        return signal
    weight_BT = truncated_importance(rollouts.logp_BT, rollouts.sampler_logp_BT, rollouts.acted_BT, cap=config.importance_cap,
                                     whole=whole)
    return signal._replace(advantage_BT=signal.advantage_BT * weight_BT)


def part_of(rollouts: Rollouts, rows: list[int], whole: Whole) -> Part:
    width = int(rollouts.real_BT[rows].sum(1).max())
    return Part(rows, width, rollouts.acted_BT[rows, :width], whole)


def _minibatches(rows: list[int], groups: Sequence[int], count: int, *, seed: int) -> Iterator[list[int]]:
    """`rows` in `count` parts of like size (none for no rows): responses to a prompt stay together, prompts are shuffled."""
    if not rows:
        return
    families: dict[int, list[int]] = {}
    for row in rows:
        families.setdefault(groups[row], []).append(row)
    order = torch.randperm(len(families), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [row for at in order for row in list(families.values())[at]]
    count = min(count, len(rows))
    cuts = [len(rows) * part // count for part in range(count + 1)]
    yield from (shuffled[low:high] for low, high in zip(cuts, cuts[1:], strict=False))


def _mix(*parts: int) -> int:
    """One seed of several whole numbers, well spread (SplitMix64's increment)."""
    out = 0
    for part in parts:
        out = (out * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    return out


# -- report ---------------------------------------------------------------------------------------------------------


def report(state: TrainState, responses: Sequence[Response], judgements: Sequence[Judgement], rollouts: Rollouts,
           signal: RewardSignal, sums: Counter, *, in_groups: bool = False, **more: float) -> Stats:
    """The row of metrics, every rate over acted tokens or over responses, never over padding (C21); moves beta and counters.

    `in_groups`: the algorithm compares the answers to one prompt.  `more`: metrics of its own.
    """
    acted_BT = rollouts.acted_BT
    kl = float(signal.kl_BT.sum(1).mean())  # nats per response: per-sequence sum, mean over sequences
    tokens = max(sums["tokens"], 1.0)
    raw = [value for j in judgements for value in j.values]
    gap_BT = (rollouts.logp_BT - rollouts.sampler_logp_BT).exp() - 1
    row = {
        "step": state.step + 1, "responses": state.responses + len(responses),
        "reward": sum(raw) / len(raw), "score": float(signal.score_B.mean()), "score_std": float(signal.score_B.std(unbiased=False)),
        "kl": kl, "beta": state.kl.beta, "entropy": float(masked_mean(rollouts.entropy_BT, acted_BT)),
        "length": sum(len(r.token_ids) for r in responses) / len(responses),
        "truncated": sum(r.is_truncated() for r in responses) / len(responses),
        "policy_loss": sums["policy_loss"] / tokens,
    }
    if in_groups:
        row["flat_groups"] = float(flat_groups(signal.score_B.double(), rollouts.group_B).float().mean())
    if signal.return_BT is not None and rollouts.value_BT is not None:
        row |= critic_facts(rollouts.value_BT, signal.return_BT, acted_BT)
    row |= {name: sums[name] / tokens for name in ("value_loss", "ratio", "kl_old", "clipped", "value_clipped", "kl_loss") if name in sums}
    row |= parts_of_reward(judgements, rollouts)
    row |= {
        "sampler_gap": float(masked_mean(gap_BT.abs(), acted_BT)),  # mean |trainer / sampler probability - 1| (C9)
        "grad_norm": sums["grad_norm"] / max(sums["updates"], 1), "lr": float(sums["lr"]), "stopped_early": sums["stopped_early"],
        "tokens": int(rollouts.real_BT.sum()), **more,
    }
    if getattr(state.engine, "apart", False):  # of what share of the tokens the importance weights leave the worth of
        weight = (gap_BT + 1)[acted_BT]
        row["effective"] = float(weight.mean() ** 2 / (weight**2).mean())
    state.kl = state.kl.updated(kl, len(responses))
    state.step += 1
    state.responses += len(responses)
    return Stats({key: round(value, 6) if isinstance(value, float) and key != "lr" else value for key, value in row.items()})


def parts_of_reward(judgements: Sequence[Judgement], rollouts: Rollouts) -> dict[str, float]:
    """reward/NAME: mean of what each of several judges said; reward/spans: mean over responses of the sum over their spans."""
    by_name: dict[str, list[float]] = {}
    for dimension in (each for j in judgements for each in j.dimensions):
        by_name.setdefault(dimension.name, []).extend(dimension.values)
    out = {f"reward/{name}": sum(values) / len(values) for name, values in by_name.items()}
    return out if rollouts.dense_BT is None else {**out, "reward/spans": float(rollouts.dense_BT.sum(1).mean())}


def critic_facts(value_BT: Tensor, return_BT: Tensor, acted_BT: Tensor) -> dict[str, float]:
    left = masked_var(return_BT - value_BT, acted_BT) / masked_var(return_BT, acted_BT).clamp(min=1e-8)
    return {"explained_variance": float(1 - left)}
