"""How near `tutelage plan` comes: five recipes, planned and then run to their end, one after the other.

    python benchmarks/forecasts.py [--only sft,ppo]

Prints a table: seconds and peak GB, as forecast and as they were.  The exit code is 1 where memory is off by more than 15 % or time by
more than 30 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = ["prompts_per_step=4", "responses_per_prompt=4", "max_tokens=64", "lora.rank=0", "reward=rule:length", "token_budget=2048"]
RECIPES = {
    "sft": ["sft", "loop.max_steps=16", "loop.epochs=1"],
    "reward": ["reward", "loop.max_steps=16", "loop.rows_per_step=8"],
    "dpo": ["prefer", "method=dpo", "loop.max_steps=12", "loop.rows_per_step=8"],
    "grpo": ["rl", "algorithm=grpo", "steps=12", *STEPS],
    "ppo": ["rl", "algorithm=ppo", "steps=8", "epochs=4", "minibatches=1", *STEPS],
}
MEMORY, TIME = 0.15, 0.30


def call(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tutelage.cli", *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"tutelage {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def compare(words: list[str], place: Path) -> tuple[float, float, float, float]:
    """Seconds and GB: forecast, real, forecast, real."""
    here = [*words[1:], "model=smollm2-135m", "--workspace", str(place)]
    planned = call("plan", *here, "--for", words[0])["plan"]
    made = call(words[0], *here, "--run", "it", "--no-check")
    metrics = (place / "runs" / "it" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    peak = max(row["rss_gb"] for row in map(json.loads, metrics) if "rss_gb" in row)
    return planned["seconds"], made["seconds"], planned["peak_gb"], peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    only = [name for name in parser.parse_args().only.split(",") if name]
    off = 0
    print("| recipe | seconds, forecast | as it was | off | peak GB, forecast | as it was | off |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, words in RECIPES.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            told, took, gb, was = compare(words, Path(folder))
        by_time, by_memory = told / took - 1, gb / was - 1
        off += abs(by_time) > TIME or abs(by_memory) > MEMORY
        print(f"| {name} | {told:.0f} | {took:.0f} | {100 * by_time:+.0f} % | {gb:.2f} | {was:.2f} | {100 * by_memory:+.0f} % |",
              flush=True)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
