"""The on-policy loop: rewards by name, normalisation, which prompts are asked, and what a run leaves."""

from dataclasses import replace

import pytest
import torch
import toys
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.core.config import bind
from tutelage.core.errors import ConfigError, UserError
from tutelage.core.words import Judgement, Preference
from tutelage.judges.rules import FunctionJudge, LengthRule
from tutelage.models.load import load
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import ScaledJudge, fitting, judge_by_name, rl

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
