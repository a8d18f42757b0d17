"""Signing in: passwords (argon2id), one-time links, sessions, API tokens, lock-out, and counters for rate limits.

Secrets are 32 random bytes; the database keeps their SHA-256 alone, so a stolen copy of it opens nothing.  A password is
hashed with argon2id (RFC 9106) in argon2-cffi's default strength, outside of any transaction: it takes a tenth of a second.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import canonical_json
from tutelage.store import ledger, tables
from tutelage.store.accounts import Person, create_person, find_person
from tutelage.store.checks import NAME, need_title
from tutelage.store.db import Database, clock

SHORTEST, LONGEST = 10, 1024  # characters of a password
FAILURES, LOCKED = 5, 900.0  # wrong passwords in a row, and then seconds of waiting
SCOPES = ("read", "ask", "judge", "admin")
HASHER = PasswordHasher()
# Checked against when there is no such person, so that the answer takes as long.
NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$HHRpMoWLyD3LAJnRTB9m8xSxsoBl8ePQ5Wqr8AM9l/4"
people, sessions, links, tokens, hits = tables.people, tables.sessions, tables.links, tables.tokens, tables.hits


class SignInError(UserError):
    """Who it is could not be established.  The text does not say whether the name exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody is signed in."""

    secret: str  # goes into the cookie; empty when found
    csrf: str  # goes into every form
    person: Person
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A key for programs."""

    id: str
    secret: str  # shown once, when made; empty later
    person: str
    title: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# -- passwords ------------------------------------------------------------------------------------------------------


def set_password(db: Database, name: str, password: str, *, actor: str, now: float | None = None) -> None:
    """Set or change a password; this person's sessions end and a lock is lifted."""
    if not isinstance(password, str) or not SHORTEST <= len(password) <= LONGEST:
        raise UserError(f"a password has {SHORTEST} to {LONGEST} characters; a sentence of four words is easy to remember")
    if password.casefold() in (name.casefold(), name.casefold() * 2) or len(set(password)) < 4:
        raise UserError("this password is too easy to guess; a sentence of four words is easy to remember")
    hashed = HASHER.hash(password.encode("utf-8", "surrogatepass"))
    with db.write() as conn:
        find_person(conn, name, lock=True)
        conn.execute(update(people).where(people.c.name == name).values(password=hashed, failures=0, locked_until=0.0))
        conn.execute(delete(sessions).where(sessions.c.person == name))
        ledger.append(conn, kind="password", actor=actor, subject=name, content={}, now=clock(now))


