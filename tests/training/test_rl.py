"""The on-policy loop: rewards by name, normalisation, which prompts are asked, and what a run leaves."""

from dataclasses import replace

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.core.config import bind
from tutelage.core.errors import ConfigError, RewardError, UserError
from tutelage.core.words import Judgement, Preference
from tutelage.judges.ensemble import NormalisedSum
from tutelage.judges.rules import FunctionJudge, LengthRule
from tutelage.models.load import load, save
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig, Optimizer
from tutelage.training.ppo import PPOConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import ScaledJudge, config_of, fitting, judge_by_name, rl
from tutelage.training.state import SaveConfig

CONFIG = PPOConfig(
    model="test",
    device="cpu",
    dtype="float32",
    steps=2,
    prompts_per_step=4,
    responses_per_prompt=2,
    max_tokens=4,
    normalise_on=4,
    epochs=1,
    minibatches=1,
    lora=LoraConfig(rank=2),
    optim=OptimConfig(learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-5),
)
PROMPTS = [toys.ask(f"question {number}") for number in range(8)]


class Recorder:
    """A judge that remembers what it was asked; an answer is worth the count of its tokens below 128."""

    id = "rule:recorder"

    def __init__(self):
        self.batches: list[list[str]] = []

    def judge(self, items):
        self.batches.append([prompt.messages[0].text for prompt, _ in items])
        return [
            Judgement(
                judge=self.id,
                kind="rating",
                responses=tuple(r.id for r in responses),
                values=tuple(10.0 + sum(token < 128 for token in r.token_ids) for r in responses),
            )
            for _, responses in items
        ]


def test_rewards_by_name(tmp_path):
    assert isinstance(judge_by_name("rule:length"), LengthRule)
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return [float(len(r.text)) for r in responses]\n")
    judge = judge_by_name(f"python:{tmp_path}/mine.py:score")
    assert judge.judge([(PROMPTS[0], [toys.reply(PROMPTS[0], "four")])])[0].values == (4.0,)
    with pytest.raises(UserError, match='unknown rule "lenght" in reward: rule:lenght; did you mean "length"'):
        judge_by_name("rule:lenght")
    with pytest.raises(UserError, match="runs/none/final is not there; give the folder of a reward model"):
        judge_by_name("runs/none/final")


def test_an_unknown_algorithm_and_an_unknown_key_are_refused_together():
    with pytest.raises(ConfigError) as caught:
        bind(PPOConfig, {"algorithm": "pppo", "betta": 0.1})
    assert "algorithm must be one of 'ppo'; got 'pppo'; did you mean \"ppo\"?" in str(caught.value)
    assert 'unknown key "betta" in the top level; did you mean "beta"?' in str(caught.value)


def test_a_key_of_the_algorithm_that_was_meant_is_not_called_unknown():
    with pytest.raises(ConfigError) as refused:
        bind(config_of({"algorithm": "gropo"}), {"algorithm": "gropo", "dynamic_sampling": 2, "cost": "rule:length"})
    assert refused.value.faults == tuple(each for each in refused.value.faults if "algorithm must be one of" in each)


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_new_tokens", "repetition_penalty"])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "no such"])
def test_sampling_that_the_trainer_does_not_know_of_is_refused_with_the_reason(key, algorithm):
    with pytest.raises(ConfigError, match=f"{key} is not possible here: it changes the distribution that is sampled from"):
        bind(config_of({"algorithm": algorithm}), {"algorithm": algorithm, key: 0.9})


def fails_at(call: int):
    """A reward that raises at its n-th call."""
    calls = []

    def reward(prompts, responses):
        calls.append(1)
        return [1 / (len(calls) - call) for _ in responses]

    return FunctionJudge(reward)


