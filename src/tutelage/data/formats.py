"""Which format a row has, and the records that it becomes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tutelage.core.errors import UserError, nearest
from tutelage.data import (
    formats_chat,
    formats_dialogs,
    formats_preference,
    formats_questions,
    formats_tables,
    formats_verdicts,
)
from tutelage.data.records import Context, Format, Found, RowError, as_kind, dotted, keeping

# From the shapes that ask for much to those that ask for little: the first that matches is the one.
LAST: tuple[Format, ...] = (*formats_questions.LAST, *formats_tables.LAST)
ALL: tuple[Format, ...] = (
    *formats_preference.FORMATS,
    *formats_verdicts.FORMATS,
    *formats_questions.FORMATS,
    *formats_tables.FORMATS,
    *formats_dialogs.FORMATS,
    *formats_chat.FORMATS,
    *LAST,
)
BY_NAME: dict[str, Format] = {each.name: each for each in ALL}


def named(name: str) -> Format:
    if name not in BY_NAME:
        raise UserError(f"unknown format {name!r}{nearest(name, BY_NAME)}")
    return BY_NAME[name]


def detect(row: Any) -> Format | None:
    """The format of one row, or None where no format knows it.

    >>> detect({"instruction": "Add 1 and 2.", "output": "3"}).name
    'alpaca'
    """
    row = as_dict(row)
    if row is None:
        return None
    return next((each for each in ALL if each.matches(row)), None)


def majority(rows: Sequence[Any]) -> Format | None:
    """The format that most of these rows have; None where no format knows any of them."""
    found = Counter(each.name for row in rows if (each := detect(row)) is not None)
    return BY_NAME[found.most_common(1)[0][0]] if found else None


def as_dict(row: Any) -> dict | None:
    """Rows that are lists become {"column1": ..., "column2": ...}; a bare string becomes {"text": ...}."""
    if isinstance(row, dict):
        return row
    if isinstance(row, list) and row:
        return {f"column{number}": cell for number, cell in enumerate(row, start=1)}
    if isinstance(row, str):
        return {"text": row}
    return None


def mapped(row: dict, field_map: dict[str, str]) -> dict:
    """The row with our names added: `field_map` is our name -> their name or dotted path."""
    found = {ours: value for ours, theirs in field_map.items() if (value := dotted(row, theirs)) is not None}
    kept = {name: value for name, value in row.items() if name not in field_map.values()} if found else row
    return {**kept, **found}


def convert(row: Any, fmt: Format, ctx: Context, *, kind: str | None = None, strict: bool = False) -> Found:
    """The records of one row, and a RowError for each part of it that gave none.  Raises RowError where the row gives nothing.

    A row that does not look like `fmt` is tried as the format that it looks like, as long as that gives the same kind and
    asks for more than a lone text (`strict` switches this off: the user named the format).
    """
    row = as_dict(row)
    if row is None:
        raise RowError("wrong type: a record must be an object")
    if not strict and not fmt.matches(row):
        other = detect(row)
        if other is not None and other not in LAST:
            if other.kind != fmt.kind:
                raise RowError(f"another kind: the row is '{other.name}' ({other.kind}) in a file of {fmt.kind}")
            fmt = other
    try:
        if kind == "examples" and fmt.as_examples is not None:
            return list(fmt.as_examples(row, ctx))
        records = list(fmt.convert(row, ctx))
        return _turned(records, kind) if kind else records
    except (RowError, UserError):
        raise
    # A row may hold anything anywhere.  What its converter did not foresee costs this row, with its reason, not the import.
    except KeyError as error:
        raise RowError(f"missing field: {error}") from error
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise RowError(f"wrong shape: not a {fmt.name} record ({error})") from error


def _turned(records: Found, kind: str) -> Found:
    found: Found = []
    for record in records:
        with keeping(found):
            found += [record] if isinstance(record, RowError) else as_kind(record, kind)
    return found
