"""Our records in other people's formats; what is written here, the readers read back.

`write_records(path, records, format=...)`: openai, alpaca, sharegpt, trl, kto, hh, csv, parquet or native (our own JSON
form).  The ending decides how JSON is laid out: .jsonl one a line, .json one array.  A record that the format cannot hold is
refused by number, with the reason; nothing is written then.  What no format holds: source, group and author (native keeps
all).
"""

import csv
import io
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import fsync_folder
from tutelage.core.words import Example, Label, Message, Preference, Prompt
from tutelage.data.records import Kept, kind_of

WRITE_BATCH = 512  # rows of one Parquet row group


class CannotHold(ValueError):
    """Why a format has no place for a record."""


def write_records(path: Path | str, records: Iterable[Kept], *, format: str = "openai") -> int:
    """Write records to one file, atomically; returns how many."""
    path = Path(path)
    if format not in ROW_OF:
        raise UserError(f"cannot write the format {format!r}{nearest(format, ROW_OF)}")
    wanted = {"csv": (".csv", ".tsv"), "parquet": (".parquet",)}.get(format, (".jsonl", ".json"))
    if path.suffix.lower() not in wanted:
        raise UserError(
            f"{path}: the format {format} is written to {' or '.join(wanted)}; got the ending {path.suffix or '(none)'!r}"
        )
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise UserError(f"{path}: there are no records to write")
    kind, count = kind_of(first), 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for record in itertools.chain([first], records):
            if kind_of(record) != kind:
                raise UserError(
                    f"{path}: record {count + 1} is one of {kind_of(record)} among {kind}; write them to two files"
                )
            try:
                yield ROW_OF[format](record)
            except CannotHold as error:
                raise UserError(f"{path}: record {count + 1} cannot be written as {format}: {error}") from error
            count += 1

    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            _LAYOUT[path.suffix.lower()](file, rows(), kind)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


# One record as one row


def _openai_message(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name:
        row["name"] = message.name
    if message.tool_calls:
        row["tool_calls"] = [_openai_call(call) for call in message.tool_calls]
    if message.weight != 1.0:
        row["weight"] = message.weight
    return row


def _openai_call(call: dict) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        **({"id": call["id"]} if call.get("id") else {}),
        "type": "function",
        "function": {"name": call["name"], "arguments": text},
    }


def _with_tools(row: dict[str, Any], tools: tuple[dict, ...]) -> dict[str, Any]:
    return {**row, "tools": list(tools)} if tools else row


def _openai(record: Kept) -> dict[str, Any]:
    if isinstance(record, Prompt):
        row = {
            "messages": [_openai_message(m) for m in record.messages],
            "references": list(record.references),
            "label": record.label,
        }
        return _with_tools(row, record.tools)
    if not isinstance(record, Example):
        raise CannotHold(f"openai holds examples and prompts; this is one of {kind_of(record)} (use trl or kto)")
    return _with_tools({"messages": [_openai_message(m) for m in record.messages]}, record.tools)


