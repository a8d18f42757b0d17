"""`tutelage sft`: supervised fine-tuning."""

from argparse import Namespace
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, rows_of_kind, steps_of_loop, value_before
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.sft import SFTConfig, sft

JOB = Job(
    name="sft",
    config=SFTConfig,
    train=sft,
    caches=True,
    rows=rows_of_kind("examples"),
    noun="examples",
    steps=steps_of_loop,
    arguments=lambda rows: {"train": rows.splits["train"], "val": rows.splits["val"]},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    before, best = value_before(plan.folder, "eval_loss"), result.outcome.best.get("eval_loss")
    if best is not None and before is None:
        terminal.say(f"  evaluation loss {best:.3f} nats a token")
    elif best is not None:
        terminal.say(
            f"  evaluation loss {before:.3f} -> {best:.3f} nats a token"
            + ("" if best < before else " (no better than before training)")
        )
    if result.outcome.stopped_early:
        terminal.say("  stopped early: the evaluation loss no longer fell")
    if result.skipped:
        terminal.warn(f"{result.skipped} examples had no trained token left within max_tokens={plan.config.max_tokens}")
    terminal.next_steps(
        f"tutelage chat {plan.name}",
        f"tutelage eval {short_name(plan.config.model)} {plan.name}",
        f"tutelage reward model={plan.name}",
    )
    return {
        "best": result.outcome.best,
        "eval_loss_before": before,
        "stopped_early": result.outcome.stopped_early,
        "skipped": result.skipped,
    }
