"""The tables behind people's judgements: one schema for SQLite and PostgreSQL.

`log` is the record and only grows; `contents` holds the text that its digests are of, so that text can be erased.  The
other tables say how things stand now, and those that record a judgement (`submissions`) are never changed either.
Structured values are canonical JSON in text columns: JSON escapes the null byte, which PostgreSQL's text cannot hold.
Times are Unix seconds.  A change here needs a new file in `migrations/versions`; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(naming_convention={
    "pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
})


def _id(name: str = "id", **more) -> Column:
    return Column(name, String(64), primary_key=True, **more)


def _to(name: str, target: str, **more) -> Column:
    return Column(name, String(64), ForeignKey(target), nullable=False, **more)


def _number(name: str, kind: type = Integer) -> Column:
    return Column(name, kind, nullable=False)


def _text(name: str, size: int | None = None) -> Column:
    return Column(name, String(size) if size else Text, nullable=False)


# -- the ledger -----------------------------------------------------------------------------------------------------

head = Table(  # one row: the end of the chain; whoever appends holds it
    "head", metadata,
    Column("id", Integer, primary_key=True, autoincrement=False), _number("seq", BigInteger), _text("hash", 64))
log = Table(
    "log", metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False), _number("at", Double), _text("kind", 32), _text("actor", 200),
    _text("subject", 200), _text("digest", 64), _text("previous", 64), _text("hash", 64), Index(None, "subject"))
contents = Table(
    "contents", metadata,
    Column("seq", BigInteger, ForeignKey("log.seq"), primary_key=True, autoincrement=False),
    Column("salt", String(64)), Column("content", Text))  # both null: erased

# -- people ---------------------------------------------------------------------------------------------------------

people = Table(
    "people", metadata,
    _id("name"), _text("title", 200), _text("role", 20), _text("password"), _text("skills"), _text("languages"), _text("opt_outs"),
    _number("daily_limit"), _number("active", Boolean), _number("created", Double), _number("failures"),
    _number("locked_until", Double))
sessions = Table(
    "sessions", metadata,
    _id("digest"), _to("person", "people.name", index=True), _text("csrf", 64), _number("created", Double), _number("expires", Double))
links = Table(
    "links", metadata,
    _id("digest"), _to("person", "people.name"), _number("expires", Double), Column("used", Double))
tokens = Table(
    "tokens", metadata,
    _id(), Column("digest", String(64), nullable=False, unique=True), _to("person", "people.name", index=True), _text("title", 200),
    _text("scopes"), _number("created", Double), Column("expires", Double), Column("revoked", Double))
hits = Table(  # tries in a window of time, for rate limits
    "hits", metadata,
    Column("bucket", String(200), primary_key=True), Column("ends", Double, primary_key=True), _number("count"))

# -- projects and items ---------------------------------------------------------------------------------------------

rubrics = Table(
    "rubrics", metadata,
    _id("name"), Column("version", Integer, primary_key=True, autoincrement=False), _text("digest", 64), _text("body"))
projects = Table(
    "projects", metadata,
    _id("name"), _text("title", 200), _text("rubric", 100), _text("settings"), _number("created", Double))
items = Table(
    "items", metadata,
    _id(), _to("project", "projects.name"), _text("kind", 20), _number("batch"), _number("place", BigInteger),
    _text("language", 35), _text("skill", 64), Column("gold", Text), _number("attention", Boolean), _number("special", Boolean),
    _number("overlap"), _number("done"), _number("full", Boolean), _text("arm", 20),
    Column("seq", BigInteger, ForeignKey("contents.seq"), nullable=False),
    Index(None, "project", "full", "special", "batch", "place"))  # the queue's way through them
item_harms = Table(
    "item_harms", metadata,
    Column("item", String(64), ForeignKey("items.id"), primary_key=True), Column("category", String(64), primary_key=True))

# -- work -----------------------------------------------------------------------------------------------------------

leases = Table(
    "leases", metadata,
    _id(), _to("item", "items.id"), _to("person", "people.name"), _to("project", "projects.name"), _text("purpose", 20),
    _text("shown"), _text("rubric", 100), _number("granted", Double), _number("expires", Double), _text("state", 20),
    _number("round"), _text("draft"),
    UniqueConstraint("item", "person"),  # a person gets an item once
    Index(None, "item", "state", "expires"), Index(None, "person", "project", "state"))
submissions = Table(
    "submissions", metadata,
    _id(), Column("seq", BigInteger, ForeignKey("log.seq"), nullable=False, unique=True), _to("project", "projects.name"),
    _to("item", "items.id", index=True), _to("person", "people.name"), _to("lease", "leases.id"), _text("key", 200), _number("round"),
    Column("follows", String(64), ForeignKey("submissions.id"), unique=True),  # set: this one withdraws that one, once
    _number("at", Double), Column("seconds", Double),
    UniqueConstraint("person", "key"),  # a client's key is one judgement, however often it is sent
    Index("uq_submissions_standing", "lease", "round", unique=True, sqlite_where=Column("follows", String(64)).is_(None),
          postgresql_where=Column("follows", String(64)).is_(None)),
    Index(None, "project", "seq"), Index(None, "person", "at"))
