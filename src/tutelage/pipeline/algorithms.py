"""Every algorithm on the same small real task, over seeds: does it improve, by how much, at what price?

    python -m tutelage.pipeline.algorithms                         # make seeds: 10 seeds of RL, 3 offline, 1 of the rest
    python -m tutelage.pipeline.algorithms --only ppo,a2c --seeds "0 1 2"
    python -m tutelage.pipeline.algorithms --compare               # docs/comparison.md and its pictures, from what was run

SmolLM2-135M-Instruct learns to be courteous, as a rule counts it (pipeline/courtesy.py), on questions of the starter data
(pipeline/algorithms_task.py).  Each algorithm draws the same number of answers to learn from (but for ppo_lagrangian_320, which
has twice as many); the offline methods have as many base answers, in pairs.  "Improved" means:

    RL        the held-out mean reward, after minus before, has a 95 % interval above 0, prompts being what is resampled
              (ppo_lagrangian*: and the mean cost of its answers is at or below the threshold, or less than before)
    offline   held-out pair accuracy (implicit reward) and win rate over base by the held-out judge: both intervals above 50 %

The seed changes the order of prompts, every sampled answer, and the heads.  Each run is a process of its own, so that its
peak memory is its own.  A run that left its figures.json is not run again; one that was killed goes on from its checkpoint.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import read_json, write_json
from tutelage.core.protocols import Progress, silent
from tutelage.pipeline import courtesy
from tutelage.pipeline.algorithms_measure import THRESHOLD, measure
from tutelage.pipeline.algorithms_report import closing_table, load_figures, write_comparison
from tutelage.pipeline.algorithms_task import LABELLED_BY, TaskConfig, make_task, settle, tiny
from tutelage.store.runs import Run
from tutelage.training.loop import LoopConfig
from tutelage.training.memory import collect
from tutelage.training.networks import LoraConfig
from tutelage.training.on_policy import RLConfig
from tutelage.training.optim import OptimConfig
from tutelage.training.ppo_lagrangian import MultiplierConfig
from tutelage.training.prefer import PreferConfig, prefer
from tutelage.training.rl import ALGORITHMS, rl

REWARD, COST = (f"python:{courtesy.__file__}:{name}" for name in ("reward", "cost"))
CLIPPED = {"epochs": 2, "minibatches": 2}

# what each algorithm is given besides the common settings; tuned by hand in a few runs on seed 100, which is not among PLAN's
RL: dict[str, dict[str, Any]] = {
    "ppo": {"lr": 3e-4, "baseline": "leave_one_out", **CLIPPED},
    "a2c": {"lr": 6e-4, "normalise_advantage": True},
    "rloo": {"lr": 6e-4},
    "grpo": {"lr": 3e-4, **CLIPPED},
    "ppo_lagrangian": {"lr": 4e-4, "baseline": "leave_one_out", **CLIPPED, "cost": COST, "threshold": THRESHOLD,
                       "multiplier": MultiplierConfig(learning_rate=1.0, initial=2.0, window=16, bound="ucb", confidence=0.8)},
    # twice the answers: with as many as the others have, two of ten seeds hold the cost and gain nothing
    "ppo_lagrangian_320": {"algorithm": "ppo_lagrangian", "times": 2, "lr": 4e-4, "baseline": "leave_one_out", **CLIPPED, "cost": COST,
                           "threshold": THRESHOLD, "multiplier": MultiplierConfig(learning_rate=0.5, initial=0.7, window=16, bound="ucb",
                                                                                  confidence=0.8)},
    "reinforce": {"lr": 6e-4},
    "remax": {"lr": 6e-4, "greedy": True},
    "online_dpo": {"lr": 3e-4},
    "best_of_n": {"lr": 6e-4, "beta": 0.0},
    "expert_iteration": {"lr": 3e-4, "beta": 0.0, "rounds": 3, "epochs": 2, "minibatches": 2},
}
OFFLINE: dict[str, dict[str, Any]] = {
    "dpo": {"lr": 4e-4},
    "kto": {"lr": 4e-4},
    "ipo": {"lr": 4e-4},
    "orpo": {"lr": 6e-4, "orpo_lambda": 3.0},
    "simpo": {"lr": 4e-4},
}
PLAN = {  # algorithm -> seeds of the whole proof
    **{name: tuple(range(10)) for name in ("ppo", "a2c", "rloo", "grpo")},
    "ppo_lagrangian": tuple(range(20, 30)),  # not with 0 to 9, which were looked at while its multiplier was being chosen
    "ppo_lagrangian_320": tuple(range(60, 70)),  # not with 40 to 46 and 100 to 104, which were looked at
    **{name: tuple(range(3)) for name in OFFLINE},
    "orpo": tuple(range(20, 23)),  # nor with 0 to 2: its weight was raised after they were seen
    **{name: (0,) for name in ("reinforce", "remax", "online_dpo", "best_of_n", "expert_iteration")},
}


def planned(only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[tuple[str, int]]:
    """(algorithm, seed) of the runs wanted, seed by seed, so that a table of few seeds has all algorithms in it.

    `seeds` narrows the plan; together with `only` it says exactly which seeds.
    """
    for name in only:
        if name not in PLAN:
            raise UserError(f'unknown algorithm "{name}" in --only{nearest(name, PLAN)}; known: {", ".join(PLAN)}')
    runs = [(name, seed) for name in (only or PLAN)
            for seed in (seeds if only and seeds else PLAN[name]) if not seeds or seed in seeds]
    return sorted(runs, key=lambda run: run[1])


def rl_config(name: str, seed: int, task: TaskConfig) -> RLConfig:
    """The settings of an on-policy run: `task.responses()` answers to learn from, whatever the algorithm (unless RL says more)."""
    own = dict(RL[name])
    steps, prompts, n = task.steps * own.pop("times", 1), task.prompts_per_step, task.responses_per_prompt
    if rounds := own.pop("rounds", 0):  # expert iteration: fewer and larger steps
        steps, prompts = rounds, prompts * steps // rounds
    if own.pop("greedy", False):  # ReMax: the greedy answer is one of the n
        n -= 1
    kind = ALGORITHMS[own.pop("algorithm", name)].config
    optim = OptimConfig(learning_rate=own.pop("lr"), schedule="linear", warmup=0.05, betas=(0.9, 0.95), eps=1e-5)
    common = {"model": task.model, "reward": REWARD, "data": "starter", "seed": seed, "steps": steps,
              "prompts_per_step": prompts, "responses_per_prompt": n, "max_tokens": task.max_tokens,
              "temperature": task.temperature, "missing_eos": None, "normalise_on": 16, "beta": 0.05,
              "frozen_layers": task.frozen_layers, "lora": LoraConfig(), "optim": optim}
    return kind(**{**common, **own})


def prefer_config(name: str, seed: int, task: TaskConfig) -> PreferConfig:
    own = dict(OFFLINE[name])
    optim = OptimConfig(learning_rate=own.pop("lr"), warmup=0.1)
    return PreferConfig(method=name, model=task.model, data=LABELLED_BY, seed=seed, frozen_layers=task.frozen_layers,
                        loop=LoopConfig(epochs=task.epochs, rows_per_step=16, keep_best=False), optim=optim, **own)


def run_one(folder: Path, name: str, seed: int, *, progress: Progress = silent) -> dict[str, Any]:
    """Train one algorithm with one seed, measure it, and leave `folder`/runs/NAME-SEED/figures.json."""
    task = make_task(folder, progress=progress)
    place = folder / "runs" / f"{name}-{seed}"
    named = lambda what, done, total: progress(f"{name} seed {seed}: {what}", done, total)
    begun = time.perf_counter()
    if name in RL:
        path = rl(rl_config(name, seed, task.config), prompts=task.prompts["train"], folder=place, data_id="starter",
                  resume=True, progress=named).path
    else:
        path = prefer(prefer_config(name, seed, task.config), train=task.pairs["train"], folder=place, data_id=LABELLED_BY,
                      resume=True, progress=named).path
    seconds = time.perf_counter() - begun
    collect()
    rows = Run(place).metrics()
    steps_seconds = sum(row.get("seconds", 0.0) for row in rows)  # of a run that was killed: of its earlier part too
    figures = {"algorithm": name, "seed": seed, "kind": "rl" if name in RL else "offline",
               "responses": rows[-1]["responses"] if name in RL else len(task.base["train"]),
               "train_seconds": round(max(seconds, steps_seconds), 1),
               "peak_gb": max(row["rss_gb"] for row in rows if "rss_gb" in row),
               **measure(task, name, path, place, seed, offline=name in OFFLINE)}
    figures["seconds"] = round(time.perf_counter() - begun, 1)
    write_json(place / "figures.json", figures)
    shutil.rmtree(path)  # 70 runs' weights would fill the disk; the answers stay
    return figures


# -- the command ----------------------------------------------------------------------------------------------------


def run_all(folder: Path, runs: Sequence[tuple[str, int]], config: TaskConfig, *, apart: bool = True,
            progress: Progress = silent, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The figures of all of `runs`, those that do not stand yet made one after the other; `apart`: each in its own process."""
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder, config)
    missing = [run for run in runs if not figures_path(folder, *run).exists()]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them stand in {folder} already")
    if missing:
        make_task(folder, progress=progress)
    for number, (name, seed) in enumerate(missing, start=1):
        if apart:
            command = [sys.executable, "-m", "tutelage.pipeline.algorithms", "--folder", str(folder), "--one", name, str(seed)]
            if subprocess.run(command, check=False).returncode:
                raise UserError(f"the run of {name} with seed {seed} failed; what it said stands above")
        else:
            run_one(folder, name, seed, progress=progress)
        say(f"{number}/{len(missing)} {line(read_json(figures_path(folder, name, seed)))}")
    return load_figures(folder, runs)


