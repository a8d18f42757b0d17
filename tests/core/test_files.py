"""Bytes on disk: whole or as before, whatever fails."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from tutelage.core import files
from tutelage.core.errors import UserError
from tutelage.core.files import (
    canonical_json,
    read_json,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    write_atomic,
    write_json,
    write_jsonl,
)


@pytest.fixture
def full_disk(monkeypatch):
    """From now on every flush to the disk fails as on a full one."""

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fail)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_digests_equal_hashlib(tmp_path):
    data = os.urandom(3_000_001)  # more than two blocks of a mebibyte
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_canonical_json_has_one_spelling():
    assert canonical_json({"b": [1, 2.5, None], "a": "é 写"}) == '{"a":"é 写","b":[1,2.5,null]}'
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})


@pytest.mark.parametrize("data", ["text é\n", b"\x00\xff", ""])
def test_write_atomic_makes_folders_and_leaves_nothing_beside(tmp_path, data):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, "before")
    write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, full_disk):
    path = tmp_path / "file"
    path.write_text("before")
    said = r"cannot write .*file: No space left on device; what was there before is intact\. Free some space"
    with pytest.raises(UserError, match=said):
        write_atomic(path, "after")
    with pytest.raises(UserError, match="No space left on device"):
        write_jsonl(path, [1, 2])
    assert path.read_text() == "before" and names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for write in (lambda: write_atomic(tmp_path / "file" / "x", "data"), lambda: write_jsonl(tmp_path / "file" / "x", [1])):
        with pytest.raises(UserError, match="cannot write"):
            write()


def test_a_reader_sees_the_old_file_until_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "before")
    seen = []
    rename = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: (seen.append((path.read_text(), Path(a).read_text())), rename(a, b)))
    write_atomic(path, "after")
    assert seen == [("before", "after")] and path.read_text() == "after"


def test_json_round_trip_keeps_letters_readable(tmp_path):
    value = {"b": "写诗", "a": [1, 2.5, True, None]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "写诗" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_unreadable_json_names_the_file(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*x\.json as JSON"):
        read_json(path)


def test_jsonl_round_trip_streams_and_counts(tmp_path):
    rows = [{"text": "a\nb\u2028c"}, 3, None, "写"]
    assert write_jsonl(tmp_path / "x.jsonl", iter(rows)) == 4
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows
    assert len((tmp_path / "x.jsonl").read_bytes().split(b"\n")) == 5


def test_rows_that_fail_half_way_leave_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, ["before"])

    def rows():
        yield "after"
        raise UserError("source line 2: not JSON")

    with pytest.raises(UserError, match="source line 2"):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == ["before"] and names(tmp_path) == ["x.jsonl"]


def test_a_cut_off_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n\n" + '{"a": ')
    rows = read_jsonl(path)
    assert next(rows) == {"a": 1}
    with pytest.raises(UserError, match=r"x\.jsonl, line 3: not JSON"):
        next(rows)
