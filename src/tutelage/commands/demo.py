"""`tutelage demo`: the whole loop on the starter data, resumed where it was stopped."""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress
from tutelage.evals.findings import next_steps, not_improved
from tutelage.evals.report import print_table
from tutelage.pipeline.demo import DemoConfig, DemoResult, demo, figures, tiny
from tutelage.terminal import Terminal, clock, quote

Tell = Callable[[str], None]


def config_of(model: str | None, seed: int) -> DemoConfig:
    """The demo's configuration; the model named `test` runs every line of it in seconds."""
    if model == "test":
        return tiny(seed)
    return DemoConfig(seed=seed) if model is None else replace(DemoConfig(seed=seed), model=model)


def run_demo(
    folder: Path | str, *, model: str | None, seed: int, lang: str, progress: Progress, say: Tell
) -> DemoResult:
    """The demo; what its report is made of is kept beside it, so that `tutelage report` can write it again."""
    return demo(folder, config=config_of(model, seed), lang=lang, progress=progress, say=say)


def run(args: Namespace, terminal: Terminal) -> int:
    folder = Path(args.folder)
    if args.fresh and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; without --fresh the demo in it is resumed")
    terminal.resume = " ".join(
        [
            "tutelage demo",
            quote(folder),
            *([f"--model {args.model}"] if args.model else []),
            *([f"--seed {args.seed}"] if args.seed else []),
            *([f"--lang {args.lang}"] if args.lang != "en" else []),
        ]
    )
    begun = time.monotonic()
    with terminal.progress() as progress:
        result = run_demo(
            folder, model=args.model, seed=args.seed, lang=args.lang, progress=progress, say=terminal.note
        )
    show(result, args.lang, terminal)
    terminal.say(
        f"Report: {result.report.resolve()}  ({clock(time.monotonic() - begun)} this time)", style="bold green"
    )
    terminal.result({"folder": str(folder), "report": str(result.report), **figures(result.input)})
    return 0


def show(result: DemoResult, lang: str, terminal: Terminal) -> None:
    """The table, what did not improve, and what to try next: as in the report."""
    terminal.say()
    terminal.console.print(print_table(result.input, lang=lang))
    for title, lines in (
        ("What did not improve" if lang == "en" else "没有改进的地方", not_improved(result.input, lang=lang)),
        ("What to try next" if lang == "en" else "接下来可以尝试", next_steps(result.input, lang=lang)),
    ):
        if lines:
            terminal.say()
            terminal.head(title)
            for line in lines:
                terminal.say(f"  - {line}")
    terminal.say()
