"""The queue: who gets which item, and what becomes of it.

Promises, held against several processes at once:
  - standing judgements and live leases of an item never exceed its overlap (one of them per person);
  - a judgement that was acknowledged is stored exactly once, however often its key is sent;
  - nothing is lost: an expired lease may still be submitted while the item has room.

How: on SQLite a write transaction is alone.  On PostgreSQL whoever decides about an item holds its row; the order of locks
is person, item, end of the log, so that nobody waits in a circle.  The table `leases` has one row an item and person:
`open` until it expires, `done` while a judgement stands, `skipped`.  An open lease that has expired counts for nothing.
Whether a lease is still live is asked of the clock after the locks are held: whoever waited for a lock and went by the time
before the wait could keep an item that was given to somebody else in between.
"""

import json
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, case, exists, func, insert, or_, select, update

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json
from tutelage.core.words import Judgement, Prompt, Response
from tutelage.store import ledger, tables
from tutelage.store.accounts import Person, find_person
from tutelage.store.answers import Answers, check_answers
from tutelage.store.checks import MOST_ANSWER, MOST_ITEM, need_count, need_key, stored_json
from tutelage.store.db import Database, clock
from tutelage.store.feedback import (
    Item,
    Lease,
    Project,
    chance,
    find_item,
    find_project,
    insert_items,
    item_content,
    to_judgements,
)
from tutelage.store.rubrics import Rubric, find_rubric

UNDO_DEPTH = 10  # of the newest judgements and skips of a person in a project
MOST_AHEAD = 20  # leases that one call hands out
DAY = 86400
items, leases, submissions = tables.items, tables.leases, tables.submissions


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """All that is needed to show an item."""

    item: Item
    lease: Lease
    rubric: Rubric
    shown: tuple[Response, ...]  # in the order of the lease
    draft: dict[str, Any] | None


class Offer(NamedTuple):
    """What there is to do for a person."""

    handed: tuple[Handed, ...]
    reason: str  # why there is not more: finished, daily-limit, closed, not-allowed; or nothing
    left_today: int | None  # None: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a submission."""

    status: str  # stored; late (others have filled the item), judged (by this person already), skipped: nothing was stored
    submission: str
    lease: str
    duplicate: bool = False  # the same key came before: this is its outcome
    judgements: tuple[Judgement, ...] = ()
    reveal: tuple[str, ...] = ()  # policies in the order shown, where the project reveals them after the vote


# -- handing out ----------------------------------------------------------------------------------------------------


def next_item(db: Database, person: str, project: str, *, now: float | None = None) -> Handed | None:
    """The item that this person should see now, or None; `next_items` says why there is none."""
    handed = next_items(db, person, project, now=now).handed
    return handed[0] if handed else None


def next_items(db: Database, person: str, project: str, *, count: int = 1, now: float | None = None) -> Offer:
    """Up to `count` items: first those already in this person's hands, so that a reload shows the same, then new ones."""
    if not 1 <= need_count(count, "count") <= MOST_AHEAD:
        raise UserError(f"count is 1 to {MOST_AHEAD} items; got {count}")
    offer = None
    while offer is None:  # a transaction a lease: nobody holds one item while waiting for another
        with db.write() as conn:
            who, where, at = find_person(conn, person, lock=True), find_project(conn, project), clock(now)
            held, reason = _held(conn, who, where, at), ""
            if len(held) < count:
                reason = _refusal(conn, who, where, len(held), at)
                item = None if reason else _choose(conn, db.kind, who, where, at)
                if item:
                    _grant(conn, item, who, where, at)
                    held = _held(conn, who, where, at)
                reason = reason or ("" if item else "finished")
            if reason or len(held) >= count:
                offer = Offer(tuple(_handed(conn, row) for row in held[:count]), reason, _left_today(conn, who, where, at))
    half = where.settings.lease_seconds / 2
    return offer._replace(handed=tuple(  # seen again: the lease runs anew
        replace(each, lease=renew(db, each.lease.id, person, now=now)) if each.lease.expires - at < half else each
        for each in offer.handed))


