"""The loop under the on-policy algorithms: load, normalise the reward, step, checkpoint, resume, save the policy.

Prompts come in a seeded permutation an epoch, a response's randomness from (seed, prompt id, index, step), so the step
number is the whole cursor: a resumed run asks each prompt that the uninterrupted one would have, once.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import torch

from tutelage.algos.kl import AdaptiveKL
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError, nearest
from tutelage.core.files import sha256_file
from tutelage.core.protocols import Judge, Progress, silent
from tutelage.core.words import Example, Judgement, Prompt, Response
from tutelage.judges.ensemble import NormalisedSum, scale_of, scaled_by
from tutelage.judges.reward_model import RewardJudge
from tutelage.judges.rules import LanguageRule, LengthRule, RepetitionRule, function_judge, user_function
from tutelage.judges.span_model import SpanModelJudge
from tutelage.judges.spans import RepetitionSpans, SpanJudge, StepJudge
from tutelage.models.heads import load_reward
from tutelage.models.load import Loaded, kind_of, weights_digest
from tutelage.models.lora import merge
from tutelage.rollout.local import LocalEngine
from tutelage.rollout.vllm import VLLMEngine
from tutelage.store.runs import Run, begin_or_reopen
from tutelage.text.chat import render_prompt
from tutelage.text.pack import epochs_of_steps
from tutelage.training import (
    a2c,
    best_of_n,
    expert_iteration,
    grpo,
    online_dpo,
    ppo,
    ppo_lagrangian,
    reinforce,
    remax,
    rloo,
)
from tutelage.training.actor_critic import Networks
from tutelage.training.memory import rss_gb, trim
from tutelage.training.networks import fast_matmuls, load_trainable, manifest_of, save_merged
from tutelage.training.on_policy import RLConfig, TrainState
from tutelage.training.optim import Optimizer
from tutelage.training.rollouts import answer, judge_all
from tutelage.training.state import Saver, read_state, seed_all, write_state
from tutelage.training.watch import Watcher

RULES = {  # `reward: rule:NAME`
    "length": lambda: LengthRule(5, 60), "repetition": RepetitionRule, "language": LanguageRule,
    "repetition-spans": RepetitionSpans,
}

FUNCTIONS: dict[str, Callable[[str], Judge]] = {  # `reward: KIND:FILE.py:FUNCTION`
    "python": function_judge,
    "python-spans": lambda spec: SpanJudge(user_function(spec)),
    "python-steps": lambda spec: StepJudge(user_function(spec)),
}


class Algorithm(NamedTuple):
    """One algorithm: a file of training/."""

    config: type[RLConfig]
    step: Callable[[TrainState, Sequence[Prompt], Any], Any]
    begin: Callable[[TrainState, Any], None] | None = None  # puts what it needs beside the common state (a second judge)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(ppo.PPOConfig, ppo.step, ppo.begin),
    "ppo_lagrangian": Algorithm(
        ppo_lagrangian.PPOLagrangianConfig, ppo_lagrangian.step, lambda state, config: ppo_lagrangian.begin(
            state, config, judge_by_name(config.cost, dtype=config.dtype, device=config.device))),
    "a2c": Algorithm(a2c.A2CConfig, a2c.step),
    "reinforce": Algorithm(reinforce.ReinforceConfig, reinforce.step),
    "rloo": Algorithm(rloo.RLOOConfig, rloo.step),
    "remax": Algorithm(remax.ReMaxConfig, remax.step),
    "grpo": Algorithm(grpo.GRPOConfig, grpo.step),
    "online_dpo": Algorithm(online_dpo.OnlineDPOConfig, online_dpo.step),
    "best_of_n": Algorithm(best_of_n.BestOfNConfig, best_of_n.step),
    "expert_iteration": Algorithm(expert_iteration.ExpertIterationConfig, expert_iteration.step),
}


def _any_algorithm() -> type:
    """What the values of an unknown algorithm are bound to, so that all that is wrong with them is said at once: the settings
    of all algorithms together, since a key may belong to the one that was meant."""
    known: dict[str, tuple] = {"algorithm": ("algorithm", Literal[tuple(ALGORITHMS)], field(default="ppo"))}
    for each in ALGORITHMS.values():
        hints = get_type_hints(each.config)
        for item in fields(each.config):
            default = field(default=item.default) if item.default is not MISSING else field(default_factory=item.default_factory)
            known.setdefault(item.name, (item.name, hints[item.name], default))
    return make_dataclass("AnyAlgorithm", known.values(), frozen=True, kw_only=True, namespace={"REFUSED": RLConfig.REFUSED})


def config_of(values: Mapping[str, Any]) -> type[RLConfig]:
    """The configuration of the algorithm that a recipe's values name (PPO where they name none)."""
    name = values.get("algorithm", "ppo")
    return ALGORITHMS[name].config if name in ALGORITHMS else _any_algorithm()


