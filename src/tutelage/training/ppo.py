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
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.algos.gae import gae
from tutelage.algos.kl import AdaptiveKL, k1
from tutelage.algos.masked import last_true, masked_mean, masked_var, rescale, standardize
from tutelage.algos.ppo import clipped_policy_loss, clipped_value_loss
from tutelage.core.protocols import Judge
from tutelage.core.words import Judgement, Prompt, Response, Sampling
from tutelage.text.pack import micro_batches
from tutelage.training.actor_critic import Networks
from tutelage.training.batch import Rollouts
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig, Optimizer
from tutelage.training.rollouts import answer, judge_all, score
from tutelage.training.state import SaveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
    """A run of `tutelage rl` with `algorithm: ppo`."""

    algorithm: Literal["ppo"] = "ppo"
    model: str = "smollm2-135m"
    reward: str = "rule:length"  # folder of a reward model, rule:NAME, or python:FILE.py:FUNCTION
    data: str = "starter:instructions"  # prompts; the answers in it are not looked at
    seed: int = 0
    steps: int = 50
    prompts_per_step: int = 16
    responses_per_prompt: int = 2
    max_tokens: int = 48  # of a response
    max_prompt_tokens: int = 256  # longer prompts are left out, and counted
    temperature: float = 1.0
    missing_eos: float = -1.0  # the (normalised) score of a response that the length limit cut off
    score_clip: float = 5.0  # in standard deviations of the reference's scores
    baseline: Literal["none", "leave_one_out"] = "none"  # leave_one_out needs responses_per_prompt >= 2
    normalise_on: int = 64  # prompts whose reference answers set the reward's mean and scale; 0 = leave it as it is
    beta: float = 0.05  # KL penalty, per nat
    kl_target: float | None = None  # nats per response; None = beta stays fixed
    kl_horizon: float = 10_000.0
    epochs: int = 2  # passes over the rollouts
    minibatches: int = 2  # optimiser steps per pass
    clip: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    kl_stop: float | None = None  # stop the epochs when KL(old || new), nats per token, passes 1.5 x this
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    value: Literal["shared", "separate"] = "shared"
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
        least = {"steps": 1, "prompts_per_step": 1, "responses_per_prompt": 1, "max_tokens": 1, "epochs": 1, "minibatches": 1,
                 "beta": 0, "value_coef": 0, "entropy_coef": 0, "normalise_on": 0}
        faults = [f"{name} must be >= {low}; got {getattr(self, name)}" for name, low in least.items() if getattr(self, name) < low]
        if self.baseline == "leave_one_out" and self.responses_per_prompt < 2:
            faults.append("baseline leave_one_out compares the responses of a prompt: set responses_per_prompt to 2 or more")
        if self.temperature <= 0:
            faults.append(f"temperature must be > 0 to explore; got {self.temperature}")
        if not 0 < self.clip < 1:
            faults.append(f"clip must be in (0, 1); got {self.clip}")
        if self.dual_clip is not None and self.dual_clip <= 1:
            faults.append(f"dual_clip must be > 1; got {self.dual_clip}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} must be in [0, 1]; got {getattr(self, name)}")
        if self.minibatches > self.prompts_per_step * self.responses_per_prompt:
            faults.append(f"minibatches ({self.minibatches}) cannot exceed the responses of a step "
                          f"({self.prompts_per_step * self.responses_per_prompt})")
        if faults:
            raise ValueError("\n".join(faults))

    def sampling(self, step: int) -> Sampling:
        # top-k, top-p and the like stay off: the policy that is trained is the one that was sampled from (C8)
        return Sampling(n=self.responses_per_prompt, max_tokens=self.max_tokens, temperature=self.temperature,
                        seed=self.seed, step=step)


class RewardSignal(NamedTuple):
    """What each token is worth, for one objective."""

    score_B: Tensor  # what the judge said, normalised and clipped
    kl_BT: Tensor  # nats, k1, 0 where not acted
    reward_BT: Tensor  # score at the last acted token, minus beta x kl everywhere
    advantage_BT: Tensor  # standardised over the whole batch
    return_BT: Tensor  # computed before standardisation


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