def _held(conn: Connection, person: Person, project: Project, now: float) -> list[Any]:
    """Live leases of a person, those that a reload shows first at the beginning."""
    return list(conn.execute(
        select(leases).join(items, items.c.id == leases.c.item)
        .where(leases.c.person == person.name, leases.c.project == project.name, leases.c.state == "open",
               leases.c.expires > now, leases.c.purpose == "judge")
        .order_by(leases.c.granted, items.c.batch, items.c.place)).mappings())


def _refusal(conn: Connection, person: Person, project: Project, held: int, now: float) -> str:
    if not person.can("annotate"):
        return "not-allowed"
    if not project.settings.open:
        return "closed"
    left = _left_today(conn, person, project, now)
    return "daily-limit" if left is not None and left <= held else ""


def _left_today(conn: Connection, person: Person, project: Project, now: float) -> int | None:
    limits = [(person.daily_limit, None), (project.settings.daily_limit, project.name)]
    left = [limit - _judged_today(conn, person.name, name, now) for limit, name in limits if limit]
    return max(min(left), 0) if left else None


def judged_today(db: Database, person: str, *, project: str | None = None, now: float | None = None) -> int:
    """Judgements of this day (UTC) that stand."""
    with db.read() as conn:
        return _judged_today(conn, person, project, clock(now))


