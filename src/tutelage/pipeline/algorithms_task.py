"""The small real task of `make seeds`: its prompts, what the base model answers to them, and a judge that nothing learns from.

    train     prompts that algorithms answer, and base answers to them, labelled by the rule, for the offline methods
    judge     other prompts, with base answers drawn by another seed: pairs for the held-out reward model
    held_out  other prompts again: base answers before, each algorithm's answers after

Groups (question families) never stand on two sides.  Made once and shared by all runs; each file is made where it is missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.core.config import bind, to_dict
from tutelage.core.errors import UserError
from tutelage.core.files import read_json, read_jsonl, sha256_bytes, write_json, write_jsonl
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Preference, Prompt, Response, Sampling
from tutelage.data import starter
from tutelage.judges.reward_model import RewardJudge
from tutelage.models.load import load
from tutelage.pipeline.courtesy import courtesy
from tutelage.rollout.local import LocalEngine
from tutelage.stats.intervals import Interval, rate_interval
from tutelage.training.loop import LoopConfig
from tutelage.training.memory import collect
from tutelage.training.optim import OptimConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rollouts import answer

KINDS = ("customer_service", "everyday", "companion")  # `task:` tags of the starter prompts that are asked
LABELLED_BY = "simulated:courtesy"
SIDES = {"train": 0, "judge": 96, "held_out": 192}  # where each side begins among the prompts, however large the task is
BASE_SEEDS = {"train": 11, "judge": 22, "held_out": 33}  # of the base model's answers; no run has one of them


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """How large the task is; the same for all runs of a folder."""

    model: str = "smollm2-135m"
    prompts: dict[str, int] = field(default_factory=lambda: {"train": 40, "judge": 96, "held_out": 64})
    answers: dict[str, int] = field(default_factory=lambda: {"train": 4, "judge": 4, "held_out": 3})  # of base, a prompt
    margin: float = 0.1  # of two answers in a pair, by the rule; nearer ones make no pair
    answers_after: int = 1  # of each trained policy to each held-out prompt
    steps: int = 10  # of on-policy runs
    prompts_per_step: int = 4
    responses_per_prompt: int = 4
    max_tokens: int = 16
    temperature: float = 0.8
    frozen_layers: int = 24
    judge_frozen_layers: int = 20
    token_budget: int = 1024  # of a micro-batch
    epochs: int = 1  # of offline methods, over their pairs

    def responses(self) -> int:
        """What an on-policy run draws to learn from; the offline methods' pairs are made of as many."""
        return self.steps * self.prompts_per_step * self.responses_per_prompt

    def sampling(self, *, n: int, seed: int) -> Sampling:
        return Sampling(n=n, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)


def tiny() -> TaskConfig:
    """The same in seconds on the model named `test`: nothing is learned worth keeping, every line is run."""
    return TaskConfig(model="test", prompts={"train": 6, "judge": 8, "held_out": 6}, steps=3, prompts_per_step=2, max_tokens=8,
                      frozen_layers=1, judge_frozen_layers=1, epochs=1, margin=0.0)


class Task(NamedTuple):
    """What all runs share."""

    config: TaskConfig
    folder: Path
    prompts: dict[str, list[Prompt]]  # by side
    base: dict[str, list[Response]]  # the base model's answers by side, `answers[side]` a prompt, in the order of the prompts
    pairs: dict[str, list[Preference]]  # by side, labelled by the rule; ties are left out
    base_pair_logps: list[tuple[float, float]]  # of the held-out pairs: (chosen, rejected) sums of nats under the base model
    judged: list[float]  # what the judge says of the base model's held-out answers
    judge_accuracy: Interval  # on the held-out pairs

    def judge(self) -> RewardJudge:
        return RewardJudge.load(self.folder / "judge" / "final", id="reward:held-out")


def settle(folder: Path, config: TaskConfig) -> None:
    """A folder holds one task's runs: UserError where another one's stand there."""
    place = folder / "task.json"
    if place.exists() and read_json(place) != to_dict(config):
        raise UserError(f"{folder} holds runs of another task ({place}); give another folder, or remove that one")
    write_json(place, to_dict(config))


def make_task(folder: Path, *, progress: Progress = silent) -> Task:
    """The task of `folder`/task.json, with whatever is missing of it made."""
    config = bind(TaskConfig, read_json(folder / "task.json"))
    place = folder / "task"
    prompts = split(config)
    base = {side: _base_answers(place / f"{side}.jsonl", config, side, prompts[side], progress) for side in SIDES}
    pairs = {side: labelled(prompts[side], base[side], margin=config.margin) for side in SIDES}
    logps = _pair_logps(place / "pair_logps.json", config, pairs["held_out"])
    judged = _judge(place, config, prompts, base, pairs, progress)
    collect()
    return Task(config, place, prompts, base, pairs, logps, judged["base"], Interval(**judged["accuracy"]))


