"""People: who may do what, in which languages, and what they do not wish to see.

A name is a pseudonym ("ann-07"): it stands in every judgement and in the log and cannot be erased, so it should not be
somebody's real name.  How they sign in is in `signin.py`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import canonical_json
from tutelage.store import ledger, tables
from tutelage.store.checks import need_count, need_label, need_name, need_title
from tutelage.store.db import Database, clock

MAY = {  # role -> what it may do
    "reader": {"read"},
    "annotator": {"annotate"},
    "adjudicator": {"annotate", "adjudicate", "read"},
    "admin": {"annotate", "adjudicate", "read", "administer"},
}
ROLES = tuple(MAY)
_LISTS = ("skills", "languages", "opt_outs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody with an account."""

    name: str
    role: str  # one of ROLES
    title: str = ""  # as shown to others, in any script
    skills: tuple[str, ...] = ()  # an item that asks for a skill goes only to people who have it
    languages: tuple[str, ...] = ()  # items in other languages are not handed out; empty: any language
    opt_outs: tuple[str, ...] = ()  # categories of harm that this person is not shown
    daily_limit: int = 0  # judgements a day (UTC) over all projects; 0: no limit
    active: bool = True
    has_password: bool = False
    created: float = 0.0
    locked_until: float = 0.0  # after too many wrong passwords

    def can(self, action: str) -> bool:
        """`action`: annotate, adjudicate, read or administer."""
        return self.active and action in MAY[self.role]


def create_person(db: Database, name: str, role: str, *, title: str = "", skills: Iterable[str] = (), languages: Iterable[str] = (),
                  opt_outs: Iterable[str] = (), daily_limit: int = 0, actor: str, now: float | None = None) -> Person:
    """A new account, without a way to sign in: see `signin.set_password` and `signin.make_link`."""
    now = clock(now)
    person = _checked(Person(name=name, role=role, title=title, skills=tuple(skills), languages=tuple(languages),
                             opt_outs=tuple(opt_outs), daily_limit=daily_limit, created=now))
    with db.write() as conn:
        conn.execute(select(tables.head).with_for_update())  # two at once: the second sees the first
        if conn.execute(select(tables.people.c.name).where(tables.people.c.name == name)).first():
            raise UserError(f"a person {name} is there already; choose another name, or change that account")
        conn.execute(insert(tables.people).values(**_row(person), password="", created=now, failures=0, locked_until=0.0))
        ledger.append(conn, kind="person", actor=actor, subject=name, content=_told(person), now=now)
    return person


def change_person(db: Database, name: str, *, actor: str, now: float | None = None, **changes: Any) -> Person:
    """Change role, title, skills, languages, opt_outs, daily_limit or active.  Who is no longer active is signed out.

    The last active admin stays one: UserError.
    """
    if unknown := set(changes) - {"role", "title", "daily_limit", "active", *_LISTS}:
        raise UserError(f"a person has no {sorted(unknown)[0]} that can be changed")
    changes = {key: tuple(value) if key in _LISTS else value for key, value in changes.items()}
    with db.write() as conn:
        before = find_person(conn, name, lock=True)  # locks in the order of `queue`: person, then the end of the log
        conn.execute(select(tables.head).with_for_update())
        person = _checked(replace(before, **changes))
        if before.can("administer") and not person.can("administer") and _admins(conn) == 1:
            raise UserError(f"{name} is the only active admin; make somebody else admin first")
        conn.execute(update(tables.people).where(tables.people.c.name == name).values(_row(person)))
        if not person.active:
            conn.execute(tables.sessions.delete().where(tables.sessions.c.person == name))
        ledger.append(conn, kind="person", actor=actor, subject=name, content=_told(person), now=clock(now))
    return person


def load_person(db: Database, name: str) -> Person:
    with db.read() as conn:
        return find_person(conn, name)


def find_person(conn: Connection, name: str, *, lock: bool = False) -> Person:
    """As `load_person`, within a transaction; `lock` makes others wait who lock the same person."""
    people = tables.people
    wanted = select(people).where(people.c.name == need_name(name, "a person"))
    # NO KEY UPDATE: a judgement that refers to this person does not have to wait
    row = conn.execute(wanted.with_for_update(key_share=True) if lock else wanted).mappings().first()
    if row is None:
        raise UserError(f"no person is named {name!r}{nearest(name, conn.execute(select(people.c.name)).scalars())}")
    return _person(row)


def list_people(db: Database) -> list[Person]:
    with db.read() as conn:
        return [_person(row) for row in conn.execute(select(tables.people).order_by(tables.people.c.name)).mappings()]


def _admins(conn: Connection) -> int:
    people = tables.people
    return len(conn.execute(select(people.c.name).where(people.c.role == "admin", people.c.active)).all())


def _checked(person: Person) -> Person:
    need_name(person.name, "a person")
    need_title(person.title, "the title of a person")
    if person.role not in ROLES:
        raise UserError(f"unknown role {person.role!r}{nearest(str(person.role), ROLES)}")
    for name in _LISTS:
        for label in getattr(person, name):
            need_label(label, f"one of the {name} of {person.name}")
    need_count(person.daily_limit, "daily_limit")
    if not isinstance(person.active, bool):
        raise UserError(f"active is true or false; got {person.active!r}")
    return person


def _person(row: Any) -> Person:
    return Person(
        **{name: row[name] for name in ("name", "role", "title", "daily_limit", "active", "created", "locked_until")},
        **{name: tuple(json.loads(row[name])) for name in _LISTS}, has_password=bool(row["password"]))


def _told(person: Person) -> dict[str, Any]:
    """What the log keeps of an account."""
    return {name: getattr(person, name) for name in ("name", "role", "title", "daily_limit", "active", *_LISTS)}


def _row(person: Person) -> dict[str, Any]:
    return {**_told(person), **{name: canonical_json(getattr(person, name)) for name in _LISTS}}
