"""Does training keep its speed on a hundred times the examples?

    python benchmarks/growth.py [--examples 1000,100000] [--steps 10]

SmolLM2-135M, the first steps of `sft` on as many conversations as asked for (the starter instructions over and over, each with a
number of its own, so that none is equal to another), each in a process of its own.  The seconds around the steps are the model's
loading, the tokenising of all examples, and saving.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from inputs import examples
from rows import peak_gb

from tutelage.core.words import Example, Message
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.sft import SFTConfig, sft
from tutelage.training.state import SaveConfig


def many(count: int) -> list[Example]:
    known = examples()
    out = []
    for number in range(count):
        each = known[number % len(known)]
        *before, last = each.messages
        out.append(replace(each, messages=(*before, Message(role=last.role, text=f"{last.text} ({number})"))))
    return out


def one(count: int, steps: int) -> dict[str, float]:
    train = many(count)
    before, begun = peak_gb(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(loop=LoopConfig(max_steps=steps, rows_per_step=16, token_budget=2048, keep_best=False),
                           save=SaveConfig(every_steps=0, every_seconds=0), device="cpu")
        sft(config, train=train, folder=Path(scratch) / "run")
        rows = [row for row in Run(Path(scratch) / "run").metrics() if "loss" in row]
    speeds = [row["tokens"] / row["seconds"] for row in rows[1:]]
    return {"examples": count, "tokens/s": statistics.median(speeds), "least": min(speeds), "most": max(speeds),
            "seconds before": time.perf_counter() - begun - sum(row["seconds"] for row in rows), "GB of examples": before, "GB": peak_gb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", default="1000,100000")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.steps)))
        return
    found = []
    for count in map(int, args.examples.split(",")):
        done = subprocess.run([sys.executable, __file__, "--one", str(count), "--steps", str(args.steps)], capture_output=True, text=True,
                              check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        row = found[-1]
        print(f"{row['examples']:>9,} examples: {row['tokens/s']:.0f} tokens/s ({row['least']:.0f} to {row['most']:.0f}); "
              f"{row['seconds before']:.0f} s around the steps; {row['GB of examples']:.2f} GB with the examples read, "
              f"{row['GB']:.2f} GB at most",
              flush=True)
    print(f"ratio of the last to the first: {found[-1]['tokens/s'] / found[0]['tokens/s']:.2f}")


if __name__ == "__main__":
    main()
