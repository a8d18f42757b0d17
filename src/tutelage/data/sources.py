"""Open any file of records and yield its raw rows, one at a time, each with its line number.

Read here: JSON Lines, JSON (array; object with rows, splits or columns; one nested record), CSV/TSV, XLSX, Parquet,
plain text, each also gzipped, and `hf:NAME` through the optional package `datasets`.  What a file is, its first bytes
say; the ending is only asked where the bytes leave it open.

A line that cannot be read is yielded as `Broken` and never raised; a file that is broken as a whole raises UserError with
file and line.  JSON Lines, JSON arrays, CSV, text and Parquet stream: memory does not grow with the file.  A JSON *object*
is read whole (at most `raw.MAX_OBJECT_BYTES`).

`line` is the line on which a record begins; where a file has no lines (Parquet, nested JSON, hub sets) it is the
number of the record, from 1.
"""

import codecs
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tutelage.core.errors import UserError
from tutelage.core.extras import require
from tutelage.data import raw
from tutelage.data.raw import Broken, Row
from tutelage.data.sources_json import array_rows, line_rows, object_rows, parses, text_rows
from tutelage.data.sources_tables import parquet_rows, plain_cell, table_rows, xlsx_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".xlsx", ".parquet", ".txt")


def read_rows(source: str | Path) -> Iterator[Row | Broken]:
    """Rows of a file, or of `hf:NAME`.  UserError where there is no such file or it is broken as a whole."""
    if str(source).startswith("hf:"):
        return _hub_rows(str(source)[3:])
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; nothing to read")
    return _file_rows(path)


def _file_rows(path: Path) -> Iterator[Row | Broken]:
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        name = path.name.lower()
        try:
            if magic[:2] == b"\x1f\x8b":
                yield from _stream_rows(_Gunzipped(file, path), path, name.removesuffix(".gz"))
            else:
                yield from _stream_rows(file, path, name)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: the gzip data are damaged or cut off ({error}); fetch the file again") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error})") from error


class _Gunzipped(io.RawIOBase):
    """The inside of a gzip file, refused as soon as it turns out to be a bomb."""

    def __init__(self, file: BinaryIO, path: Path):
        self.inner, self.outer, self.path, self.count = gzip.GzipFile(fileobj=file), file, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.inner.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        if self.count > raw.BOMB_BYTES and self.count > raw.BOMB_RATIO * max(self.outer.tell(), 1):
            raise UserError(
                f"{self.path}: unpacks to more than {raw.BOMB_RATIO} times its size; this looks like a zip bomb "
                "and is refused. If the file is sound, unpack it yourself and import that"
            )
        return len(data)


def _stream_rows(stream, path: Path, name: str) -> Iterator[Row | Broken]:
    """Rows of an unpacked byte stream; `name` (lower case, without .gz) is asked where the content leaves it open."""
    reader = io.BufferedReader(stream, buffer_size=1 << 16) if isinstance(stream, io.RawIOBase) else stream
    head = reader.peek(1 << 15)[: 1 << 15]
    if head[:4] in (b"PK\x03\x04", b"PAR1"):
        with _on_disk(reader, path, packed=stream is not reader) as seekable:
            yield from (parquet_rows if head[:4] == b"PAR1" else xlsx_rows)(seekable, path)
        return
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16 text; save it as UTF-8 and import that")
    if b"\0" in head or head[:1] == b"\x80" or head.startswith((b"%PDF", b"\xd0\xcf\x11\xe0", b"\x89PNG")):
        raise UserError(
            f"{path}: is binary data and none of the known table formats; "
            "give JSON, JSON Lines, CSV, TSV, XLSX, Parquet or plain text (each may be gzipped)"
        )
    if head.startswith(codecs.BOM_UTF8):
        reader.read(3)
        head = head[3:]
    start = head.lstrip()[:1]
    if not start and len(head) < 1 << 15:
        raise UserError(f"{path}: holds nothing but white space")
    if name.endswith((".csv", ".tsv")):
        yield from table_rows(reader, path, name)
    elif name.endswith((".jsonl", ".ndjson")):
        lines = [line for line in head.split(b"\n") if line.strip()]
        array = start == b"[" and (len(lines) == 1 or not parses(lines[0]))
        yield from array_rows(reader, path) if array else line_rows(reader)
    elif start == b"[" and (name.endswith(".json") or head.lstrip()[1:].lstrip()[:1] in b'{["]'):
        yield from array_rows(reader, path)
    elif start == b"{":
        lines = [line for line in head.split(b"\n") if line.strip()]
        one_a_line = (
            parses(lines[0]) and len(lines) > 1 or len(lines) > 1 and lines[0].rstrip()[-1:] == b"}" != lines[0].strip()
        )
        yield from line_rows(reader) if one_a_line else object_rows(reader, path)
    elif name.endswith(".json"):
        raise UserError(
            f"{path}, line 1: not JSON: it begins with {head[:20].decode('utf-8', 'replace')!r}, wanted '[' or '{{'"
        )
    elif name.endswith(".txt") or "." not in name:
        yield from text_rows(reader)
    else:
        raise UserError(f"{path}: unknown kind of file; known endings: {', '.join(SUFFIXES)}, each also with .gz")


class _on_disk:
    """A seekable file: the stream itself, or (when it came out of a gzip) a temporary copy."""

    def __init__(self, stream, path: Path, *, packed: bool):
        self.stream, self.path, self.packed, self.copy = stream, path, packed, None

    def __enter__(self) -> BinaryIO:
        if not self.packed:
            return self.stream
        self.copy = tempfile.TemporaryFile()
        shutil.copyfileobj(self.stream, self.copy)
        self.copy.seek(0)
        return self.copy

    def __exit__(self, *_):
        if self.copy is not None:
            self.copy.close()


def _hub_rows(name: str) -> Iterator[Row | Broken]:
    """`NAME`, `NAME:CONFIG`; each split in turn, streamed."""
    datasets = require("datasets")
    name, _, config = name.partition(":")
    try:
        splits: dict[str, Iterable] = datasets.load_dataset(name, config or None, streaming=True)
    except Exception as error:  # the hub client has no common base for "no network", "no such set", "needs a login"
        raise UserError(
            f"hf:{name}: the hub did not give this set ({type(error).__name__}: {error}); check the name and the "
            "network, or download the file and import it by its path"
        ) from error
    number = 0
    for split, rows in splits.items():
        for value in rows:
            number += 1
            yield Row(number, {key: plain_cell(cell) for key, cell in value.items()}, split)
