"""Open any file of records and yield its raw rows, one at a time, each with its line number.

Read here: JSON Lines, JSON (array; object with rows, splits or columns; one nested record), CSV/TSV, XLSX, Parquet,
plain text, each also gzipped, and `hf:NAME` through the optional package `datasets`.  What a file is, its first bytes
say; the ending is only asked where the bytes leave it open.

A line that cannot be read is yielded as `Broken` and never raised; a file that is broken as a whole raises UserError with
file and line.  JSON Lines, JSON arrays, CSV, text and Parquet stream: memory does not grow with the file.  A JSON *object*
is read whole (at most `MAX_OBJECT_BYTES`).

`line` is the line on which a record begins; where a file has no lines (Parquet, nested JSON, hub sets) it is the
number of the record, from 1.
"""

import codecs
import csv
import datetime
import gzip
import io
import itertools
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl
import pyarrow
import pyarrow.parquet

from tutelage.core.errors import UserError
from tutelage.core.extras import require

MAX_RECORD_BYTES = 64 << 20  # one record; longer ones are broken, so that a file without line ends cannot fill the memory
MAX_OBJECT_BYTES = 1 << 30  # a JSON object that must be read whole
BOMB_BYTES, BOMB_RATIO = 64 << 20, 400  # compressed files beyond both are refused; real text stays under 40 : 1
SPLIT_NAMES = ("train", "val", "valid", "validation", "dev", "test", "eval")
ROW_KEYS = ("rows", "data", "examples", "items", "records", "instances", "results")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".xlsx", ".parquet", ".txt")


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    value: Any
    split: str | None = None  # the split that the file itself names, if it does


@dataclass(frozen=True, slots=True)
class Broken:
    line: int
    reason: str
    raw: str  # excerpt


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
        if self.count > BOMB_BYTES and self.count > BOMB_RATIO * max(self.outer.tell(), 1):
            raise UserError(f"{self.path}: unpacks to more than {BOMB_RATIO} times its size; this looks like a zip bomb "
                            "and is refused. If the file is sound, unpack it yourself and import that")
        return len(data)


def _stream_rows(stream, path: Path, name: str) -> Iterator[Row | Broken]:
    """Rows of an unpacked byte stream; `name` (lower case, without .gz) is asked where the content leaves it open."""
    reader = io.BufferedReader(stream, buffer_size=1 << 16) if isinstance(stream, io.RawIOBase) else stream
    head = reader.peek(1 << 15)[: 1 << 15]
    if head[:4] in (b"PK\x03\x04", b"PAR1"):
        with _on_disk(reader, path, packed=stream is not reader) as seekable:
            yield from (_parquet_rows if head[:4] == b"PAR1" else _xlsx_rows)(seekable, path)
        return
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16 text; save it as UTF-8 and import that")
    if b"\0" in head or head[:1] == b"\x80" or head.startswith((b"%PDF", b"\xd0\xcf\x11\xe0", b"\x89PNG")):
        raise UserError(f"{path}: is binary data and none of the known table formats; "
                        "give JSON, JSON Lines, CSV, TSV, XLSX, Parquet or plain text (each may be gzipped)")
    if head.startswith(codecs.BOM_UTF8):
        reader.read(3)
        head = head[3:]
    start = head.lstrip()[:1]
    if not start and len(head) < 1 << 15:
        raise UserError(f"{path}: holds nothing but white space")
    if name.endswith((".csv", ".tsv")):
        yield from _table_rows(reader, path, name)
    elif name.endswith((".jsonl", ".ndjson")):
        array = start == b"[" and not _parses(head.lstrip().split(b"\n", 1)[0])
        yield from _array_rows(reader, path) if array else _line_rows(reader)
    elif start == b"[" and (name.endswith(".json") or head.lstrip()[1:].lstrip()[:1] in b'{["]'):
        yield from _array_rows(reader, path)
    elif start == b"{":
        lines = [line for line in head.split(b"\n") if line.strip()]
        one_a_line = _parses(lines[0]) and len(lines) > 1 or len(lines) > 1 and lines[0].rstrip()[-1:] == b"}" != lines[0].strip()
        yield from _line_rows(reader) if one_a_line else _object_rows(reader, path)
    elif name.endswith(".json"):
        raise UserError(f"{path}, line 1: not JSON: it begins with {head[:20].decode('utf-8', 'replace')!r}, "
                        "wanted '[' or '{'")
    elif name.endswith(".txt") or "." not in name:
        yield from _text_rows(reader)
    else:
        raise UserError(f"{path}: unknown kind of file; known endings: {', '.join(SUFFIXES)}, each also with .gz")


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def decode_json(text: str) -> Any:
    """Strict JSON: no NaN, no half surrogates (which could not be written again).  ValueError says what is wrong."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text:
        _need_encodable(value)
    return value


def _need_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None


def excerpt(raw: bytes | str, limit: int = 2048) -> str:
    """At most `limit` bytes of UTF-8."""
    data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")
    return data[:limit].decode("utf-8", "replace" if isinstance(raw, bytes) else "ignore")


def _lines(stream) -> Iterator[tuple[int, bytes]]:
    """(number, line), with lines beyond MAX_RECORD_BYTES cut there (marked by their length) and skipped to their end."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        yield number, line


