"""From files to records, in one pass and constant memory: what could be read, and what could not, with line and reason."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tutelage.core.errors import UserError
from tutelage.core.files import sha256_file
from tutelage.core.protocols import Progress, silent
from tutelage.data import formats
from tutelage.data.raw import Broken, Row, excerpt
from tutelage.data.records import KINDS, Context, Format, Found, Kept, RowError
from tutelage.data.sources import SUFFIXES, read_rows

PEEK = 200  # rows that vote on the format of a file
MANY_REASONS = 100  # distinct reasons that are counted by name


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A record that was not taken: never dropped in silence, and never a reason to stop."""

    file: str  # name without folders
    line: int
    reason: str  # "what: detail"; the part before the colon is what is counted
    raw: str  # at most 2 kB

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "reason": self.reason, "raw": self.raw}


@dataclass(slots=True)
class FileFacts:
    """What one source gave."""

    name: str
    format: str
    sha256: str | None  # None for hub sets
    bytes: int | None
    rows: int = 0  # raw rows, broken ones included
    kept: int = 0  # records; one row may give several
    quarantined: int = 0


class Reading:
    """The records and quarantined rows of one or more sources: iterate once, then look at the counts.

    UserError for a source that is broken as a whole, has no known format, gives not a single record, or differs
    in kind from the sources before it.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        format: str | None = None,
        field_map: dict[str, str] | None = None,
        license: str = "",
        as_kind: str | None = None,
        progress: Progress = silent,
    ):
        if as_kind is not None and as_kind not in KINDS:
            raise UserError(f"unknown kind {as_kind!r}; known: {', '.join(KINDS)}")
        self.sources = [each for source in sources for each in _expanded(source)]
        self.forced = formats.named(format) if format else None
        self.field_map, self.license, self.as_kind, self.progress = dict(field_map or {}), license, as_kind, progress
        self.kind = as_kind or (self.forced.kind if self.forced else "")  # "" until the first row was seen
        self.files: list[FileFacts] = []
        self.reasons: Counter[str] = Counter()
        self.source = ""  # the file and line of the record that was yielded last
        self.line = 0

    @property
    def kept(self) -> int:
        return sum(facts.kept for facts in self.files)

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())

    def __iter__(self) -> Iterator[Kept | Quarantined]:
        for source in self.sources:
            yield from self._one(source)

    def count(self, reason: str) -> None:
        key = reason_key(reason)
        self.reasons[key if key in self.reasons or len(self.reasons) < MANY_REASONS else "other"] += 1

    def _one(self, source: str | Path) -> Iterator[Kept | Quarantined]:
        name = source_name(source)
        self.source = name
        rows = read_rows(source)
        head = list(islice(rows, PEEK))
        fmt = self._format_of(head, source)
        on_hub = str(source).startswith("hf:")
        facts = FileFacts(
            name,
            fmt.name if fmt else "",
            None if on_hub else sha256_file(source),
            None if on_hub else Path(source).stat().st_size,
        )
        self.files.append(facts)
        ctx = Context(source=stem(name), license=self.license)
        first_fault: Quarantined | None = None
        for item in chain(head, rows):
            facts.rows += 1
            self.line = item.line
            for each in self._records(item, fmt, ctx):
                if isinstance(each, RowError):
                    facts.quarantined += 1
                    self.count(str(each))
                    each = Quarantined(name, item.line, str(each), _raw(item))
                    first_fault = first_fault or each
                else:
                    facts.kept += 1
                yield each
            if facts.rows % 1000 == 0:
                self.progress(f"reading {name}", facts.rows, 0)
        if facts.kept == 0:
            if facts.rows == 0:
                raise UserError(f"{source}: there is no record in the file")
            raise UserError(
                f"{source}: none of its {facts.rows} record(s) could be read; the first fault is on line {first_fault.line}: "
                f"{first_fault.reason}. Name the format (format=...) or map the fields (field_map=...) if the file is sound"
            )

    def _records(self, item: Row | Broken, fmt: Format, ctx: Context) -> Found:
        if isinstance(item, Broken):
            return [RowError(item.reason)]
        try:
            return formats.convert(self._value(item), fmt, ctx, kind=self.as_kind, strict=self.forced is not None)
        except RowError as error:
            return [error]

    def _value(self, item: Row) -> Any:
        value = formats.as_dict(item.value)
        if value is None:
            return item.value
        if self.field_map:
            value = formats.mapped(value, self.field_map)
        return {**value, "split": item.split} if item.split and "split" not in value else value

    def _format_of(self, head: list[Row | Broken], source: str | Path) -> Format | None:
        rows = [self._value(item) for item in head if isinstance(item, Row)]
        fmt = self.forced or formats.majority(rows)
        if fmt is None and rows:
            fields = sorted(rows[0]) if isinstance(rows[0], dict) else [type(rows[0]).__name__]
            raise UserError(
                f"{source}: no known format has the fields {', '.join(map(str, fields[:20]))} (line {head[0].line}). "
                f"Map the fields, for instance field_map={{'instruction': {str(fields[0])!r}}}, or name the format, "
                f"one of {', '.join(formats.BY_NAME)}"
            )
        if fmt is None:
            first = head[0] if head else None
            raise UserError(
                f"{source}: "
                + (
                    f"the first {len(head)} lines are all broken; line {first.line}: {first.reason}"
                    if first
                    else "there is no record in the file"
                )
            )
        if not self.kind:
            self.kind = fmt.kind
        elif not self.as_kind and fmt.kind != self.kind:
            raise UserError(
                f"{source}: holds {fmt.kind} ({fmt.name}), the sources before it {self.kind}; import them apart, or ask "
                "for one kind (as_kind='examples')"
            )
        return fmt


def _raw(item: Row | Broken) -> str:
    return item.raw if isinstance(item, Broken) else excerpt(json.dumps(item.value, ensure_ascii=False))


def _expanded(source: str | Path) -> list[str | Path]:
    if str(source).startswith("hf:") or not Path(source).is_dir():
        return [source]
    found = sorted(
        path
        for path in Path(source).iterdir()
        if path.is_file() and path.name.lower().removesuffix(".gz").endswith(SUFFIXES)
    )
    if not found:
        raise UserError(f"{source}: the folder holds no data file ({', '.join(SUFFIXES)}, each also with .gz)")
    return list(found)


def source_name(source: str | Path) -> str:
    return str(source) if str(source).startswith("hf:") else Path(source).name


def stem(name: str) -> str:
    """A file's name without its endings.

    >>> stem("dpo_en.jsonl.gz")
    'dpo_en'
    """
    if name.startswith("hf:"):
        return name
    name = name[:-3] if name.lower().endswith(".gz") else name
    return name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name


def reason_key(reason: str) -> str:
    """What a reason is counted under: the part before its detail.

    >>> reason_key("not JSON: Expecting value"), reason_key("clean:length: 3 characters")
    ('not JSON', 'clean:length')
    """
    parts = reason.split(":")
    return ":".join(parts[:2]).strip() if parts[0] == "clean" else parts[0].strip()


def reasons_line(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