class Stats(NamedTuple):
    row: dict[str, float]


def step(state: TrainState, prompts: Sequence[Prompt], config: PPOConfig) -> Stats:
    """One PPO iteration: answer, judge, credit, improve."""
    responses = answer(state.engine, prompts, config.sampling(state.step))
    judgements = judge_all(state.judge, prompts, responses)
    rollouts = score(state.networks, state.engine.tokenizer, prompts, responses, config)
    signal = credit(rollouts, judgements, config, beta=state.kl.beta)
    stats = improve(state, rollouts, signal, config)
    return report(state, responses, judgements, rollouts, signal, stats)


def credit(rollouts: Rollouts, judgements: Sequence[Judgement], config: PPOConfig, *, beta: float) -> RewardSignal:
    """Scores and KL become token rewards, token rewards become advantages and returns.  Pure."""
    score_B = torch.tensor([value for j in judgements for value in j.values], device=rollouts.token_BT.device)
    score_B = score_B.clamp(-config.score_clip, config.score_clip)
    # EOS trick: an answer that never ended has not earned the score of an answer (Stiennon et al.; N+ detail 4.3)
    score_B = torch.where(rollouts.stopped_B, score_B, config.missing_eos)
    kl_BT = k1(rollouts.logp_BT, rollouts.ref_logp_BT, rollouts.acted_BT)
    credit_B = leave_one_out(score_B, rollouts.group_B) if config.baseline == "leave_one_out" else score_B
    reward_BT = place_scores(credit_B, rollouts.acted_BT) - beta * kl_BT
    if config.whiten_rewards:
        reward_BT = rescale(reward_BT, rollouts.acted_BT)
    out = gae(reward_BT, rollouts.value_BT, rollouts.acted_BT, gamma=config.gamma, lam=config.lam)
    return RewardSignal(score_B, kl_BT, reward_BT, standardize(out.advantage_BT, rollouts.acted_BT), out.return_BT)


def leave_one_out(score_B: Tensor, group_B: Tensor) -> Tensor:
    """Each score minus the mean of the others of its group; 0 for a response alone in its group."""
    same_BB = group_B[:, None] == group_B[None, :]
    others_B = same_BB.sum(1) - 1
    mean_B = (same_BB.to(score_B.dtype) @ score_B - score_B) / others_B.clamp(min=1)
    return torch.where(others_B > 0, score_B - mean_B, 0.0)


def place_scores(score_B: Tensor, acted_BT: Tensor) -> Tensor:
    """Each response's score at its last acted token (the stop token where there is one), 0 elsewhere (C14)."""
    out_BT = torch.zeros(acted_BT.shape, dtype=score_B.dtype, device=score_B.device)
    last_B = last_true(acted_BT)
    some_B = last_B >= 0
    out_BT[some_B.nonzero()[:, 0], last_B[some_B]] = score_B[some_B]
    return out_BT


def improve(state: TrainState, rollouts: Rollouts, signal: RewardSignal, config: PPOConfig) -> Counter:
    """Epochs of clipped updates on frozen rollouts; holds the only `backward` of this file.  Returns sums over updates."""
    sums: Counter = Counter()
    count, lengths = len(rollouts.token_BT), rollouts.lengths()
    state.networks.train()
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(_mix(config.seed, state.step, epoch))
        order = torch.randperm(count, generator=generator).tolist()
        for at in (order[start::config.minibatches] for start in range(config.minibatches)):
            acted = float(rollouts.acted_BT[at].sum())
            for group in micro_batches([lengths[i] for i in at], token_budget=config.token_budget):
                loss, facts = _loss(state.networks, rollouts, signal, [at[i] for i in group], config)
                (loss / acted).backward()
                sums.update(facts)
            norm, lr = state.optimizer.step()
            sums.update({"updates": 1, "grad_norm": norm})
            sums["lr"] = lr
        if config.kl_stop and sums["kl_old"] / sums["tokens"] > 1.5 * config.kl_stop:
            sums["stopped_early"] = 1
            break
    state.networks.eval()
    return sums


