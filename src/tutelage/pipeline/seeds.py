"""The demo over several seeds: does SFT beat base, and PPO beat SFT, by the judge that training never saw?

    python -m tutelage.pipeline.seeds --folder demo-seeds --seeds 0 1 2 3 4

The seed changes the split of the starter data, the order of rows, the heads' initial weights and every sampled answer.
Runs that stand in the folder are reused, so the command goes on where it was stopped.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tutelage.core.errors import UserError
from tutelage.core.files import read_json, write_json
from tutelage.core.protocols import Progress, silent
from tutelage.pipeline.demo import DemoConfig, demo

PAIRS = (("sft", "base"), ("ppo", "sft"))


def run_seeds(folder: Path, seeds: Sequence[int], *, config: DemoConfig | None = None, progress: Progress = silent,
              say=print) -> dict[int, dict[str, Any]]:
    """figures.json of each seed's demo, by seed."""
    base = config or DemoConfig()
    found: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        place = folder / f"seed-{seed}"
        if not (place / "figures.json").exists():
            say(f"seed {seed}: running the demo in {place}")
            _share_base_answers(folder, place, base, seed)
            demo(place, config=replace(base, seed=seed), progress=progress, say=say)
        found[seed] = read_json(place / "figures.json")
    return found


def _share_base_answers(folder: Path, place: Path, config: DemoConfig, seed: int) -> None:
    """The base model's greedy answers are the same for every seed: one demo's are enough."""
    done = sorted(folder.glob("seed-*/answers/base.jsonl"))
    if done and not place.exists():
        demo_folder = place / "answers"
        demo_folder.mkdir(parents=True)
        shutil.copy(done[0], demo_folder / "base.jsonl")


def verdicts(found: dict[int, dict[str, Any]], *, judge: str = "reward:judge") -> dict[str, list[dict[str, Any]]]:
    """Win rates of each comparison over the seeds, by one judge."""
    out: dict[str, list[dict[str, Any]]] = {}
    for a, b in PAIRS:
        out[f"{a} over {b}"] = [{"seed": seed, **next(w for w in figures["win_rates"] if (w["a"], w["b"], w["judge"]) == (a, b, judge))}
                                for seed, figures in sorted(found.items())]
    return out


def table(rows: dict[str, list[dict[str, Any]]]) -> Table:
    """One line a comparison and seed, with its interval and whether it leaves 50 % out."""
    shown = Table(title="win rates by the held-out judge, 95 % intervals clustered by prompt")
    for name in ("comparison", "seed", "win rate", "interval", "leaves 50 % out", "judge's accuracy"):
        shown.add_column(name, justify="left" if name == "comparison" else "right")
    for name, cells in rows.items():
        for cell in cells:
            shown.add_row(name, str(cell["seed"]), f"{100 * cell['estimate']:.1f} %",
                          f"{100 * cell['low']:.1f} - {100 * cell['high']:.1f} %", above(cell),
                          f"{100 * cell['judge_accuracy']['estimate']:.0f} %")
    return shown


def above(cell: dict[str, Any]) -> str:
    return "above" if cell["low"] > 0.5 else "below" if cell["high"] < 0.5 else "no"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tutelage.pipeline.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("demo-seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args(argv)
    console = Console()
    try:
        found = run_seeds(args.folder, args.seeds, say=console.print, progress=_every_tenth(console))
    except UserError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    rows = verdicts(found)
    write_json(args.folder / "seeds.json", rows)
    console.print(table(rows))
    for name, cells in rows.items():
        console.print(f"{name}: {sum(above(cell) == 'above' for cell in cells)} of {len(cells)} intervals above 50 %")
    return 0


def _every_tenth(console: Console) -> Progress:
    def progress(what: str, done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            console.print(f"  {what}: {done}/{total}", markup=False)
    return progress


if __name__ == "__main__":
    sys.exit(main())
