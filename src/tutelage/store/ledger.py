"""The ledger: one table that only grows, each row bound to the one before it by a hash.

    digest = SHA-256(salt || canonical JSON of the content)      salt: 32 random bytes, as hex
    hash   = SHA-256(previous hash || canonical JSON of {seq, at, kind, actor, subject, digest, previous})

Content and salt stand in another table, so that text can be erased: both go, the digest stays and tells nobody what the
text was (the salt is gone too), an `erased` event says who did it and why, and the chain still verifies.  The chain shows
what was changed inside it; whoever may rewrite the whole file can build a new chain, so keep `seq` and `hash` of a
verification somewhere else and hand them to the next one as its anchor.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, update

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json
from tutelage.store.db import Database, clock
from tutelage.store.tables import contents, head, log, submissions

START = "0" * 64  # what stands before the first row
PAGE = 1000  # rows read or written at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the ledger with its content."""

    seq: int  # 1, 2, 3, ... without gaps
    at: float
    kind: str  # judgement, withdrawn, skipped, item, project, rubric, person, erased, ...
    actor: str  # the person's name
    subject: str  # what it is about: an item's id, a project's name, ...
    digest: str
    previous: str
    hash: str
    content: dict[str, Any] | None  # None: erased
    erased: bool = False


class Verdict(NamedTuple):
    """What `verify` found."""

    ok: bool
    rows: int
    erased: int  # rows whose content is gone by an `erased` event
    seq: int  # keep these two to anchor the next verification
    hash: str
    wrong: str  # the first thing that is wrong, or empty


class Note(NamedTuple):
    """What is to be appended."""

    kind: str
    actor: str
    subject: str
    content: dict[str, Any]


def content_digest(salt: str, content: str) -> str:
    return hashlib.sha256((salt + content).encode("utf-8")).hexdigest()


def row_hash(row: dict[str, Any]) -> str:
    """The hash of a row with the columns of `log`; its own `hash` is not part of it."""
    bound = {name: row[name] for name in ("seq", "at", "kind", "actor", "subject", "digest", "previous")}
    return hashlib.sha256((row["previous"] + canonical_json(bound)).encode("utf-8")).hexdigest()


def append_many(conn: Connection, notes: Iterable[Note], *, now: float) -> list[int]:
    """Append rows in a write transaction, and return their numbers.

    Call it late in the transaction: it holds the end of the chain until the transaction ends, and everybody else waits.
    """
    end = conn.execute(select(head).with_for_update()).one()
    seq, previous, rows, texts = end.seq, end.hash, [], []
    for note in notes:
        salt, content = secrets.token_hex(32), canonical_json(note.content)
        seq += 1
        row = {"seq": seq, "at": now, "kind": note.kind, "actor": note.actor, "subject": note.subject,
               "digest": content_digest(salt, content), "previous": previous}
        row["hash"] = previous = row_hash(row)
        rows.append(row)
        texts.append({"seq": seq, "salt": salt, "content": content})
    if rows:
        conn.execute(insert(log), rows)
        conn.execute(insert(contents), texts)
        conn.execute(update(head).values(seq=seq, hash=previous))
    return [row["seq"] for row in rows]


def append(conn: Connection, *, kind: str, actor: str, subject: str, content: dict[str, Any], now: float) -> int:
    """Append one row in a write transaction; its number.  As late as can be: see `append_many`."""
    return append_many(conn, [Note(kind, actor, subject, content)], now=now)[0]


def note(db: Database, *, kind: str, actor: str, subject: str, content: dict[str, Any], now: float | None = None) -> int:
    """Append one row in a transaction of its own (an export, an import, ...); its number."""
    with db.write() as conn:
        return append(conn, kind=kind, actor=actor, subject=subject, content=content, now=clock(now))


def last_seq(db: Database) -> int:
    """The number of the newest row: what a snapshot of the judgements keeps."""
    with db.read() as conn:
        return conn.execute(select(head.c.seq)).scalar_one()


def audit(db: Database, *, after: int = 0, limit: int = 100, kind: str | None = None, actor: str | None = None,
          subject: str | None = None, newest_first: bool = False) -> list[Entry]:
    """Rows of the ledger.  `after` is the last row already seen, in the direction of reading (0: from the beginning)."""
    found = select(log, contents.c.content).join(contents, contents.c.seq == log.c.seq, isouter=True)
    for column, wanted in ((log.c.kind, kind), (log.c.actor, actor), (log.c.subject, subject)):
        if wanted is not None:
            found = found.where(column == wanted)
    if after:
        found = found.where(log.c.seq < after if newest_first else log.c.seq > after)
    with db.read() as conn:
        rows = conn.execute(found.order_by(log.c.seq.desc() if newest_first else log.c.seq).limit(limit)).mappings().all()
    return [_entry(row) for row in rows]


