"""`tutelage classify`: a text classifier, with its confusion matrix."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.text import Text

from tutelage.commands.run_job import run_job
from tutelage.commands.training import Job, Plan, Tell, steps_of_loop
from tutelage.core.errors import UserError
from tutelage.data.snapshot import Rows, load_rows
from tutelage.terminal import Terminal
from tutelage.training.classify import ClassifyConfig, classify, to_labels
from tutelage.training.classify_report import ClassifyReport


def rows(config: ClassifyConfig, workspace: Path, tell: Tell) -> Rows:
    found = load_rows(config.data, workspace, seed=config.seed, tell=tell)
    splits = {split: to_labels(records, config.target) for split, records in found.splits.items()}
    lost = sum(map(len, found.splits.values())) - sum(map(len, splits.values()))
    if not splits["train"]:
        raise UserError(
            f"none of the {len(found.splits['train'])} training records of {config.data} has a {config.target}; "
            f"choose what to predict with target=label or target=tag:NAME{_tags(found)}"
        )
    if lost:
        tell(f"{config.data}: {lost} records have no {config.target} and are left out")
    return Rows("labels", splits)


def _tags(found: Rows) -> str:
    """The tags that the records do have, to stand at the end of the error."""
    names = {
        tag.partition(":")[0]
        for record in found.splits["train"][:1000]
        for tag in getattr(getattr(record, "prompt", record), "tags", ())
    } - {"id"}
    return f" (tags here: {', '.join(sorted(names))})" if names else ""


JOB = Job(
    name="classify",
    config=ClassifyConfig,
    train=classify,
    rows=rows,
    noun="labelled texts",
    steps=steps_of_loop,
    arguments=lambda rows: {split: rows.splits[split] for split in ("train", "val", "test")},
)


def run(args: Namespace, terminal: Terminal) -> int:
    return run_job(JOB, args, terminal, finish=finish)


def finish(plan: Plan, result: Any, terminal: Terminal) -> dict[str, Any]:
    if result.report is not None:
        show(result.report, terminal)
    terminal.next_steps(
        f"python -c \"from transformers import pipeline; print(pipeline('text-classification', '{result.path}')('...'))\""
    )
    return {"best": result.outcome.best, "report": result.report.to_dict() if result.report else None}


def show(report: ClassifyReport, terminal: Terminal) -> None:
    """Accuracy beside its baseline, a line a class, and the confusion matrix."""
    which = "test" if report.split == "test" else "validation"
    terminal.say(
        f"  accuracy {percent(report.accuracy)} [{percent(report.accuracy_low)}, {percent(report.accuracy_high)}] "
        f"on {report.n} {which} texts; "
        f"always naming the most frequent class: {percent(report.baseline)}"
    )
    terminal.say(f"  macro F1 {report.macro_f1:.3f}")
    terminal.say()
    terminal.table(
        ["class", "precision", "recall", "F1", "texts"],
        right=(1, 2, 3, 4),
        rows=[
            (each.label, f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", each.support)
            for each in report.classes
        ],
    )
    if len(report.labels) > 12:
        return  # too wide to be read; it stands in report.json
    terminal.say()
    numbers = [str(k + 1) for k in range(len(report.labels))]
    terminal.table(
        ["truth \\ called", *numbers],
        right=range(1, len(numbers) + 1),
        rows=[
            (f"{k + 1} {report.labels[k]}", *(_cell(count, right=k == at) for at, count in enumerate(row)))
            for k, row in enumerate(report.confusion)
        ],
    )
    terminal.say()


def _cell(count: int, *, right: bool) -> Text:
    return Text(str(count) if count else "·", style="green" if right and count else "red" if count else "dim")


def percent(share: float) -> str:
    """
    >>> percent(0.8333)
    '83.3 %'
    """
    return f"{100 * share:.1f} %"
