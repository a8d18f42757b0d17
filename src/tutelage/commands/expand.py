"""`tutelage data expand`: new instructions and answers by a model (self-instruct), as a snapshot.

The same command goes on where it was stopped.
"""

import tempfile
from argparse import Namespace
from pathlib import Path

from tutelage.commands.data import base_name
from tutelage.commands.engines import model_name, open_engine
from tutelage.core.errors import UserError
from tutelage.core.files import write_jsonl
from tutelage.core.words import Sampling
from tutelage.data.expand import ASK, expand
from tutelage.data.importer import checked_name, import_data, summary
from tutelage.data.snapshot import load_rows
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    seeds = load_rows(args.data, workspace, kind="examples", tell=terminal.note).splits["train"]
    name = checked_name(args.name or f"{base_name(args.data)}-expanded")
    model = model_name(args.model, workspace)
    unfinished = workspace / "data" / f".expanding-{name}.jsonl"
    terminal.note(f"{model} writes {args.wanted} new instructions after {len(seeds)} of {args.data}")
    terminal.resume = "the same command"
    with terminal.progress() as progress:
        engine = open_engine(model, workspace, progress=progress)
        report = expand(
            seeds,
            engine,
            wanted=args.wanted,
            seed=args.seed,
            similarity=args.similarity,
            progress=progress,
            ask=ASK,
            answer=Sampling(max_tokens=args.max_tokens, temperature=0.0),
            output=unfinished,
        )
    terminal.resume = ""
    for reason, count in report.rejected.most_common():
        terminal.say(f"  {count:>6} refused: {reason}")
    if not report.kept:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{model} wrote no usable instruction in {report.rounds} rounds; a larger or instruction-tuned model does better"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.jsonl"
        write_jsonl(path, (example.to_dict() for example in report.kept))
        snapshot = import_data(path, workspace=workspace, name=name)
    unfinished.unlink(missing_ok=True)
    if not report.enough:
        terminal.warn(f"gave up after {report.rounds} rounds with {len(report.kept)} of {args.wanted}")
    for line in summary(snapshot):
        terminal.say(line)
    terminal.say("  written by a model: read some before you train on them", style="yellow")
    terminal.next_steps(f"tutelage data inspect {snapshot.name}", f"tutelage sft data={snapshot.name}")
    terminal.result(
        {
            "snapshot": snapshot.name,
            "path": str(snapshot.path),
            "kept": len(report.kept),
            "enough": report.enough,
            "rejected": dict(report.rejected),
            "rounds": report.rounds,
        }
    )
    return 0