def test_a_reward_that_raises_stops_the_run_with_what_it_learned_and_says_where(tmp_path):
    config = replace(CONFIG, steps=4, normalise_on=0)
    with pytest.raises(RewardError, match=r"raised ZeroDivisionError: .*\(test_rl.py, line \d+\), in a batch of 8 answers"):
        rl(config, prompts=PROMPTS, folder=tmp_path / "r", judge=fails_at(3))
    assert Run(tmp_path / "r").newest().name == "000002"
    steady = FunctionJudge(lambda prompts, responses: [1.0] * len(responses))
    assert rl(config, prompts=PROMPTS, folder=tmp_path / "r", judge=steady, resume=True).steps == 4


def test_a_run_that_breaks_between_updates_keeps_no_half_learned_step(tmp_path, monkeypatch):
    config = replace(CONFIG, steps=4, normalise_on=0, minibatches=2)
    steps, plain = [], Optimizer.step

    def breaks(self):
        steps.append(1)
        if len(steps) == 6:  # the second update of the third step
            raise MemoryError("no memory")
        return plain(self)

    monkeypatch.setattr(Optimizer, "step", breaks)
    with pytest.raises(MemoryError):
        rl(config, prompts=PROMPTS, folder=tmp_path / "r", judge=LengthRule(1, 9))
    assert Run(tmp_path / "r").newest() is None


def test_a_sum_of_rewards_is_normalised_anew_for_every_run(tmp_path):
    judge = NormalisedSum({"long": (FunctionJudge(lambda prompts, responses: [100.0 * len(r.text) for r in responses]), 1.0)})
    rows = []
    for name in ("one", "two"):
        rl(replace(CONFIG, steps=1), prompts=PROMPTS, folder=tmp_path / name, judge=judge)
        rows.append(Run(tmp_path / name).metrics()[0]["reward"])
    assert rows[0] == rows[1]


@pytest.mark.parametrize("change", ["model", "reward"])
def test_a_run_is_not_resumed_on_other_ground(tmp_path, change):
    """The base of the adapters and the reward are read again on resume: they must be what they were."""
    file = tmp_path / "paid.py"
    model = tmp_path / "base"
    loaded = load("test")
    save(loaded.model, loaded.tokenizer, model, manifest={})
    file.write_text("def f(prompts, responses):\n    return [float(len(r.text)) for r in responses]\n")
    config = replace(CONFIG, model=str(model), reward=f"python:{file}:f", steps=3, save=SaveConfig(every_steps=1))

    def stop(what, done, total):
        if what == "rl" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl(config, prompts=PROMPTS, folder=tmp_path / "r", progress=stop)
    if change == "reward":
        file.write_text("def f(prompts, responses):\n    return [0.0] * len(responses)\n")
    else:
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight.add_(0.1)
        save(loaded.model, loaded.tokenizer, model, manifest={})
    with pytest.raises(UserError, match=f"has changed: {change} "):
        rl(config, prompts=PROMPTS, folder=tmp_path / "r", resume=True)


def test_scaled_judges_put_values_where_they_are_wanted():
    judge = ScaledJudge(FunctionJudge(lambda prompts, responses: [3.0, 7.0]), bias=5.0, gain=0.5)
    found = judge.judge([(PROMPTS[0], [toys.reply(PROMPTS[0], "a"), toys.reply(PROMPTS[0], "b", index=1)])])
    assert found[0].values == (-1.0, 1.0)


def test_prompts_that_are_too_long_or_stand_twice_are_left_out():
    tokenizer = load("test", device="cpu").tokenizer
    kept, skipped = fitting(tokenizer, [*PROMPTS, PROMPTS[0], toys.ask("x" * 300)], 60)
    assert kept == PROMPTS and skipped == 1
    with pytest.raises(UserError, match="none of the 8 prompts fits into max_prompt_tokens=3"):
        fitting(tokenizer, PROMPTS, 3)


