"""`tutelage eval`: figures of one or more models on held-out prompts, as a table, as JSON and as a report."""

import re
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.commands.engines import (
    model_name,
    open_engine,
    open_judge,
    read_prompts,
    sampling_of,
    spread_out,
    write_answer_rows,
)
from tutelage.core.errors import UserError
from tutelage.core.files import write_atomic, write_jsonl
from tutelage.core.protocols import Judge, Progress, silent
from tutelage.core.words import Prompt, Response, Sampling
from tutelage.evals.inputs import ReportInput
from tutelage.evals.report import print_table, render
from tutelage.evals.safety import SafetyScores, safety_scores
from tutelage.evals.saved import NAME, save_input
from tutelage.evals.tasks import GREEDY, TaskScore, answer_all, task_scores
from tutelage.evals.winrate import WinRate, win_rate
from tutelage.recipes import find_workspace, short_name
from tutelage.stats.intervals import Interval
from tutelage.terminal import Terminal


def evaluate(
    models: Sequence[str],
    *,
    workspace: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling = GREEDY,
    judge: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> ReportInput:
    """Everything that can be said of these models on these prompts; win rates of each against the one before it by `judge`."""
    names = [short_name(model) for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"two of the models have the same name: {', '.join(names)}; name each once")
    responses: dict[str, list[Response]] = {}
    for name, model in zip(names, models, strict=True):
        engine = open_engine(model, workspace, dtype=dtype, device=device, progress=progress)
        say = lambda what, done, total, name=name: progress(f"answers of {name}", done, total)
        responses[name] = answer_all(engine, prompts, sampling, progress=say)
        del engine
    decided = (
        by_judge(open_judge(judge, workspace, dtype=dtype, device=device), names, prompts, responses, seed=seed)
        if judge
        else []
    )
    return ReportInput(
        title="Evaluation",
        models=tuple(names),
        prompts=tuple(prompts),
        responses=responses,
        win_rates=decided,
        task_scores={name: task_scores(prompts, found, seed=seed) for name, found in responses.items()},
        safety={name: safety_scores(prompts, found) for name, found in responses.items()},
        settings={
            "models": ", ".join(models),
            "judge": judge or "none",
            **{f"sampling.{k}": v for k, v in sampling.to_dict().items()},
        },
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def by_judge(
    judge: Judge, names: Sequence[str], prompts: Sequence[Prompt], responses: dict[str, list[Response]], *, seed: int
) -> list[WinRate]:
    """Each model against the one before it, and the last against the first."""
    pairs = list(zip(names[1:], names[:-1], strict=True))
    if len(names) > 2:
        pairs.append((names[-1], names[0]))
    return [win_rate(judge, prompts, responses[a], responses[b], names=(a, b), seed=seed) for a, b in pairs]


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    models = args.models or [model_name(None, workspace)]
    if args.judge and len(models) < 2:
        raise UserError("--judge compares models with one another: name two or more, the oldest first")
    prompts = spread_out(read_prompts(args.data, workspace, held_out=True, tell=terminal.note), args.limit)
    terminal.note(
        f"{len(prompts)} prompts of {args.data}; at most {args.max_tokens} tokens an answer, temperature {args.temperature:g}"
    )
    with terminal.progress() as progress:
        report = evaluate(
            models,
            workspace=workspace,
            prompts=prompts,
            sampling=sampling_of(args),
            judge=args.judge,
            dtype=args.dtype,
            device=args.device,
            seed=args.seed,
            progress=progress,
        )
    folder = Path(args.out) if args.out else workspace / "reports" / f"eval-{'-'.join(map(_plain, report.models))}"
    page = write(report, folder, lang=args.lang)
    terminal.say()
    terminal.console.print(print_table(report, lang=args.lang))
    terminal.say()
    terminal.say(f"Wrote {page}", style="green")
    if len(report.models) == 1:
        terminal.next_steps(f"tutelage eval ANOTHER_MODEL {args.models[0] if args.models else report.models[0]}")
    terminal.result(facts(report, folder))
    return 0


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def write(report: ReportInput, folder: Path, *, lang: str) -> Path:
    """The page, what it is made of, and every answer."""
    page = folder / page_name(lang)
    write_atomic(page, render(report, lang=lang))
    save_input(report, folder / NAME)
    for name, found in report.responses.items():
        write_jsonl(folder / f"answers-{_plain(name)}.jsonl", write_answer_rows(report.prompts, found))
    return page


def page_name(lang: str) -> str:
    return "report.html" if lang == "en" else f"report.{lang}.html"


def facts(report: ReportInput, folder: Path) -> dict[str, Any]:
    """The figures as plain data."""
    return {
        "folder": str(folder),
        "prompts": len(report.prompts),
        "models": {
            name: {"tasks": [score(each) for each in report.task_scores[name]], "safety": safety(report.safety[name])}
            for name in report.models
        },
        "win_rates": [win(each) for each in report.win_rates],
    }


def interval(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}


def score(found: TaskScore) -> dict[str, Any]:
    return {
        "task": found.task,
        "metric": found.metric,
        "value": found.value,
        "unit": found.unit,
        "better": found.direction,
        "n": found.n,
        "interval": interval(found.interval),
    }


def safety(found: SafetyScores) -> dict[str, Any]:
    return {
        "harmful_answered": interval(found.harmful_answered),
        "over_refused": interval(found.over_refused),
        "judge": found.judge,
    }


def win(found: WinRate) -> dict[str, Any]:
    return {
        "a": found.a,
        "b": found.b,
        "judge": found.judge,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "rate": interval(found.interval),
        "length_matched": interval(found.length_matched),
        "by_task": {task: interval(each) for task, each in found.by_task.items()},
    }