def split(config: TaskConfig) -> dict[str, list[Prompt]]:
    """Single English questions of KINDS by side, in an order that depends on their groups alone."""
    found: dict[str, Prompt] = {}
    for prompt in _questions():
        if prompt.tag("lang") == "en" and prompt.tag("task") in KINDS and len(prompt.messages) == 1:
            found.setdefault(prompt.group, prompt)  # one question a group
    order = sorted(found.values(), key=lambda prompt: sha256_bytes(f"seeds/{prompt.group}".encode()))
    ends = dict(zip(SIDES, [*SIDES.values()][1:] + [len(order)], strict=True))
    for side, begin in SIDES.items():
        if not 0 < config.prompts[side] <= ends[side] - begin:
            raise UserError(f"prompts.{side} must be from 1 to {ends[side] - begin}; got {config.prompts[side]}")
    return {side: order[begin:begin + config.prompts[side]] for side, begin in SIDES.items()}


def _questions() -> Iterable[Prompt]:
    for example in starter.instructions():
        if [m.role for m in example.messages[:2]] == ["user", "assistant"]:
            yield Prompt(messages=example.messages[:1], group=example.group, tags=example.tags, source=example.source,
                         license=example.license)
    yield from (pair.prompt for pair in starter.preferences())
    yield from starter.evaluation()


def _base_answers(place: Path, config: TaskConfig, side: str, prompts: Sequence[Prompt], progress: Progress) -> list[Response]:
    if not place.exists():
        progress(f"base answers ({side})", 0, 1)
        loaded = load(config.model)
        engine = LocalEngine(loaded.model, loaded.tokenizer, policy="base")
        found = answer(engine, prompts, config.sampling(n=config.answers[side], seed=BASE_SEEDS[side]))
        write_jsonl(place, (response.to_dict() for response in found))
        progress(f"base answers ({side})", 1, 1)
    return [Response.from_dict(row) for row in read_jsonl(place)]


def labelled(prompts: Sequence[Prompt], responses: Sequence[Response], *, margin: float) -> list[Preference]:
    """All pairs of answers to a prompt that the rule tells apart by more than `margin`."""
    out = []
    for prompt in prompts:
        own = [response for response in responses if response.prompt_id == prompt.id]
        for a, b in combinations(own, 2):
            worth = courtesy(a.text) - courtesy(b.text)
            if abs(worth) > margin:
                chosen, rejected = (a, b) if worth > 0 else (b, a)
                out.append(Preference(prompt=prompt, chosen=chosen, rejected=rejected, judgements=(LABELLED_BY,)))
    return out


def logps_of_pairs(engine: LocalEngine, pairs: Sequence[Preference]) -> list[tuple[float, float, int, int]]:
    """(chosen, rejected) sums of nats, and how many tokens each; an answer in several pairs is scored once."""
    items = {side.id: (pair.prompt, side.text) for pair in pairs for side in (pair.chosen, pair.rejected)}
    found = dict(zip(items, engine.score(list(items.values())), strict=True))
    return [(sum(found[p.chosen.id]), sum(found[p.rejected.id]), len(found[p.chosen.id]), len(found[p.rejected.id]))
            for p in pairs]


def _pair_logps(place: Path, config: TaskConfig, pairs: Sequence[Preference]) -> list[tuple[float, float]]:
    if not place.exists():
        loaded = load(config.model)
        found = logps_of_pairs(LocalEngine(loaded.model, loaded.tokenizer, policy="base"), pairs)
        write_json(place, [each[:2] for each in found])
    return [tuple(each) for each in read_json(place)]


def _judge(place: Path, config: TaskConfig, prompts: dict[str, list[Prompt]], base: dict[str, list[Response]],
           pairs: dict[str, list[Preference]], progress: Progress) -> dict[str, Any]:
    """The held-out reward model, trained once; what it says of the base model's answers, and how often it is right."""
    facts = place / "judge.json"
    if facts.exists():
        return read_json(facts)
    reward(RewardConfig(model=config.model, seed=BASE_SEEDS["judge"], frozen_layers=config.judge_frozen_layers,
                        loop=LoopConfig(epochs=2, rows_per_step=8, keep_best=False),
                        optim=OptimConfig(learning_rate=2e-4, warmup=0.1, weight_decay=0.01)),
           train=pairs["judge"], folder=place / "judge", data_id=LABELLED_BY, resume=True,
           progress=lambda what, done, total: progress("held-out judge", done, total))
    collect()
    judge = RewardJudge.load(place / "judge" / "final", id="reward:held-out")
    known = {prompt.id: prompt for prompt in prompts["held_out"]}
    scores = judge.scores([(known[r.prompt_id], r.text) for r in base["held_out"]])
    by_id = {response.id: score for response, score in zip(base["held_out"], scores, strict=True)}
    right = [float(by_id[pair.chosen.id] > by_id[pair.rejected.id]) for pair in pairs["held_out"]]
    accuracy = rate_interval(right, seed=0, clusters=[pair.group for pair in pairs["held_out"]])
    write_json(facts, {"base": scores, "accuracy": to_dict(accuracy), "pairs": len(right)})
    return read_json(facts)