def _line_rows(stream) -> Iterator[Row | Broken]:
    for number, line in _lines(stream):
        if len(line) > MAX_RECORD_BYTES:
            yield Broken(number, f"too long: over {MAX_RECORD_BYTES >> 20} MB in one line", excerpt(line))
            continue
        text = _decoded(number, line)
        if isinstance(text, Broken):
            yield text
        elif text.strip():
            try:
                yield Row(number, decode_json(text.strip()))
            except ValueError as error:
                yield Broken(number, f"not JSON: {error}", excerpt(line.rstrip()))


def _decoded(number: int, line: bytes) -> str | Broken:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Broken(number, f"not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}", excerpt(line.rstrip()))


def _text_rows(stream) -> Iterator[Row | Broken]:
    for number, line in _lines(stream):
        text = _decoded(number, line)
        if isinstance(text, Broken):
            yield text
        elif text.strip():
            yield Row(number, {"text": text.strip()})


def _array_rows(stream, path: Path) -> Iterator[Row | Broken]:
    """Elements of one JSON array, in constant memory.  A fault in the syntax makes the whole file unreadable."""
    decode = codecs.getincrementaldecoder("utf-8")()
    buffer, line, at_end, first = "", 1, False, True

    def more() -> None:
        nonlocal buffer, at_end
        data = stream.read(max(1 << 16, min(len(buffer), 4 << 20)))
        at_end = not data
        try:
            buffer += decode.decode(data, final=at_end)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, near line {line + buffer.count(chr(10))}: not UTF-8 ({error.reason}); "
                            "save the file as UTF-8") from error

    def skip_space() -> None:
        nonlocal buffer, line
        while True:
            rest = buffer.lstrip(" \t\r\n")
            line += buffer.count("\n", 0, len(buffer) - len(rest))
            buffer = rest
            if buffer or at_end:
                return
            more()

    def broken(what: str, extra: int = 0) -> UserError:
        return UserError(f"{path}, line {line + extra}: broken JSON array: {what}. Nothing was imported; mend the file, "
                         "or turn it into JSON Lines, where one broken line costs one record only")

    skip_space()
    buffer = buffer[1:]  # the '[' that brought us here
    while True:
        skip_space()
        if buffer[:1] == "]":
            break
        if not first:
            if buffer[:1] != ",":
                raise broken("it ends without ']'" if not buffer else f"wanted ',' or ']', found {buffer[:10]!r}")
            buffer = buffer[1:]
            skip_space()
        first = False
        while True:
            try:
                value, end = _DECODER.raw_decode(buffer)
                if end < len(buffer) or at_end:
                    break
            except RecursionError:
                raise broken("nested too deeply") from None
            except ValueError as error:
                position = getattr(error, "pos", 0)
                open_string = "Unterminated string" in str(error)
                if at_end or not isinstance(error, json.JSONDecodeError) or not open_string and position < len(buffer) - 16:
                    raise broken(getattr(error, "msg", str(error)), buffer.count("\n", 0, position)) from error
            if len(buffer) > MAX_RECORD_BYTES:
                raise broken(f"a record of over {MAX_RECORD_BYTES >> 20} MB, or one that never ends")
            more()
        try:
            if "\\u" in buffer[:end]:
                _need_encodable(value)
            yield Row(line, value)
        except ValueError as error:
            yield Broken(line, f"not JSON: {error}", excerpt(buffer[:end]))
        line += buffer.count("\n", 0, end)
        buffer = buffer[end:]
    buffer = buffer[1:]
    skip_space()
    if buffer:
        raise broken(f"text after the closing ']': {buffer[:20]!r}")


