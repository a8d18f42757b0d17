"""The database: SQLite (one file, no set-up) or PostgreSQL, opened, migrated and spoken to in transactions.

A write transaction takes SQLite's write lock when it begins (BEGIN IMMEDIATE), so that what it read still holds when it
writes; on PostgreSQL the functions of `queue` lock the rows that they decide about.  Nothing is acknowledged before it is on
the disk (synchronous = FULL).
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from tutelage.core.errors import UserError
from tutelage.core.extras import require

HEAD = "0001"  # the newest file in migrations/versions
MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_MS = 60_000  # how long a writer waits for the writers before it
MIGRATION_LOCK = 7_207_113  # any number, the same for all: PostgreSQL's advisory lock


@dataclass(frozen=True, slots=True)
class Database:
    """An open database.  Make it with `open_database`; it may be used from several threads."""

    engine: Engine
    url: str  # without the password
    kind: str  # sqlite or postgresql

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write: committed at the end, undone by an exception."""
        with self.engine.connect().execution_options(write=True) as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, on one snapshot: two queries see the same state."""
        options = {"isolation_level": "REPEATABLE READ"} if self.kind == "postgresql" else {}
        with self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def clock(now: float | None) -> float:
    """Unix seconds, to the millisecond: the time given, or the time it is."""
    return round(float(time.time() if now is None else now), 3)


def open_database(where: str | Path) -> Database:
    """Open, and make or migrate where need be.  `where` is a file's path, or a URL: sqlite:///x.db, postgresql+psycopg://...

    Several processes may do so at once.  UserError when it cannot be opened, is no database of ours, or is newer than we are.
    """
    engine = _engine(where)
    db = Database(engine=engine, url=engine.url.render_as_string(hide_password=True), kind=engine.dialect.name)
    try:
        with db.read() as connection:
            version = _version(connection)
        if version != HEAD:
            _migrate(db)
    except DBAPIError as error:
        db.close()
        raise UserError(f"cannot open the database {db.url}: {str(error.orig).strip()}. Is it running, is the file a database, "
                        "and may you write there?") from error
    except UserError:
        db.close()
        raise
    return db


def _engine(where: str | Path) -> Engine:
    address = str(where)
    if "\0" in address or not address:
        raise UserError(f"a database is a file's path or a URL; got {address!r}")
    if "://" not in address:
        Path(address).absolute().parent.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{address}"
    if address.startswith(("postgresql://", "postgres://")):
        address = "postgresql+psycopg://" + address.split("://", 1)[1]
    try:
        url = make_url(address)
        if url.get_backend_name() == "sqlite":
            return _sqlite(url)
        if url.drivername == "postgresql+psycopg":
            require("psycopg")
            return create_engine(url, pool_size=8, max_overflow=32, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UserError(f"cannot read the database address {address!r}: {error}") from error
    raise UserError(f"databases are SQLite (a path, or sqlite:///FILE) and postgresql+psycopg://USER@HOST/NAME; "
                    f"got {url.drivername}://")


def _sqlite(url) -> Engine:
    if not url.database or url.database == ":memory:":
        raise UserError("the database must be a file: each of several workers would have a memory of its own")
    engine = create_engine(url, poolclass=QueuePool, pool_size=8, max_overflow=32)

    @event.listens_for(engine, "connect")
    def connected(connection, record):
        connection.isolation_level = None  # the driver begins no transaction by itself: we do, below
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}").fetchall()
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()  # secure_delete: erased text does not stay in free pages

    @event.listens_for(engine, "begin")
    def begun(connection):
        # IMMEDIATE: two writers that both begin by reading would otherwise decide on the same state, and one would fail
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write") else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Write-ahead logging; where several processes make one database at the same moment, SQLite refuses this at once, whatever
    busy_timeout says, so it is asked again for as long."""
    until = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(db: Database) -> None:
    """Run the migrations that are missing, in one transaction, while everybody else waits."""
    script = ScriptDirectory(str(MIGRATIONS))
    with db.write() as connection:
        if db.kind == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        version = _version(connection)  # again: another process may have been quicker
        if version == HEAD:
            return
        known = {each.revision for each in script.walk_revisions()}
        if version is not None and version not in known:
            raise UserError(f"the database {db.url} was made by a newer Tutelage (its version is {version}, ours {HEAD}); "
                            "install that one, or name another database")
        if version is None and inspect(connection).get_table_names():
            raise UserError(f"the database {db.url} holds tables that are not Tutelage's; name an empty one, or a new file")
        context = MigrationContext.configure(connection)
        for step in reversed(list(script.iterate_revisions(HEAD, version or "base"))):
            with Operations.context(context):
                step.module.upgrade()
            context.stamp(script, step.revision)
