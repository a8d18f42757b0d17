"""Conversations to learn from: Alpaca, ShareGPT, OpenAI messages, prompt-completion and self-instruct seeds.

What is left out: the `reasoning` parts of content-part messages, which were never said to the user.
"""

import re
from typing import Any

from tutelage.core.words import Example, Message
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    as_json,
    checked_text,
    example,
    family,
    first,
    keeping,
    need_text,
    optional_text,
    role_of,
    tags_of,
    user,
)

# OpenAI messages


def tools_of(row: dict, *names: str) -> tuple[dict, ...]:
    value = first(row, *(names or ("tools", "functions")))
    if value in (None, "", []):
        return ()
    found = as_json(value, "tools")
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowError("wrong type: 'tools' must be a list of objects")
    return tuple(found)


def tool_call(value: Any) -> dict:
    """{"name", "arguments"} out of OpenAI's nesting or a JSON string; arguments are parsed where they are JSON."""
    call = as_json(value, "tool_calls")
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = {**call["function"], **({"id": call["id"]} if call.get("id") else {})}
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError("wrong type: a tool call must be an object with a name")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str) and arguments.lstrip()[:1] in ("{", "["):
        try:
            arguments = as_json(arguments, "arguments")
        except RowError:
            pass  # models write broken arguments; kept as the text that they wrote
    return {"name": call["name"], "arguments": arguments, **({"id": call["id"]} if call.get("id") else {})}


def tool_calls(value: Any) -> tuple[dict, ...]:
    value = as_json(value, "tool_calls")
    return tuple(tool_call(each) for each in (value if isinstance(value, list) else [value]))


def message_of(turn: Any) -> Message:
    """One OpenAI message: content as text, null beside tool calls, or a list of parts."""
    if not isinstance(turn, dict):
        raise RowError(f"wrong type: a message must be an object; it is {type(turn).__name__}")
    if "role" not in turn:
        raise RowError("missing field: 'role' of a message")
    content, calls = turn.get("content", turn.get("text", turn.get("value"))), tool_calls(turn.get("tool_calls") or [])
    if isinstance(content, list):
        content, more = _join_parts(content)
        calls += more
    if turn.get("function_call"):
        calls += (tool_call(turn["function_call"]),)
    if content is None and calls:
        content = ""
    if content is None:
        raise RowError("missing field: 'content' of a message")
    if not isinstance(content, str):
        raise RowError(f"wrong type: the content of a message must be text or parts; it is {type(content).__name__}")
    weight = first(turn, "weight", "loss_weight")
    if weight is not None and (not isinstance(weight, (int, float)) or weight < 0):
        raise RowError(f"wrong type: the weight of a message must be a number >= 0; it is {weight!r}")
    role = role_of(turn["role"])
    return Message(
        role=role,
        text=content,
        name=turn.get("name") or None,
        tool_calls=calls,
        weight=1.0 if weight is None or role != "assistant" else float(weight),
    )


def _join_parts(parts: list) -> tuple[str, tuple[dict, ...]]:
    texts, calls = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text"):
            texts.append(first(part, "text", "value") or "")
        elif kind in ("tool_call", "function_call"):
            calls.append(tool_call(first(part, "value", "tool_call", "function_call")))
        elif kind not in ("reasoning", "thinking"):
            raise RowError(f"not text: a content part of type {kind!r}")
    if not all(isinstance(text, str) for text in texts):
        raise RowError("wrong type: a text part must hold text")
    return "\n".join(text for text in texts if text), tuple(calls)


def messages_of(turns: Any, name: str = "messages") -> tuple[Message, ...]:
    turns = as_json(turns, name)
    if not isinstance(turns, list) or not turns:
        raise RowError(f"wrong type: '{name}' must be a list of messages" if turns else f"empty field: '{name}'")
    return tuple(message_of(turn) for turn in turns)


def is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and "role" in value[0]
        and (any(name in value[0] for name in ("content", "text", "tool_calls")))
    )


def _openai(row: dict, ctx: Context) -> list[Example]:
    turns = messages_of(first(row, "messages", "conversation"))
    return [example(turns, ctx, tools=tools_of(row), author=optional_author(row), tags=common_tags(row))]


def optional_author(row: dict) -> str:
    author = row.get("author")
    return author if isinstance(author, str) else ""


def common_tags(row: dict, *more: str) -> tuple[str, ...]:
    return tags_of(row, "task", "lang", "category", "split", *more)


# Alpaca


def alpaca_prompt(row: dict) -> tuple[Message, ...]:
    """system, history and instruction + input, as the turns before the answer."""
    turns: list[Message] = []
    if system := optional_text(row, "system"):
        turns.append(Message(role="system", text=system))
    for pair in row.get("history") or ():
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError("wrong type: 'history' must be a list of [question, answer]")
        turns += [Message(role="user", text=pair[0]), Message(role="assistant", text=pair[1])]
    instruction, given = need_text(row, "instruction", "prompt"), optional_text(row, "input", "context")
    return (*turns, Message(role="user", text=f"{instruction}\n\n{given}" if given.strip() else instruction))


def _alpaca(row: dict, ctx: Context) -> list[Example]:
    turns = alpaca_prompt(row)
    answer = need_text(row, "output", "response", "completion", "answer")
    return [example((*turns, Message(role="assistant", text=answer)), ctx, tools=tools_of(row), tags=common_tags(row))]


