"""One piece of work done by this project, through the functions that its commands call; the last line printed is JSON.

    python benchmarks/ours.py FOLDER WORK SETTING [SEED]
"""

import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import inputs
from rows import CURVE, LEARN, OPTIM, PAIRS, RL, SAMPLING, SFT, result

from tutelage.core.words import Sampling
from tutelage.models.load import load
from tutelage.rollout.local import LocalEngine
from tutelage.store.runs import Run, versions
from tutelage.text.chat import render_prompt
from tutelage.text.mask import answer_row, rows_of
from tutelage.training.grpo import GRPOConfig
from tutelage.training.loop import LoopConfig
from tutelage.training.networks import LoraConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo import PPOConfig
from tutelage.training.prefer import PreferConfig, prefer
from tutelage.training.reward import RewardConfig, reward
from tutelage.training.rl import rl
from tutelage.training.rloo import RLOOConfig
from tutelage.training.sft import SFTConfig, sft
from tutelage.training.state import SaveConfig

DTYPE = {"bf16": "bfloat16", "fp32": "float32", "int8": "bfloat16"}
TUNED = OptimConfig(learning_rate=OPTIM["learning_rate"], schedule="constant", warmup=0.0, betas=OPTIM["betas"], eps=OPTIM["eps"],
                    clip=OPTIM["clip"])
NEVER = SaveConfig(every_steps=0, every_seconds=0)


def of_run(folder: Path, amounts: dict[str, float]) -> dict[str, Any]:
    """The seconds of a run's steps, as its own metrics have them, and what each step held."""
    rows = [row for row in Run(folder).metrics() if "seconds" in row]
    steps = [{"seconds": row["seconds"], **{name: row[value] if isinstance(value, str) else value for name, value in amounts.items()}}
             for row in rows]
    return result(steps, loss=[row["loss"] for row in rows if "loss" in row])


def run_sft(place: Path, dtype: str, out: Path, *, curve: bool = False) -> dict[str, Any]:
    work, examples = read(place), inputs.examples()
    tokenizer = load(str(place / "base"), device="cpu").tokenizer
    made = [row for each in examples for row in rows_of(tokenizer, each, max_tokens=SFT["block"])]
    assert [list(row.token_ids) for row in made] == [row["input_ids"] for row in work["sft"]], "not the rows of work.json"
    config = SFTConfig(model=str(place / "base"), dtype=dtype, device="cpu", max_tokens=SFT["block"], optim=TUNED, save=NEVER,
                       loop=LoopConfig(epochs=1, rows_per_step=SFT["rows_per_step"], token_budget=2048, keep_best=False))
    if curve:
        sft(replace(config, loop=replace(config.loop, rows_per_step=CURVE["rows_per_step"])), train=examples[:len(work["curve"])],
            folder=out)
        return of_run(out, {"tokens": "tokens"})
    sft(config, train=examples, folder=out)
    trained = sum(sum(row["completion_mask"]) for row in work["sft"])
    return {**of_run(out, {"tokens": "tokens"}), "trained": trained, "rows": len(made)}


def run_pairs(place: Path, dtype: str, out: Path, kind: str) -> dict[str, Any]:
    work, pairs = read(place), inputs.pairs()
    tokenizer = load(str(place / "base"), device="cpu").tokenizer
    for row, pair in zip(work["pairs"], pairs, strict=True):
        made = answer_row(tokenizer, pair.prompt, pair.chosen.text, max_tokens=PAIRS["max_tokens"])
        assert list(made.token_ids) == row["prompt_ids"] + row["chosen_ids"], "not the rows of work.json"
    loop = LoopConfig(epochs=1, rows_per_step=PAIRS["per_step"], token_budget=2048, keep_best=False)
    common = {"model": str(place / "base"), "dtype": dtype, "device": "cpu", "max_tokens": PAIRS["max_tokens"], "optim": TUNED,
              "save": NEVER, "loop": loop}
    if kind == "reward":
        reward(RewardConfig(**common), train=pairs, folder=out)
    else:  # the reference asked as it goes, as the peer does
        prefer(PreferConfig(method="dpo", beta=0.1, precompute_reference=False, **common), train=pairs, folder=out)
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in work["pairs"])
    return {**of_run(out, {"pairs": PAIRS["per_step"]}), "tokens": tokens, "rows": len(pairs)}


