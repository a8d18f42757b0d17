"""`tutelage rl`: improve a policy against a reward; the recipe's `algorithm` says how."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, Tell, metric_change, rows_of_kind
from tutelage.data.snapshot import Rows, load_rows
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.on_policy import RLConfig
from tutelage.training.rl import config_of, rl


def rows(config: RLConfig, workspace: Path, tell: Tell) -> Rows:
    return with_demonstrations(rows_of_kind("prompts")(config, workspace, tell), config, workspace, tell)


def with_demonstrations(prompts: Rows, config: RLConfig, workspace: Path, tell: Tell) -> Rows:
    """The prompts; beside them the demonstrations that PPO-ptx mixes in, where it is asked for."""
    if not getattr(config, "ptx_coef", 0):
        return prompts
    shown = load_rows(config.ptx_data, workspace, kind="examples", seed=config.seed, tell=tell)
    return Rows(prompts.kind, {**prompts.splits, "ptx": shown.splits["train"]})


JOB = Job(
    name="rl",
    config=RLConfig,
    config_of=config_of,
    train=rl,
    rows=rows,
    noun="prompts",
    models=("model", "reward", "cost"),
    steps=lambda config, rows: config.steps,
    arguments=lambda rows: {"prompts": rows.splits["train"], "pretrain": rows.splits.get("ptx", ())},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    facts: dict[str, Any] = {"skipped": result.skipped}
    for name, words in (
        ("reward", "reward"),
        ("kl", "KL from the reference, nats an answer"),
        ("length", "tokens an answer"),
    ):
        change = metric_change(plan.folder, name)
        if change:
            terminal.say(f"  {words} {change[0]:.3g} -> {change[1]:.3g}")
            facts[name] = {"first": change[0], "last": change[1]}
    if result.skipped:
        terminal.warn(
            f"{result.skipped} prompts are longer than max_prompt_tokens={plan.config.max_prompt_tokens} and were left out"
        )
    terminal.note(
        "  A reward that rises says that the policy pleases this judge; ask another one whether it got better:"
    )
    terminal.next_steps(
        f"tutelage compare {plan.name} {short_name(plan.config.model)} --judge ANOTHER_REWARD_MODEL",
        f"tutelage eval {short_name(plan.config.model)} {plan.name}",
        f"tutelage chat {plan.name}",
    )
    return facts
