"""Conversations to learn from: Alpaca, ShareGPT, OpenAI messages, prompt-completion, self-instruct seeds, and the shapes
of MOSS, KdConv, Taskmaster and emotional-support dialogs.

What is left out of a record: the inner thoughts of MOSS and the `reasoning` parts of content-part messages (they were
never said to the user), and the knowledge attributes of KdConv.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tutelage.core.words import Example, Message
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    as_json,
    check_turns,
    checked_text,
    example,
    family,
    first,
    group_of,
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
    return Message(role=role, text=content, name=turn.get("name") or None, tool_calls=calls,
                   weight=1.0 if weight is None or role != "assistant" else float(weight))


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
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0] and (
        any(name in value[0] for name in ("content", "text", "tool_calls")))


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
            found.append(example((*turns, Message(role="assistant", text=need_text(instance, "output"))), ctx,
                                 group=family(need_text(row, "instruction")) if len(row["instances"]) > 1 else "",
                                 tags=tags_of(row, "name", "motivation_app")))
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
            found.append(Message(role=role_of(turn["from"]), text=value, weight=1.0 if weight is None else float(weight)))
    return tuple(found)


def _sharegpt(row: dict, ctx: Context) -> list[Example]:
    turns = sharegpt_turns(row["conversations"], optional_text(row, "system"))
    return [example(turns, ctx, tools=tools_of(row), tags=common_tags(row))]


# Prompt and completion


def as_turns(value: Any, name: str, role: str) -> tuple[Message, ...]:
    """TRL's two spellings: a string, or a list of messages."""
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
    turns = as_turns(row["prompt"], "prompt", "user") + as_turns(first(row, "completion", "response", "answer"), "completion", "assistant")
    return [example(turns, ctx, tools=tools_of(row), tags=common_tags(row))]


def _question_answer(row: dict, ctx: Context) -> list[Example]:
    question, answer = need_text(row, "question", "Question", "query"), need_text(row, "answer", "Answer", "response")
    return [example((*user(question), Message(role="assistant", text=answer)), ctx, tags=common_tags(row))]


# Dialogs of two speakers


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
    turns = [Message(role=("user", "assistant")[number % 2], text=need_text(turn, "message"))
             for number, turn in enumerate(row["messages"])]
    return [example(turns, ctx, tags=tags_of(row, "domain"))]


_MARKERS = re.compile(r"<\|[^|>]{1,20}\|>:?|<eo[a-z]>")


def _moss(row: dict, ctx: Context) -> list[Example]:
    chat, turns = row["chat"], []
    if meta := optional_text(row, "meta_instruction"):
        turns.append(Message(role="system", text=meta.strip()))
    for name in sorted(chat, key=lambda name: int(re.sub(r"\D", "", name) or 0)):
        turn = {key: _MARKERS.sub("", value).strip() for key, value in chat[name].items() if isinstance(value, str)}
        turns.append(Message(role="user", text=need_text(turn, "Human")))
        calls = [{"name": match[1], "arguments": match[2]}
                 for match in re.finditer(r'([A-Za-z_]\w*)\((.*?)\)(?=\s*(?:,\s*[A-Za-z_]\w*\(|$))', turn.get("Commands", ""), re.S)]
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
    turns = [Message(role=("user", "assistant")[speaker], text=text, weight=weight if speaker else 1.0)
             for weight, speaker, _, text in pieces]
    check_turns(turns)
    last = pieces[-1][2]
    if "eos_group" not in ctx.state or last <= ctx.state["eos_last"]:  # turn numbers start again: a new dialog
        ctx.state["eos_group"] = group_of(turns)
    ctx.state["eos_last"] = last
    return [example(turns, ctx, group=ctx.state["eos_group"])]


def _is_dicts(row: dict, name: str, key: str) -> bool:
    value = row.get(name)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _native(row: dict, ctx: Context) -> list[Example]:
    return [Example.from_dict(row)]


FORMATS = (
    Format(name="self-instruct", kind="examples", matches=lambda r: "instances" in r and "instruction" in r, convert=_seeds,
           about="instruction with instances[{input, output}]"),
    Format(name="sharegpt", kind="examples", matches=lambda r: _is_dicts(r, "conversations", "from"), convert=_sharegpt,
           about="conversations[{from, value}], function_call and observation turns, tools as a JSON string"),
    Format(name="moss", kind="examples", matches=lambda r: isinstance(r.get("chat"), dict), convert=_moss,
           about="chat{turn_1{Human, Commands, Tool Responses, MOSS}}"),
    Format(name="kdconv", kind="examples", matches=lambda r: _is_dicts(r, "messages", "message"), convert=_kdconv,
           about="messages[{message, attrs}], speakers in turn"),
    Format(name="native-examples", kind="examples", convert=_native, about="rows of our own snapshots",
           matches=lambda r: _is_dicts(r, "messages", "text") and "role" in r["messages"][0] and "content" not in r["messages"][0]
           and any(isinstance(m, dict) and m.get("role") == "assistant" for m in r["messages"])),
    Format(name="openai", kind="examples", matches=lambda r: is_messages(first(r, "messages", "conversation")), convert=_openai,
           about="messages[{role, content}]: text or parts, tool_calls, tools, loss weights"),
    Format(name="taskmaster", kind="examples", matches=lambda r: _is_dicts(r, "utterances", "speaker"), convert=_taskmaster,
           about="utterances[{speaker, text, annotations}]"),
    Format(name="dialog", kind="examples", matches=lambda r: _is_dicts(r, "dialog", "speaker") or _is_dicts(r, "dialog", "role"),
           convert=_dialog, about="dialog[{speaker or role, text or content}]"),
    Format(name="dialog-eos", kind="examples", convert=_dialog_eos, about="turns joined with ' EOS ', one growing dialog a line",
           matches=lambda r: set(r) == {"text"} and isinstance(r["text"], str) and bool(_EOS_TURN.match(r["text"]))),
    Format(name="alpaca", kind="examples", convert=_alpaca, about="instruction, input, output (or response), system, history",
           matches=lambda r: "instruction" in r and any(isinstance(r.get(k), str) for k in ("output", "response", "completion", "answer"))),
    Format(name="prompt-completion", kind="examples", convert=_prompt_completion, about="prompt and completion, text or messages",
           matches=lambda r: "prompt" in r and any(k in r for k in ("completion", "response", "answer"))),
    Format(name="question-answer", kind="examples", convert=_question_answer, about="question and answer",
           matches=lambda r: any(isinstance(r.get(k), str) for k in ("question", "Question", "query"))
           and any(isinstance(r.get(k), str) for k in ("answer", "Answer", "response"))),
)
