"""`tutelage data import|inspect|annotate|split`: from files to snapshots, and a look at what is in them.  No torch here."""

import shutil
import tempfile
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.core.errors import ConfigError, UserError, nearest
from tutelage.core.files import write_jsonl
from tutelage.core.protocols import Progress, silent
from tutelage.core.words import Example, Label, Message, Preference, Prompt
from tutelage.data.annotate import annotate, english_tagger, token_statistics
from tutelage.data.clean import KEY_FILE, CleanConfig, Cleaner
from tutelage.data.importer import import_data
from tutelage.data.language import detect_language
from tutelage.data.reading import Quarantined, Reading, source_name
from tutelage.data.records import Kept, kind_of
from tutelage.data.reword import parts, tags_of
from tutelage.data.snapshot import SPLITS, Snapshot, load_rows, open_snapshot
from tutelage.recipes import find_workspace
from tutelage.terminal import Terminal

SHOWN = 400  # characters of a text that `inspect` prints

# import


def parse_shares(text: str) -> dict[str, float]:
    """Shares of train, val and test from percent.

    >>> parse_shares("80/10/10")
    {'train': 0.8, 'val': 0.1, 'test': 0.1}
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or any(number < 0 for number in numbers) or abs(sum(numbers) - 100) > 1e-6:
        raise UserError(f"--split {text!r}: wanted three percentages that make 100, for instance 90/5/5")
    return dict(zip(SPLITS, (round(number / 100, 10) for number in numbers), strict=True))


def parse_map(words: Sequence[str]) -> dict[str, str]:
    """`ours=theirs` pairs."""
    out: dict[str, str] = {}
    for word in words:
        ours, equals, theirs = word.partition("=")
        if not (equals and ours and theirs):
            raise UserError(f"--map {word!r}: wanted OURS=THEIRS, for instance prompt=question")
        out[ours] = theirs
    return out


def parse_clean(text: str) -> CleanConfig | None:
    """The steps of `--clean`; None for `none`.  ConfigError with every fault at once.

    >>> config = parse_clean("unicode,near=0.9,pii,languages=en+zh")
    >>> config.unicode, config.exact_duplicates, config.near_duplicates, config.pii, config.languages
    (True, False, 0.9, 'redact', ('en', 'zh'))
    """
    if text.strip() in ("", "none"):
        return None
    faults: list[str] = []
    values: dict[str, Any] = {"unicode": False, "exact_duplicates": False}
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, value = word.partition("=")
        if name not in STEPS:
            faults.append(f'unknown step "{name}"{nearest(name, STEPS)}')
            continue
        key, read, default = STEPS[name]
        if not value and default is None:
            faults.append(f"{name} needs a value: {name}={EXAMPLES[name]}")
            continue
        try:
            values[key] = read(value) if value else default
        except ValueError:
            faults.append(f"{name}={value}: wanted for instance {name}={EXAMPLES.get(name, 'true')}")
    try:
        config = CleanConfig(**values)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults, where="--clean")
    return config


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


STEPS: dict[str, tuple[str, Callable[[str], Any], Any]] = {  # our word -> key of CleanConfig, how a value is read, what none means
    "unicode": ("unicode", _switch, True), "exact": ("exact_duplicates", _switch, True), "near": ("near_duplicates", float, True),
    "min_chars": ("min_chars", int, None), "max_chars": ("max_chars", int, None),
    "languages": ("languages", lambda value: tuple(value.split("+")), None), "tag_language": ("tag_language", _switch, True),
    "toxicity": ("toxicity", str, "flag"), "pii": ("pii", str, "redact"), "contamination": ("contamination", str, None),
}
EXAMPLES = {"near": "0.8", "min_chars": "5", "max_chars": "8000", "languages": "en+zh", "contamination": "evaluation.jsonl"}


def import_files(files: Sequence[str], *, workspace: Path, clean: CleanConfig | None, progress: Progress = silent, **more: Any) -> Snapshot:
    """`import_data` with cleaning.  The key that undoes PII redaction goes to the workspace's keys/, apart from the data."""
    if clean is None:
        return import_data(list(files), workspace=workspace, progress=progress, **more)
    scratch = workspace / "data" / f".cleaning-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        with Cleaner(clean, index_folder=scratch) as cleaner:
            snapshot = import_data(list(files), workspace=workspace, clean=cleaner, progress=progress, **more)
        key = scratch / KEY_FILE
        if key.exists() and key.stat().st_size:
            target = key_path(workspace, snapshot)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            key.chmod(0o600)
            shutil.move(key, target)
        return snapshot
    except OSError as error:
        raise UserError(f"cannot write under {workspace}: {error.strerror or error}; free some space, or choose another --workspace") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def key_path(workspace: Path, snapshot: Snapshot) -> Path:
    return workspace / "keys" / f"{snapshot.name}.{KEY_FILE}"


