"""`tutelage feedback export`: judgements with their annotators, OpenAssistant trees, or folded rows through data/writers.py."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tutelage.commands.feedback_data import folded, opened
from tutelage.commands.feedback_tools import WRITERS
from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, sha256_bytes, write_atomic, write_jsonl
from tutelage.core.words import Preference
from tutelage.data.records import RowError, as_kind
from tutelage.data.writers import write_records
from tutelage.recipes import find_workspace
from tutelage.store.collected import collected
from tutelage.store.feedback import iter_items
from tutelage.store.ledger import note
from tutelage.store.preferences import Folded
from tutelage.store.rubrics import load_rubric
from tutelage.terminal import Terminal

WHAT = {"kto": "labels", "openai": "examples", "alpaca": "examples"}  # else preferences


def run(args: Namespace, terminal: Terminal) -> int:
    workspace, out = find_workspace(args.workspace), Path(args.out)
    with opened(args.database, workspace) as db:
        if args.format in WRITERS:
            items = {item.id: item for item in iter_items(db, args.project)}
            rows = [row for row in collected(db, args.project, upto=args.upto) if not row.special and row.item in items]
            rubrics = {ref: load_rubric(db, ref) for ref in {row.rubric for row in rows}}
            count = write_rows(out, WRITERS[args.format](items, rows, rubrics))
            noun = {"judgements": "judgements", "spans": "answers"}.get(args.format, "items")
        else:
            found = folded(db, args.project, upto=args.upto, reliability=args.reliability)
            if args.format == "oasst":
                count, noun = write_rows(out, oasst_trees(found.preferences)), "trees"
            else:
                noun = args.what or WHAT.get(args.format, "preferences")
                count = write_records(out, chosen_rows(found, noun, args.format, terminal), format=args.format)
        if not count:
            raise UserError(f"{args.project} has nothing yet to write as {args.format}")
        note(db, kind="export", actor=args.actor, subject=args.project,
             content={"format": args.format, "rows": count, "file": out.name, "upto": args.upto})
    terminal.say(f"Wrote {out}: {count} {noun} as {args.format}", style="green")
    terminal.result({"path": str(out), "format": args.format, "rows": count, "what": noun})
    return 0


def chosen_rows(found: Folded, what: str, format: str, terminal: Terminal) -> Sequence[Any]:
    rows = list(getattr(found, what))
    if what == "labels" and not rows and found.preferences:
        for pair in found.preferences:
            try:
                rows += as_kind(pair, "labels")
            except RowError:  # a tie: no answer is the good one
                continue
        terminal.note("nobody judged answers good or bad: the better answers of the pairs stand as good, the worse as bad")
    if not rows:
        raise UserError(f"the judgements give no {what}; they give " + (", ".join(
            f"{len(getattr(found, name))} {name}" for name in ("preferences", "examples", "labels", "safety", "prompts")
            if getattr(found, name)) or "nothing yet"))
    if format != "native" and len({getattr(row, "weight", 1.0) for row in rows}) > 1:
        terminal.warn(f"{format} has no place for weights, and these rows have several; native keeps them")
    return rows


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """JSON lines, or one JSON array, by the file's ending."""
    if path.suffix.lower() == ".jsonl":
        return write_jsonl(path, rows)
    if path.suffix.lower() != ".json":
        raise UserError(f"{path}: this format is written to .jsonl or .json; got the ending {path.suffix or '(none)'!r}")
    lines = [canonical_json(row) for row in rows]
    write_atomic(path, "[\n" + ",\n".join(lines) + "\n]\n")
    return len(lines)


# -- OpenAssistant --------------------------------------------------------------------------------------------------


def oasst_trees(preferences: Sequence[Preference]) -> Iterator[dict[str, Any]]:
    """A tree a prompt: its conversation as a line of messages, its answers as ranked replies, rank 0 the best.

    Answers are ranked by their share of won comparisons; equal shares have equal ranks, and a pair of equal rank says nothing to
    who reads the tree.  What a tree cannot hold: strength, disagreement, who said it.
    """
    by_prompt: dict[str, list[Preference]] = defaultdict(list)
    for pair in preferences:
        by_prompt[pair.prompt.id].append(pair)
    for pairs in by_prompt.values():
        asked = pairs[0].prompt
        if any(message.role not in ("user", "assistant") for message in asked.messages):
            raise UserError(f"prompt {asked.id[:12]}: OpenAssistant's trees have prompter and assistant only; it has a "
                            f"{next(m.role for m in asked.messages if m.role not in ('user', 'assistant'))} message")
        won: dict[str, list[float]] = defaultdict(list)
        texts = {}
        for pair in pairs:
            for answer, share in ((pair.chosen, pair.soft_label), (pair.rejected, 1 - pair.soft_label)):
                won[answer.id].append(share)
                texts[answer.id] = answer
        score = {key: round(sum(shares) / len(shares), 9) for key, shares in won.items()}
        places = {value: rank for rank, value in enumerate(sorted(set(score.values()), reverse=True))}
        replies = [{"message_id": key, "role": "assistant", "text": answer.text, "rank": places[score[key]],
                    "model_name": answer.policy.removeprefix("model:"), "replies": []} for key, answer in texts.items()]
        replies.sort(key=lambda each: each["rank"])
        for at, message in reversed(list(enumerate(asked.messages))):
            node = {"message_id": sha256_bytes(f"{asked.id}:{at}".encode())[:32], "text": message.text,
                    "role": "prompter" if message.role == "user" else "assistant", "replies": replies}
            if lang := asked.tag("lang"):
                node["lang"] = lang
            replies = [node]
        yield {"message_tree_id": asked.id, "tree_state": "ready_for_export", "prompt": replies[0]}