def _alpaca(record: Kept) -> dict[str, Any]:
    if not isinstance(record, Example):
        raise CannotHold(f"alpaca holds examples; this is one of {kind_of(record)}")
    turns = list(record.messages)
    row: dict[str, Any] = {"system": turns.pop(0).text} if turns[0].role == "system" else {}
    roles = [m.role for m in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise CannotHold("alpaca needs user and assistant in turn")
    if record.tools or any(m.tool_calls or m.weight != 1.0 or m.name for m in turns):
        raise CannotHold("alpaca has no tools, names or weights")
    if len(turns) > 2:
        row["history"] = [[turns[n].text, turns[n + 1].text] for n in range(0, len(turns) - 2, 2)]
    return {**row, "instruction": turns[-2].text, "input": "", "output": turns[-1].text}


_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _sharegpt_turn(message: Message) -> dict[str, Any]:
    if message.name:
        raise CannotHold("sharegpt has no names of speakers")
    if message.tool_calls:
        if message.text or message.weight != 1.0:
            raise CannotHold("sharegpt has no turn with text beside tool calls, or weights for them")
        calls = list(message.tool_calls)
        return {
            "from": "function_call",
            "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False),
        }
    weight = {"weight": message.weight} if message.weight != 1.0 else {}
    return {"from": _SHAREGPT[message.role], "value": message.text, **weight}


def _sharegpt(record: Kept) -> dict[str, Any]:
    if isinstance(record, Example):
        row: dict[str, Any] = {"conversations": [_sharegpt_turn(m) for m in record.messages]}
        tools = record.tools
    elif isinstance(record, Preference):
        row = {
            "conversations": [_sharegpt_turn(m) for m in record.prompt.messages],
            "chosen": {"from": "gpt", "value": record.chosen.text},
            "rejected": {"from": "gpt", "value": record.rejected.text},
            **_facts(record),
        }
        tools = record.prompt.tools
    else:
        raise CannotHold(f"sharegpt holds examples and preferences; this is one of {kind_of(record)}")
    return {**row, "tools": json.dumps(list(tools), ensure_ascii=False)} if tools else row


def _facts(record: Preference) -> dict[str, Any]:
    """What is not at its default: strength, soft_label, flags, reason."""
    facts = {
        "strength": record.strength,
        "soft_label": record.soft_label,
        "chosen_unsafe": record.chosen_unsafe,
        "rejected_unsafe": record.rejected_unsafe,
        "reason": record.reason,
    }
    plain = {"strength": 1.0, "soft_label": 1.0}
    return {name: value for name, value in facts.items() if value is not None and value != plain.get(name)}


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _trl(record: Kept) -> dict[str, Any]:
    if isinstance(record, Preference):
        row = {
            "prompt": [_openai_message(m) for m in record.prompt.messages],
            "chosen": _answer(record.chosen.text),
            "rejected": _answer(record.rejected.text),
            **_facts(record),
        }
        return _with_tools(row, record.prompt.tools)
    if isinstance(record, Example):
        if len(record.messages) < 2:
            raise CannotHold("trl's prompt-completion needs a turn before the answer")
        row = {
            "prompt": [_openai_message(m) for m in record.messages[:-1]],
            "completion": [_openai_message(record.messages[-1])],
        }
        return _with_tools(row, record.tools)
    raise CannotHold(f"trl holds preferences and examples; this is one of {kind_of(record)} (use kto or openai)")


def _kto(record: Kept) -> dict[str, Any]:
    if not isinstance(record, Label) or record.desirable is None:
        raise CannotHold("kto holds answers with a verdict (desirable true or false)")
    row = {
        "prompt": [_openai_message(m) for m in record.prompt.messages],
        "completion": _answer(record.response.text),
        "label": record.desirable,
    }
    return _with_tools(row, record.prompt.tools)


def _hh(record: Kept) -> dict[str, Any]:
    if not isinstance(record, Preference):
        raise CannotHold(f"hh holds preferences; this is one of {kind_of(record)}")
    texts = [m.text for m in record.prompt.messages] + [record.chosen.text, record.rejected.text]
    if any(m.role not in ("user", "assistant") or m.tool_calls for m in record.prompt.messages) or record.prompt.tools:
        raise CannotHold("hh transcripts have only Human and Assistant")
    if any(mark in text for text in texts for mark in ("\n\nHuman:", "\n\nAssistant:")) or any(
        text != text.strip() for text in texts
    ):
        raise CannotHold(
            "a text holds a speaker's mark, or begins or ends with white space, which a transcript cannot tell apart"
        )
    asked = "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.text}" for m in record.prompt.messages)
    return {
        "chosen": f"{asked}\n\nAssistant: {record.chosen.text}",
        "rejected": f"{asked}\n\nAssistant: {record.rejected.text}",
        **_facts(record),
    }


