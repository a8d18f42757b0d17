"""Records on disk are the records that were written, and take no memory to speak of."""

import json
import tracemalloc

import pytest

from tutelage.core.errors import DamagedError
from tutelage.core.words import Prompt
from tutelage.data.importer import import_data
from tutelage.data.record_file import RecordFile
from tutelage.data.snapshot import load_rows


def written(path, count, *, size=1):
    rows = ({"n": n, "text": "ü\u2028" * size} for n in range(count))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def number(row):
    return row["n"]


def test_records_are_read_in_any_order(tmp_path):
    records = RecordFile(written(tmp_path / "r.jsonl", 30), number)
    assert len(records) == 30 and list(records) == list(range(30)) and records
    assert [records[at] for at in (29, 0, 7, -1, -30)] == [29, 0, 7, 29, 0]
    assert records == list(range(30)) == records and records == RecordFile(tmp_path / "r.jsonl", number)
    assert records != list(range(29)) and records != [*range(29), 0] and records != "r"
    assert records[5:25:6] == [5, 11, 17, 23] and records[28:99] == [28, 29]
    for at in (30, -31):
        with pytest.raises(IndexError, match=f"record {at} of 30"):
            records[at]


def test_empty_lines_are_no_records_and_the_last_line_may_have_no_end(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('\n{"n": 1}\n\n{"n": 2}', encoding="utf-8")
    records = RecordFile(path, number)
    assert list(records) == [records[0], records[1]] == [1, 2]
    path.write_text("", encoding="utf-8")
    assert not RecordFile(path, number)


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"n": 1}\n{"n"\n{"m": 2}\n[]\n', encoding="utf-8")
    records = RecordFile(path, Prompt.from_dict)
    for at in range(4):
        with pytest.raises(DamagedError, match=rf"r\.jsonl, record {at + 1}: .*import the source again"):
            records[at]
    with pytest.raises(DamagedError, match="record 1"):
        list(records)


def test_what_is_held_in_memory_is_where_lines_begin(tmp_path):
    path = written(tmp_path / "r.jsonl", 2000, size=1000)
    assert path.stat().st_size > 8e6
    tracemalloc.start()
    records = RecordFile(path, number)
    assert sum(1 for _ in records) == 2000 and records[1999] == 1999
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000 and most < 400_000


def test_the_rows_of_a_snapshot_stay_on_disk(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = ({"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    snapshot = import_data(path, workspace=tmp_path / "w")
    rows = load_rows(snapshot.name, tmp_path / "w")
    assert isinstance(rows.splits["train"], RecordFile)
    assert {row.chosen.text for records in rows.splits.values() for row in records} == {f"good {n}" for n in range(40)}
