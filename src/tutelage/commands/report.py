"""`tutelage report`: write report.html again from what a demo, an evaluation or a training run left."""

from argparse import Namespace
from pathlib import Path

import yaml

from tutelage.core.errors import UserError
from tutelage.core.files import write_atomic
from tutelage.evals.inputs import ReportInput
from tutelage.evals.report import render
from tutelage.evals.saved import NAME, load_input
from tutelage.recipes import find_workspace
from tutelage.store.runs import Run
from tutelage.terminal import Terminal, quote


def input_of(folder: Path) -> ReportInput:
    """What the report of a folder is made of.  UserError where nothing there can be reported on."""
    if (folder / NAME).is_file():
        return load_input(folder / NAME)
    if (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file():
        return _of_run(Run(folder))
    if (folder / "demo.json").is_file():
        raise UserError(f"the demo in {folder} has no {NAME} yet; finish it with: tutelage demo {quote(folder)}")
    raise UserError(
        f"{folder} holds no demo, no evaluation and no run: wanted {NAME}, or manifest.json and config.yaml"
    )


def _of_run(run: Run) -> ReportInput:
    """Curves and settings: a training run alone has answered no held-out prompt."""
    manifest = run.manifest
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    settings = {
        f"{key}.{inner}" if inner else key: value
        for key, section in config.items()
        for inner, value in (section.items() if isinstance(section, dict) else [("", section)])
    }
    kind = "ppo" if manifest["kind"] == "rl" else manifest["kind"]
    return ReportInput(
        title=f"{run.id} ({manifest['kind']})",
        models=(run.id,),
        curves={kind: run.metrics()},
        settings=settings,
        created=manifest.get("started", ""),
        next_steps=(f"tutelage eval {run.id}",),
    )


def report(folder: Path | str, *, lang: str = "en", out: Path | str | None = None) -> Path:
    """Write the page; returns where it is."""
    folder = Path(folder)
    page = Path(out) if out else folder / ("report.html" if lang == "en" else f"report.{lang}.html")
    write_atomic(page, render(input_of(folder), lang=lang))
    return page


def run(args: Namespace, terminal: Terminal) -> int:
    folder = Path(args.folder)
    if not folder.is_dir():
        folder = find_workspace(args.workspace) / "runs" / args.folder
    if not folder.is_dir():
        raise UserError(f"no folder and no run {args.folder!r}")
    page = report(folder, lang=args.lang, out=args.out)
    terminal.say(f"Wrote {page}", style="green")
    terminal.result({"path": str(page), "lang": args.lang})
    return 0
