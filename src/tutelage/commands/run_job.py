"""The command line of a training command: say what is about to happen, do it, say what was made."""

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from tutelage.commands.forecast import show
from tutelage.commands.training import Job, Plan, execute, follow, prepare, split_words, stop_where_wrong
from tutelage.core.config import to_dict
from tutelage.store.runs import Run
from tutelage.terminal import Terminal, clock, quote


def run_job(
    job: Job, args: Namespace, terminal: Terminal, *, finish: Callable[[Plan, Any, Terminal], Mapping[str, Any]]
) -> int:
    """The command line of a training command; `finish` says what was made and returns facts for --json."""
    recipe, words = split_words(args.words, job.name)
    plan = prepare(
        job,
        recipe=recipe,
        words=words,
        workspace=args.workspace,
        run=args.run,
        resume=args.resume,
        track=[name for each in args.track for name in each.split(",") if name],
    )
    announce(plan, terminal, recipe=recipe)
    facts = {"kind": job.name, "run": plan.name, "folder": str(plan.folder), "data": plan.data_id, "rows": plan.counts}
    if args.dry_run:
        return _dry_run(plan, facts, terminal, look=not args.no_check)
    if Run(plan.folder).finished():
        terminal.note(f"{plan.folder} is finished; nothing is left to do.")
    if not args.no_check:
        facts["check"] = [finding.to_dict() for finding in stop_where_wrong(plan, terminal)]
    begun = time.monotonic()
    follower = follow(plan)
    terminal.resume = plan.command
    with terminal.progress(facts=lambda: follower.tail.last) as progress:
        result = execute(plan, progress=progress, warn=terminal.warn, follower=follower)
    terminal.resume = ""
    seconds = time.monotonic() - begun
    steps = Run(plan.folder).manifest["steps"]
    terminal.say()
    terminal.say(f"Made {result.path}", style="bold green")
    terminal.say(f"  {steps} steps in {clock(seconds)}")
    if "tensorboard" in plan.track:
        terminal.say(f"  curves: tensorboard --logdir {quote(plan.folder.parent)}")
    more = finish(plan, result, terminal)
    terminal.result(
        {
            **facts,
            "path": str(result.path),
            "steps": steps,
            "seconds": round(seconds, 1),
            **more,
            "config": to_dict(plan.config),
        }
    )
    return 0


def _dry_run(plan: Plan, facts: Mapping[str, Any], terminal: Terminal, *, look: bool) -> int:
    """What `tutelage check` and `tutelage plan` say of the run (`look`); nothing is written into the workspace's runs."""
    facts = {**facts, "dry_run": True, "steps": plan.steps, "config": to_dict(plan.config)}
    good = True
    if look:
        good, found = show(plan, terminal)
        facts = {**facts, **found}
    terminal.say("Dry run: nothing was written.", style="bold")
    terminal.result(facts)
    return 0 if good else 1


def announce(plan: Plan, terminal: Terminal, *, recipe: str | None) -> None:
    """The resolved configuration, and what is about to happen."""
    terminal.config(
        to_dict(plan.config),
        title=f"tutelage {plan.job.name}  {recipe or ('' if plan.resume else '(defaults)')}".rstrip(),
    )
    terminal.say()
    for note in plan.notes:
        terminal.note(note)
    counts = ", ".join(f"{count} {split}" for split, count in plan.counts.items())
    terminal.say(f"data   {plan.data_id}: {counts} {plan.job.noun}")
    terminal.say(
        f"run    {plan.folder}{' (resumed)' if plan.resume and (plan.folder / 'manifest.json').exists() else ''}"
    )
    terminal.say(f"steps  {plan.steps}")
    terminal.say()