def _seeds(row: dict, ctx: Context) -> Found:
    if not isinstance(row["instances"], list) or not row["instances"]:
        raise RowError("empty field: 'instances'")
    found: Found = []
    for instance in row["instances"]:
        with keeping(found):
            if not isinstance(instance, dict):
                raise RowError("wrong type: an instance must be an object with input and output")
            turns = alpaca_prompt({"instruction": row.get("instruction"), "input": instance.get("input")})
            found.append(
                example(
                    (*turns, Message(role="assistant", text=need_text(instance, "output"))),
                    ctx,
                    group=family(need_text(row, "instruction")) if len(row["instances"]) > 1 else "",
                    tags=tags_of(row, "name", "motivation_app"),
                )
            )
    return found


# ShareGPT


def sharegpt_turns(turns: Any, system: str = "") -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise RowError("empty field: 'conversations'")
    found = [Message(role="system", text=system)] if system.strip() else []
    for turn in turns:
        if not isinstance(turn, dict) or "from" not in turn:
            raise RowError("wrong type: a turn must be an object with 'from' and 'value'")
        value = turn.get("value")
        if not isinstance(value, str):
            raise RowError(f"wrong type: 'value' of a turn must be text; it is {type(value).__name__}")
        if turn["from"] == "function_call":
            found.append(Message(role="assistant", text="", tool_calls=tool_calls(value)))
        else:
            weight = turn.get("weight", 1.0)
            found.append(
                Message(role=role_of(turn["from"]), text=value, weight=1.0 if weight is None else float(weight))
            )
    return tuple(found)


def _sharegpt(row: dict, ctx: Context) -> list[Example]:
    turns = sharegpt_turns(row["conversations"], optional_text(row, "system"))
    return [example(turns, ctx, tools=tools_of(row), tags=common_tags(row))]


# Prompt and completion


def json_turns(value: Any, name: str) -> Any:
    """A list of messages that a table had to write as a JSON string; anything else as it is."""
    return as_json(value, name) if isinstance(value, str) and re.match(r'\s*\[\s*\{\s*"(role|from)"', value) else value


def as_turns(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """TRL's two spellings: a string, or a list of messages (in a table: as JSON)."""
    value = json_turns(value, name)
    if isinstance(value, str):
        return (Message(role=role, text=checked_text(value, name)),)
    if isinstance(value, dict):
        value = [value]
    if value is None:
        raise RowError(f"missing field: '{name}'")
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        return sharegpt_turns(value)
    return messages_of(value, name)


def _prompt_completion(row: dict, ctx: Context) -> list[Example]:
    turns = as_turns(row["prompt"], "prompt", "user") + as_turns(
        first(row, "completion", "response", "answer"), "completion", "assistant"
    )
    return [example(turns, ctx, tools=tools_of(row), tags=common_tags(row))]


def _question_answer(row: dict, ctx: Context) -> list[Example]:
    question, answer = need_text(row, "question", "Question", "query"), need_text(row, "answer", "Answer", "response")
    return [example((*user(question), Message(role="assistant", text=answer)), ctx, tags=common_tags(row))]


def is_dicts(row: dict, name: str, key: str) -> bool:
    value = row.get(name)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _native(row: dict, ctx: Context) -> list[Example]:
    return [Example.from_dict(row)]


FORMATS = (
    Format(
        name="self-instruct",
        kind="examples",
        matches=lambda r: "instances" in r and "instruction" in r,
        convert=_seeds,
        about="instruction with instances[{input, output}]",
    ),
    Format(
        name="sharegpt",
        kind="examples",
        matches=lambda r: is_dicts(r, "conversations", "from"),
        convert=_sharegpt,
        about="conversations[{from, value}], function_call and observation turns, tools as a JSON string",
    ),
    Format(
        name="native-examples",
        kind="examples",
        convert=_native,
        about="rows of our own snapshots",
        matches=lambda r: (
            is_dicts(r, "messages", "text")
            and "role" in r["messages"][0]
            and "content" not in r["messages"][0]
            and any(isinstance(m, dict) and m.get("role") == "assistant" for m in r["messages"])
        ),
    ),
    Format(
        name="openai",
        kind="examples",
        matches=lambda r: is_messages(first(r, "messages", "conversation")),
        convert=_openai,
        about="messages[{role, content}]: text or parts, tool_calls, tools, loss weights",
    ),
    Format(
        name="alpaca",
        kind="examples",
        convert=_alpaca,
        about="instruction, input, output (or response), system, history",
        matches=lambda r: (
            "instruction" in r
            and any(isinstance(r.get(k), str) for k in ("output", "response", "completion", "answer"))
        ),
    ),
    Format(
        name="prompt-completion",
        kind="examples",
        convert=_prompt_completion,
        about="prompt and completion, text or messages",
        matches=lambda r: "prompt" in r and any(k in r for k in ("completion", "response", "answer")),
    ),
    Format(
        name="question-answer",
        kind="examples",
        convert=_question_answer,
        about="question and answer",
        matches=lambda r: (
            any(isinstance(r.get(k), str) for k in ("question", "Question", "query"))
            and any(isinstance(r.get(k), str) for k in ("answer", "Answer", "response"))
        ),
    ),
)
