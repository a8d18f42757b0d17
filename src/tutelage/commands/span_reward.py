"""`tutelage span-reward`: a reward model of spans, from answers in which people marked errors."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, Tell, steps_of_loop
from tutelage.core.errors import UserError
from tutelage.data.snapshot import SPLITS, Rows
from tutelage.data.spans import read_spans
from tutelage.data.split import split_of
from tutelage.recipes import short_name
from tutelage.terminal import Terminal
from tutelage.training.span_reward import SpanRewardConfig, span_reward


def rows(config: SpanRewardConfig, workspace: Path, tell: Tell) -> Rows:
    """The file's answers; a tenth of the prompts (by `seed` and prompt alone) is kept to look at."""
    if not config.data:
        raise UserError("data must name a file of answers with marked spans (data=FILE.jsonl): FineGrainedRLHF's, or rows "
                        '{"prompt", "response", "spans": [{"start", "end", "label"}]}')
    if not Path(config.data).is_file():
        raise UserError(f"data: there is no file {config.data}; answers with marked spans are read from a file")
    splits: dict[str, list[Any]] = {split: [] for split in SPLITS}
    shares = {"train": 1 - config.val_share, "val": config.val_share}
    for each in read_spans(config.data):
        splits[split_of(each.prompt.group, seed=config.seed, shares=shares)].append(each)
    return Rows("spans", splits)


JOB = Job(
    name="span-reward",
    config=SpanRewardConfig,
    train=span_reward,
    rows=rows,
    noun="answers with marked spans",
    steps=steps_of_loop,
    arguments=lambda rows: {"train": rows.splits["train"], "val": rows.splits["val"]},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    best = result.outcome.best
    if "eval_accuracy" in best:
        terminal.say(f"  names the kind of error, or none, of {100 * best['eval_accuracy']:.1f} % of the validation sentences")
    terminal.next_steps(f"tutelage rl ppo_starter model={short_name(plan.config.model)} reward={plan.name}")
    return {"best": best}
