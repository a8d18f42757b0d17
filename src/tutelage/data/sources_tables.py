"""CSV and TSV, Excel workbooks and Parquet: rows as dicts keyed by the header."""

import csv
import datetime
import io
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import openpyxl
import pyarrow
import pyarrow.parquet

from tutelage.core.errors import UserError
from tutelage.data import raw
from tutelage.data.raw import Broken, Row, excerpt


def table_rows(stream, path: Path, name: str) -> Iterator[Row | Broken]:
    """CSV or TSV, one dict a record, keyed by the header; a table without a header gets column1, column2, ..."""
    csv.field_size_limit(raw.MAX_RECORD_BYTES)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    first = text.readline(raw.MAX_RECORD_BYTES)
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
        whole = delimiter.join(cells)
        if not whole.isascii() and any("\udc80" <= character <= "\udcff" for character in whole):
            yield Broken(line, "not UTF-8", excerpt(whole.encode("utf-8", "surrogateescape")))
        elif len(cells) != len(header):
            yield Broken(
                line, f"wrong number of cells: {len(cells)} where the header has {len(header)}", excerpt(whole)
            )
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
    return (
        all(len(cell) <= 60 and not cell.rstrip().endswith((".", "?", "!", "。", "？", "！")) for cell in cells)
        and not all(_is_number(cell) for cell in cells)
        and any(cell.strip() for cell in cells)
    )


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "", 1).lstrip("-").isdigit()


def xlsx_rows(file: BinaryIO, path: Path) -> Iterator[Row | Broken]:
    """Every sheet with its own header row."""
    try:
        with zipfile.ZipFile(file) as archive:
            packed = sum(item.compress_size for item in archive.infolist())
            unpacked = sum(item.file_size for item in archive.infolist())
            names = archive.namelist()
        if unpacked > raw.BOMB_BYTES and unpacked > raw.BOMB_RATIO * max(packed, 1):
            raise UserError(
                f"{path}: unpacks to more than {raw.BOMB_RATIO} times its size; this looks like a zip bomb and is refused"
            )
        if not any(name.startswith("xl/") for name in names):
            raise UserError(f"{path}: is a zip archive but no Excel workbook; unpack it and import the files inside")
        file.seek(0)
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # openpyxl raises whatever its parsers raise: the file is at fault, and the user hears why
        raise UserError(f"{path}: cannot be read as an Excel workbook ({type(error).__name__}: {error})") from error
    try:
        for sheet in book.worksheets:
            header: list[str] | None = None
            for number, values in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = list(values)
                if all(cell is None or str(cell).strip() == "" for cell in cells):
                    continue
                if header is None:
                    header = [
                        str(cell).strip() if cell is not None else f"column{n}" for n, cell in enumerate(cells, start=1)
                    ]
                    continue
                yield Row(number, {name: plain_cell(cell) for name, cell in zip(header, cells, strict=False)})
    finally:
        book.close()


def parquet_rows(file: BinaryIO, path: Path) -> Iterator[Row | Broken]:
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, {name: plain_cell(cell) for name, cell in value.items()})
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}, record {number + 1}: cannot be read as Parquet ({error})") from error


def plain_cell(value: Any) -> Any:
    """JSON's types only: dates become ISO text, bytes become text."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: plain_cell(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_cell(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