def figures_path(folder: Path, name: str, seed: int) -> Path:
    return folder / "runs" / f"{name}-{seed}" / "figures.json"


def line(figures: Mapping[str, Any]) -> str:
    """One run in one line."""
    reward, win = figures["reward"], figures["win_rate"]
    pairs = f", pairs {100 * figures['pair_accuracy']['estimate']:.0f} %" if figures["pair_accuracy"] else ""
    return (f"{figures['algorithm']} seed {figures['seed']}: reward {reward['before']:.3f} -> {reward['after']:.3f} "
            f"(gain {reward['gain']:+.3f}, {reward['low']:+.3f} to {reward['high']:+.3f}), "
            f"cost {figures['cost']['before']:.2f} -> {figures['cost']['after']:.2f}, "
            f"win rate {100 * win['estimate']:.0f} %{pairs}, KL {figures['kl']:.1f}, "
            f"{figures['seconds']:.0f} s: {'improved' if figures['improved'] else 'NOT improved'}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tutelage.pipeline.algorithms", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("seeds"))
    parser.add_argument("--only", default="", help="algorithms, comma-separated; all by default")
    parser.add_argument("--seeds", default="", help="narrows the plan; with --only, exactly these")
    parser.add_argument("--compare", action="store_true", help="write the comparison page from the runs that stand")
    parser.add_argument("--page", type=Path, default=Path("docs/comparison.md"))
    parser.add_argument("--tiny", action="store_true", help="the model named test, to try the command")
    parser.add_argument("--one", nargs=2, metavar=("ALGORITHM", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    console = Console()
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    try:
        if args.one:
            run_one(args.folder, args.one[0], int(args.one[1]), progress=_every_third(say))
            return 0
        if args.compare:
            say(f"written: {write_comparison(args.folder, args.page, PLAN)}")
            return 0
        runs = planned(args.only.replace(",", " ").split(), [int(seed) for seed in args.seeds.replace(",", " ").split()])
        found = run_all(args.folder, runs, tiny() if args.tiny else TaskConfig(), say=say, progress=_every_third(say))
    except UserError as error:
        say(f"error: {error}")
        return 2
    console.print(closing_table(found))
    return 0


def _every_third(say: Callable[[str], None]) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        if done == total or done % max(1, total // 3) == 0:
            say(f"  {what}: {done}/{total}")
    return progress


if __name__ == "__main__":
    sys.exit(main())
