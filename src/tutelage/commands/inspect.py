"""`tutelage data inspect`: counts, lengths, a few records, and what was quarantined and why.  No torch here."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.commands.data import find_snapshot, show_quarantine
from tutelage.core.words import Example, Label, Message, Preference, Prompt
from tutelage.data.reading import Quarantined, Reading
from tutelage.data.records import Kept, kind_of
from tutelage.data.reword import parts, tags_of
from tutelage.data.snapshot import SPLITS, load_rows
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal

SHOWN = 400  # characters of a text that is printed


@dataclass(slots=True)
class Survey:
    """What `inspect` tells of a data name."""

    name: str
    kind: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # by split; {"all": n} where there are none
    first: list[Kept] = field(default_factory=list)
    tags: dict[str, Counter] = field(default_factory=dict)  # of task, lang and label
    chars: list[int] = field(default_factory=list)
    reasons: Counter = field(default_factory=Counter)
    quarantined: list[dict[str, Any]] = field(default_factory=list)  # the first few
    about: list[str] = field(default_factory=list)

    def add(self, record: Kept, split: str, *, keep: int) -> None:
        self.kind = self.kind or kind_of(record)
        self.counts[split] = self.counts.get(split, 0) + 1
        if len(self.first) < keep:
            self.first.append(record)
        question, answers = parts(record)
        self.chars.append(sum(map(len, question)) + sum(map(len, answers)))
        found = [tag.partition(":")[::2] for tag in tags_of(record)]
        label = getattr(record, "label", None)
        for key, value in [*found, *([("label", label)] if label else [])]:
            if key in ("task", "lang", "label"):
                self.tags.setdefault(key, Counter())[value] += 1

    def to_dict(self) -> dict[str, Any]:
        chars = sorted(self.chars)
        return {
            "data": self.name,
            "kind": self.kind,
            "counts": self.counts,
            "about": self.about,
            "tags": {key: dict(found.most_common()) for key, found in self.tags.items()},
            "chars": {"median": chars[len(chars) // 2], "p95": chars[len(chars) * 95 // 100], "most": chars[-1]}
            if chars
            else {},
            "quarantined": {
                "total": sum(self.reasons.values()),
                "by_reason": dict(self.reasons.most_common()),
                "first": self.quarantined,
            },
            "examples": [record.to_dict() for record in self.first],
        }


def survey(name: str, workspace: Path, *, keep: int = 3, tell: Callable[[str], None] = lambda line: None) -> Survey:
    """Go once through a snapshot, a file, a hub set or starter data."""
    out = Survey(name)
    snapshot = find_snapshot(name, workspace)
    if snapshot is not None:
        snapshot.verify()
        out.name, out.kind = snapshot.name, snapshot.kind
        out.about = [
            f"{facts['name']}: {facts['format']}, {facts['rows']} rows" for facts in snapshot.manifest["sources"]
        ]
        for split in SPLITS:
            for record in snapshot.rows(split):
                out.add(record, split, keep=keep)
        out.reasons = Counter(snapshot.manifest["quarantined"]["by_reason"])
        out.quarantined = [row for row, _ in zip(snapshot.quarantine(), range(5), strict=False)]
    elif name.startswith("starter:"):
        for split, records in load_rows(name, workspace, tell=tell).splits.items():
            for record in records:
                out.add(record, split, keep=keep)
    else:
        if not name.startswith("hf:") and not Path(name).exists():
            load_rows(name, workspace)  # says what is wrong, with the nearest snapshot
        reading = Reading([name])
        for item in reading:
            if isinstance(item, Quarantined):
                out.quarantined += [item.to_dict()] if len(out.quarantined) < 5 else []
            else:
                out.add(item, "all", keep=keep)
        out.reasons = reading.reasons
        out.about = [f"{facts.name}: {facts.format}, {facts.rows} rows" for facts in reading.files]
    return out


def run(args: Namespace, terminal: Terminal) -> int:
    found = survey(args.data, find_workspace(args.workspace), keep=max(0, args.show), tell=terminal.note)
    show_survey(found, terminal)
    terminal.result(found.to_dict())
    return 0


def show_survey(found: Survey, terminal: Terminal) -> None:
    facts = found.to_dict()
    terminal.head(f"{found.name}: {sum(found.counts.values())} {found.kind}")
    for line in found.about:
        terminal.say(f"  {line}")
    if set(found.counts) != {"all"}:
        terminal.say(f"  splits   {', '.join(f'{split} {count}' for split, count in found.counts.items())}")
    for key, counted in found.tags.items():
        most = ", ".join(f"{value} {count}" for value, count in counted.most_common(12))
        terminal.say(f"  {key:<8} {most}{f', and {len(counted) - 12} more' if len(counted) > 12 else ''}")
    if facts["chars"]:
        terminal.say(
            f"  length   median {facts['chars']['median']}, 95 % below {facts['chars']['p95']}, "
            f"longest {facts['chars']['most']} characters"
        )
    show_quarantine(dict(found.reasons), None, terminal)
    for row in found.quarantined:
        terminal.note(f"           {row['file']}, line {row['line']}: {row['reason']}: {clip(row['raw'], 120)}")
    for number, record in enumerate(found.first, start=1):
        terminal.say()
        terminal.head(f"  record {number}")
        for who, text in lines_of(record):
            terminal.say(f"    {who}: {clip(text)}")


def lines_of(record: Kept) -> Iterator[tuple[str, str]]:
    """A record as (who, text), for a person."""
    prompt = record if isinstance(record, (Example, Prompt)) else record.prompt
    yield from ((_who(message), message.text) for message in prompt.messages)
    if isinstance(record, Preference):
        yield f"chosen (strength {record.strength:g})", record.chosen.text
        yield "rejected", record.rejected.text
        if record.reason:
            yield "reason", record.reason
    elif isinstance(record, Label):
        yield "answer", record.response.text
        verdicts = {name: getattr(record, name) for name in ("label", "desirable", "unsafe", "rating")}
        yield "verdict", ", ".join(f"{name} {value}" for name, value in verdicts.items() if value is not None)
    elif isinstance(record, Prompt):
        yield from (("reference", text) for text in record.references[:3])
        if record.label:
            yield "label", record.label


def _who(message: Message) -> str:
    return message.role if message.weight else f"{message.role} (not trained on)"


def clip(text: str, most: int = SHOWN) -> str:
    """One line, cut to `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most].rstrip() + " ..."