class RLResult(NamedTuple):
    path: Path  # the policy, in Hugging Face format, adapters merged
    steps: int
    skipped: int  # prompts longer than max_prompt_tokens


class ScaledJudge:
    """Another judge's values, shifted and scaled: (value - bias) * gain; spans are scaled alike."""

    def __init__(self, judge: Judge, *, bias: float = 0.0, gain: float = 1.0):
        self.inner, self.id, self.bias, self.gain = judge, judge.id, bias, gain

    def judge(self, items: Sequence[tuple[Prompt, Sequence[Response]]]) -> list[Judgement]:
        return [scaled_by(j, self.bias, self.gain) for j in self.inner.judge(items)]


def judge_by_name(name: str, *, dtype: str = "auto", device: str = "auto") -> Judge:
    """A folder of a reward model (of whole answers or of spans), `rule:NAME`, `python:FILE.py:FUNCTION` with f(prompts,
    responses) -> list[float], `python-spans:FILE.py:FUNCTION` (see SpanJudge) or `python-steps:FILE.py:FUNCTION` (StepJudge)."""
    kind, _, spec = name.partition(":")
    if kind in FUNCTIONS and spec:
        return FUNCTIONS[kind](spec)
    if name.startswith("rule:"):
        rule = name.removeprefix("rule:")
        if rule not in RULES:
            raise UserError(f'unknown rule "{rule}" in reward: {name}{nearest(rule, RULES)}')
        return RULES[rule]()
    if not Path(name).exists():
        raise UserError(f"reward: {name} is not there; give the folder of a reward model (runs/<run>/final), rule:NAME, "
                        "or python:FILE.py:FUNCTION")
    if kind_of(name) == "span-reward":
        return SpanModelJudge.load(name, dtype=dtype, device=device)
    return RewardJudge.load(name, dtype=dtype, device=device)


def function_file(name: str) -> Path | None:
    """The file of a reward that is a function (`python:FILE.py:FUNCTION` and the like); None for any other."""
    kind, _, spec = name.partition(":")
    return Path(spec.rpartition(":")[0]) if kind in FUNCTIONS else None


def reward_digest(name: str) -> str:
    """What stands behind the name of a reward: of a model its weights, of a function its file, of a rule its name."""
    if file := function_file(name):
        return sha256_file(file) if file.is_file() else ""
    return weights_digest(name) if Path(name).is_dir() else name


def judge_of(config: RLConfig) -> Judge:
    """The judge that the configuration names: one reward, or several with their weights."""
    if not config.rewards:
        return judge_by_name(config.reward, dtype=config.dtype, device=config.device)
    return NormalisedSum({name: (judge_by_name(part.reward, dtype=config.dtype, device=config.device), part.weight)
                          for name, part in config.rewards.items()})


