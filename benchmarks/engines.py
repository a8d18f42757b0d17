"""Sampling engines side by side: as many answers of 64 tokens to the same prompts, in useful tokens a second.

    python benchmarks/engines.py [--rows 16] [--folder .bench] [--address http://localhost:8000/v1#model ...]

Here in bfloat16, float32 and with weights of 8 bits; transformers' `generate` in bfloat16 and float32 in its own environment;
and any server that speaks the OpenAI API and was started with the model of FOLDER/inputs/endless (vLLM, llama.cpp and others): it
is sent all requests at once, asked to go on past an end (`ignore_eos`), and credited with the tokens that it says it made.
Each engine answers the same batch six times in a process of its own; the first warms up, the figure is the median of the others.
"""

import argparse
import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench
import inputs
from rows import SAMPLING, WARM_UP

OURS = ("bf16", "fp32", "int8")
PEERS = ("transformers:bf16", "transformers:fp32")


def served(address: str, prompts: list[str]) -> dict[str, Any]:
    """The same from a server."""
    base, _, model = address.partition("#")

    def ask(prompt: str) -> int:
        body = {"model": model, "prompt": prompt, "max_tokens": SAMPLING["tokens"], "temperature": 1.0, "ignore_eos": True}
        request = urllib.request.Request(f"{base.rstrip('/')}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as found:
            return int(json.load(found)["usage"]["completion_tokens"])

    steps = []
    with ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(SAMPLING["rounds"]):
            begun = time.perf_counter()
            tokens = sum(pool.map(ask, prompts))
            steps.append({"seconds": time.perf_counter() - begun, "tokens": tokens})
    wanted = len(prompts) * SAMPLING["tokens"]
    short = [step["tokens"] for step in steps if step["tokens"] != wanted]
    if short:
        raise SystemExit(f"{address} made {short[0]} tokens of {wanted}: it ends answers early, so that its speed cannot be compared; "
                         "start it with the model of inputs/endless, whose end token is never said")
    return {"steps": steps, "peak_gb": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--address", action="append", default=[], help="base address, #, name of the model")
    args = parser.parse_args()
    inputs.write(args.folder / "inputs")
    place = args.folder / "inputs"
    asked = json.loads((place / "work.json").read_text(encoding="utf-8"))["prompts"]
    prompts = [row["prompt"] for row in asked[:args.rows]]
    if len(prompts) < args.rows:
        raise SystemExit(f"--rows can be at most {len(prompts)}")
    work = f"sample-{args.rows}"
    found: dict[str, dict[str, Any]] = {}
    for setting in OURS:
        found[f"tutelage, {setting}"] = bench.one(sys.executable, "ours.py", place, work, setting)
    for setting in PEERS:
        peer, _, precision = setting.partition(":")
        found[f"transformers, {precision}"] = bench.one(bench.environment(args.folder, peer), "peer.py", place, work, setting)
    for address in args.address:
        found[address] = served(address, prompts)
    base = bench.speed(found["transformers, bf16"], work)
    print(f"\n| engine | tokens/s, median (min-max), {args.rows} rows | of transformers in bf16 | peak GB |\n|---|---|---|---|")
    for name, one in found.items():
        speeds = [step["tokens"] / step["seconds"] for step in one["steps"][WARM_UP:]]
        memory = "-" if one["peak_gb"] is None else f"{one['peak_gb']:.2f}"
        median = statistics.median(speeds)
        print(f"| {name} | {median:.0f} ({min(speeds):.0f}-{max(speeds):.0f}) | {median / base:.2f} | {memory} |")


if __name__ == "__main__":
    main()