def run_rl(place: Path, dtype: str, out: Path, kind: str, *, learning: int | None = None, int8: bool = False) -> dict[str, Any]:
    """`learning`: the seed of a run of learning.py."""
    how, reward = (RL, "reward") if learning is None else (LEARN[kind], "kind_words")
    asked = inputs.prompts(how["prompts_per_step"] * how["steps"])
    tokenizer = load(str(place / "endless"), device="cpu").tokenizer
    assert [render_prompt(tokenizer, each) for each in asked] == [row["ids"] for row in read(place)["prompts"][:len(asked)]]
    here = f"python:{Path(__file__).resolve().parent / 'rows.py'}:{reward}"
    common: dict[str, Any] = {
        "model": str(place / "endless"), "dtype": dtype, "device": "cpu", "steps": how["steps"], "seed": learning or 0,
        "prompts_per_step": how["prompts_per_step"], "responses_per_prompt": how["responses_per_prompt"], "max_tokens": how["tokens"],
        "max_prompt_tokens": 512, "missing_eos": None, "score_clip": None, "normalise_on": 0, "beta": how["beta"],
        "lora": LoraConfig(rank=0), "optim": replace(TUNED, learning_rate=how.get("learning_rate", TUNED.learning_rate)),
        "save": NEVER, "token_budget": 2048, "rollout_weights": "int8" if int8 else "same"}
    configs = {
        "grpo": lambda: GRPOConfig(reward=here, epochs=1, minibatches=1, **common),
        "rloo": lambda: RLOOConfig(reward=here, **common),
        "ppo": lambda: PPOConfig(reward=str(place / "reward") if learning is None else here, epochs=how["ppo_epochs"], minibatches=1,
                                 **common),
    }
    rl(configs[kind](), prompts=asked, folder=out)
    figures = of_run(out, {"responses": how["prompts_per_step"] * how["responses_per_prompt"], "length": "length"})
    return {**figures, "reward": [row["reward"] for row in Run(out).metrics() if "reward" in row]}


def run_sampling(place: Path, dtype: str, kind: str, *, int8: bool = False) -> dict[str, Any]:
    """`rounds` batches from a warm engine.  Mixed: each answer has a length of its own, at which it ends."""
    loaded = load(str(place / "endless"), dtype=dtype, device="cpu")
    rows = SAMPLING["mixed_rows"] if kind == "sample-mixed" else int(kind.removeprefix("sample-"))
    engine = LocalEngine(loaded.model, loaded.tokenizer, policy="bench", batch_rows=min(rows, 64), int8=int8)
    steps = []
    for number in range(SAMPLING["rounds"]):
        lengths = mixed_lengths(rows) if kind == "sample-mixed" else [SAMPLING["tokens"]] * rows
        requests = [(prompt, Sampling(max_tokens=length, seed=number)) for prompt, length in
                    zip(inputs.prompts(rows), lengths, strict=True)]
        begun = time.perf_counter()
        found = list(engine.respond(requests))
        seconds = time.perf_counter() - begun
        assert sum(len(each.token_ids) for each in found) == sum(lengths), "an answer ended early"
        steps.append({"seconds": seconds, "tokens": sum(lengths)})
    return result(steps)


def mixed_lengths(rows: int) -> list[int]:
    """Lengths as answers have them: many short ones and a long tail; the same on both sides."""
    rng = random.Random(0)
    return [min(SAMPLING["mixed_longest"], 4 + round(rng.expovariate(1 / 36))) for _ in range(rows)]


def read(place: Path) -> dict[str, Any]:
    return json.loads((place / "work.json").read_text(encoding="utf-8"))


def main() -> None:
    place, work, setting = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    dtype = DTYPE[setting]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        if work in ("sft", "curve"):
            found = run_sft(place, dtype, out, curve=work == "curve")
        elif work in ("reward", "dpo"):
            found = run_pairs(place, dtype, out, work)
        elif work in ("grpo", "rloo", "ppo"):
            found = run_rl(place, dtype, out, work)
        elif work.startswith("learn-"):
            found = run_rl(place, dtype, out, work.removeprefix("learn-"), learning=int(sys.argv[4]), int8=sys.argv[3] == "int8")
        else:
            found = run_sampling(place, dtype, work, int8=setting == "int8")
    print(json.dumps({**found, "versions": versions()}))


if __name__ == "__main__":
    main()