def rl(
    config: RLConfig,
    *,
    prompts: Sequence[Prompt],
    folder: Path | str,
    judge: Judge | None = None,
    pretrain: Sequence[Example] = (),
    data_id: str = "",
    resume: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> RLResult:
    """Improve a policy against a judge (by default the one that `config.reward` names); it is left in `folder`/final.

    `pretrain`: demonstrations for PPO-ptx (`ptx_coef` above 0).

    UserError where no prompt fits, or a reward is not finite (the run stops with its checkpoint intact).
    """
    algorithm = ALGORITHMS[config.algorithm]
    resolved = to_dict(config)
    run = begin_or_reopen(folder, kind="rl", config=resolved, seed=config.seed, resume=resume,
                          parents=(config.model, *config.reward_names(), *config.further_judges(), data_id))
    if run.finished():
        return RLResult(run.final, run.manifest["steps"], run.manifest["skipped"])
    seed_all(config.seed)
    with fast_matmuls(config.device):
        loaded = load_trainable(config.model, dtype=config.dtype, device=config.device, lora=config.lora,
                                frozen_layers=config.frozen_layers)
        named = () if judge else config.reward_names()
        run.hold_to({f"model {config.model}": loaded.digest,
                     **{f"reward {name}": reward_digest(name) for name in (*named, *config.further_judges())}})
        asked, skipped = fitting(loaded.tokenizer, prompts, config.max_prompt_tokens)
        judge = ScaledJudge(judge or judge_of(config))
        state = begin_state(config, loaded, judge, exchange=run.folder / "exchange")
        state.extra["pretrain"] = pretrain
        if algorithm.begin:
            algorithm.begin(state, config)
        try:
            _resume(run, state, config, asked, warn)
            _loop(run, state, algorithm.step, config, asked, progress, warn)
        finally:
            state.engine.close()
        _finish(run, loaded, resolved, data_id, steps=state.step, skipped=skipped)
    return RLResult(run.final, state.step, skipped)


def fitting(tokenizer: Any, prompts: Sequence[Prompt], max_tokens: int) -> tuple[list[Prompt], int]:
    """Distinct prompts of at most `max_tokens`, and how many were left out."""
    distinct = list({prompt.id: prompt for prompt in prompts}.values())
    kept = [prompt for prompt in distinct if len(render_prompt(tokenizer, prompt)) <= max_tokens]
    if not kept:
        raise UserError(f"none of the {len(prompts)} prompts fits into max_prompt_tokens={max_tokens}; raise it or shorten them")
    return kept, len(distinct) - len(kept)


def begin_state(config: RLConfig, loaded: Loaded, judge: Judge, *, exchange: Path | None = None) -> TrainState:
    """Networks, optimiser, engine and KL controller before the first step.  `exchange`: the folder through which a server that draws
    the answers is given weights."""
    reference = None if config.lora.rank else copy.deepcopy(loaded.model)
    value_trunk = _value_trunk(config, loaded) if getattr(config, "value", "") == "separate" else None
    networks = Networks(loaded.model, reference=reference, value_trunk=value_trunk, heads=config.HEADS, chunk=config.chunk)
    optimizer = Optimizer(networks.named_parameters(), config.optim, total_updates=config.steps * config.updates_per_step())
    policy = f"{config.algorithm}:{loaded.digest[:12]}"
    engine = (VLLMEngine(config.rollout_address, loaded.model, loaded.tokenizer, policy=policy, exchange=exchange)
              if config.rollout_address is not None else
              LocalEngine(loaded.model, loaded.tokenizer, policy=policy, int8=config.rollout_weights == "int8"))
    return TrainState(networks=networks, optimizer=optimizer, engine=engine, judge=judge,
                      kl=AdaptiveKL(config.beta, config.kl_target, config.kl_horizon))


def _value_trunk(config: RLConfig, loaded: Loaded) -> torch.nn.Module:
    """A trunk of the critic's own: the reward model's where the reward is one with the same vocabulary, else the policy's."""
    if not config.rewards and Path(config.reward).is_dir() and kind_of(config.reward) != "span-reward":
        critic = load_reward(config.reward, dtype=config.dtype, device=config.device)
        if critic.tokenizer.get_vocab() == loaded.tokenizer.get_vocab():  # the critic must use the policy's tokenizer (C37)
            return critic.model.trunk.requires_grad_(True)
    own = copy.deepcopy(loaded.model)
    return (merge(own) if config.lora.rank else own).base_model.requires_grad_(True)


def normalise(state: TrainState, config: RLConfig, prompts: Sequence[Prompt]) -> None:
    """Set the reward's mean and scale on the reference's own answers (C20), before anything has been learned."""
    if isinstance(state.judge.inner, NormalisedSum):  # it may have judged an earlier run
        state.judge.inner.scales = dict.fromkeys(state.judge.inner.names, (0.0, 1.0))
    if not config.normalise_on:
        return
    some = list(prompts)[: config.normalise_on]
    responses = answer(state.engine, some, replace(config.sampling(0), n=1, step=2**31))
    judgements = judge_all(state.judge, some, responses)
    if isinstance(state.judge.inner, NormalisedSum):  # each on its own, so that a weight means the same for all of them
        state.judge.inner.normalise(judgements)
    else:
        state.judge.bias, state.judge.gain = scale_of([value for j in judgements for value in j.values])


def _loop(run: Run, state: TrainState, step: Callable, config: RLConfig, prompts: Sequence[Prompt], progress: Progress,
          warn: Callable[[str], None]) -> None:
    def write(folder: Path) -> None:
        write_state(folder, tensors=state.optimizer.state(), facts={
            "step": state.step, "responses": state.responses, "beta": state.kl.beta, "updates": state.optimizer.updates,
            "bias": state.judge.bias, "gain": state.judge.gain, "scales": getattr(state.judge.inner, "scales", {}),
            "own": state.facts, "metrics_bytes": run.metrics_bytes()})

    epochs = math.ceil(config.steps / math.ceil(len(prompts) / config.prompts_per_step))
    order = epochs_of_steps(len(prompts), rows_per_step=config.prompts_per_step, epochs=epochs, seed=config.seed)
    watcher = Watcher("rl", past=run.metrics())
    with Saver(run, config.save, write) as saver:
        for number, at in enumerate(order):
            if number < state.step:
                continue  # done before the run was killed
            if number >= config.steps:
                break
            begun, updates = time.perf_counter(), state.optimizer.updates
            try:
                row = step(state, [prompts[i] for i in at], config).row
            except Exception:  # a reward that is no number, a judge that is not reached: what was learned before it stays
                if state.optimizer.updates == updates:
                    saver.before_error(number)
                raise
            state.engine.refresh()
            seconds = time.perf_counter() - begun
            run.log({**row, "seconds": round(seconds, 3), "samples_per_second": round(len(at) * config.responses_per_prompt / seconds, 2),
                     "rss_gb": rss_gb()})
            for told in watcher.see(row):
                warn(told)
            trim()
            progress("rl", state.step, config.steps)
            saver.after_step(state.step)


def _resume(run: Run, state: TrainState, config: RLConfig, prompts: Sequence[Prompt], warn: Callable[[str], None]) -> None:
    newest = run.newest(warn=warn)
    if newest is None:
        run.cut_metrics(0)
        normalise(state, config, prompts)
        return
    tensors, facts = read_state(newest)
    state.optimizer.load(tensors, updates=facts["updates"])
    state.step, state.responses = facts["step"], facts["responses"]
    state.kl = state.kl._replace(beta=facts["beta"])
    state.judge.bias, state.judge.gain = facts["bias"], facts["gain"]
    if facts["scales"]:
        state.judge.inner.scales = {name: tuple(scale) for name, scale in facts["scales"].items()}
    state.facts = facts["own"]
    state.engine.refresh()
    run.cut_metrics(facts["metrics_bytes"])


def _finish(run: Run, loaded: Loaded, config: dict[str, Any], data_id: str, *, steps: int, skipped: int) -> None:
    manifest = manifest_of(loaded, kind="rl", run=run.id, config=config, data=data_id, role="policy",
                           reward=config["rewards"] or config["reward"])
    run.finish(lambda folder: save_merged(loaded, folder, manifest), steps=steps, skipped=skipped)
