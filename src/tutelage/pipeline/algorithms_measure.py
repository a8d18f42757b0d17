"""What is measured of a policy that `make seeds` trained, on questions that it was not trained on.

    reward, cost    the rules' means over sampled answers, before and after; prompts are what is resampled
    win rate        by a reward model that nothing learned from, against the base model's answers
    pair accuracy   (offline methods) of the implicit reward, on pairs of base answers that the rule tells apart
    KL              nats a response from the base model, on the policy's own answers (k1)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.core.config import to_dict
from tutelage.core.files import write_jsonl
from tutelage.core.words import Response
from tutelage.models.load import load
from tutelage.pipeline.algorithms_task import Task, logps_of_pairs
from tutelage.pipeline.courtesy import courtesy, gushing
from tutelage.rollout.local import LocalEngine
from tutelage.stats.intervals import Interval, bootstrap_mean, rate_interval
from tutelage.training.memory import collect
from tutelage.training.rollouts import answer, logps_of

THRESHOLD = 0.1  # of the mean cost (apologies and exclamation marks an answer) under ppo_lagrangian
COST_ANSWERS = 4  # times as many answers to a held-out prompt where a constraint is measured
PER_TOKEN = ("ipo", "orpo", "simpo")  # methods whose own reward is a mean over tokens


def measure(task: Task, name: str, path: Path, place: Path, seed: int, *, offline: bool) -> dict[str, Any]:
    """All that is said of a trained policy, on the held-out prompts; its answers stay in answers.jsonl."""
    # a constraint is held to its point estimate, which costs of 0, 1, 2 an answer make noisy
    n = task.config.answers_after * (COST_ANSWERS if constrained(name) else 1)
    loaded = load(str(path))
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy=f"{name}-{seed}")
    after = answer(engine, task.prompts["held_out"], task.config.sampling(n=n, seed=seed))
    write_jsonl(place / "answers.jsonl", (response.to_dict() for response in after))
    accuracy = pair_accuracy(task, engine, per_token=name in PER_TOKEN, seed=seed) if offline else None
    first = [response for response in after if response.index < task.config.answers_after]
    kl = kl_from_base(task, first)
    del loaded, engine
    collect()
    out = {"reward": change(task, after, courtesy, seed=seed), "cost": change(task, after, gushing, seed=seed),
           "length": sum(len(r.token_ids) for r in after) / len(after), "kl": kl,
           "win_rate": to_dict(win_rate(task, first, seed=seed)), "judge_accuracy": to_dict(task.judge_accuracy),
           "pair_accuracy": accuracy and to_dict(accuracy)}
    return {**out, "improved": improved(name, out)}


def constrained(name: str) -> bool:
    return name.startswith("ppo_lagrangian")


def improved(name: str, figures: Mapping[str, Any]) -> bool:
    """What the proof counts; see the top of algorithms.py."""
    if figures["pair_accuracy"]:
        return figures["pair_accuracy"]["low"] > 0.5 and figures["win_rate"]["low"] > 0.5
    kept = not constrained(name) or figures["cost"]["after"] <= THRESHOLD or figures["cost"]["high"] < 0
    return figures["reward"]["low"] > 0 and kept


def change(task: Task, after: Sequence[Response], value: Callable[[str], float], *, seed: int) -> dict[str, float]:
    """Mean before and after, and the 95 % interval of the difference; a prompt's answers are averaged first."""
    mean = lambda responses, prompt: _mean([value(r.text) for r in responses if r.prompt_id == prompt.id])
    prompts = task.prompts["held_out"]
    pairs = [(mean(task.base["held_out"], prompt), mean(after, prompt)) for prompt in prompts]
    gain = bootstrap_mean([b - a for a, b in pairs], seed=seed, clusters=[prompt.group for prompt in prompts])
    return {"before": _mean([a for a, _ in pairs]), "after": _mean([b for _, b in pairs]),
            "gain": gain.estimate, "low": gain.low, "high": gain.high}


def win_rate(task: Task, after: Sequence[Response], *, seed: int) -> Interval:
    """How often the held-out judge prefers an answer to the base model's of the same index; equal texts are ties."""
    known = {prompt.id: prompt for prompt in task.prompts["held_out"]}
    before = {(r.prompt_id, r.index): (r.text, score) for r, score in zip(task.base["held_out"], task.judged, strict=True)}
    scores = task.judge().scores([(known[r.prompt_id], r.text) for r in after])
    wins = []
    for response, now in zip(after, scores, strict=True):
        text, then = before[response.prompt_id, response.index]
        wins.append(0.5 if text == response.text or now == then else float(now > then))
    return rate_interval(wins, seed=seed, clusters=[known[r.prompt_id].group for r in after])


def kl_from_base(task: Task, after: Sequence[Response]) -> float:
    """Nats a response: the sampler's log-prob minus the base model's, at the temperature sampled at (k1)."""
    base = load(task.config.model)
    at_base = logps_of(base.model, base.tokenizer, task.prompts["held_out"], after, task.config)
    return _mean([sum(response.logps) - logp for response, logp in zip(after, at_base, strict=True)])


def pair_accuracy(task: Task, engine: LocalEngine, *, per_token: bool, seed: int) -> Interval:
    """How often the implicit reward, log-prob minus the base model's, is higher for the better answer of a held-out pair.

    `per_token`: for methods whose own reward is a mean over tokens.  A policy that learned nothing is right half of the time.
    """
    pairs = task.pairs["held_out"]
    right = []
    for (good, bad, m, n), (base_good, base_bad) in zip(logps_of_pairs(engine, pairs), task.base_pair_logps, strict=True):
        a, b = good - base_good, bad - base_bad
        a, b = (a / m, b / n) if per_token else (a, b)
        right.append(0.5 if a == b else float(a > b))
    return rate_interval(right, seed=seed, clusters=[pair.group for pair in pairs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
