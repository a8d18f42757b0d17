"""Toys that several tests learn from: tiny conversations for the model named `test`, and a model that babbles and stops."""

import random
from collections.abc import Sequence
from pathlib import Path

from tutelage.core.words import Example, Judgement, Message, Prompt, Response, Sampling
from tutelage.models.load import load
from tutelage.rollout.local import LocalEngine
from tutelage.training.loop import LoopConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.sft import SFTConfig, sft

VOWELS = "aeiou"


def chat(question: str, answer: str) -> Example:
    return Example(messages=(Message(role="user", text=question), Message(role="assistant", text=answer)))


def ask(question: str) -> Prompt:
    return Prompt(messages=(Message(role="user", text=question),))


def reply(prompt: Prompt, text: str, *, index: int = 0) -> Response:
    return Response(prompt_id=prompt.id, text=text, index=index)


def remainders(judgement: Judgement) -> tuple[float, ...]:
    """What the spans of each response leave of its value."""
    earned = {response: sum(span.value for span in judgement.spans if span.response == response)
              for response in judgement.responses}
    return tuple(value - earned[response] for response, value in zip(judgement.responses, judgement.values, strict=True))


def greedy(model: str | Path, prompts: Sequence[Prompt], *, max_tokens: int = 24) -> list[str]:
    """The likeliest answers of a saved model, in the order of the prompts."""
    loaded = load(str(model), dtype="float32", device="cpu")
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy="toy")
    found = {
        r.prompt_id: r.text for r in engine.respond([(p, Sampling(temperature=0.0, max_tokens=max_tokens)) for p in prompts])
    }
    return [found[prompt.id] for prompt in prompts]


def babbler(folder: Path, *, seed: int = 0) -> Path:
    """A model that answers anything with a few vowels, each about as likely, and ends: PPO's start must know how to stop."""
    rng = random.Random(seed)
    examples = [chat(f"q{number % 8}", "".join(rng.choices(VOWELS, k=3))) for number in range(256)]
    config = SFTConfig(
        model="test",
        device="cpu",
        dtype="float32",
        seed=seed,
        loop=LoopConfig(epochs=3, rows_per_step=16, token_budget=4096),
        optim=OptimConfig(learning_rate=3e-3, schedule="linear", warmup=0.1),
    )
    return sft(config, train=examples, folder=folder).path
