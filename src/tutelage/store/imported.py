"""Judgements that were made elsewhere, put into a project with the names of those who made them.

Each becomes what the queue would have stored: an item, a lease that is done, a submission and a row of the log, so that
everything that reads judgements reads these too.  Importing the same again changes nothing.  Two things are not known of
them and are said in the flags of the judgement: `imported`, and `sides-unknown` where the file does not tell which
answer stood on the left.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from tutelage.core.errors import UserError
from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Response
from tutelage.store import ledger, tables
from tutelage.store.accounts import change_person, create_person, list_people
from tutelage.store.answers import Answers, check_answers, judgement_rows
from tutelage.store.checks import MOST_ITEM, need_name, stored_json
from tutelage.store.db import Database, clock
from tutelage.store.feedback import CHUNK, Item, Project, find_project, insert_items, item_content
from tutelage.store.queue import iso
from tutelage.store.rubrics import Rubric, find_rubric

items, leases, submissions = tables.items, tables.leases, tables.submissions


class Imported(NamedTuple):
    """One judgement by one person."""

    item: Item  # as `canonical_item` makes it
    person: str
    order: tuple[int, ...]  # the item's responses as they were shown
    values: dict[str, Any]  # as in Answers: in the order shown
    seconds: float | None = None
    sides_known: bool = True
    where: str = ""  # "file, line 3": for what is refused


class Refused(NamedTuple):
    vote: Imported
    reason: str


class Stored(NamedTuple):
    new: int
    known: int  # there already, the same
    refused: list[Refused]


def canonical_item(item: Item, *, project: str) -> tuple[Item, dict[int, int]]:
    """The item with its responses in an order that does not depend on the file, and: place in the file -> place in the item.

    Two people who saw the same answers with sides swapped judged one item, or they could not be compared.
    """
    plain = [each if each.sampling else _without_index(each) for each in item.responses]
    if len({each.id for each in plain}) != len(plain):
        raise UserError("same answer: two of the answers are the same")
    order = sorted(range(len(plain)), key=lambda at: (plain[at].policy, plain[at].text, plain[at].id))
    responses = tuple(plain[at] for at in order)
    # By what is asked and answered alone: tags or references may differ from row to row.
    key = sha256_bytes(canonical_json(["imported", project, item.kind, item.prompt and item.prompt.id,
                                       [each.id for each in responses]]).encode("utf-8"))[:32]
    return replace(item, id=key, responses=responses), {at: place for place, at in enumerate(order)}


def _without_index(response: Response) -> Response:
    return Response(prompt_id=response.prompt_id, text=response.text, policy=response.policy, finish=response.finish)


def person_name(name: str) -> str:
    """A name that a person may have here; one that had to be changed ends in a mark of what it was.

    >>> person_name("annotator1")
    'annotator1'
    >>> person_name("Jo Ann")
    'Jo-Ann-0e0f'
    """
    plain = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in name).strip("._-")[:50]
    if plain and plain == name:
        return name
    return f"{plain or 'person'}-{sha256_bytes(name.encode('utf-8', 'surrogatepass'))[:4]}"


def add_people(db: Database, names: Iterable[str], *, actor: str) -> list[str]:
    """Make the annotators that are not there yet; they cannot sign in.  Returns the new ones."""
    known = {person.name for person in list_people(db)}
    new = [name for name in dict.fromkeys(names) if name not in known]
    for name in new:
        create_person(db, need_name(name, "a person"), "annotator", actor=actor)
        change_person(db, name, actor=actor, active=False)
    return new


def add_judgements(db: Database, project: str, votes: Iterable[Imported], *, actor: str, source: str,
                   now: float | None = None) -> Stored:
    """Store judgements of people who are there (`add_people`); what does not fit the rubric is refused, with the reason."""
    now, new, known, refused = clock(now), 0, 0, []
    rest = iter(votes)
    while chunk := list(islice(rest, CHUNK)):
        added = _add(db, project, chunk, actor=actor, source=source, now=now)
        new, known, refused = new + added.new, known + added.known, refused + added.refused
    return Stored(new, known, refused)


def _add(db: Database, name: str, votes: Sequence[Imported], *, actor: str, source: str, now: float) -> Stored:
    with db.write() as conn:
        conn.execute(select(tables.head).with_for_update())
        project = find_project(conn, name)
        rubric = find_rubric(conn, project.rubric)
        fitting, refused = [], []
        for vote in votes:
            try:
                check_answers(rubric, Answers(values=vote.values, seconds=vote.seconds), kind=vote.item.kind,
                              shown=[vote.item.responses[place].text for place in vote.order])
                stored_json(item_content(vote.item), "an item", most=MOST_ITEM)
                fitting.append(vote)
            except UserError as error:
                refused.append(Refused(vote, str(error)))
        _add_items(conn, project, {vote.item.id: vote.item for vote in fitting}, actor=actor, now=now)
        before = _said(conn, {vote.item.id for vote in fitting})
        fresh: dict[tuple[str, str], Imported] = {}
        known = 0
        for vote in fitting:
            key = (vote.item.id, vote.person)
            said = before.get(key) or (fresh[key].order, fresh[key].values) if key in before or key in fresh else None
            if said is None:
                fresh[key] = vote
            elif said == (vote.order, vote.values):
                known += 1
            else:
                refused.append(Refused(vote, "judged twice: the same person judged the same answers before, and differently"))
        _store(conn, project, rubric, list(fresh.values()), actor=actor, source=source, now=now)
        return Stored(len(fresh), known, refused)


def _add_items(conn: Connection, project: Project, wanted: dict[str, Item], *, actor: str, now: float) -> None:
    there = set(conn.execute(select(items.c.id).where(items.c.id.in_(list(wanted)))).scalars())
    insert_items(conn, [replace(item, project=project.name, overlap=1) for key, item in wanted.items() if key not in there],
                 actor=actor, now=now)


def _said(conn: Connection, keys: set[str]) -> dict[tuple[str, str], tuple[tuple[int, ...], dict[str, Any]]]:
    """(item, person) -> (order, values) of everything that was said of the items, withdrawn or not: a lease is a person's only one."""
    found = (select(leases.c.item, leases.c.person, leases.c.shown, tables.contents.c.content)
             .join(submissions, submissions.c.lease == leases.c.id, isouter=True)
             .join(tables.contents, tables.contents.c.seq == submissions.c.seq, isouter=True)
             .where(leases.c.item.in_(keys)).order_by(submissions.c.seq))
    return {(row.item, row.person): (tuple(json.loads(row.shown)), json.loads(row.content or "{}").get("answers", {}))
            for row in conn.execute(found)}