def _object_rows(stream, path: Path) -> Iterator[Row | Broken]:
    data = stream.read(MAX_OBJECT_BYTES + 1)
    if len(data) > MAX_OBJECT_BYTES:
        raise UserError(f"{path}: a JSON object of over {MAX_OBJECT_BYTES >> 30} GB; turn it into JSON Lines")
    try:
        value = decode_json(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON: {error.msg} (column {error.colno})") from error
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from error
    for number, (item, split) in enumerate(_unnest(value), start=1):
        yield Row(number, item, split)


def _unnest(value: dict) -> Iterator[tuple[Any, str | None]]:
    """The rows within a JSON object: under a key such as "data", a list a split, columns, a dict of records, or itself."""
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if lists and len(lists) == len(value) and all(_is_split(key) for key in lists):
        for split, items in lists.items():
            yield from ((item, split) for item in items)
        return
    for key in ROW_KEYS:
        if isinstance(value.get(key), list) and any(isinstance(item, (dict, list)) for item in value[key]):
            for item in value[key]:
                yield (item["row"] if isinstance(item, dict) and set(item) >= {"row", "row_idx"} else item), None
            return
        if isinstance(value.get(key), dict) and all(isinstance(item, list) for item in value[key].values()):
            yield from _unnest(value[key])
            return
    if len(value) > 1 and len(lists) == len(value) and len({len(item) for item in lists.values()}) == 1:
        yield from ((dict(zip(lists, cells, strict=True)), None) for cells in zip(*lists.values(), strict=True))
    elif len(value) > 1 and all(isinstance(item, dict) for item in value.values()):
        tables = list(value.values())
        if all(key.isdigit() for key in tables[0]) and all(table.keys() == tables[0].keys() for table in tables):
            yield from (({name: table[key] for name, table in value.items()}, None) for key in tables[0])  # pandas' to_json
        else:
            yield from ((item, None) for item in tables)
    else:
        yield value, None


def _is_split(name: str) -> bool:
    return any(part in SPLIT_NAMES for part in name.lower().replace("-", "_").split("_"))


def _table_rows(stream, path: Path, name: str) -> Iterator[Row | Broken]:
    """CSV or TSV, one dict a record, keyed by the header; a table without a header gets column1, column2, ..."""
    csv.field_size_limit(MAX_RECORD_BYTES)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    first = text.readline(MAX_RECORD_BYTES)
    delimiter = _delimiter(first, tab=name.endswith(".tsv"))
    reader = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise UserError(f"{path}, line {line}: the header cannot be read as a table: {error}") from error
            yield Broken(line, f"not CSV: {error} (lines {line} to {reader.line_num})", "")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            if _is_header(cells):
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, line {line}: two columns have the same name: {', '.join(header)}")
                continue
            header = ["text"] if len(cells) == 1 else [f"column{n}" for n in range(1, len(cells) + 1)]
        raw = delimiter.join(cells)
        if not raw.isascii() and any("\udc80" <= character <= "\udcff" for character in raw):
            yield Broken(line, "not UTF-8", excerpt(raw.encode("utf-8", "surrogateescape")))
        elif len(cells) != len(header):
            yield Broken(line, f"wrong number of cells: {len(cells)} where the header has {len(header)}", excerpt(raw))
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


def _delimiter(header: str, *, tab: bool) -> str:
    """The separator that the first line holds most often outside quotes."""
    bare = "".join(part for number, part in enumerate(header.split('"')) if number % 2 == 0)
    counts = {mark: bare.count(mark) for mark in "\t,;|"}
    best = max(counts, key=lambda mark: counts[mark])
    if tab and (counts["\t"] or max(counts.values()) == 0 or len(bare) > 200):
        return "\t"  # the commas of a .tsv without tabs are those of its sentences
    return best if counts[best] else ","


def _is_header(cells: list[str]) -> bool:
    """Names are short and have no sentence in them: a first row of running text or numbers is a record."""
    return all(len(cell) <= 60 and not cell.rstrip().endswith((".", "?", "!", "。", "？", "！")) for cell in cells) and \
        not all(_is_number(cell) for cell in cells) and any(cell.strip() for cell in cells)


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "", 1).lstrip("-").isdigit()


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


