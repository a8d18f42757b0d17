"""The chain shows every change; erased text is gone and the chain still verifies."""

import hashlib
import json
import re

import pytest
from people.rooms import left, project
from sqlalchemy import delete, insert, select, update

from tutelage.core.errors import UserError
from tutelage.store.db import open_database
from tutelage.store.feedback import erase_item, iter_items, load_item
from tutelage.store.ledger import START, audit, erase, last_seq, note, verify
from tutelage.store.queue import next_item, submit
from tutelage.store.tables import contents, head, log, submissions


def say(db, count: int = 5) -> None:
    for number in range(count):
        note(db, kind="export", actor="boss", subject=f"s{number}", content={"text": f"words {number} \0 \u202e"}, now=1000 + number)


def test_the_hashes_are_those_of_the_formula(db):
    """By hand, without the code's own functions."""
    say(db, 2)
    with db.read() as conn:
        rows = conn.execute(select(log, contents.c.salt, contents.c.content).join(contents).order_by(log.c.seq)).all()
    previous = "0" * 64
    for row in rows:
        assert row.digest == hashlib.sha256((row.salt + row.content).encode()).hexdigest()
        bound = json.dumps({"actor": row.actor, "at": row.at, "digest": row.digest, "kind": row.kind, "previous": previous,
                            "seq": row.seq, "subject": row.subject}, separators=(",", ":"))
        assert row.hash == hashlib.sha256((previous + bound).encode()).hexdigest()
        assert len(row.salt) == 64
        previous = row.hash
    assert rows[0].salt != rows[1].salt
    assert verify(db) == (True, 2, 0, 2, previous, "")


def test_an_empty_ledger_verifies(db):
    assert verify(db) == (True, 0, 0, 0, START, "")


@pytest.mark.parametrize("change, told", [
    (update(log).where(log.c.seq == 3).values(actor="eve"), "row 3 .*the row was changed"),
    (update(log).where(log.c.seq == 3).values(at=1.0), "row 3 .*the row was changed"),
    (update(log).where(log.c.seq == 3).values(hash="f" * 64), "row 3 .*its hash is wrong"),
    (update(log).where(log.c.seq == 3).values(previous="f" * 64), "row 3 .*does not follow"),
    (update(contents).where(contents.c.seq == 3).values(content='{"text":"other"}'), "row 3 .*content was changed"),
    (update(contents).where(contents.c.seq == 3).values(salt="f" * 64), "row 3 .*content was changed"),
    (update(contents).where(contents.c.seq == 3).values(salt=None, content=None), "row 3 .*no event says"),
    (delete(contents).where(contents.c.seq == 3), "row 3 .*no event says"),
    (update(head).values(seq=4), "rows are missing at the end"),
    (update(head).values(hash="f" * 64), "rows are missing at the end"),
])
def test_the_first_row_that_was_changed_is_named(file_db, change, told):
    say(file_db)
    with file_db.write() as conn:
        conn.execute(change)
    verdict = verify(file_db)
    assert not verdict.ok
    assert re.search(told, verdict.wrong), verdict.wrong


@pytest.mark.parametrize("seq, told", [(3, "row 3 of the log: missing; the next one is 4"), (5, "row 5 of the log: rows are missing")])
def test_a_row_that_was_taken_out_is_named(file_db, seq, told):
    say(file_db)
    with file_db.write() as conn:
        conn.execute(delete(contents).where(contents.c.seq == seq))
        conn.execute(delete(log).where(log.c.seq == seq))
    assert verify(file_db).wrong.startswith(told)


def test_a_chain_that_was_built_anew_is_seen_with_an_anchor(db):
    say(db)
    kept = verify(db)
    with db.write() as conn:
        conn.execute(delete(contents))
        conn.execute(delete(log))
        conn.execute(update(head).values(seq=0, hash=START))
    say(db)  # the same words, with other salts
    assert verify(db).ok
    assert "built anew" in verify(db, anchor=(kept.seq, kept.hash)).wrong
    assert "once had 9 rows" in verify(db, anchor=(9, kept.hash)).wrong
    now = verify(db)
    say(db, 1)
    assert verify(db, anchor=(now.seq, now.hash)).ok  # growing is no change


