"""Does training keep its speed on a hundred times the examples?

    python benchmarks/growth.py [--examples 1000,100000] [--steps 10]

SmolLM2-135M, the first steps of `sft` on as many conversations as asked for (the starter instructions over and over, each with a
number of its own, so that none is equal to another), imported as a snapshot; each number in a process of its own.  The seconds
around the steps are the model's loading, the tokenising of all examples, and saving.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import examples
from rows import peak_gb

from tutelage.data.importer import import_data
from tutelage.data.snapshot import load_rows
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.sft import SFTConfig, sft
from tutelage.training.state import SaveConfig


def snapshot_of(count: int, folder: Path) -> str:
    """The name of a snapshot in the workspace `folder` with `count` conversations, all of them for training."""
    known, path = examples(), folder / "many.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            rows = [{"role": each.role, "content": each.text} for each in known[number % len(known)].messages]
            rows[-1]["content"] += f" ({number})"
            file.write(json.dumps({"messages": rows}, ensure_ascii=False) + "\n")
    return import_data(path, workspace=folder, splits={"train": 1.0, "val": 0.0, "test": 0.0}).name


def one(count: int, steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        name = snapshot_of(count, Path(scratch))
        imported, peak = time.perf_counter() - begun, peak_gb()
        begun, train = time.perf_counter(), load_rows(name, scratch, kind="examples").splits["train"]
        assert len(train) == count
        config = SFTConfig(loop=LoopConfig(max_steps=steps, rows_per_step=16, token_budget=2048, keep_best=False),
                           save=SaveConfig(every_steps=0, every_seconds=0), device="cpu")
        sft(config, train=train, folder=Path(scratch) / "run")
        rows = [row for row in Run(Path(scratch) / "run").metrics() if "loss" in row]
    speeds = [row["tokens"] / row["seconds"] for row in rows[1:]]
    return {"examples": count, "tokens/s": statistics.median(speeds), "least": min(speeds), "most": max(speeds),
            "seconds around": time.perf_counter() - begun - sum(row["seconds"] for row in rows), "seconds of import": imported,
            "GB of import": peak, "GB": peak_gb()}


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
              f"{row['seconds of import']:.0f} s to write and import them, at most {row['GB of import']:.2f} GB; "
              f"{row['seconds around']:.0f} s around the steps, at most {row['GB']:.2f} GB", flush=True)
    print(f"ratio of the last to the first: {found[-1]['tokens/s'] / found[0]['tokens/s']:.2f}")


if __name__ == "__main__":
    main()