def test_every_prompt_is_asked_once_an_epoch_and_the_reward_is_normalised_first(tmp_path):
    judge = Recorder()
    rl(replace(CONFIG, steps=4), prompts=PROMPTS, judge=judge, folder=tmp_path / "r")
    first, *steps = judge.batches
    assert len(first) == 4  # normalise_on, before the first step
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == sorted(p.messages[0].text for p in PROMPTS)
    assert steps[:2] != steps[2:]  # a fresh permutation


def test_normalisation_puts_the_references_answers_at_mean_0(tmp_path):
    """Without it the Recorder's values lie between 10 and 14; with it the first step's, by the same policy, about 0."""
    folder = tmp_path / "r"
    rl(replace(CONFIG, steps=1, normalise_on=8, prompts_per_step=8), prompts=PROMPTS, judge=Recorder(), folder=folder)
    assert abs(Run(folder).metrics()[0]["reward"]) < 1.5
    rl(replace(CONFIG, steps=1, normalise_on=0), prompts=PROMPTS, judge=Recorder(), folder=tmp_path / "plain")
    assert 10 <= Run(tmp_path / "plain").metrics()[0]["reward"] <= 14


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_the_result_is_a_plain_model_with_adapters_merged(tmp_path, rank):
    result = rl(replace(CONFIG, lora=LoraConfig(rank=rank)), prompts=PROMPTS, judge=Recorder(), folder=tmp_path / "r")
    assert not (result.path / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(result.path)
    assert AutoTokenizer.from_pretrained(result.path).eos_token == "<|im_end|>"
    base = load("test", dtype="float32", device="cpu").model.state_dict()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, base[name])]
    assert set(model.state_dict()) == set(base) and moved
    assert not [name for name in model.state_dict() if "value" in name or "lora" in name]


def test_frozen_layers_stay_where_they_were(tmp_path):
    result = rl(
        replace(CONFIG, lora=LoraConfig(rank=0), frozen_layers=2), prompts=PROMPTS, judge=Recorder(), folder=tmp_path / "r"
    )
    base = load("test", dtype="float32", device="cpu").model.state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.path).state_dict()
    moved = {name.removeprefix("model.") for name, value in after.items() if not torch.equal(value, base[name])}
    assert "layers.3.mlp.up_proj.weight" in moved
    assert not [name for name in moved if name.startswith(("embed_tokens", "layers.0.", "layers.1.", "lm_head"))]


def test_same_seed_same_numbers_and_another_seed_others(tmp_path):
    rows = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        rl(replace(CONFIG, seed=seed), prompts=PROMPTS, judge=Recorder(), folder=tmp_path / name)
        rows[name] = [
            {key: row[key] for key in ("reward", "kl", "policy_loss", "grad_norm")} for row in Run(tmp_path / name).metrics()
        ]
    assert rows["a"] == rows["b"] != rows["c"]


def test_a_trained_reward_model_teaches_and_lends_its_trunk_to_the_critic(tmp_path):
    pairs = [Preference(prompt=p, chosen=toys.reply(p, "yes"), rejected=toys.reply(p, "no", index=1)) for p in PROMPTS]
    taught = reward(
        RewardConfig(model="test", device="cpu", dtype="float32", loop=LoopConfig(max_steps=1, keep_best=False)),
        train=pairs,
        folder=tmp_path / "rm",
    )
    digest = (taught.path / "model.safetensors").read_bytes()
    config = replace(CONFIG, reward=str(taught.path), value="separate")
    result = rl(config, prompts=PROMPTS, folder=tmp_path / "r")
    assert result.steps == 2 and (taught.path / "model.safetensors").read_bytes() == digest


def test_a_finished_run_answers_at_once(tmp_path):
    judge = Recorder()
    first = rl(CONFIG, prompts=PROMPTS, judge=judge, folder=tmp_path / "r")
    asked = len(judge.batches)
    assert rl(CONFIG, prompts=PROMPTS, judge=judge, folder=tmp_path / "r", resume=True) == first and len(judge.batches) == asked