def _loss(networks: Networks, rollouts: Rollouts, signal: RewardSignal, rows: list[int], config: PPOConfig) -> tuple[Tensor, dict]:
    """Summed policy, value and entropy losses of some rows (the caller divides), and sums to log."""
    lengths = rollouts.lengths()
    width = max(lengths[i] for i in rows)
    cut = lambda x_BT: x_BT[rows, :width]
    acted_BT = cut(rollouts.acted_BT)
    new = networks.forward(cut(rollouts.token_BT), acted_BT, temperature=config.temperature,
                           entropy=config.entropy_coef > 0, entropy_grad=config.entropy_coef > 0)
    policy = clipped_policy_loss(new.logp_BT, cut(rollouts.logp_BT), cut(signal.advantage_BT), acted_BT,
                                 clip=config.clip, dual_clip=config.dual_clip)
    value = clipped_value_loss(new.value_BT, cut(rollouts.value_BT), cut(signal.return_BT), acted_BT, clip=config.value_clip)
    loss = policy.loss_BT.sum() + config.value_coef * value.loss_BT.sum() - config.entropy_coef * new.entropy_BT.sum()
    return loss, {
        "tokens": float(acted_BT.sum()), "policy_loss": float(policy.loss_BT.detach().sum()),
        "value_loss": float(value.loss_BT.detach().sum()), "clipped": float(policy.clipped_BT.sum()),
        "kl_old": float(policy.kl_old_BT.sum()), "value_clipped": float(value.clipped_BT.sum()),
        "ratio": float(torch.where(acted_BT, policy.ratio_BT, 0.0).sum()),
    }


def report(state: TrainState, responses: Sequence[Response], judgements: Sequence[Judgement], rollouts: Rollouts,
           signal: RewardSignal, sums: Counter) -> Stats:
    """The row of metrics, every rate over acted tokens or over responses, never over padding (C21); moves beta and counters."""
    acted_BT = rollouts.acted_BT
    kl = float(signal.kl_BT.sum(1).mean())  # nats per response: per-sequence sum, mean over sequences
    tokens = max(sums["tokens"], 1.0)
    raw = [value for j in judgements for value in j.values]
    gap_BT = (rollouts.logp_BT - rollouts.sampler_logp_BT).exp() - 1
    residual_BT = signal.return_BT - rollouts.value_BT
    row = {
        "step": state.step + 1, "responses": state.responses + len(responses),
        "reward": sum(raw) / len(raw), "score": float(signal.score_B.mean()), "score_std": float(signal.score_B.std(unbiased=False)),
        "kl": kl, "beta": state.kl.beta, "entropy": float(masked_mean(rollouts.entropy_BT, acted_BT)),
        "length": sum(len(r.token_ids) for r in responses) / len(responses),
        "truncated": sum(r.is_truncated() for r in responses) / len(responses),
        "policy_loss": sums["policy_loss"] / tokens, "value_loss": sums["value_loss"] / tokens,
        "kl_old": sums["kl_old"] / tokens, "clipped": sums["clipped"] / tokens, "value_clipped": sums["value_clipped"] / tokens,
        "explained_variance": float(1 - masked_var(residual_BT, acted_BT) / masked_var(signal.return_BT, acted_BT).clamp(min=1e-8)),
        "sampler_gap": float(masked_mean(gap_BT.abs(), acted_BT)),  # mean |trainer / sampler probability - 1| (C9)
        "grad_norm": sums["grad_norm"] / max(sums["updates"], 1), "lr": sums["lr"], "stopped_early": sums["stopped_early"],
        "tokens": int(rollouts.real_BT.sum()),
    }
    state.kl = state.kl.updated(kl, len(responses))
    state.step += 1
    state.responses += len(responses)
    return Stats({key: round(value, 6) if isinstance(value, float) and key != "lr" else value for key, value in row.items()})


def _mix(*parts: int) -> int:
    """One seed of several whole numbers, well spread (SplitMix64's increment)."""
    out = 0
    for part in parts:
        out = (out * 0x9E3779B97F4A7C15 + part + 1) % 2**63
    return out
