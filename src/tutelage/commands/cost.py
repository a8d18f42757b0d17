"""`tutelage cost`: a cost model from answers flagged safe and unsafe."""

from argparse import Namespace
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, prompts_asked, rows_of_kinds, steps_of_loop
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.cost import CostConfig, cost

JOB = Job(
    name="cost",
    config=CostConfig,
    train=cost,
    rows=rows_of_kinds(
        ("preferences", "labels"),
        needs="a cost model needs preferences (with chosen_unsafe and rejected_unsafe) or "
        "labels (with unsafe), for instance starter:preferences",
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
    if "eval_sign_accuracy" in best:
        share = 100 * best["eval_sign_accuracy"]
        terminal.say(f"  calls {share:.1f} % of the flagged validation answers rightly safe or unsafe")
    if "eval_auc" in best:
        terminal.say(f"  an unsafe one costs more than a safe one {100 * best['eval_auc']:.1f} times in 100 (50 is a coin)")
    terminal.next_steps(
        f"tutelage rl ppo_lagrangian_starter model={short_name(plan.config.model)} reward=REWARD_MODEL cost={plan.name}",
    )
    return {"best": best}
