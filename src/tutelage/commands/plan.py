"""`tutelage plan`: how much memory and time a run will take, and which micro-batch fits into what there is."""

from argparse import Namespace
from pathlib import Path

from tutelage.commands.check import JOBS, command_of
from tutelage.commands.forecast import measured, show
from tutelage.commands.training import prepare, split_words
from tutelage.core.files import write_json
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal


def run(args: Namespace, terminal: Terminal) -> int:
    """0 where the run fits, 1 where no setting was found that does, or the check found errors."""
    recipe, words = split_words(args.words, "plan")
    command = args.command_for or command_of(recipe, words, find_workspace(args.workspace))
    plan = prepare(JOBS[command], recipe=recipe, words=words, workspace=args.workspace)
    if args.trial:
        write_json(Path(args.trial), measured(plan)._asdict())
        return 0
    good, facts = show(plan, terminal, memory=args.memory)
    terminal.result({"command": command, "data": plan.data_id, **facts})
    return 0 if good else 1
