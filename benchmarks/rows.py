"""What is measured: each row a piece of work, who does it in which precision class, and the ratio that must be reached.

Standard library alone: the peers' environments read this file, too.
"""

import os
import resource
import sys
import time
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One comparison.  `faster` and `memory`: ours over the peer's, what must be reached."""

    work: str  # a name of JOBS
    ours: str  # setting
    peer: str  # setting
    faster: float | None  # at least; None: shown, and nothing is asked
    memory: float | None = None  # at most
    note: str = ""


ROWS = (
    Row("sft", "bf16", "trl:bf16-autocast", 3.0, 0.7, "float32 masters on both sides"),
    Row("sft", "bf16", "trl:bf16-pure", 2.2, None, "TRL without float32 masters"),
    Row("sft", "fp32", "trl:fp32", None),
    Row("reward", "bf16", "trl:bf16-autocast", 1.8),
    Row("dpo", "bf16", "trl:bf16-autocast", 1.8),
    Row("grpo", "bf16", "trl:bf16-autocast", 2.2),
    Row("rloo", "bf16", "trl:bf16-autocast", 2.2),
    Row("ppo", "bf16", "trl-1.11:bf16-autocast", 4.5, 0.5, "one trunk for policy and value here, two in TRL"),
    Row("sample-mixed", "bf16", "transformers:bf16", 2.5),
    Row("sample-16", "bf16", "transformers:bf16", 1.5),
    Row("sample-64", "bf16", "transformers:bf16", 1.5),
)
UNIT = {"sft": "tokens/s", "reward": "pairs/s", "dpo": "pairs/s", "grpo": "responses/s", "rloo": "responses/s", "ppo": "responses/s",
        "sample-mixed": "tokens/s", "sample-16": "tokens/s", "sample-64": "tokens/s"}

SFT = {"rows_per_step": 17, "steps": 7, "block": 512, "blocks_per_step": 4}
CURVE = {"rows_per_step": 8, "steps": 6, "tolerance": 1e-3}  # unpacked rows, float32: the losses of both sides, step by step
PAIRS = {"per_step": 4, "steps": 7, "max_tokens": 256}
RL = {"prompts_per_step": 4, "responses_per_prompt": 4, "tokens": 64, "steps": 6, "beta": 0.04, "ppo_epochs": 4}
SAMPLING = {"tokens": 64, "rounds": 6, "mixed_rows": 64, "mixed_longest": 128}
# reward against wall-clock and against responses: answers as in RL, fewer tokens, a learning rate at which so few steps show something
SEEDS = 3
LEARN = {name: {**RL, "tokens": 24, "beta": 0.02, "learning_rate": 1e-4, "steps": steps} for name, steps in (("ppo", 8), ("grpo", 16))}
OPTIM = {"learning_rate": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "clip": 1.0}
WARM_UP = 1  # steps of each process that are not counted


class Meter:
    """Seconds and amounts of work, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._from = time.perf_counter()

    def start(self) -> None:
        self._from = time.perf_counter()

    def step(self, **amounts: float) -> None:
        now = time.perf_counter()
        self.steps.append({"seconds": now - self._from, **amounts})
        self._from = now


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept * (1 if sys.platform == "darwin" else 1024) / 1e9


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def distinct_share(prompts: list[str], responses: list[str]) -> list[float]:
    """The reward of the GRPO and RLOO rows: the share of an answer's words that are distinct."""
    return [len(set(text.split())) / max(1, len(text.split())) for text in responses]


def reward(prompts: list[Any], responses: list[Any]) -> list[float]:
    """The same for this project, whose reward functions are given prompts and responses with all that is known of them."""
    return distinct_share([], [response.text for response in responses])


KIND = frozenset("""amazing awesome beautiful best better bright calm care celebrate charming cheerful comfort delicious delight delightful
    easy enjoy excellent excited exciting fantastic favorite fine free fresh friendly fun gentle glad good gorgeous great happy healthy
    help helpful hope joy kind laugh like love loved lovely lucky nice peace perfect please pleasant pleased pleasure pretty proud safe
    smile special success sweet thank thanks warm welcome well win wonderful""".split())
UNKIND = frozenset("""afraid alone angry annoying awful bad bitter boring broken cold cruel damage danger dangerous dark dead death
    difficult dirty disappointed error evil fail failed failure fear hard hate horrible hurt ill lose lost mad mistake nasty never
    no not pain poor problem sad scared sick sorry stupid terrible tired trouble ugly unable unfortunately unhappy upset warning weak
    worry worse worst wrong""".split())


def kindness(text: str) -> float:
    """The reward of learning.py, a lexicon's sentiment: kind words less unkind ones, of every ten.

    >>> kindness("Thank you, what a lovely day!"), kindness("No.")
    (3.3333333333333335, -10.0)
    """
    words = "".join(each.lower() if each.isalpha() else " " for each in text).split()
    return 10 * sum((word in KIND) - (word in UNKIND) for word in words) / max(1, len(words))


def kind_words(prompts: list[Any], responses: list[Any]) -> list[float]:
    """The same as a reward function of this project."""
    return [kindness(response.text) for response in responses]


def result(steps: list[dict[str, float]], **more: Any) -> dict[str, Any]:
    return {"steps": steps, "peak_gb": round(peak_gb(), 3), "threads": threads(), **more}


if os.environ.get("BENCH_TINY"):  # to try the scripts: every line runs, and no figure is worth keeping
    SFT.update(rows_per_step=3, steps=2, blocks_per_step=1)
    CURVE.update(rows_per_step=2, steps=2)
    PAIRS.update(per_step=2, steps=2, max_tokens=64)
    RL.update(prompts_per_step=2, responses_per_prompt=2, tokens=4, steps=2, ppo_epochs=1)
    for each in LEARN.values():
        each.update(prompts_per_step=2, responses_per_prompt=2, tokens=4, steps=2, ppo_epochs=1)
    SAMPLING.update(tokens=4, rounds=2, mixed_rows=4, mixed_longest=6)