def check_password(db: Database, name: str, password: str, *, now: float | None = None) -> Person:
    """The person, or SignInError.  After 5 wrong ones in a row nobody gets in by password for 15 minutes, right or wrong."""
    now = clock(now)
    wrong = SignInError("name or password is wrong")
    known = isinstance(name, str) and NAME.fullmatch(name)
    with db.write() as conn:
        # A try is counted before it is checked: many at once are counted as many, and no more than 5 are checked.
        row = known and conn.execute(select(people).where(people.c.name == name).with_for_update(key_share=True)).mappings().first()
        if row and row["locked_until"] > now:
            minutes = int((row["locked_until"] - now) // 60) + 1
            raise SignInError(f"too many wrong passwords; try again in {minutes} minute(s), or ask an admin for a one-time link")
        if row:
            failures = row["failures"] + 1
            conn.execute(update(people).where(people.c.name == name).values(
                failures=failures % FAILURES, locked_until=now + LOCKED if failures >= FAILURES else 0.0))
    right = _matches(row["password"] if row and row["password"] else NOBODY, password)
    if not row or not row["password"] or not right or not row["active"]:
        raise wrong
    with db.write() as conn:
        conn.execute(update(people).where(people.c.name == name).values(failures=0, locked_until=0.0))
        return find_person(conn, name)


def _matches(hashed: str, password: str) -> bool:
    if not isinstance(password, str) or len(password) > LONGEST:
        return False
    try:
        return HASHER.verify(hashed, password.encode("utf-8", "surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False


# -- one-time links -------------------------------------------------------------------------------------------------


def make_link(db: Database, name: str, *, actor: str, seconds: float = 86400.0, now: float | None = None) -> str:
    """A secret that signs this person in, once."""
    now, secret = clock(now), secrets.token_urlsafe(32)
    with db.write() as conn:
        if not find_person(conn, name, lock=True).active:
            raise UserError(f"{name} is not active; make the account active first")
        conn.execute(delete(links).where(links.c.expires < now))
        conn.execute(insert(links).values(digest=_digest(secret), person=name, expires=now + seconds))
        ledger.append(conn, kind="link", actor=actor, subject=name, content={"expires": now + seconds}, now=now)
    return secret


def use_link(db: Database, secret: str, *, now: float | None = None) -> Person:
    """The person for whom the link was made; SignInError when it was used, is too old, or never was.  A lock is lifted."""
    now = clock(now)
    with db.write() as conn:
        name = conn.execute(update(links).where(
            links.c.digest == _digest(secret), links.c.used.is_(None), links.c.expires > now).values(used=now)
            .returning(links.c.person)).scalar()
        person = name and find_person(conn, name)
        if not person or not person.active:
            raise SignInError("this link was used before, is too old, or is incomplete; ask for a new one")
        conn.execute(update(people).where(people.c.name == name).values(failures=0, locked_until=0.0))
        return person


def first_admin_link(db: Database, *, now: float | None = None) -> str | None:
    """A link for the first start: for "admin", who is made here, while no active admin has a password; later None."""
    with db.read() as conn:
        if conn.execute(select(people.c.name).where(people.c.role == "admin", people.c.active, people.c.password != "")).first():
            return None
        admin = conn.execute(select(people.c.name).where(people.c.role == "admin", people.c.active)
                             .order_by(people.c.created)).scalar()
    if admin is None:
        admin = create_person(db, "admin", "admin", actor="tutelage", now=now).name
    return make_link(db, admin, actor="tutelage", now=now)


# -- sessions -------------------------------------------------------------------------------------------------------


def open_session(db: Database, name: str, *, seconds: float = 43200.0, now: float | None = None) -> Session:
    now, secret, csrf = clock(now), secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    with db.write() as conn:
        person = find_person(conn, name)
        if not person.active:
            raise SignInError("this account is not active")
        conn.execute(delete(sessions).where(sessions.c.expires < now))
        conn.execute(insert(sessions).values(digest=_digest(secret), person=name, csrf=csrf, created=now, expires=now + seconds))
    return Session(secret=secret, csrf=csrf, person=person, expires=now + seconds)


def find_session(db: Database, secret: str, *, now: float | None = None) -> Session | None:
    with db.read() as conn:
        row = conn.execute(select(sessions).where(sessions.c.digest == _digest(secret), sessions.c.expires > clock(now))).first()
        person = row and find_person(conn, row.person)
        return Session(secret="", csrf=row.csrf, person=person, expires=row.expires) if person and person.active else None


def close_session(db: Database, secret: str) -> None:
    with db.write() as conn:
        conn.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def close_sessions(db: Database, name: str) -> None:
    with db.write() as conn:
        conn.execute(delete(sessions).where(sessions.c.person == name))


# -- API tokens -----------------------------------------------------------------------------------------------------


def make_token(db: Database, name: str, *, title: str, scopes: Iterable[str], seconds: float | None = None, actor: str,
               now: float | None = None) -> Token:
    """A key for programs that act as this person, within `scopes` (of SCOPES) and never beyond the person's role."""
    now, secret = clock(now), secrets.token_urlsafe(32)
    scopes = tuple(sorted(set(scopes)))
    if not scopes:
        raise UserError(f"a token needs at least one scope of {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in SCOPES:
            raise UserError(f"unknown scope {scope!r}{nearest(str(scope), SCOPES)}")
    token = Token(id=secrets.token_hex(8), secret=secret, person=name, title=need_title(title, "the title of a token"),
                  scopes=scopes, created=now, expires=None if seconds is None else now + seconds, revoked=None)
    with db.write() as conn:
        find_person(conn, name)
        conn.execute(insert(tokens).values(
            id=token.id, digest=_digest(secret), person=name, title=title, scopes=canonical_json(scopes), created=now,
            expires=token.expires, revoked=None))
        ledger.append(conn, kind="token", actor=actor, subject=name, content={"id": token.id, "scopes": scopes}, now=now)
    return token


def find_token(db: Database, secret: str, *, scope: str, now: float | None = None) -> Person | None:
    """The person behind a token that holds `scope` and is neither revoked nor too old."""
    now = clock(now)
    with db.read() as conn:
        row = conn.execute(select(tokens).where(tokens.c.digest == _digest(secret), tokens.c.revoked.is_(None))).first()
        if row is None or (row.expires is not None and row.expires <= now) or scope not in json.loads(row.scopes):
            return None
        person = find_person(conn, row.person)
        return person if person.active else None


def list_tokens(db: Database, name: str) -> list[Token]:
    with db.read() as conn:
        rows = conn.execute(select(tokens).where(tokens.c.person == name).order_by(tokens.c.created)).all()
    return [Token(id=row.id, secret="", person=row.person, title=row.title, scopes=tuple(json.loads(row.scopes)),
                  created=row.created, expires=row.expires, revoked=row.revoked) for row in rows]


def revoke_token(db: Database, token_id: str, *, name: str, actor: str, now: float | None = None) -> None:
    """End a token of person `name`."""
    now = clock(now)
    with db.write() as conn:
        done = conn.execute(update(tokens).where(tokens.c.id == token_id, tokens.c.person == name, tokens.c.revoked.is_(None))
                            .values(revoked=now))
        if not done.rowcount:
            raise UserError(f"{name} has no such token that is still valid")
        ledger.append(conn, kind="token", actor=actor, subject=name, content={"id": token_id, "revoked": True}, now=now)


# -- rate limits ----------------------------------------------------------------------------------------------------


def allow(db: Database, bucket: str, *, limit: int, seconds: float, now: float | None = None) -> bool:
    """Count a try, and say whether it is one of the first `limit` in this window of `seconds`.  `bucket`: "signin:203.0.113.7"."""
    now = clock(now)
    ends = (now // seconds + 1) * seconds
    key = bucket if len(bucket) <= 100 and "\0" not in bucket else _digest(bucket)
    new = (postgresql if db.kind == "postgresql" else sqlite).insert(hits).values(bucket=key, ends=ends, count=1)
    with db.write() as conn:
        conn.execute(delete(hits).where(hits.c.bucket == key, hits.c.ends < now))
        count = conn.execute(new.on_conflict_do_update(
            index_elements=[hits.c.bucket, hits.c.ends], set_={"count": hits.c.count + 1}).returning(hits.c.count)).scalar_one()
    return count <= limit