def _judged_today(conn: Connection, person: str, project: str | None, now: float) -> int:
    found = select(func.count(), func.count(submissions.c.follows)).where(
        submissions.c.person == person, submissions.c.at >= now // DAY * DAY)
    made, withdrawn = conn.execute(found if project is None else found.where(submissions.c.project == project)).one()
    return made - 2 * withdrawn  # a withdrawal is a row too


def _choose(conn: Connection, kind: str, person: Person, project: Project, now: float) -> str | None:
    """The id of an item for this person, its row locked, or None.  Gold and attention items come in at the project's share."""
    ordinary, special = _candidates(person, project, now, special=False), _candidates(person, project, now, special=True)
    had = conn.execute(select(func.count()).where(leases.c.person == person.name, leases.c.project == project.name)).scalar_one()
    if project.settings.gold_share and chance("gold", project.name, person.name, had) < project.settings.gold_share:
        # Only while ordinary items are left: the checks are there for the sake of the others.
        if conn.execute(ordinary.limit(1)).first() and (found := _lock_one(conn, kind, special, now)):
            return found
    return _lock_one(conn, kind, ordinary, now)


def _candidates(person: Person, project: Project, now: float, *, special: bool) -> Select:
    """Items with room that this person may get and has not had, best first."""
    mine = and_(leases.c.item == items.c.id, leases.c.person == person.name,
                or_(leases.c.state != "open", leases.c.expires > now))  # one's own expired lease is no bar
    found = select(items.c.id, items.c.overlap, items.c.done).where(
        items.c.project == project.name, items.c.full.is_(False), items.c.special.is_(special),
        items.c.skill.in_(["", *person.skills]), ~exists().where(mine),
        items.c.overlap - items.c.done > _live(items.c.id, now).scalar_subquery())
    if person.languages:
        found = found.where(items.c.language.in_(["", *person.languages]))
    if person.opt_outs:
        harms = tables.item_harms
        found = found.where(~exists().where(harms.c.item == items.c.id, harms.c.category.in_(person.opt_outs)))
    return found.order_by(items.c.batch, items.c.place)


def _live(item: Any, now: float) -> Select:
    """How many leases of an item count against its overlap."""
    return select(func.count()).select_from(leases).where(
        leases.c.item == item, leases.c.state == "open", leases.c.expires > now, leases.c.purpose == "judge")


def _lock_one(conn: Connection, kind: str, candidates: Select, now: float) -> str | None:
    """Lock the first candidate that still has room; on SQLite the whole database is locked already."""
    if kind == "sqlite":
        row = conn.execute(candidates.limit(1)).first()
        return row and row.id
    passed: list[str] = []
    for skip_locked in (True, False):  # others hold the last ones: wait for them before saying that none is left
        while row := conn.execute(candidates.where(items.c.id.not_in(passed)).limit(1)
                                  .with_for_update(of=items, key_share=True, skip_locked=skip_locked)).first():
            # The query saw the leases of the moment when it began; now that the row is ours, count again.
            if row.overlap - row.done > conn.execute(_live(row.id, now)).scalar_one():
                return row.id
            passed.append(row.id)
    return None


def _grant(conn: Connection, item: str, person: Person, project: Project, now: float, *, purpose: str = "judge",
           draw: str = "") -> str:
    """Lease an item: a new row, or the person's own expired one, with the order that it had.  `draw`: drawn by this, not the item."""
    expires = now + project.settings.lease_seconds
    again = conn.execute(update(leases).where(leases.c.item == item, leases.c.person == person.name).values(
        granted=now, expires=expires, rubric=project.rubric).returning(leases.c.id)).scalar()
    if again:
        return again
    count = len(find_item(conn, item).responses)
    # Blind and balanced: the draw depends on item and person alone, so a person sees the same order after any trouble.
    order = list(range(count))
    if project.settings.shuffle:
        random.Random(chance("order", draw or item, person.name)).shuffle(order)
    lease = secrets.token_hex(16)
    conn.execute(insert(leases).values(
        id=lease, item=item, person=person.name, project=project.name, purpose=purpose, shown=canonical_json(order),
        rubric=project.rubric, granted=now, expires=expires, state="open", round=0, draft=""))
    return lease


def _handed(conn: Connection, row: Any) -> Handed:
    item, lease = find_item(conn, row["item"]), as_lease(row)
    return Handed(item=item, lease=lease, rubric=find_rubric(conn, lease.rubric), draft=json.loads(row["draft"] or "null"),
                  shown=tuple(item.responses[place] for place in lease.order))


def as_lease(row: Any) -> Lease:
    """A Lease from a row of the table."""
    return Lease(order=tuple(json.loads(row["shown"])),
                 **{name: row[name] for name in ("id", "item", "person", "project", "rubric", "granted", "expires", "state",
                                                 "round", "purpose")})


# -- one's own lease ------------------------------------------------------------------------------------------------


def _own(conn: Connection, lease_id: str, person: str) -> Any:
    """The row of this person's lease, with its item's row locked before it was read."""
    mine = and_(leases.c.id == lease_id, leases.c.person == person)
    if not isinstance(lease_id, str) or "\0" in lease_id or "\0" in str(person):
        raise UserError("no such lease")
    item = conn.execute(select(leases.c.item).where(mine)).scalar()
    if item is None:
        raise UserError("no such lease: it was never handed to you, or it is somebody else's; ask for the next item")
    conn.execute(select(items.c.id).where(items.c.id == item).with_for_update(key_share=True))
    return conn.execute(select(leases).where(mine)).mappings().one()


def handed(db: Database, lease_id: str, person: str) -> Handed:
    """One of this person's leases with its item, whatever its state."""
    with db.read() as conn:
        row = conn.execute(select(leases).where(leases.c.id == lease_id, leases.c.person == person)).mappings().first()
        if row is None:
            raise UserError("no such lease")
        return _handed(conn, row)


def renew(db: Database, lease_id: str, person: str, *, now: float | None = None) -> Lease:
    """Somebody is still at it: the lease runs anew.  An expired one is not renewed; submit says what became of it."""
    with db.write() as conn:
        row, now = dict(_own(conn, lease_id, person)), clock(now)
        if row["state"] == "open" and row["expires"] > now:
            row["expires"] = now + find_project(conn, row["project"]).settings.lease_seconds
            conn.execute(update(leases).where(leases.c.id == lease_id).values(expires=row["expires"]))
        return as_lease(row)


def release(db: Database, lease_id: str, person: str, *, now: float | None = None) -> None:
    """Give an item back unjudged: others may have it, and this person may get it again."""
    with db.write() as conn:
        if _own(conn, lease_id, person)["state"] == "open":
            conn.execute(update(leases).where(leases.c.id == lease_id).values(expires=clock(now)))


def save_draft(db: Database, lease_id: str, person: str, values: dict[str, Any]) -> None:
    """Keep a half-filled form; `Handed.draft` brings it back.  It goes when the judgement comes."""
    draft = stored_json(values, "the draft", most=MOST_ANSWER)
    with db.write() as conn:
        if _own(conn, lease_id, person)["state"] == "open":
            conn.execute(update(leases).where(leases.c.id == lease_id).values(draft=draft))


# -- what comes back ------------------------------------------------------------------------------------------------


def submit(db: Database, lease_id: str, person: str, *, key: str, answers: Answers, now: float | None = None) -> Outcome:
    """Store a judgement, once.  UserError when the answers do not fit the rubric, or the lease is not this person's.

    `key` is the client's mark of this submission: what was stored under it is told again, and nothing is stored twice.  What came
    too late is not kept: sent again with its key, it is taken where there is room by then.
    """
    need_key(key)
    with db.write() as conn:
        row, now = _own(conn, lease_id, person), clock(now)
        before = conn.execute(select(submissions.c.id, submissions.c.lease, submissions.c.seq).where(
            submissions.c.person == person, submissions.c.key == key)).first()
        if before and before.lease != lease_id:
            raise UserError("this key was used for another item; every submission needs a key of its own, for instance a UUID")
        if before:
            return _repeat(conn, row, before)
        status = _status(conn, row, now)
        if status != "stored":
            return Outcome(status=status, submission="", lease=lease_id)
        return _store(conn, row, key, answers, now)


def _status(conn: Connection, row: Any, now: float) -> str:
    """What would become of a submission now; the item's row is locked."""
    if row["state"] != "open":
        return "judged" if row["state"] == "done" else row["state"]
    if row["expires"] > now or row["purpose"] != "judge":
        return "stored"
    item = conn.execute(select(items.c.overlap, items.c.done, items.c.full).where(items.c.id == row["item"])).one()
    return "late" if item.full or item.overlap - item.done <= conn.execute(_live(row["item"], now)).scalar_one() else "stored"


def _store(conn: Connection, row: Any, key: str, answers: Answers, now: float) -> Outcome:
    item, lease = find_item(conn, row["item"]), as_lease(row)
    rubric, project = find_rubric(conn, lease.rubric), find_project(conn, lease.project)
    shown = [item.responses[place] for place in lease.order]
    check_answers(rubric, answers, kind=item.kind, shown=[response.text for response in shown])
    submission = secrets.token_hex(16)
    rows = to_judgements(item, lease, answers, rubric=rubric, submission=submission, at=iso(now))
    conn.execute(update(leases).where(leases.c.id == lease.id).values(state="done", draft=""))
    _count(conn, lease, 1)
    content = {"item": item.id, "project": project.name, "lease": lease.id, "order": lease.order, "rubric": lease.rubric,
               "answers": answers.given(), "seconds": answers.seconds, "judgements": [each.to_dict() for each in rows]}
    _append(conn, lease, submission, key, "judgement", content, now, seconds=answers.seconds)
    return Outcome(status="stored", submission=submission, lease=lease.id, judgements=rows, reveal=_reveal(project, lease, shown))


def _append(conn: Connection, lease: Lease, submission: str, key: str, kind: str, content: dict[str, Any], now: float, *,
            seconds: float | None = None, follows: str | None = None) -> None:
    seq = ledger.append(conn, kind=kind, actor=lease.person, subject=submission, content=content, now=now)
    conn.execute(insert(submissions).values(
        id=submission, seq=seq, project=lease.project, item=lease.item, person=lease.person, lease=lease.id, key=key,
        round=lease.round, follows=follows, at=now, seconds=seconds))


def _count(conn: Connection, lease: Lease, more: int) -> None:
    """Keep the item's count of standing judgements; adjudication is outside it."""
    if lease.purpose != "adjudicate":
        done = items.c.done + more
        full = done >= items.c.overlap if lease.purpose == "judge" else True  # a turn is for nobody else, undone or not
        conn.execute(update(items).where(items.c.id == lease.item).values(done=done, full=full))


def _reveal(project: Project, lease: Lease, shown: Sequence[Response]) -> tuple[str, ...]:
    """A conversation goes on after its turns, with the same two behind the same letters."""
    return tuple(response.policy for response in shown) if project.settings.reveal and lease.purpose != "turn" else ()


def _repeat(conn: Connection, row: Any, before: Any) -> Outcome:
    """The outcome that this key had the first time."""
    text = conn.execute(select(tables.contents.c.content).where(tables.contents.c.seq == before.seq)).scalar()
    rows, reveal = (), ()
    if text is not None:
        item = find_item(conn, row["item"])
        rows = tuple(Judgement.from_dict(each) for each in json.loads(text)["judgements"])
        reveal = _reveal(find_project(conn, row["project"]), as_lease(row), [item.responses[place] for place in json.loads(row["shown"])])
    return Outcome(status="stored", submission=before.id, lease=row["id"], duplicate=True, judgements=rows, reveal=reveal)


def iso(now: float) -> str:
    """Unix seconds as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def skip(db: Database, lease_id: str, person: str, *, reason: str, now: float | None = None) -> bool:
    """Not this one: it goes to others.  False when it was judged or skipped before."""
    stored_json(reason, "the reason", most=10_000)
    with db.write() as conn:
        row, now = _own(conn, lease_id, person), clock(now)
        if row["state"] != "open":
            return False
        conn.execute(update(leases).where(leases.c.id == lease_id).values(state="skipped", granted=now))
        ledger.append(conn, kind="skipped", actor=person, subject=row["item"], content={"lease": lease_id, "reason": reason}, now=now)
        return True


def recent(db: Database, person: str, project: str, *, limit: int = UNDO_DEPTH) -> list[Lease]:
    """What this person judged or skipped, newest first: the first `UNDO_DEPTH` of them can be undone."""
    with db.read() as conn:
        return [as_lease(row) for row in _recent(conn, person, project, limit)]


def _recent(conn: Connection, person: str, project: str, limit: int) -> list[Any]:
    said = select(submissions.c.lease, func.max(submissions.c.at).label("at")).where(
        submissions.c.person == person, submissions.c.project == project).group_by(submissions.c.lease).subquery()
    when = case((leases.c.state == "skipped", leases.c.granted), else_=said.c.at)  # a skip sets `granted` to its time
    return list(conn.execute(
        select(leases).join(said, said.c.lease == leases.c.id, isouter=True)
        .where(leases.c.person == person, leases.c.project == project, leases.c.state != "open")
        .order_by(when.desc(), leases.c.id).limit(limit)).mappings())


def undo(db: Database, lease_id: str, person: str, *, now: float | None = None) -> Handed:
    """Withdraw the judgement (or the skip) of a lease, and hand the same item back in the same order.

    A withdrawal is a row of its own that follows the judgement; that one stays as it was.  Undoing twice changes nothing more.
    """
    with db.write() as conn:
        row, now = _own(conn, lease_id, person), clock(now)
        if row["state"] != "open":
            if lease_id not in [each["id"] for each in _recent(conn, person, row["project"], UNDO_DEPTH)]:
                raise UserError(f"only your last {UNDO_DEPTH} judgements can be undone; this one is older")
            item = conn.execute(select(items.c.overlap, items.c.done, items.c.full).where(items.c.id == row["item"])).one()
            if row["state"] == "skipped" and (
                    item.full or item.overlap - item.done <= conn.execute(_live(row["item"], now)).scalar_one()):
                raise UserError("others have judged this item since you skipped it")
            lease = as_lease(row)
            expires = now + find_project(conn, lease.project).settings.lease_seconds
            draft = _withdraw(conn, lease, now) if row["state"] == "done" else row["draft"]
            if row["state"] == "skipped":
                ledger.append(conn, kind="unskipped", actor=person, subject=lease.item, content={"lease": lease_id}, now=now)
            conn.execute(update(leases).where(leases.c.id == lease_id).values(
                state="open", granted=row["granted"], expires=expires, round=lease.round + 1, draft=draft))
            row = conn.execute(select(leases).where(leases.c.id == lease_id)).mappings().one()
        return _handed(conn, row)


def _withdraw(conn: Connection, lease: Lease, now: float) -> str:
    """Append the withdrawal of the judgement that stands; what it said comes back as a draft."""
    stands = conn.execute(select(submissions.c.id, tables.contents.c.content)
                          .join(tables.contents, tables.contents.c.seq == submissions.c.seq)
                          .where(submissions.c.lease == lease.id, submissions.c.round == lease.round,
                                 submissions.c.follows.is_(None))).one()
    if stands.content is None:
        raise UserError("this judgement was erased and cannot be undone")
    said = json.loads(stands.content)
    rows = [Judgement.from_dict(each) for each in said["judgements"]]
    withdrawn = [Judgement(judge=each.judge, kind="label", rubric=each.rubric, responses=each.responses, flags=("withdrawn",),
                           at=iso(now), follows=each.id) for each in rows]
    _count(conn, lease, -1)
    _append(conn, lease, secrets.token_hex(16), f"undo:{stands.id}", "withdrawn",
            {"item": lease.item, "project": lease.project, "follows": stands.id,
             "judgements": [each.to_dict() for each in withdrawn]}, now, follows=stands.id)
    return canonical_json(said["answers"])


# -- outside the ordinary way ---------------------------------------------------------------------------------------


def adjudicate(db: Database, item_id: str, person: str, *, now: float | None = None) -> Handed:
    """Hand an item to an adjudicator, outside its overlap; submit as usual, the judgements get the flag "adjudication"."""
    now = clock(now)
    with db.write() as conn:
        who = find_person(conn, person, lock=True)
        if not who.can("adjudicate"):
            raise UserError(f"{person} is {who.role}; only adjudicators and admins settle disagreements")
        item = find_item(conn, item_id)
        row = conn.execute(select(leases).where(leases.c.item == item_id, leases.c.person == person)).mappings().first()
        if row and row["purpose"] != "adjudicate":
            raise UserError(f"{person} had item {item_id} as an annotator; somebody else must settle it")
        if row is None or row["state"] == "open":
            lease = _grant(conn, item_id, who, find_project(conn, item.project), now, purpose="adjudicate")
            row = conn.execute(select(leases).where(leases.c.id == lease)).mappings().one()
        return _handed(conn, row)


def turn_id(chat: str, number: int) -> str:
    """The id of the item that is turn `number`, from 0, of a chat; `chat` is its lease."""
    return f"{chat}.{number}"


def chat_of(turn: str) -> str:
    """The lease of the chat that an item is a turn of; empty for a turn of none.

    >>> chat_of(turn_id("0a1b", 3)), chat_of("0a1b")
    ('0a1b', '')
    """
    return turn.rpartition(".")[0]


def add_turn(db: Database, project: str, person: str, *, prompt: Prompt, responses: Sequence[Response], kind: str = "pair",
             chat: Handed | None = None, number: int = 0, now: float | None = None) -> Handed:
    """A turn of a live chat: the answers just given become an item of their own, for this person, who judges them at once.

    `chat` and `number`: the turn has its place in that chat, and the order of the answers is drawn once for the whole of it.
    A turn that is there already stays as it was, and is handed back.
    """
    now = clock(now)
    item = Item(kind=kind, prompt=prompt, responses=tuple(responses), project=project, overlap=1,
                id=turn_id(chat.lease.id, number) if chat else secrets.token_hex(16), batch=chat.item.batch if chat else 0,
                language=chat.item.language if chat else "", harms=chat.item.harms if chat else ())
    stored_json(item_content(item), "a turn", most=MOST_ITEM)
    with db.write() as conn:
        who, where = find_person(conn, person, lock=True), find_project(conn, project)
        if not who.can("annotate") or not where.settings.open:
            raise UserError(f"{person} cannot judge in {project}: " + (
                "the project is closed" if who.can("annotate") else f"the role is {who.role}"))
        conn.execute(select(tables.head).with_for_update())
        mine = select(leases).where(leases.c.item == item.id, leases.c.person == person)
        if chat is None or conn.execute(mine).first() is None:
            insert_items(conn, [item], actor=person, now=now)
            conn.execute(update(items).where(items.c.id == item.id).values(full=True))  # nobody else gets it
            _grant(conn, item.id, who, where, now, purpose="turn", draw=chat.item.id if chat else "")
        return _handed(conn, conn.execute(mine).mappings().one())


def left_in_batch(db: Database, person: str, project: str, batch: int, *, most: int = 100, now: float | None = None) -> int:
    """Items of a batch that this person holds or may still get; counted up to `most`."""
    with db.read() as conn:
        who, where, at = find_person(conn, person), find_project(conn, project), clock(now)
        held = [row["item"] for row in _held(conn, who, where, at)]
        mine = conn.execute(select(func.count()).where(items.c.id.in_(held), items.c.batch == batch)).scalar_one()
        free = _candidates(who, where, at, special=False).where(items.c.batch == batch).order_by(None).limit(most).subquery()
        return min(mine + conn.execute(select(func.count()).select_from(free)).scalar_one(), most)
