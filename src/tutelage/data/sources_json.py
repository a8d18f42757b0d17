"""JSON Lines, JSON arrays (both in constant memory), JSON objects (read whole) and plain text lines."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.core.errors import UserError
from tutelage.data import raw
from tutelage.data.raw import Broken, Row, excerpt

SPLIT_NAMES = ("train", "val", "valid", "validation", "dev", "test", "eval")
ROW_KEYS = ("rows", "data", "examples", "items", "records", "instances", "results")


def parses(line: bytes) -> bool:
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


def _lines(stream) -> Iterator[tuple[int, bytes]]:
    """(number, line), with lines beyond raw.MAX_RECORD_BYTES cut there (marked by their length) and skipped to their end."""
    number = 0
    while line := stream.readline(raw.MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > raw.MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
        yield number, line


def line_rows(stream) -> Iterator[Row | Broken]:
    for number, line in _lines(stream):
        if len(line) > raw.MAX_RECORD_BYTES:
            yield Broken(number, f"too long: over {raw.MAX_RECORD_BYTES >> 20} MB in one line", excerpt(line))
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


def text_rows(stream) -> Iterator[Row | Broken]:
    for number, line in _lines(stream):
        text = _decoded(number, line)
        if isinstance(text, Broken):
            yield text
        elif text.strip():
            yield Row(number, {"text": text.strip()})


def array_rows(stream, path: Path) -> Iterator[Row | Broken]:
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
            raise UserError(
                f"{path}, near line {line + buffer.count(chr(10))}: not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error

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
        return UserError(
            f"{path}, line {line + extra}: broken JSON array: {what}. Nothing was imported; mend the file, "
            "or turn it into JSON Lines, where one broken line costs one record only"
        )

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
                if (
                    at_end
                    or not isinstance(error, json.JSONDecodeError)
                    or not open_string
                    and position < len(buffer) - 16
                ):
                    raise broken(getattr(error, "msg", str(error)), buffer.count("\n", 0, position)) from error
            if len(buffer) > raw.MAX_RECORD_BYTES:
                raise broken(f"a record of over {raw.MAX_RECORD_BYTES >> 20} MB, or one that never ends")
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


def object_rows(stream, path: Path) -> Iterator[Row | Broken]:
    data = stream.read(raw.MAX_OBJECT_BYTES + 1)
    if len(data) > raw.MAX_OBJECT_BYTES:
        raise UserError(f"{path}: a JSON object of over {raw.MAX_OBJECT_BYTES >> 30} GB; turn it into JSON Lines")
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
            yield from (
                ({name: table[key] for name, table in value.items()}, None) for key in tables[0]
            )  # pandas' to_json
        else:
            yield from ((item, None) for item in tables)
    else:
        yield value, None


def _is_split(name: str) -> bool:
    return any(part in SPLIT_NAMES for part in name.lower().replace("-", "_").split("_"))