def _store(conn: Connection, project: Project, rubric: Rubric, votes: list[Imported], *, actor: str, source: str,
           now: float) -> None:
    if not votes:
        return
    notes, lease_rows, rows = [], [], []
    for vote in votes:
        lease, submission, order = secrets.token_hex(16), secrets.token_hex(16), list(vote.order)
        answers = Answers(values=vote.values, seconds=vote.seconds)
        flags = ("imported",) if vote.sides_known else ("imported", "sides-unknown")
        said = judgement_rows(rubric, answers, [vote.item.responses[place] for place in order], judge=f"human:{vote.person}",
                              at=iso(now), submission=submission, flags=flags)
        notes.append(ledger.Note("judgement", actor, submission, {
            "item": vote.item.id, "project": project.name, "lease": lease, "order": order, "rubric": rubric.ref,
            "answers": answers.given(), "seconds": vote.seconds, "judgements": [each.to_dict() for each in said],
            "imported": source}))
        lease_rows.append({"id": lease, "item": vote.item.id, "person": vote.person, "project": project.name, "purpose": "judge",
                           "shown": canonical_json(order), "rubric": rubric.ref, "granted": now, "expires": now, "state": "done",
                           "round": 0, "draft": ""})
        rows.append({"id": submission, "project": project.name, "item": vote.item.id, "person": vote.person, "lease": lease,
                     "key": f"import:{vote.item.id}", "round": 0, "follows": None, "at": now, "seconds": vote.seconds})
    seqs = ledger.append_many(conn, notes, now=now)
    conn.execute(insert(leases), lease_rows)
    conn.execute(insert(submissions), [{**row, "seq": seq} for row, seq in zip(rows, seqs, strict=True)])
    # An item has as much room as was used: nobody is asked again for what was imported.
    keys = {vote.item.id for vote in votes}
    counted = conn.execute(
        select(items.c.id, items.c.overlap, func.count(leases.c.id)).join(leases, leases.c.item == items.c.id)
        .where(items.c.id.in_(keys), leases.c.state == "done", leases.c.purpose != "adjudicate").group_by(items.c.id)).all()
    conn.execute(update(items).where(items.c.id == bindparam("key")), [
        {"key": key, "done": done, "overlap": max(done, overlap), "full": done >= overlap} for key, overlap, done in counted])
