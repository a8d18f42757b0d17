"""`tutelage reward`: a reward model from preferences or ratings."""

from argparse import Namespace
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, prompts_asked, rows_of_kinds, steps_of_loop
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.reward import RewardConfig, reward

JOB = Job(
    name="reward",
    config=RewardConfig,
    train=reward,
    rows=rows_of_kinds(
        ("preferences", "labels"),
        needs="a reward model needs preferences (chosen and rejected answers) or rated "
        "answers, for instance starter:preferences",
    ),
    noun="judged pairs or answers",
    steps=steps_of_loop,
    units=prompts_asked,
    arguments=lambda rows: {"train": rows.splits["train"], "val": rows.splits["val"]},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    best = result.outcome.best
    if "eval_accuracy" in best:
        terminal.say(
            f"  ranks {100 * best['eval_accuracy']:.1f} % of the {plan.counts.get('val', 0)} validation pairs "
            "as the judges did "
            "(50 % is a coin)"
        )
    audit = getattr(result, "audit", None)
    terminal.next_steps(
        f"tutelage rl model={short_name(plan.config.model)} reward={plan.name}",
        f"tutelage compare A B --judge {plan.name}",
    )
    return {"best": best} if audit is None else {"best": best, "audit": plain(audit)}


def plain(audit: Any) -> Any:
    """An audit record as JSON can hold it."""
    for method in ("to_dict", "_asdict"):
        if hasattr(audit, method):
            return getattr(audit, method)()
    return audit if isinstance(audit, dict) else str(audit)