def _cell(messages: tuple[Message, ...]) -> str:
    """One user turn as its text; anything longer as JSON."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].text
    return json.dumps([_openai_message(m) for m in messages], ensure_ascii=False)


CSV_COLUMNS = {
    "examples": ("prompt", "completion", "tools"),
    "prompts": ("prompt", "references", "label", "tools"),
    "preferences": (
        "prompt",
        "chosen",
        "rejected",
        "strength",
        "soft_label",
        "chosen_unsafe",
        "rejected_unsafe",
        "reason",
        "tools",
    ),
    "labels": ("prompt", "completion", "label", "tools"),
}


def _csv(record: Kept) -> dict[str, Any]:
    if isinstance(record, Example):
        if len(record.messages) < 2 or record.messages[-1].tool_calls or record.messages[-1].weight != 1.0:
            raise CannotHold("csv needs a turn before a last answer in text")
        row, tools = {"prompt": _cell(record.messages[:-1]), "completion": record.messages[-1].text}, record.tools
    elif isinstance(record, Preference):
        row = {
            "prompt": _cell(record.prompt.messages),
            "chosen": record.chosen.text,
            "rejected": record.rejected.text,
            **_facts(record),
        }
        tools = record.prompt.tools
    elif isinstance(record, Label):
        if record.label is None and record.desirable is None:
            raise CannotHold("csv holds labels with a class or a verdict")
        verdict = record.label if record.label is not None else str(record.desirable).lower()
        row, tools = (
            {"prompt": _cell(record.prompt.messages), "completion": record.response.text, "label": verdict},
            record.prompt.tools,
        )
    else:
        row = {
            "prompt": _cell(record.messages),
            "references": json.dumps(list(record.references), ensure_ascii=False),
            "label": record.label or "",
        }
        tools = record.tools
    if any("\0" in str(cell) for cell in row.values()):
        raise CannotHold("csv has no NUL characters")
    return {**row, "tools": json.dumps(list(tools), ensure_ascii=False) if tools else ""}


def _parquet(record: Kept) -> dict[str, Any]:
    """openai, trl or kto, by kind, with every column there and tools as JSON text: a column of Parquet has one type."""
    row = {"examples": _openai, "prompts": _openai, "preferences": _trl, "labels": _kto}[kind_of(record)](record)
    flat = {
        name: [_flat_message(m) for m in value]
        if name in ("messages", "prompt", "completion", "chosen", "rejected")
        else value
        for name, value in row.items()
    }
    return {**flat, "tools": json.dumps(row["tools"], ensure_ascii=False) if row.get("tools") else None}


def _flat_message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return {
        "role": message["role"],
        "content": message["content"],
        "name": message.get("name"),
        "weight": message.get("weight", 1.0),
        "tool_calls": json.dumps(calls, ensure_ascii=False) if calls else None,
    }


def _schema(kind: str) -> pyarrow.Schema:
    text, number, flag = pyarrow.string(), pyarrow.float64(), pyarrow.bool_()
    turns = pyarrow.list_(
        pyarrow.struct({"role": text, "content": text, "name": text, "weight": number, "tool_calls": text})
    )
    columns = {
        "examples": {"messages": turns},
        "prompts": {"messages": turns, "references": pyarrow.list_(text), "label": text},
        "preferences": {
            "prompt": turns,
            "chosen": turns,
            "rejected": turns,
            "strength": number,
            "soft_label": number,
            "chosen_unsafe": flag,
            "rejected_unsafe": flag,
            "reason": text,
        },
        "labels": {"prompt": turns, "completion": turns, "label": flag},
    }[kind]
    return pyarrow.schema({**columns, "tools": text})


ROW_OF: dict[str, Callable[[Kept], dict[str, Any]]] = {
    "openai": _openai,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "trl": _trl,
    "kto": _kto,
    "hh": _hh,
    "csv": _csv,
    "parquet": _parquet,
    "native": lambda record: record.to_dict(),
}

# Rows as a file


def _lines(file, rows: Iterable[dict], kind: str) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _array(file, rows: Iterable[dict], kind: str) -> None:
    for number, row in enumerate(rows):
        file.write((b",\n" if number else b"[\n") + json.dumps(row, ensure_ascii=False).encode())
    file.write(b"\n]\n")


def _table(delimiter: str) -> Callable[[Any, Iterable[dict], str], None]:
    def write(file, rows: Iterable[dict], kind: str) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.DictWriter(text, CSV_COLUMNS[kind], delimiter=delimiter, restval="")
        table.writeheader()
        table.writerows(rows)
        text.detach()

    return write


def _columns(file, rows: Iterable[dict], kind: str) -> None:
    schema, rows = _schema(kind), iter(rows)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(rows, WRITE_BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


_LAYOUT = {".jsonl": _lines, ".json": _array, ".csv": _table(","), ".tsv": _table("\t"), ".parquet": _columns}
