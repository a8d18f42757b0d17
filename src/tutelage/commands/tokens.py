"""What a model's tokenizer makes of data: `data inspect --tokens` (what is trained on) and `data annotate --model`."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.text import Text
from transformers import AutoTokenizer

from tutelage.commands.annotate import annotate_data
from tutelage.commands.inspect import survey
from tutelage.core.errors import UserError
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Example
from tutelage.data.records import RowError, as_kind
from tutelage.models.obtain import obtain
from tutelage.models.quiet import quiet_transformers
from tutelage.recipes import find_workspace, model_of
from tutelage.terminal import Terminal
from tutelage.text.chat import encode
from tutelage.text.mask import Row, colour, rows_of

TRAINED, CONTEXT = "bold green", "dim"


def tokenizer_of(model: str, workspace: Any, *, progress: Progress = silent) -> Any:
    """The tokenizer alone: no weights are read."""
    path = obtain(model_of(model, workspace), progress=progress)
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} has no tokenizer that can be loaded: {str(error).strip().splitlines()[0]}") from error


def run(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    with terminal.progress() as progress:
        tokenizer = tokenizer_of(args.model, workspace, progress=progress)
    if args.action == "annotate":
        return annotate_data(args, terminal, tokenize=lambda text: encode(tokenizer, text))
    found = survey(args.data, workspace, keep=max(1, args.show), tell=terminal.note)
    examples = _examples(found.first)
    if not examples:
        raise UserError(
            f"{args.data} holds {found.kind}, of which no conversation with an answer can be made; nothing would be trained on"
        )
    shown = [(number, row) for number, example in enumerate(examples, start=1) for row in rows_of(tokenizer, example)]
    terminal.say(
        f"{args.data} as {args.model} sees it: what is trained on stands out, the rest is context", style="bold"
    )
    for number, row in shown:
        terminal.say()
        terminal.note(f"record {number}: {len(row.token_ids)} tokens, {row.trained()} trained on")
        terminal.console.print(coloured(tokenizer, row, marks=not terminal.live), soft_wrap=True)
    terminal.result(
        {
            "data": args.data,
            "model": args.model,
            "records": [
                {
                    "record": number,
                    "tokens": len(row.token_ids),
                    "trained": row.trained(),
                    "pieces": [{"text": text, "weight": weight} for text, weight in colour(tokenizer, row)],
                }
                for number, row in shown
            ],
        }
    )
    return 0


def _examples(records: Sequence[Any]) -> list[Example]:
    out: list[Example] = []
    for record in records:
        try:
            out += as_kind(record, "examples")
        except RowError:
            continue  # a tie, or a prompt without an answer: nothing to train on
    return out


def coloured(tokenizer: Any, row: Row, *, marks: bool = False) -> Text:
    """The row's text: trained pieces stand out by colour, and where there is none (a file, a pipe) by brackets."""
    out = Text()
    for text, weight in colour(tokenizer, row):
        trained = weight > 0
        out.append(f"[[{text}]]" if marks and trained else text, style=TRAINED if trained else CONTEXT)
        if trained and weight != 1:
            out.append(f"(x{weight:g})", style="yellow")
    return out
