"""What `make seeds` found, as a closing table, and as the comparison page with its curves.

Every figure comes from the runs' figures.json and metrics.jsonl; nothing is run here.  The page keeps what people wrote around
the part between its two marks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from tutelage.core.errors import UserError
from tutelage.core.files import read_json, write_atomic
from tutelage.evals.plots import HEIGHT, WIDTH, Line, line_plot
from tutelage.stats.intervals import mean_interval
from tutelage.store.runs import Run

NAMES = {"ppo": "PPO", "a2c": "A2C", "rloo": "RLOO", "grpo": "GRPO", "ppo_lagrangian": "PPO-Lagrangian",
         "ppo_lagrangian_320": "PPO-Lagrangian, 320 answers",
         "reinforce": "REINFORCE", "remax": "ReMax", "online_dpo": "online DPO", "best_of_n": "best-of-n",
         "expert_iteration": "expert it.", "dpo": "DPO", "kto": "KTO", "ipo": "IPO", "orpo": "ORPO", "simpo": "SimPO"}
PLOTTED = {**NAMES, "ppo_lagrangian": "PPO-Lagr.", "ppo_lagrangian_320": "320 answers"}  # a legend has little room
PLOTS = (("ppo", "a2c", "ppo_lagrangian", "ppo_lagrangian_320"), ("reinforce", "rloo", "grpo", "remax"),
         ("online_dpo", "best_of_n", "expert_iteration"))
CURVES = (("reward", "reward"), ("kl", "KL, nats"))
BEGIN, END = "<!-- figures: begin (written by `python -m tutelage.pipeline.algorithms --compare`) -->", "<!-- figures: end -->"
# plots are made for the report's page, whose style sheet a picture of its own has not
STYLE = """svg{background:#fff;font-family:sans-serif}text{fill:#667;font-size:13px}.label{fill:#223}
.label{font-size:11px}
line.grid{stroke:#dde;stroke-width:1}
.line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round}.pale{opacity:.3;stroke-width:1.2}.dot{fill:var(--c)}
.c0{--c:#1f6fb4}.c1{--c:#c2410c}.c2{--c:#15803d}.c3{--c:#7e22ce}"""


def load_figures(folder: Path, runs: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """figures.json of those of `runs` that stand in `folder`."""
    places = [folder / "runs" / f"{name}-{seed}" / "figures.json" for name, seed in runs]
    return [read_json(place) for place in places if place.exists()]


def by_algorithm(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs by algorithm, in the order of NAMES, seeds ascending."""
    out = {name: sorted((f for f in found if f["algorithm"] == name), key=lambda f: f["seed"]) for name in NAMES}
    return {name: runs for name, runs in out.items() if runs}


def over_seeds(values: Sequence[float]) -> str:
    """Mean of the seeds' values with its t interval, or the one value."""
    if len(values) < 2:
        return f"{values[0]:+.3f}"
    out = mean_interval(values)
    return f"{out.estimate:+.3f} ({out.low:+.3f} to {out.high:+.3f})"


def closing_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """One line an algorithm: how many seeds improved, and by how much in the mean of the seeds."""
    shown = Table(title="held-out results by algorithm; intervals of the mean over seeds, 95 %")
    for name in ("algorithm", "improved", "mean gain of reward", "win rate", "pair accuracy", "KL", "seconds a run"):
        shown.add_column(name, justify="left" if name == "algorithm" else "right")
    for name, runs in by_algorithm(found).items():
        cells = summary(runs)
        shown.add_row(NAMES[name], f"{sum(r['improved'] for r in runs)} of {len(runs)}",
                      *(cells[key] for key in ("gain", "win", "pairs", "kl", "seconds")))
    return shown


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The cells of one algorithm: means over its seeds."""
    share = lambda values: f"{100 * fmean(values):.0f} %"
    pairs = [r["pair_accuracy"]["estimate"] for r in runs if r["pair_accuracy"]]
    return {"gain": over_seeds([r["reward"]["gain"] for r in runs]), "win": share([r["win_rate"]["estimate"] for r in runs]),
            "pairs": share(pairs) if pairs else "-", "kl": f"{fmean(r['kl'] for r in runs):.1f}",
            "cost": f"{fmean(r['cost']['after'] for r in runs):.2f}", "length": f"{fmean(r['length'] for r in runs):.1f}",
            "seconds": f"{fmean(r['train_seconds'] for r in runs):.0f}", "peak": f"{max(r['peak_gb'] for r in runs):.1f}"}


# -- the comparison page --------------------------------------------------------------------------------------------


def write_comparison(folder: Path, page: Path, plan: Mapping[str, Sequence[int]]) -> Path:
    """Table, ranking and curves of all planned runs that stand in `folder`, into `page` and images/ beside it."""
    found = load_figures(folder, [(name, seed) for name, seeds in plan.items() for seed in seeds])
    if not found:
        raise UserError(f"no runs stand in {folder}; run `make seeds` first, or give --folder")
    picture = page.parent / "images" / "algorithms.svg"
    write_atomic(picture, curves_svg(folder, found))
    body = generated(found, read_json(folder / "task.json"), read_json(folder / "task" / "judge.json"), plan,
                     picture=f"images/{picture.name}")
    new = f"# The algorithms compared\n\n{BEGIN}\n{END}\n\n## Which to pick when\n"
    before = page.read_text(encoding="utf-8") if page.exists() else new
    if BEGIN not in before or END not in before:
        raise UserError(f"{page} has not the two marks between which the figures stand; put them back:\n{BEGIN}\n{END}")
    head, tail = before.split(BEGIN, 1)[0], before.split(END, 1)[1]
    write_atomic(page, f"{head}{BEGIN}\n{body}\n{END}{tail}")
    return page


def generated(found: Sequence[Mapping[str, Any]], task: Mapping[str, Any], judge: Mapping[str, Any],
              plan: Mapping[str, Sequence[int]], *, picture: str) -> str:
    """The part of the page that the command writes."""
    groups = by_algorithm(found)
    budget = task["steps"] * task["prompts_per_step"] * task["responses_per_prompt"]
    accuracy, any_run = judge["accuracy"], found[0]
    lines = [
        f"Task: `{task['model']}` learns the courtesy rule of `pipeline/courtesy.py` (a rule, no people: `simulated:courtesy`) "
        f"on {task['prompts']['train']} questions of the starter data; {budget} answers of at most {task['max_tokens']} tokens to "
        f"learn from (where the name says no other number), at temperature {task['temperature']}; layers above "
        f"{task['frozen_layers']} are trained. Measured on "
        f"{task['prompts']['held_out']} other questions, {task['answers_after']} answer(s) each (four times as many where a constraint is "
        "measured). The base model's reward there is "
        f"{any_run['reward']['before']:.3f}, its cost {any_run['cost']['before']:.2f}. The held-out judge is a reward model that "
        f"learned the rule's verdicts on {task['prompts']['judge']} questions of its own; on {judge['pairs']} held-out pairs it "
        f"agrees with the rule in {100 * accuracy['estimate']:.0f} % ({100 * accuracy['low']:.0f} to {100 * accuracy['high']:.0f} %).", "",
        "| algorithm | seeds improved | gain of reward (95 %, over seeds) | win rate over base | pair accuracy "
        "| KL, nats a response | cost | tokens | train seconds | peak GB |", "|---|---|---|---|---|---|---|---|---|---|"]
    for name, runs in groups.items():
        c = summary(runs)
        short = "" if len(runs) == len(plan[name]) else f" ({len(plan[name])} planned)"
        cells = [NAMES[name], f"{sum(r['improved'] for r in runs)} of {len(runs)}{short}",
                 *(c[key] for key in ("gain", "win", "pairs", "kl", "cost", "length", "seconds", "peak"))]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Train seconds: wall-clock from loading to the saved policy, in the mean of the seeds; comparable only where "
              "the machine had nothing else to do. For the offline methods the drawing of the base answers, done once, comes on "
              "top. Peak GB: the training process. Pair accuracy: how often the policy's log-probability ratio to base is higher "
              "for the answer that the rule prefers, on held-out pairs.", "", *ranking(groups), "",
              f"![reward and KL over answers drawn]({picture})", "",
              "Mean over the seeds, on the training prompts of each step, from the runs' metrics.jsonl.", "",
              "| algorithm | gain of each seed (not improved in brackets) |", "|---|---|"]
    for name, runs in groups.items():
        cells = [f"{r['reward']['gain']:+.2f}" if r["improved"] else f"({r['reward']['gain']:+.2f})" for r in runs]
        lines.append(f"| {NAMES[name]} | {', '.join(cells)} |")
    return "\n".join(lines)


def ranking(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Who comes first by what, computed; ties in the noise are the reader's to see in the table."""
    mean = {name: {"gain": fmean(r["reward"]["gain"] for r in runs), "win": fmean(r["win_rate"]["estimate"] for r in runs),
                   "kl": fmean(r["kl"] for r in runs), "seconds": fmean(r["train_seconds"] for r in runs),
                   "peak": max(r["peak_gb"] for r in runs)} for name, runs in groups.items()}
    risen = [name for name, m in mean.items() if m["gain"] > 0 and m["kl"] > 0]
    orders = (("by gain of reward", sorted(mean, key=lambda n: -mean[n]["gain"])),
              ("by win rate", sorted(mean, key=lambda n: -mean[n]["win"])),
              ("by gain per nat of KL (of those that gained)", sorted(risen, key=lambda n: -mean[n]["gain"] / mean[n]["kl"])),
              ("by train seconds", sorted(mean, key=lambda n: mean[n]["seconds"])),
              ("by memory", sorted(mean, key=lambda n: mean[n]["peak"])))
    return [f"- {what}: {', '.join(NAMES[name] for name in order)}" for what, order in orders]


def curves_svg(folder: Path, found: Sequence[Mapping[str, Any]]) -> str:
    """Reward and KL of the on-policy runs against answers drawn, algorithms that are kin in one plot."""
    groups = by_algorithm([f for f in found if f["kind"] == "rl"])
    placed = []
    for row, (metric, label) in enumerate(CURVES):
        for column, names in enumerate(PLOTS):
            runs = {name: [Run(folder / "runs" / f"{name}-{r['seed']}").metrics() for r in groups.get(name, ())]
                    for name in names}
            lines = [Line(name=PLOTTED[name], points=mean_curve(runs[name], metric), style=f"c{at}",
                          marks=name == "expert_iteration") for at, name in enumerate(names) if runs[name]]
            plot = line_plot(lines, x_label="answers drawn", y_label=label, title=f"{label}: {', '.join(names)}")
            placed.append(plot.replace("<svg ", f'<svg x="{column * (WIDTH + 20)}" y="{row * (HEIGHT + 20)}" width="{WIDTH}" '
                                                f'height="{HEIGHT}" ', 1))
    width, height = len(PLOTS) * (WIDTH + 20), len(CURVES) * (HEIGHT + 20)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            f"<style>{STYLE}</style>{''.join(placed)}</svg>\n")


def mean_curve(runs: Sequence[Sequence[Mapping[str, Any]]], metric: str) -> list[tuple[float, float]]:
    """(answers drawn, mean over the runs of the metric), at the points that all runs have."""
    rows = [{row["responses"]: row[metric] for row in run if metric in row and "responses" in row} for run in runs]
    counts = Counter(at for run in rows for at in run)
    return [(float(at), fmean(run[at] for run in rows)) for at in sorted(counts) if counts[at] == len(rows)]
