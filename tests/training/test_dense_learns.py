"""Rewards on single characters teach PPO, and errors marked in sentences teach a reward model.

Seeded: each passes always or never on one machine.
"""

import random

import toys
from transformers import AutoModelForTokenClassification

from tutelage.core.words import Response, Span
from tutelage.data.spans import Spanned
from tutelage.judges.span_model import SpanModelJudge
from tutelage.judges.spans import SpanJudge, sentences_of
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.rl import rl
from tutelage.training.span_reward import SpanRewardConfig, span_reward

HERE = {"device": "cpu", "dtype": "float32"}


def each_letter(prompts, responses):
    """+0.5 on every e, -0.25 on every other letter: nothing is said of an answer as a whole."""
    return [[(at, at + 1, 0.5 if letter == "e" else -0.25) for at, letter in enumerate(r.text)] for r in responses]


def test_ppo_learns_from_rewards_on_letters(tmp_path):
    """The reward of an answer rises by 0.8 at least in 10 steps.

    Seeds 1, 2, 3: from -0.41, -0.44, -0.32 to 2.9, 2.7, 1.5.  Seed 0 rises to 1.3 in five steps, too, and then wavers: what its
    last steps are worth (0.1 to 2.4 were seen) depends on how sums were rounded, so it is not the one to ask.
    """
    config = PPOConfig(
        model=str(toys.babbler(tmp_path / "babbler")),
        seed=1,
        steps=10,
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
    rl(config, prompts=[toys.ask(f"q{number}") for number in range(8)], judge=SpanJudge(each_letter), folder=tmp_path / "rl")
    rewards = [row["reward/spans"] for row in Run(tmp_path / "rl").metrics()]
    before, after = rewards[0], sum(rewards[-3:]) / 3
    assert after - before > 0.8, [round(value, 2) for value in rewards]


GOOD = ("The sun is up.", "Water is wet.", "We like tea.", "It is late.")
RUDE = ("Go away now!", "You are dumb!")
WRONG = ("Two is ten?", "Up is down?")


def marked_answers(count: int, seed: int) -> list[Spanned]:
    """Two or three sentences, some of which are marked as rude or wrong."""
    rng = random.Random(seed)
    out = []
    for number in range(count):
        prompt = toys.ask(f"q{number}")
        picked = [rng.choice(rng.choice((GOOD, RUDE, WRONG))) for _ in range(rng.choice((2, 3)))]
        text = " ".join(picked)
        response = Response(prompt_id=prompt.id, text=text)
        spans = tuple(
            Span(response=response.id, start=start, end=end, label="rude" if text[start:end] in RUDE else "wrong")
            for start, end in sentences_of(text)
            if text[start:end] not in GOOD
        )
        out.append(Spanned(prompt, response, spans))
    return out


def test_a_reward_model_of_spans_finds_the_errors(tmp_path):
    """At least 0.9 of the sentences of 40 unseen answers get their label (seeds 0, 1, 2: all; a guess is right in about 0.4)."""
    config = SpanRewardConfig(
        model="test",
        **HERE,
        loop=LoopConfig(epochs=2, rows_per_step=16, token_budget=8192),
        optim=OptimConfig(learning_rate=2e-3, warmup=0.1),
    )
    made = span_reward(config, train=marked_answers(192, 0), val=marked_answers(20, 1), folder=tmp_path / "spans")
    assert AutoModelForTokenClassification.from_pretrained(made.path).config.id2label == {0: "none", 1: "rude", 2: "wrong"}
    judge = SpanModelJudge.load(made.path, **HERE)
    unseen = marked_answers(40, 2)
    right = count = 0
    for each, found in zip(unseen, judge.judge([(each.prompt, [each.response]) for each in unseen]), strict=True):
        wanted = {(span.start, span.end): span.label for span in each.spans}
        for span in found.spans:
            right += span.label == wanted.get((span.start, span.end), "none")
            assert -1 <= span.value <= 1 and (span.value > 0) == (span.label == "none") or abs(span.value) < 0.34
            count += 1
    assert count >= 80 and right >= 0.9 * count, f"{right} of {count}"
