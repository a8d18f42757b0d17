"""Dialogs of two speakers: MOSS, KdConv, Taskmaster and emotional support.

What is left out: the inner thoughts of MOSS (never said to the user) and the knowledge attributes of KdConv.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tutelage.core.words import Example, Message
from tutelage.data.formats_chat import is_dicts
from tutelage.data.records import (
    Context,
    Format,
    RowError,
    as_json,
    check_turns,
    checked_text,
    example,
    first,
    group_of,
    need_text,
    optional_text,
    role_of,
    tags_of,
)

# Turns


def merged(turns: Iterable[Message]) -> tuple[Message, ...]:
    """Neighbouring plain turns of one speaker become one turn; blank turns vanish."""
    found: list[Message] = []
    for turn in turns:
        if not turn.text.strip() and not turn.tool_calls:
            continue
        last = found[-1] if found else None
        if last and last.role == turn.role and not last.tool_calls and not turn.tool_calls and turn.role != "tool":
            found[-1] = Message(role=turn.role, text=f"{last.text}\n{turn.text}", weight=max(last.weight, turn.weight))
        else:
            found.append(turn)
    return tuple(found)


def _dialog(row: dict, ctx: Context) -> list[Example]:
    """[{speaker or role, text or content}]: emotional support and counselling."""
    turns = []
    for turn in row["dialog"]:
        if not isinstance(turn, dict):
            raise RowError("wrong type: a turn must be an object")
        role = role_of(first(turn, "role", "speaker"))
        turns.append(Message(role=role, text=checked_text(first(turn, "content", "text"), "text of a turn").strip()))
    return [example(merged(turns), ctx, tags=tags_of(row, "emotion_type", "problem_type", "experience_type"))]


def _kdconv(row: dict, ctx: Context) -> list[Example]:
    """Two people take turns; the second one is the assistant."""
    turns = [
        Message(role=("user", "assistant")[number % 2], text=need_text(turn, "message"))
        for number, turn in enumerate(row["messages"])
    ]
    return [example(turns, ctx, tags=tags_of(row, "domain"))]


_MARKERS = re.compile(r"<\|[^|>]{1,20}\|>:?|<eo[a-z]>")


def _moss(row: dict, ctx: Context) -> list[Example]:
    chat, turns = row["chat"], []
    if meta := optional_text(row, "meta_instruction"):
        turns.append(Message(role="system", text=meta.strip()))
    for name in sorted(chat, key=lambda name: int(re.sub(r"\D", "", name) or 0)):
        turn = {key: _MARKERS.sub("", value).strip() for key, value in chat[name].items() if isinstance(value, str)}
        turns.append(Message(role="user", text=need_text(turn, "Human")))
        calls = [
            {"name": match[1], "arguments": match[2]}
            for match in re.finditer(
                r"([A-Za-z_]\w*)\((.*?)\)(?=\s*(?:,\s*[A-Za-z_]\w*\(|$))", turn.get("Commands", ""), re.S
            )
        ]
        if calls:
            turns.append(Message(role="assistant", text="", tool_calls=tuple(calls)))
            turns.append(Message(role="tool", text=turn.get("Tool Responses") or "None"))
        turns.append(Message(role="assistant", text=need_text(turn, "MOSS")))
    return [example(turns, ctx, tags=tags_of(row, "category"))]


def _taskmaster(row: dict, ctx: Context) -> list[Example]:
    """Customer service: the API calls that followed a user turn stand in its annotations."""
    turns: list[Message] = []
    for utterance in row["utterances"]:
        if not isinstance(utterance, dict):
            raise RowError("wrong type: an utterance must be an object")
        turns.append(Message(role=role_of(utterance.get("speaker")), text=optional_text(utterance, "text").strip()))
        turns += _api_turns(utterance.get("annotations") or [])
    return [example(merged(turns), ctx, tags=tags_of(row, "vertical"))]


def _api_turns(annotations: Sequence[dict]) -> list[Message]:
    found, name, request = [], "", {}
    for item in annotations:
        kind, value = item.get("name"), item.get("value")
        if kind == "api_call":
            name, request = str(value), {}
        elif kind == "request":
            request = value if not isinstance(value, str) or value.lstrip()[:1] != "{" else _lenient_json(value)
        elif kind == "response" and name:
            found.append(Message(role="assistant", text="", tool_calls=({"name": name, "arguments": request},)))
            found.append(Message(role="tool", text=str(value), name=name))
            name = ""
    return found


def _lenient_json(text: str) -> Any:
    try:
        return as_json(text, "request")
    except RowError:
        return text  # typed by people; some are no JSON


_EOS_TURN = re.compile(r"^(\d(?:\.\d)?) ([01]) (\d+) (?:\[[^\]]*\] )?(.*)$", re.S)


def _eos_turns(line: str) -> list[tuple[float, int, int, str]]:
    found = []
    for piece in line.split(" EOS "):
        match = _EOS_TURN.match(piece.strip())
        if not match:
            raise RowError(f"not a dialog turn: {piece.strip()[:40]!r}, wanted 'weight speaker number [strategy] text'")
        found.append((float(match[1]), int(match[2]), int(match[3]), match[4].strip()))
    return found


def _dialog_eos(row: dict, ctx: Context) -> list[Example]:
    """One window of a growing dialog a line; only the turn of weight 1 is trained on.  All windows share a group."""
    pieces = _eos_turns(need_text(row, "text"))
    turns = [
        Message(role=("user", "assistant")[speaker], text=text, weight=weight if speaker else 1.0)
        for weight, speaker, _, text in pieces
    ]
    check_turns(turns)
    last = pieces[-1][2]
    if "eos_group" not in ctx.state or last <= ctx.state["eos_last"]:  # turn numbers start again: a new dialog
        ctx.state["eos_group"] = group_of(turns)
    ctx.state["eos_last"] = last
    return [example(turns, ctx, group=ctx.state["eos_group"])]


FORMATS = (
    Format(
        name="moss",
        kind="examples",
        matches=lambda r: isinstance(r.get("chat"), dict),
        convert=_moss,
        about="chat{turn_1{Human, Commands, Tool Responses, MOSS}}",
    ),
    Format(
        name="kdconv",
        kind="examples",
        matches=lambda r: is_dicts(r, "messages", "message"),
        convert=_kdconv,
        about="messages[{message, attrs}], speakers in turn",
    ),
    Format(
        name="taskmaster",
        kind="examples",
        matches=lambda r: is_dicts(r, "utterances", "speaker"),
        convert=_taskmaster,
        about="utterances[{speaker, text, annotations}]",
    ),
    Format(
        name="dialog",
        kind="examples",
        matches=lambda r: is_dicts(r, "dialog", "speaker") or is_dicts(r, "dialog", "role"),
        convert=_dialog,
        about="dialog[{speaker or role, text or content}]",
    ),
    Format(
        name="dialog-eos",
        kind="examples",
        convert=_dialog_eos,
        about="turns joined with ' EOS ', one growing dialog a line",
        matches=lambda r: set(r) == {"text"} and isinstance(r["text"], str) and bool(_EOS_TURN.match(r["text"])),
    ),
)