def _entry(row: Any) -> Entry:
    values = dict(row)
    content = values.pop("content")
    return Entry(**values, content=None if content is None else json.loads(content), erased=content is None)


# -- erasing --------------------------------------------------------------------------------------------------------


def erase(db: Database, seqs: Sequence[int], *, actor: str, reason: str, now: float | None = None) -> int:
    """Remove the content of rows for good, and append an event for each that says so; how many there were to erase."""
    with db.write() as conn:
        return erase_rows(conn, seqs, actor=actor, reason=reason, now=clock(now))


def erase_rows(conn: Connection, seqs: Sequence[int], *, actor: str, reason: str, now: float) -> int:
    """As `erase`, within a write transaction."""
    kinds = {row.seq: row.kind for row in conn.execute(
        select(log.c.seq, log.c.kind).join(contents, contents.c.seq == log.c.seq)
        .where(log.c.seq.in_(seqs), contents.c.content.is_not(None)))}
    if refused := sorted(seq for seq, kind in kinds.items() if kind == "erased"):
        raise UserError(f"row {refused[0]} of the log says that something was erased; that stays")
    for seq in sorted(kinds):
        conn.execute(update(contents).where(contents.c.seq == seq).values(salt=None, content=None))
    append_many(conn, [Note("erased", actor, f"log:{seq}", {"seq": seq, "kind": kinds[seq], "reason": reason})
                       for seq in sorted(kinds)], now=now)
    return len(kinds)


# -- verifying ------------------------------------------------------------------------------------------------------


def verify(db: Database, *, anchor: tuple[int, str] | None = None) -> Verdict:
    """Recompute every digest and hash, and name the first row that is wrong.

    `anchor`: seq and hash of an earlier verification, kept elsewhere; a chain that was built anew does not hold them.
    Also wrong: a row that is missing, content that is gone without an `erased` event, and a judgement in the table
    `submissions` without its row in the log, or the other way round.
    """
    with db.read() as conn:
        end = conn.execute(select(head)).one()
        gone = {row.subject for row in conn.execute(select(log.c.subject).where(log.c.kind == "erased"))}
        counted = {row.seq: row.id for row in conn.execute(select(submissions.c.seq, submissions.c.id))}
        rows, erased, previous = 0, 0, START
        for row in _all(conn):
            rows += 1
            fault = _fault(row, rows, previous, gone, counted)
            if not fault and anchor and anchor[0] == rows and anchor[1] != row["hash"]:
                fault = "its hash is not the one that was kept: the log was built anew"
            if fault:
                return Verdict(False, rows, erased, end.seq, end.hash, f"row {rows} of the log: {fault}")
            erased += row["content"] is None
            previous = row["hash"]
        if (end.seq, end.hash) != (rows, previous):
            return Verdict(False, rows, erased, end.seq, end.hash, f"row {rows + 1} of the log: rows are missing at the end; "
                           f"there should be {end.seq}")
        if counted:
            return Verdict(False, rows, erased, end.seq, end.hash, f"judgement {min(counted.values())} has no row in the log")
        if anchor and anchor[0] > rows:
            return Verdict(False, rows, erased, end.seq, end.hash, f"row {rows + 1} of the log: the log once had {anchor[0]} rows")
    return Verdict(True, rows, erased, rows, previous, "")


def _all(conn: Connection) -> Iterator[Any]:
    found = select(log, contents.c.salt, contents.c.content).join(contents, contents.c.seq == log.c.seq, isouter=True)
    after = -(1 << 62)  # a row before the first would be wrong too
    while page := conn.execute(found.where(log.c.seq > after).order_by(log.c.seq).limit(PAGE)).mappings().all():
        yield from page
        after = page[-1]["seq"]


def _fault(row: Any, number: int, previous: str, gone: set[str], counted: dict[int, str]) -> str:
    """What is wrong with a row, or nothing.  `counted` loses the judgement of this row."""
    if row["seq"] != number:
        return f"missing; the next one is {row['seq']}"
    if row["previous"] != previous:
        return "it does not follow the row before it"
    if row["hash"] != row_hash(row):
        return "its hash is wrong: the row was changed"
    if row["content"] is None:
        if f"log:{number}" not in gone:
            return "its content is gone, and no event says that it was erased"
    elif row["digest"] != content_digest(row["salt"] or "", row["content"]):
        return "its content was changed"
    submission = counted.pop(number, None)
    if row["kind"] in ("judgement", "withdrawn") and submission != row["subject"]:
        return f"its judgement {row['subject']} is missing from the table"
    if row["kind"] not in ("judgement", "withdrawn") and submission is not None:
        return f"judgement {submission} names it, but it is no judgement"
    return ""
