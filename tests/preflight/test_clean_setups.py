"""Set-ups with nothing wrong: architectures, chat templates, every algorithm, method and command.  At most one false alarm."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import setups
from setups import ADAPTERS, ARCHITECTURES, FAMILIES, HERE, LOOP, LOW_RATE, RATE

from tutelage.core.words import Message
from tutelage.data.snapshot import load_rows
from tutelage.data.spans import Spanned, spanned
from tutelage.judges.rules import FunctionJudge
from tutelage.preflight.check import COMMANDS, check
from tutelage.preflight.setup import Setup
from tutelage.training.classify import ClassifyConfig
from tutelage.training.cost import CostConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.on_policy import RewardPart
from tutelage.training.optim import OptimConfig
from tutelage.training.prefer import PreferConfig
from tutelage.training.reward import RewardConfig
from tutelage.training.rl import ALGORITHMS
from tutelage.training.sft import SFTConfig
from tutelage.training.span_reward import SpanRewardConfig

METHODS = ("dpo", "cdpo", "robust_dpo", "ipo", "kto", "orpo", "simpo")


class Clean(NamedTuple):
    name: str
    command: str
    arch: str
    family: str
    options: dict[str, Any]
    rows: Callable[[], list[Any]]


def clean(name: str, command: str, rows: Callable[[], list[Any]], arch: str = "llama", family: str = "chatml", **options: Any) -> Clean:
    return Clean(name, command, arch, family, options, rows)


def marked() -> list[Spanned]:
    """Answers of two sentences, every other one with its second sentence marked."""
    return [spanned({"prompt": f"Question {at}?", "response": f"Yes {at}. No.",
                     "spans": [{"start": len(f"Yes {at}. "), "end": len(f"Yes {at}. No."), "label": "wrong"}] if at % 2 else []})
            for at in range(24)]


def method_options(method: str) -> dict[str, Any]:
    return {"method": method} | ({"label_smoothing": 0.1} if method in ("cdpo", "robust_dpo") else {})


SETUPS = (
    *(clean(f"sft-{arch}", "sft", setups.examples, arch) for arch in ARCHITECTURES),
    *(clean(f"reward-{arch}", "reward", setups.pairs, arch) for arch in ARCHITECTURES),
    *(clean(f"rl-{arch}", "rl", setups.prompts, arch, lora=LoraConfig(rank=0)) for arch in ARCHITECTURES),
    *(clean(f"sft-template-{family}", "sft", setups.examples, "gpt_neox", family) for family in FAMILIES),
    *(clean(f"prefer-template-{family}", "prefer", setups.pairs, "llama", family) for family in FAMILIES),
    *(clean(f"rl-template-{family}", "rl", setups.prompts, "llama", family, lora=ADAPTERS) for family in FAMILIES),
    *(clean(f"rl-{name}", "rl", setups.prompts, algorithm=name, lora=ADAPTERS) for name in ALGORITHMS),
    *(clean(f"rl-{name}-learned-reward", "rl", setups.prompts, algorithm=name, lora=LoraConfig(rank=0), reward="JUDGE")
      for name in ALGORITHMS),
    *(clean(f"prefer-{method}", "prefer", setups.pairs, **method_options(method)) for method in METHODS),
    clean("prefer-kto-votes", "prefer", setups.votes, method="kto"),
    clean("prefer-lora", "prefer", setups.pairs, "mistral", "mistral", lora=ADAPTERS),
    clean("sft-lora", "sft", setups.examples, "gpt2", lora=ADAPTERS),
    clean("sft-all-tokens", "sft", setups.examples, loss="all"),
    clean("sft-frozen", "sft", setups.examples, frozen_layers=1),
    clean("reward-lora", "reward", setups.pairs, "gpt_neox", lora=ADAPTERS),
    clean("reward-gemma", "reward", setups.pairs, "gemma3", "gemma"),
    clean("cost", "cost", setups.pairs),
    clean("cost-llama3", "cost", setups.pairs, "gpt_neox", "llama3"),
    clean("span-reward", "span-reward", marked),
    clean("classify", "classify", setups.classes),
    clean("classify-head", "classify", setups.classes, "gpt2", "chatml", train="head"),
    clean("rl-python", "rl", setups.prompts, reward="FUNCTION"),
    clean("rl-critic-of-its-own", "rl", setups.prompts, reward="JUDGE", value="separate"),
    clean("rl-cool", "rl", setups.prompts, temperature=0.7),
    clean("rl-bfloat16", "rl", setups.prompts, dtype="bfloat16"),
    clean("sft-bfloat16", "sft", setups.examples, dtype="bfloat16"),
)


def once(folder: Path, make: Callable[..., Path], *args: Any, **more: Any) -> str:
    """The model in `folder`, made where it is not there yet: several set-ups share one."""
    return str(folder if (folder / "manifest.json").exists() else make(folder, *args, **more))


def arguments(it: Clean, folder: Path) -> dict[str, Any]:
    """What `check` is called with."""
    place = folder / f"{it.arch}-{it.family}"
    model = once(place / "policy", setups.policy, it.arch, it.family)
    options = dict(it.options)
    judge = None
    if options.get("reward") == "JUDGE":
        options["reward"] = once(place / "judge", setups.judge, it.arch, it.family)
    if options.get("reward") == "FUNCTION":
        del options["reward"]
        judge = FunctionJudge(lambda prompts, responses: [float(len(set(r.text))) for r in responses])
    if it.command == "rl":
        algorithm = options.pop("algorithm", "ppo")
        if algorithm == "ppo_lagrangian":
            options["cost"] = once(place / "cost", setups.judge, it.arch, it.family, seed=11)
        if algorithm not in ("remax", "reinforce"):
            options.setdefault("responses_per_prompt", 4)
        options = {"max_tokens": 16, "lora": ADAPTERS, "optim": LOW_RATE, **options}
        config = ALGORITHMS[algorithm].config(model=model, **HERE | options)
    elif it.command == "classify":
        config = ClassifyConfig(model=model, target="label", loop=LOOP, optim=OptimConfig(learning_rate=1e-3), **HERE | options)
    elif it.command == "span-reward":
        config = SpanRewardConfig(model=model, loop=LOOP, optim=RATE, **HERE | options)
    else:
        kind = {"sft": SFTConfig, "reward": RewardConfig, "cost": CostConfig, "prefer": PreferConfig}[it.command]
        config = kind(model=model, loop=LOOP, optim=LOW_RATE if it.command == "prefer" else RATE, **HERE | options)
    return {"command": it.command, "config": config, "rows": {"train": it.rows()}, "judge": judge}


ALARMS: dict[str, list[str]] = {}  # set-up -> codes of what was found wrong with it


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("it", SETUPS, ids=lambda it: it.name)
def test_nothing_is_found_wrong(it: Clean, models):
    """A single false alarm is allowed over all set-ups: it is counted, and a second one fails."""
    findings = check(**arguments(it, models))
    if findings:
        ALARMS[it.name] = [finding.code for finding in findings]
    assert not findings or len(ALARMS) <= 1, ALARMS


def test_the_set_ups_are_many_and_of_every_kind():
    assert len(SETUPS) >= 50 and len({it.name for it in SETUPS}) == len(SETUPS)
    assert len({it.arch for it in SETUPS}) >= 5 and len({it.family for it in SETUPS}) >= 5
    assert {it.command for it in SETUPS} == set(COMMANDS)
    asked = {it.options.get("algorithm") for it in SETUPS}
    assert set(ALGORITHMS) <= asked
    assert set(METHODS) <= {it.options.get("method") for it in SETUPS}


def test_several_rewards_a_cost_and_demonstrations_are_no_alarm(models):
    it = clean("", "rl", setups.prompts, algorithm="ppo_lagrangian", ptx_coef=0.1, normalise_on=0, rewards={
        "helpful": RewardPart(reward=once(models / "llama-chatml" / "judge", setups.judge)),
        "brief": RewardPart(reward="rule:length", weight=0.5)})
    run = arguments(it, models)
    assert check(**run | {"rows": {**run["rows"], "ptx": setups.examples()}}) == []


def test_long_answers_that_end_are_no_alarm(models):
    """None of them has ended when a check has drawn its first 48 tokens."""
    model = str(setups.policy(models / "slow", odds=0.4))
    config = ALGORITHMS["ppo"].config(model=model, max_tokens=900, responses_per_prompt=4, lora=ADAPTERS, optim=LOW_RATE, **HERE)
    rows = {"train": setups.prompts()}
    assert all(response.is_truncated() for response in Setup("rl", config, rows).responses)
    assert check("rl", config, rows) == []


def test_the_starter_data_are_clean(tmp_path):
    """What comes with Tutelage raises no alarm of its own, several turns and a system message included."""
    model = str(setups.policy(tmp_path))
    splits = load_rows("starter:instructions", kind="examples").splits
    found = check("sft", SFTConfig(model=model, loop=LOOP, optim=RATE, max_tokens=1024, **HERE), splits)
    preferences = load_rows("starter:preferences").splits
    found += check("reward", RewardConfig(model=model, loop=LOOP, optim=RATE, max_tokens=1024, **HERE), preferences)
    assert [finding.code for finding in found] == []


def test_system_messages_and_several_turns_are_no_alarm(tmp_path):
    model = str(setups.policy(tmp_path))
    rows = [replace(each, messages=(Message(role="system", text="Be brief."), *each.messages, Message(role="user", text="And why?"),
                                    Message(role="assistant", text="Because it was made so."))) for each in setups.examples()]
    assert check("sft", SFTConfig(model=model, loop=LOOP, optim=RATE, **HERE), {"train": rows}) == []
