"""Each trainer learns a toy in seconds: SFT remembers, a reward model finds the rule, PPO does more of what is rewarded.

Thresholds stand well inside what seeds 0, 1 and 2 reached by hand; the figures stand beside them.  Every draw is seeded,
so on one machine a test passes always or never.
"""

import random
from pathlib import Path

import pytest
import toys

from tutelage.core.words import Preference, Prompt, Response
from tutelage.judges.reward_model import RewardJudge
from tutelage.judges.rules import FunctionJudge
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import rl
from tutelage.training.sft import SFTConfig, sft

SEED = 0
HERE = {"device": "cpu", "dtype": "float32"}

FACTS = (("Capital of France?", "Paris."), ("2 + 3?", "Five."), ("Colour of snow?", "White."), ("Opposite of up?", "Down."))

WORDS = ("apple river stone cloud table green seven music paper window garden silver orange winter forest bottle").split()
KIND, RUDE = ("thanks", "please"), ("stupid", "whatever")


def test_sft_remembers_what_it_is_told(tmp_path):
    """Loss from 5.55 nats a token (uniform over 259 is 5.56) to below 1.0 (seeds 0, 1, 2: 0.45), and the answers by heart."""
    examples = [toys.chat(question, answer) for question, answer in FACTS]
    config = SFTConfig(
        model="test", seed=SEED, loop=LoopConfig(epochs=40, rows_per_step=4), optim=OptimConfig(learning_rate=2e-3), **HERE
    )
    result = sft(config, train=examples, val=examples, folder=tmp_path / "sft")
    losses = [row["eval_loss"] for row in Run(tmp_path / "sft").metrics() if "eval_loss" in row]
    assert losses[0] == pytest.approx(5.55, abs=0.15)
    assert losses[-1] < 1.0
    assert toys.greedy(result.path, [toys.ask(question) for question, _ in FACTS]) == [answer for _, answer in FACTS]


def politeness(count: int, seed: int) -> list[Preference]:
    """Pairs of three-word answers, one word of which is kind in the better one and rude in the worse, anywhere."""
    rng = random.Random(seed)

    def say(mark: str) -> str:
        words = rng.sample(WORDS, 2)
        words.insert(rng.randrange(3), mark)
        return " ".join(words)

    out = []
    for number in range(count):
        prompt = toys.ask(f"say {rng.choice(WORDS)} {number}")
        out.append(
            Preference(
                prompt=prompt,
                chosen=toys.reply(prompt, say(rng.choice(KIND))),
                rejected=toys.reply(prompt, say(rng.choice(RUDE)), index=1),
            )
        )
    return out


def test_a_reward_model_finds_the_rule_behind_the_pairs(tmp_path):
    """At least 0.9 of 100 unseen pairs (seeds 0, 1, 2: 1.0 each; a coin would need luck of 1 in 10**16)."""
    config = RewardConfig(
        model="test",
        seed=SEED,
        loop=LoopConfig(epochs=1, rows_per_step=16, token_budget=8192),
        optim=OptimConfig(learning_rate=1e-3, warmup=0.1),
        **HERE,
    )
    result = reward(config, train=politeness(160, SEED), folder=tmp_path / "reward")
    judge = RewardJudge.load(result.path, **HERE)
    unseen = politeness(100, 99)
    scores = judge.scores([(pair.prompt, side.text) for pair in unseen for side in (pair.chosen, pair.rejected)])
    right = sum(good > bad for good, bad in zip(scores[0::2], scores[1::2], strict=True))
    assert right >= 90, f"{right} of 100 right"


def share_of_e(prompts: list[Prompt], responses: list[Response]) -> list[float]:
    """A user's own reward: how much of an answer is the letter e."""
    return [response.text.count("e") / max(3, len(response.text)) for response in responses]


@pytest.fixture(scope="module")
def babbler(tmp_path_factory) -> Path:
    return toys.babbler(tmp_path_factory.mktemp("babbler"))


def test_ppo_does_more_of_what_is_rewarded(babbler, tmp_path):
    """Mean reward of a step's 32 answers rises by 0.4 at least in 9 steps.

    Seeds 0 to 5: from 0.14 to 0.27 to 0.92 to 0.98.  At this learning rate some fall back once nearly all is won (two of twelve runs of
    12 steps did, to 0.33), so that it stops before.
    """
    config = PPOConfig(
        model=str(babbler),
        seed=SEED,
        steps=9,
        prompts_per_step=8,
        responses_per_prompt=4,
        max_tokens=8,
        beta=0.02,
        normalise_on=0,
        missing_eos=-0.5,
        token_budget=8192,
        lora=LoraConfig(rank=0),
        **HERE,
        optim=OptimConfig(learning_rate=1e-3, schedule="constant", betas=(0.9, 0.95), eps=1e-5),
    )
    rl(config, prompts=[toys.ask(f"q{number}") for number in range(8)], judge=FunctionJudge(share_of_e), folder=tmp_path / "rl")
    rewards = [row["reward"] for row in Run(tmp_path / "rl").metrics()]
    before, after = rewards[0], sum(rewards[-3:]) / 3
    assert after - before > 0.4, [round(value, 2) for value in rewards]