def _import(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    shares, fields, clean = parse_shares(args.split), parse_map(args.map), parse_clean(args.clean)
    with terminal.progress() as progress:
        snapshot = import_files(args.files, workspace=workspace, clean=clean, progress=progress, name=args.name, format=args.format,
                                field_map=fields, license=args.license, splits=shares, seed=args.seed, as_kind=args.as_kind)
    _show_snapshot(snapshot, terminal)
    key = key_path(workspace, snapshot)
    if key.exists():
        terminal.warn(f"{key} undoes the redaction of personal data: keep it away from the data")
    terminal.next_steps(f"tutelage data inspect {snapshot.name}", *_trains(snapshot))
    terminal.result(_facts(snapshot))
    return 0


def _trains(snapshot: Snapshot) -> list[str]:
    command = {"examples": "sft", "preferences": "reward", "labels": "classify", "prompts": "rl"}[snapshot.kind]
    return [f"tutelage {command} data={snapshot.name}"]


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    manifest = snapshot.manifest
    return {"snapshot": snapshot.name, "path": str(snapshot.path), "kind": snapshot.kind, "counts": snapshot.counts,
            "quarantined": manifest["quarantined"], "sources": manifest["sources"], "clean": manifest["clean"], "digest": snapshot.digest}


def _show_snapshot(snapshot: Snapshot, terminal: Terminal) -> None:
    manifest = snapshot.manifest
    terminal.say(f"Snapshot {snapshot.path}", style="bold green")
    counts = ", ".join(f"{split} {count}" for split, count in snapshot.counts.items())
    terminal.say(f"  {sum(snapshot.counts.values())} {snapshot.kind}: {counts}")
    for facts in manifest["sources"]:
        lost = f", {facts['quarantined']} quarantined" if facts["quarantined"] else ""
        terminal.say(f"  {facts['name']}: {facts['format']}, {facts['rows']} rows, {facts['kept']} records{lost}")
    if manifest["clean"]:
        terminal.say()
        terminal.table(["cleaning step", "seen", "changed", "dropped", "flagged"], right=(1, 2, 3, 4), rows=[
            (step, *(facts[key] for key in ("seen", "changed", "dropped", "flagged"))) for step, facts in manifest["clean"].items()])
    _show_quarantine(manifest["quarantined"]["by_reason"], snapshot.path / "quarantine.jsonl", terminal)


def _show_quarantine(reasons: dict[str, int], where: Path | None, terminal: Terminal) -> None:
    if not reasons:
        return
    terminal.say()
    terminal.say(f"  {sum(reasons.values())} quarantined{f', in {where}' if where else ''}:", style="yellow")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        terminal.say(f"  {count:>7}  {reason}")


# inspect


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
        return {"data": self.name, "kind": self.kind, "counts": self.counts, "about": self.about,
                "tags": {key: dict(found.most_common()) for key, found in self.tags.items()},
                "chars": {"median": chars[len(chars) // 2], "p95": chars[len(chars) * 95 // 100], "most": chars[-1]} if chars else {},
                "quarantined": {"total": sum(self.reasons.values()), "by_reason": dict(self.reasons.most_common()), "first": self.quarantined},
                "examples": [record.to_dict() for record in self.first]}


def survey(name: str, workspace: Path, *, keep: int = 3, tell: Callable[[str], None] = lambda line: None) -> Survey:
    """Go once through a snapshot, a file, a hub set or starter data."""
    out = Survey(name)
    snapshot = find_snapshot(name, workspace)
    if snapshot is not None:
        snapshot.verify()
        out.name, out.kind = snapshot.name, snapshot.kind
        out.about = [f"{facts['name']}: {facts['format']}, {facts['rows']} rows" for facts in snapshot.manifest["sources"]]
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


def find_snapshot(name: str, workspace: Path) -> Snapshot | None:
    """A snapshot by name or folder; None where the name means something else."""
    if name.startswith(("starter:", "hf:")) or (Path(name).exists() and not (Path(name) / "manifest.json").exists()):
        return None
    try:
        return open_snapshot(name, workspace)
    except UserError:
        if Path(name).exists() or "@" in name:
            raise
        return None


def _inspect(args: Namespace, terminal: Terminal) -> int:
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
        terminal.say(f"  length   median {facts['chars']['median']}, 95 % below {facts['chars']['p95']}, longest {facts['chars']['most']} characters")
    _show_quarantine(dict(found.reasons), None, terminal)
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


# annotate


def annotated(records: Iterable[Kept], counts: Counter, skipped: Counter) -> Iterator[dict[str, Any]]:
    """Words and tags of each record; counts the tags by (language, tag), and the languages that have no tagger."""
    for number, record in enumerate(records, start=1):
        question, answers = parts(record)
        lang = detect_language("\n".join([*question, *answers]))
        if lang not in ("en", "zh", "und"):
            skipped[lang] += 1
            continue
        tagged = {"question": [annotate(text, lang) for text in question], "answers": [annotate(text, lang) for text in answers]}
        counts.update((lang, token.tag) for texts in tagged.values() for text in texts for token in text)
        yield {"record": number, "lang": lang, **{key: [[list(token) for token in text] for text in texts] for key, texts in tagged.items()}}


def annotate_data(args: Namespace, terminal: Terminal, *, tokenize: Callable[[str], list[int]] | None = None) -> int:
    """`tutelage data annotate`, with token counts where there is a tokenizer."""
    rows = load_rows(args.data, find_workspace(args.workspace), tell=terminal.note)
    records = [record for split in SPLITS for record in rows.splits[split]]
    statistics = token_statistics(records, tokenize)
    counts, skipped = Counter(), Counter()
    made = annotated(records, counts, skipped)
    if args.out:
        write_jsonl(args.out, made)
    else:
        for _ in made:
            pass
    tables = [name for name in ("chars", "words", "tokens", "answer_chars") if getattr(statistics, name)]
    terminal.head(f"{args.data}: {len(records)} {rows.kind}")
    terminal.table(["size", "language", "records", "mean", "5 %", "25 %", "median", "75 %", "95 %", "99 %", "most"], right=range(2, 11), rows=[
        (name.replace("_", " "), group, statistics.records[group], f"{each.mean:.1f}", each.p5, each.p25, each.p50, each.p75, each.p95, each.p99, each.most)
        for name in tables for group, each in sorted(getattr(statistics, name).items(), key=lambda item: item[0] != "all")])
    for lang, rate in statistics.chars_per_token.items():
        terminal.say(f"  {rate:.2f} characters a token ({lang})")
    langs = sorted({lang for lang, _ in counts})
    terminal.say()
    terminal.table(["part of speech", *langs], right=range(1, len(langs) + 1), rows=[
        (tag, *(counts[lang, tag] for lang in langs)) for tag in sorted({tag for _, tag in counts})])
    if "en" in langs:
        terminal.note(f"  English is tagged by {english_tagger()}" + ("; the extra `pos` brings a better tagger" if english_tagger() == "rules" else ""))
    for lang, count in skipped.most_common():
        terminal.warn(f"{count} records in language {lang!r} have no tagger and were left out of the words")
    if args.out:
        terminal.say(f"Wrote {args.out}", style="green")
    terminal.result({"data": args.data, "kind": rows.kind, "statistics": statistics.to_dict(), "skipped": dict(skipped), "path": args.out,
                     "tags": {lang: {tag: count for (each, tag), count in counts.items() if each == lang} for lang in langs}})
    return 0


# split


@contextmanager
def as_files(name: str, workspace: Path, tell: Callable[[str], None]) -> Iterator[list[str]]:
    """Files that hold the records of a data name: its own, or written for the moment."""
    snapshot = find_snapshot(name, workspace)
    if snapshot is not None:
        snapshot.verify()
        yield [str(snapshot.path / f"{split}.jsonl") for split in SPLITS if snapshot.counts[split]]
    elif name.startswith("starter:"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name.replace(':', '-')}.jsonl"
            rows = load_rows(name, workspace, tell=tell)
            write_jsonl(path, (record.to_dict() for split in SPLITS for record in rows.splits[split]))
            yield [str(path)]
    else:
        yield [name]


def _split(args: Namespace, terminal: Terminal) -> int:
    workspace = find_workspace(args.workspace)
    shares = parse_shares(args.split)
    name = args.name or f"{base_name(args.data)}-split"
    with as_files(args.data, workspace, terminal.note) as files:
        snapshot = import_data(files, workspace=workspace, name=name, splits=shares, seed=args.seed)
    _show_snapshot(snapshot, terminal)
    terminal.next_steps(*_trains(snapshot))
    terminal.result(_facts(snapshot))
    return 0


def base_name(data: str) -> str:
    """A name for what is made of this data.

    >>> base_name("starter:instructions"), base_name("mine@1a2b3c4d"), base_name("folder/mine.jsonl.gz")
    ('starter-instructions', 'mine', 'mine')
    """
    if data.startswith(("starter:", "hf:")):
        return data.removeprefix("hf:").replace(":", "-").replace("/", "-")
    return source_name(data).partition("@")[0].partition(".")[0]


ACTIONS = {"import": _import, "inspect": _inspect, "annotate": annotate_data, "split": _split}


def run(args: Namespace, terminal: Terminal) -> int:
    return ACTIONS[args.action](args, terminal)
