"""How much memory and time a run will take, and which micro-batch fits into what there is.

The first steps of the very run are made in a process of its own, in a temporary folder, and measured; the rest is reckoned from
them.  So the figures are those of this machine, this model and this data, and nothing has to be known of them.

    memory    the largest resident memory of the trial (on a GPU: what torch took of it), whose steps hold the longest rows
    time      what comes before the first step + steps x the mean of the measured ones + evaluations at a third of a step's cost a row

The first step warms up and is not counted.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from tutelage.commands.training import Plan, examine, show_findings
from tutelage.core.config import to_dict
from tutelage.core.errors import UserError
from tutelage.core.files import read_json
from tutelage.core.protocols import Progress, silent
from tutelage.data.snapshot import Rows
from tutelage.models.load import best_device
from tutelage.preflight.findings import errors
from tutelage.preflight.memory import GB, available
from tutelage.store.runs import Run
from tutelage.terminal import Terminal, clock

FIT_STEPS, RL_STEPS = 4, 3  # of a trial, the one that warms up included
SMALLEST = 128  # tokens of a micro-batch below which it is not halved any more
EVALUATION = 1 / 3  # of a training row's time: the forward pass of three


class Trial(NamedTuple):
    """What was measured, in seconds and bytes."""

    steps: list[float]  # each step's, the first (which warms up) left out
    before: float  # from the start to the first step, without what grows with the data
    peak: int
    rows: int  # training rows of the trial
    scale: float = 1.0  # how long a row of the whole data is, beside those of the trial


class Forecast(NamedTuple):
    """Of the whole run."""

    seconds: float
    peak: int  # bytes
    steps: int
    step_seconds: float
    settings: dict[str, Any]  # what must be set for it, by dotted path; empty: nothing
    fits: bool


def show(plan: Plan, terminal: Terminal, *, memory: float | None = None) -> tuple[bool, dict[str, Any]]:
    """Check and forecast, said on the terminal: whether nothing stands in the way of the run, and the facts.

    `memory`: GB that it may take; None = what is free.
    """
    with terminal.progress() as progress:
        findings = examine(plan, progress=progress)
    show_findings(findings, terminal)
    facts: dict[str, Any] = {"check": [each.to_dict() for each in findings]}
    if errors(findings):
        return False, facts
    free = int(memory * GB) if memory else available(plan.config.device)
    with terminal.progress() as progress:
        found = forecast(plan, free=free, progress=progress)
    say(found, free, terminal)
    return found.fits, {**facts, "plan": {**found._asdict(), "peak_gb": round(found.peak / GB, 2)}}


def say(found: Forecast, free: int | None, terminal: Terminal) -> None:
    terminal.say(f"time    about {clock(found.seconds)}: {found.steps} steps of {found.step_seconds:.2g} s")
    terminal.say(f"memory  about {found.peak / GB:.1f} GB at most" + (f", of {free / GB:.1f} GB" if free else ""))
    if found.settings:
        terminal.say("set     " + " ".join(f"{key}={str(value).lower()}" for key, value in found.settings.items()), style="bold")
    if not found.fits:
        terminal.say("It does not fit, with the smallest micro-batch either: take adapters (lora.rank=16), frozen_layers, or a smaller "
                     "model.", style="red")


def forecast(plan: Plan, *, free: int | None, progress: Progress = silent, trial: Callable[[Plan], Trial] | None = None) -> Forecast:
    """Trials with ever smaller micro-batches until one fits into `free` bytes, then with gradient checkpointing, where it can be had."""
    trial = trial or in_its_own_process
    tries = ways(plan)
    for number, settings in enumerate(tries):
        progress("trial steps", number, len(tries))
        tried = replace(plan, config=plan.job.bind(with_settings(to_dict(plan.config), settings), where="plan"))
        found = trial(tried)
        fits = free is None or found.peak <= free
        if fits or number == len(tries) - 1:
            progress("trial steps", len(tries), len(tries))
            return reckon(tried, found, settings, fits=fits)
    raise AssertionError("there is always a way to try")


def ways(plan: Plan) -> list[dict[str, Any]]:
    """Settings by dotted path, from as they are to the least memory."""
    key, budget = _budget(plan.config)
    budgets = [budget]
    while budgets[-1] // 2 >= SMALLEST:
        budgets.append(budgets[-1] // 2)
    out: list[dict[str, Any]] = [{key: each} if each != budget else {} for each in budgets]
    if getattr(plan.config, "gradient_checkpointing", None) is False:
        out.append({**out[-1], "gradient_checkpointing": True})
    return out


def _budget(config: Any) -> tuple[str, int]:
    """Where the tokens of a micro-batch are set, and how many they are."""
    loop = getattr(config, "loop", None)
    return ("loop.token_budget", loop.token_budget) if loop is not None else ("token_budget", config.token_budget)


def with_settings(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in settings.items():
        *sections, name = path.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
    return values


def reckon(plan: Plan, found: Trial, settings: dict[str, Any], *, fits: bool) -> Forecast:
    """The whole run from its first steps."""
    step = sum(found.steps) / len(found.steps) * found.scale
    count, held_out = (plan.units(split) for split in ("train", "val"))
    steps = plan.job.steps(plan.config, count)
    seconds = found.before + steps * step
    loop = getattr(plan.config, "loop", None)
    if loop is not None:
        row = step / min(loop.rows_per_step, found.rows)
        per_epoch = math.ceil(count / loop.rows_per_step)
        evaluations = loop.eval_first + math.ceil(steps / (loop.eval_every or per_epoch))  # after the last step, too
        seconds += evaluations * held_out * row * EVALUATION
        if _asks_beforehand(plan.config):
            seconds += (count + held_out) * row * EVALUATION
    return Forecast(seconds, found.peak, steps, step, settings, fits)


def _asks_beforehand(config: Any) -> bool:
    return hasattr(config, "asks_beforehand") and config.asks_beforehand()


# -- the trial ------------------------------------------------------------------------------------------------------


def in_its_own_process(plan: Plan) -> Trial:
    """`measured` in a fresh process, whose peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        told, recipe = Path(folder) / "trial.json", Path(folder) / "recipe.json"
        recipe.write_text(json.dumps(to_dict(plan.config)), encoding="utf-8")  # JSON is YAML
        done = subprocess.run(
            [sys.executable, "-m", "tutelage.cli", "plan", str(recipe.rename(recipe.with_suffix(".yaml"))), "--for", plan.job.name,
             "--workspace", str(plan.workspace), "--trial", str(told)], capture_output=True, text=True, check=False)
        if done.returncode or not told.exists():
            raise UserError(f"the trial of {plan.job.name} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
        return Trial(**read_json(told))


def measured(plan: Plan) -> Trial:
    """Make the first steps of the run in a temporary folder."""
    config, rows, scale = plan.config, plan.rows, 1.0
    if hasattr(config, "loop"):
        config = replace(config, loop=replace(config.loop, epochs=1, max_steps=FIT_STEPS, eval_every=0, keep_best=False, patience=0))
        some = sample(rows.splits["train"], FIT_STEPS * config.loop.rows_per_step)
        scale = fmean(map(_size, rows.splits["train"])) / fmean(map(_size, some))
        rows = Rows(rows.kind, {**rows.splits, "train": some, "val": []})
    else:
        config = replace(config, steps=RL_STEPS)
    if "save" in {each.name for each in fields(config)}:
        config = replace(config, save=replace(config.save, every_steps=0, every_seconds=0.0))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        plan.job.train(config, **plan.job.arguments(rows), folder=place, data_id=plan.data_id, resume=False, progress=silent,
                       warn=lambda text: None)
        whole = time.perf_counter() - begun
        metrics = [row for row in Run(place).metrics() if "seconds" in row]
    seconds = [row["seconds"] for row in metrics]
    on_gpu = best_device(config.device).type == "cuda"
    peak = torch.cuda.max_memory_reserved() if on_gpu else round(max(row["rss_gb"] for row in metrics) * GB)
    return Trial(steps=seconds[1:] or seconds, before=max(0.0, whole - sum(seconds)), peak=peak,
                 rows=len(rows.splits["train"]), scale=scale)


def sample(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows: a tenth of them the longest as text (they need the memory), the others at even distances (they take the time)."""
    if len(rows) <= count:
        return list(rows)
    sizes = [_size(row) for row in rows]  # in order: rows may lie on disk
    longest = sorted(range(len(rows)), key=lambda at: -sizes[at])[:count // 10]
    rest = [at for at in range(len(rows)) if at not in set(longest)]
    spread = [rest[at * len(rest) // (count - len(longest))] for at in range(count - len(longest))]
    return [rows[at] for at in sorted([*longest, *spread])]


def _size(row: Any) -> int:
    """Characters of a record: near enough to how many tokens it has."""
    return len(json.dumps(row.to_dict(), ensure_ascii=False))
