"""`tutelage check`: what is wrong with a set-up, with cause and cure, before a model is trained."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tutelage.commands import classify, cost, prefer, reward, rl, sft, span_reward
from tutelage.commands.training import Job, examine, prepare, show_findings, split_words
from tutelage.core.errors import ConfigError, UserError
from tutelage.preflight.findings import errors
from tutelage.recipes import find_recipe, find_workspace, read_config, read_file
from tutelage.terminal import Terminal

JOBS: dict[str, Job] = {job.name: job for job in (sft.JOB, reward.JOB, cost.JOB, span_reward.JOB, prefer.JOB, rl.JOB, classify.JOB)}


def run(args: Namespace, terminal: Terminal) -> int:
    """0 where nothing that stops a run was found, else 1."""
    recipe, words = split_words(args.words, "check")
    command = args.command_for or command_of(recipe, words, find_workspace(args.workspace))
    plan = prepare(JOBS[command], recipe=recipe, words=words, workspace=args.workspace)
    with terminal.progress() as progress:
        findings = examine(plan, fresh=args.no_cache, progress=progress)
    show_findings(findings, terminal)
    wrong = errors(findings)
    terminal.say(f"{command} {recipe or '(defaults)'}: " + (f"{len(wrong)} error(s), {len(findings) - len(wrong)} warning(s)"
                                                             if findings else "nothing wrong was found"))
    found = [finding.to_dict() for finding in findings]
    terminal.result({"command": command, "data": plan.data_id, "ok": not wrong, "findings": found})
    return 1 if wrong else 0


def command_of(recipe: str | None, words: Sequence[str], workspace: Path) -> str:
    """The command that a recipe is for: the one that it names in its first lines, else the only one whose keys it has.

    UserError where several commands know all its keys, or none does.
    """
    told: dict = {}
    if recipe is not None:
        path = find_recipe(recipe, workspace)
        named = re.search(rf"^#\s+tutelage ({'|'.join(JOBS)})(?![\w-])", path.read_text(encoding="utf-8-sig"), re.MULTILINE)
        if named:
            return named[1]
        told = read_file(path)
    told = {**told, **{word.partition("=")[0]: None for word in words}}
    for key, command in (("algorithm", "rl"), ("method", "prefer")):  # keys that one command alone has, whatever else is wrong
        if key in told:
            return command
    fits = [name for name in JOBS if _binds(JOBS[name], recipe, words, workspace)]
    if len(fits) == 1:
        return fits[0]
    which = f"the keys of {recipe or 'these settings'} are known to {' and '.join(fits)}" if fits else (
        f"no command knows all keys of {recipe or 'these settings'}")
    raise UserError(f"{which}; say which one they are for with --for {'|'.join(JOBS)}, or name the command in the recipe's "
                    "first lines (#   tutelage sft RECIPE)")


def _binds(job: Job, recipe: str | None, words: Sequence[str], workspace: Path) -> bool:
    try:
        read_config(job.config_of or job.config, recipe, words, workspace=workspace)
    except ConfigError:
        return False
    return True
