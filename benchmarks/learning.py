"""What is learned in how much time: reward against wall-clock and against responses, PPO and GRPO, here and in TRL.

    python benchmarks/learning.py [--folder .bench] [--seeds 3] [--only ppo] [--write]

Both sides: SmolLM2-135M, all of its weights in training, the same prompts, length of answers, learning rate, epochs, weight
of the KL and reward function (`kindness` of rows.py: a lexicon's sentiment).  PPO here has one trunk for policy and value, in TRL
two.  GRPO is run with answers drawn with 8-bit weights (`rollout_weights: int8`), and in float32, too.
A run that has ended is kept in FOLDER/learning.jsonl and not made again, so that this can be stopped at any time; the page and its
picture are written at the end (`--write`: from what is kept, and nothing is run).
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import bench
import inputs
import page
from page import plt
from rows import LEARN, SEEDS

BEGIN, END = "<!-- learning: begin (written by `make bench-learning`) -->", "<!-- learning: end -->"
LAST = 3  # steps whose mean reward is what a run has reached


class Side(NamedTuple):
    algorithm: str
    who: str  # as results name it
    script: str
    setting: str
    colour: str


SIDES = (
    Side("ppo", "ours", "ours.py", "bf16", "#1f5fa8"),
    Side("ppo", "trl-1.11", "peer.py", "trl-1.11:bf16-autocast", "#b3541e"),
    Side("grpo", "ours", "ours.py", "bf16", "#1f5fa8"),
    Side("grpo", "trl", "peer.py", "trl:bf16-autocast", "#b3541e"),
    Side("grpo", "ours, 8-bit rollouts", "ours.py", "int8", "#2e8b57"),
    Side("grpo", "ours, float32", "ours.py", "fp32", "#777777"),
)


def run(side: Side, folder: Path, seed: int) -> dict[str, Any]:
    """One run in a process of its own: reward and seconds, step by step."""
    python = sys.executable if side.script == "ours.py" else bench.environment(folder, side.who)
    found = bench.said(python, side.script, folder / "inputs", f"learn-{side.algorithm}", side.setting, str(seed))
    seconds = [step["seconds"] for step in found["steps"]]
    how = LEARN[side.algorithm]
    if not len(seconds) == len(found["reward"]) == how["steps"]:
        raise SystemExit(f"{side}: {len(seconds)} steps and {len(found['reward'])} rewards, wanted {how['steps']}; nothing is kept")
    return {"algorithm": side.algorithm, "who": side.who, "seed": seed, "seconds": seconds, "reward": found["reward"],
            "settings": how, "versions": found["versions"], "commit": bench.commit(), "machine": bench.machine()}


def kept(file: Path) -> list[dict[str, Any]]:
    """Runs under the present settings."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [each for each in map(json.loads, lines) if each["settings"] == LEARN[each["algorithm"]]]


def of(runs: list[dict[str, Any]], side: Side) -> list[dict[str, Any]]:
    return sorted((each for each in runs if (each["algorithm"], each["who"]) == (side.algorithm, side.who)), key=lambda each: each["seed"])


def reached(found: dict[str, Any]) -> float:
    return statistics.fmean(found["reward"][-LAST:])


def table(runs: list[dict[str, Any]]) -> str:
    first, last = f"steps 1 to {LAST}", f"the last {LAST} steps"
    out = [f"| | runs | mean reward of {first} | of {last}, run by run | mean | steps | seconds of all, median |",
           "|---|---|---|---|---|---|---|"]
    for side in SIDES:
        mine = of(runs, side)
        if not mine:
            continue
        begun = statistics.fmean(statistics.fmean(each["reward"][:LAST]) for each in mine)
        ends = [reached(each) for each in mine]
        took = statistics.median(sum(each["seconds"]) for each in mine)
        out.append(f"| {side.algorithm}, {side.who} | {len(mine)} | {begun:.2f} | {', '.join(f'{end:.2f}' for end in ends)} | "
                   f"{statistics.fmean(ends):.2f} | {LEARN[side.algorithm]['steps']} | {took:.0f} |")
    return "\n".join(out)


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharey="row", layout="constrained")
    for row, algorithm in zip(axes, ("ppo", "grpo"), strict=True):
        a_step = LEARN[algorithm]["prompts_per_step"] * LEARN[algorithm]["responses_per_prompt"]
        for side in (each for each in SIDES if each.algorithm == algorithm):
            mine, colour = of(runs, side), side.colour
            for each in mine:
                clock = list(itertools.accumulate(each["seconds"]))
                row[0].plot([a_step * (at + 1) for at in range(len(clock))], each["reward"], color=colour, alpha=0.3, linewidth=1)
                row[1].plot(clock, each["reward"], color=colour, alpha=0.3, linewidth=1)
            if mine:
                mean = [statistics.fmean(values) for values in zip(*(each["reward"] for each in mine), strict=True)]
                clock = list(itertools.accumulate(map(statistics.fmean, zip(*(each["seconds"] for each in mine), strict=True))))
                row[0].plot([a_step * (at + 1) for at in range(len(mean))], mean, color=colour, linewidth=2.2, label=side.who)
                row[1].plot(clock, mean, color=colour, linewidth=2.2, label=side.who)
        row[0].set_ylabel(f"{algorithm}: mean reward")
        row[0].legend(frameon=False)
        for axis, name in zip(row, ("responses", "seconds since training began"), strict=True):
            axis.set_xlabel(name)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Reward (a lexicon's sentiment): thin lines single seeds, thick lines their mean", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def write(runs: list[dict[str, Any]]) -> None:
    picture(runs, page.DOCS / "images" / "learning.svg")
    words = ", ".join(f"{name} {value}" for name, value in LEARN["grpo"].items() if name != "steps")
    commits = ", ".join(sorted({f"{each['commit']} on {each['machine']}" for each in runs}))
    page.put(BEGIN, END, f"{table(runs)}\n\n({words}; {commits})\n\n![reward against responses and time](images/learning.svg)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", choices=("", "ppo", "grpo"))
    parser.add_argument("--write", action="store_true", help="write the page from what is kept, and run nothing")
    args = parser.parse_args()
    file = args.folder / "learning.jsonl"
    if not args.write:
        inputs.write(args.folder / "inputs")
        wanted = [(side, seed) for seed in range(args.seeds) for side in SIDES if args.only in ("", side.algorithm)]
        for number, (side, seed) in enumerate(wanted, start=1):
            name = f"{number}/{len(wanted)} {side.algorithm}, {side.who}, seed {seed}"
            if any(each["seed"] == seed for each in of(kept(file), side)):
                print(f"{name}: kept from before", flush=True)
                continue
            begun = time.perf_counter()
            found = run(side, args.folder, seed)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(found) + "\n")
            print(f"{name}: reward {statistics.fmean(found['reward'][:LAST]):.2f} to {reached(found):.2f} in {sum(found['seconds']):.0f} s "
                  f"({time.perf_counter() - begun:.0f} s in all)", flush=True)
    runs = kept(file)
    if not runs:
        raise SystemExit(f"nothing is kept in {file}: run it without --write")
    if not os.environ.get("BENCH_TINY"):  # a trial of the script leaves no figures
        write(runs)
    print(table(runs))


if __name__ == "__main__":
    main()
