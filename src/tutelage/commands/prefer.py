"""`tutelage prefer`: train a policy directly on judged answers; the recipe's `method` says how."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, Tell, steps_of_loop
from tutelage.core.errors import UserError
from tutelage.core.words import Preference
from tutelage.data.snapshot import Rows, load_rows
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.prefer import PreferConfig, prefer
from tutelage.training.preference_rows import usable


def rows(config: PreferConfig, workspace: Path, tell: Tell) -> Rows:
    found = load_rows(config.data, workspace, seed=config.seed, tell=tell)
    if found.kind == "preferences" or (found.kind == "labels" and config.method == "kto"):
        return found
    if found.kind == "labels":
        raise UserError(
            f"{config.data} holds single answers; {config.method} needs preferences (chosen and rejected answers). "
            "Answers labelled desirable or not are for method=kto"
        )
    raise UserError(
        f"{config.data} holds {found.kind}; prefer needs preferences (chosen and rejected answers), "
        "for instance starter:preferences"
    )


def units(config: PreferConfig, records: Sequence[Any]) -> int:
    """KTO leaves out ties and answers without a verdict."""
    return sum(usable(record, config.method) for record in records) if config.method == "kto" else len(records)


JOB = Job(
    name="prefer",
    config=PreferConfig,
    train=prefer,
    rows=rows,
    noun="judged pairs or answers",
    steps=steps_of_loop,
    units=units,
    arguments=lambda rows: {"train": rows.splits["train"], "val": rows.splits["val"]},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def pairs_ranked(plan: Plan) -> int:
    """Validation records that have two answers to rank: votes have one, and of ties KTO learns nothing."""
    pairs = [record for record in plan.rows.splits["val"] if isinstance(record, Preference)]
    return sum(plan.config.method != "kto" or pair.soft_label != 0.5 for pair in pairs)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    best = result.outcome.best
    if "eval_accuracy" in best:
        terminal.say(
            f"  its implicit reward ranks {100 * best['eval_accuracy']:.1f} % of the {pairs_ranked(plan)} validation "
            "pairs as the judges did (50 % is a coin)"
        )
    if result.outcome.stopped_early:
        terminal.say("  stopped early: the evaluation loss no longer fell")
    terminal.note("  Ranking given answers is not writing better ones; ask a judge that did not teach:")
    terminal.next_steps(
        f"tutelage compare {plan.name} {short_name(plan.config.model)} --judge REWARD_MODEL",
        f"tutelage eval {short_name(plan.config.model)} {plan.name}",
        f"tutelage chat {plan.name}",
    )
    return {"method": plan.config.method, "best": best, "stopped_early": result.outcome.stopped_early}
