"""One schema for SQLite and PostgreSQL; opening makes, migrates, and refuses what is not ours."""

import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, select, text, update

from tutelage.core.errors import UserError
from tutelage.store.db import HEAD, MIGRATIONS, open_database
from tutelage.store.tables import head, hits, metadata


def test_the_migrations_make_the_schema_that_the_code_uses(db):
    with db.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata) == []


def test_the_code_knows_the_newest_migration():
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


def test_opening_again_is_quick_and_keeps_what_is_there(db, address):
    with db.write() as conn:
        conn.execute(insert(hits).values(bucket="x", ends=1.0, count=7))
    start = time.perf_counter()
    again = open_database(address)
    assert time.perf_counter() - start < 1.0  # seconds; measured: 0.01
    with again.read() as conn:
        assert conn.execute(select(hits.c.count)).scalar() == 7
    again.close()


def _open(address: str, ready, out) -> None:
    ready.wait()
    try:
        open_database(address).close()
        out.put("")
    except BaseException as error:
        out.put(repr(error))


def test_several_workers_may_open_a_new_database_at_once(address):
    spawn = multiprocessing.get_context("fork")
    ready, out = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=_open, args=(address, ready, out)) for _ in range(6)]
    for worker in workers:
        worker.start()
    ready.set()
    assert [out.get(timeout=30) for _ in workers] == [""] * 6
    for worker in workers:
        worker.join()
    db = open_database(address)
    with db.read() as conn:
        assert conn.execute(select(head.c.seq)).scalars().all() == [0]
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]
    db.close()


def test_a_write_that_fails_leaves_nothing(db):
    with pytest.raises(ZeroDivisionError), db.write() as conn:
        conn.execute(insert(hits).values(bucket="x", ends=1.0, count=7))
        raise ZeroDivisionError
    with db.read() as conn:
        assert conn.execute(select(hits)).all() == []


def _count(address: str, times: int) -> None:
    db = open_database(address)
    for _ in range(times):
        with db.write() as conn:
            seq = conn.execute(select(head.c.seq).with_for_update()).scalar_one()
            conn.execute(update(head).values(seq=seq + 1))


def test_read_then_write_loses_no_update_among_processes(address):
    """The reason for BEGIN IMMEDIATE and for row locks: 4 x 50 times read a number and write it plus one."""
    open_database(address).close()
    workers = [multiprocessing.get_context("fork").Process(target=_count, args=(address, 50)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    db = open_database(address)
    with db.read() as conn:
        assert conn.execute(select(head.c.seq)).scalar() == 200
    db.close()


def test_sqlite_keeps_what_it_acknowledged_and_wipes_what_it_deletes(tmp_path):
    db = open_database(tmp_path / "x.db")
    with db.read() as conn:
        found = {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in
                 ("journal_mode", "synchronous", "foreign_keys", "secure_delete")}
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}  # 2 = FULL
    db.close()


@pytest.mark.parametrize("where, told", [
    ("", "path or a URL"), ("x\0y", "path or a URL"), ("mysql://here/x", "SQLite"), ("sqlite://", "must be a file"),
    ("sqlite:///:memory:", "must be a file"), ("nonsense+driver://x", "address|SQLite"),
    ("postgresql://nobody@127.0.0.1:1/none", "cannot open"),
])
def test_an_address_that_cannot_be_opened_is_told(where, told):
    with pytest.raises(UserError, match=told):
        open_database(where)


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path):
    file = tmp_path / "notes.db"
    file.write_text("these are my notes, and no database " * 50)
    with pytest.raises(UserError, match="cannot open"):
        open_database(file)
    assert file.read_text().startswith("these are my notes")


def test_somebody_elses_database_is_told_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "x.db") as conn:
        conn.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(UserError, match="not Tutelage's"):
        open_database(tmp_path / "x.db")


def test_a_newer_database_is_told(db, address):
    with db.write() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer Tutelage"):
        open_database(address)


def test_the_password_is_not_told(monkeypatch):
    with pytest.raises(UserError) as caught:
        open_database("postgresql://me:secret-word@127.0.0.1:1/none")
    assert "secret-word" not in str(caught.value)


def test_a_new_folder_is_made(tmp_path):
    open_database(tmp_path / "a" / "b" / "people.db").close()
    assert Path(tmp_path / "a" / "b" / "people.db").exists()