def test_a_judgement_outside_the_log_or_missing_from_the_table_is_named(db):
    project(db)
    made = submit(db, next_item(db, "ann-0", "p", now=1).lease.id, "ann-0", key="k", answers=left(), now=2)
    with db.write() as conn:
        row = dict(conn.execute(select(submissions)).mappings().one())
        conn.execute(delete(submissions))
    assert f"its judgement {made.submission} is missing" in verify(db).wrong
    with db.write() as conn:
        conn.execute(insert(submissions).values(**{**row, "seq": 1}))
    assert "it is no judgement" in verify(db).wrong


def test_erased_text_is_gone_from_the_database_and_the_chain_verifies(db):
    say(db)
    assert erase(db, [2, 4, 99], actor="boss", reason="asked to", now=2000) == 2
    with db.read() as conn:
        assert conn.execute(select(contents.c.salt, contents.c.content).where(contents.c.seq.in_([2, 4]))).all() == [(None, None)] * 2
    verdict = verify(db)
    assert (verdict.ok, verdict.rows, verdict.erased) == (True, 7, 2)
    events = audit(db, kind="erased")
    assert [(each.subject, each.actor, each.content["reason"]) for each in events] == [
        ("log:2", "boss", "asked to"), ("log:4", "boss", "asked to")]
    assert erase(db, [2], actor="boss", reason="again") == 0  # nothing left, no second event
    assert verify(db).rows == 7


def test_what_says_that_something_was_erased_stays(db):
    say(db)
    erase(db, [2], actor="boss", reason="asked to")
    with pytest.raises(UserError, match="that stays"):
        erase(db, [1, 6], actor="eve", reason="hide it")
    assert audit(db)[0].content == {"text": "words 0 \0 \u202e"}  # and nothing of that call was done


def test_erased_text_is_not_in_the_file(tmp_path):
    db = open_database(tmp_path / "x.db")
    note(db, kind="export", actor="boss", subject="s", content={"text": "the unmistakable marzipan"})
    erase(db, [1], actor="boss", reason="asked to")
    with db.engine.connect() as conn:
        conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    assert b"marzipan" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_an_erased_item_takes_what_was_said_of_it_along_and_goes_to_nobody(db):
    project(db, items=2)
    handed = next_item(db, "ann-0", "p", now=1)
    submit(db, handed.lease.id, "ann-0", key="k", answers=left(), now=2)
    assert erase_item(db, handed.item.id, actor="boss", reason="asked to", now=3) == 2  # the item and one judgement
    assert [item.id for item in iter_items(db, "p")] == [next_item(db, "ann-1", "p", now=4).item.id]
    with pytest.raises(UserError, match="was erased"):
        load_item(db, handed.item.id)
    assert verify(db).ok
    repeated = submit(db, handed.lease.id, "ann-0", key="k", answers=left(), now=5)
    assert (repeated.status, repeated.duplicate, repeated.judgements) == ("stored", True, ())


def test_the_audit_is_read_in_pages_and_by_kind_actor_subject(db):
    say(db)
    note(db, kind="import", actor="ann", subject="s1", content={})
    assert [each.seq for each in audit(db, limit=2)] == [1, 2]
    assert [each.seq for each in audit(db, after=2, limit=2)] == [3, 4]
    assert [each.seq for each in audit(db, newest_first=True, limit=2)] == [6, 5]
    assert [each.seq for each in audit(db, newest_first=True, after=5, limit=2)] == [4, 3]
    assert [each.seq for each in audit(db, kind="import")] == [each.seq for each in audit(db, actor="ann")] == [6]
    assert [each.seq for each in audit(db, subject="s1")] == [2, 6]
    assert last_seq(db) == 6