def _xlsx_rows(file: BinaryIO, path: Path) -> Iterator[Row | Broken]:
    """Every sheet with its own header row."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = sum(item.compress_size for item in archive.infolist())
            unpacked = sum(item.file_size for item in archive.infolist())
            names = archive.namelist()
        if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * max(packed, 1):
            raise UserError(f"{path}: unpacks to more than {BOMB_RATIO} times its size; this looks like a zip bomb and is refused")
        if not any(name.startswith("xl/") for name in names):
            raise UserError(f"{path}: is a zip archive but no Excel workbook; unpack it and import the files inside")
        file.seek(0)
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except UserError:
        raise
    except Exception as error:  # openpyxl raises whatever its parsers raise: the file is at fault, and the user hears why
        raise UserError(f"{path}: cannot be read as an Excel workbook ({type(error).__name__}: {error})") from error
    try:
        for sheet in book.worksheets:
            header: list[str] | None = None
            for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = list(values)
                if all(cell is None or str(cell).strip() == "" for cell in cells):
                    continue
                if header is None:
                    header = [str(cell).strip() if cell is not None else f"column{n}" for n, cell in enumerate(cells, start=1)]
                    continue
                yield Row(number, {name: _plain_cell(cell) for name, cell in zip(header, cells, strict=False)})
    finally:
        book.close()


def _parquet_rows(file: BinaryIO, path: Path) -> Iterator[Row | Broken]:
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, {name: _plain_cell(cell) for name, cell in value.items()})
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}, record {number + 1}: cannot be read as Parquet ({error})") from error


def _plain_cell(value: Any) -> Any:
    """JSON's types only: dates become ISO text, bytes become text."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _plain_cell(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_cell(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _hub_rows(name: str) -> Iterator[Row | Broken]:
    """`NAME`, `NAME:CONFIG`; each split in turn, streamed."""
    datasets = require("datasets")
    name, _, config = name.partition(":")
    try:
        splits: dict[str, Iterable] = datasets.load_dataset(name, config or None, streaming=True)
    except Exception as error:  # the hub client has no common base for "no network", "no such set", "needs a login"
        raise UserError(f"hf:{name}: the hub did not give this set ({type(error).__name__}: {error}); check the name and the "
                        "network, or download the file and import it by its path") from error
    number = 0
    for split, rows in splits.items():
        for value in rows:
            number += 1
            yield Row(number, {key: _plain_cell(cell) for key, cell in value.items()}, split)
