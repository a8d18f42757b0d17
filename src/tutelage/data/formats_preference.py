"""Pairs: one answer preferred to another, in TRL's shapes, ShareGPT, content parts and HH transcripts."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from tutelage.core.files import canonical_json
from tutelage.core.words import Message, Preference
from tutelage.data.formats_chat import (
    alpaca_prompt,
    as_turns,
    common_tags,
    is_messages,
    json_turns,
    messages_of,
    sharegpt_turns,
    tools_of,
)
from tutelage.data.records import (
    Context,
    Format,
    Found,
    RowError,
    first,
    keeping,
    optional_text,
    preference,
    prompt,
    response,
)

# Pairs


def _prompt_turns(row: dict) -> tuple[Message, ...]:
    """The question of a pair, under any of its usual names."""
    if isinstance(row.get("conversations"), list):
        return sharegpt_turns(row["conversations"], optional_text(row, "system"))
    if is_messages(row.get("messages")):
        return messages_of(row["messages"])
    if row.get("instruction") is not None:
        return alpaca_prompt(row)
    name = next((name for name in ("prompt", "question", "query", "input") if row.get(name) is not None), "prompt")
    system = optional_text(row, "system")
    return (*((Message(role="system", text=system),) if system else ()), *as_turns(row.get(name), name, "user"))


def _answer(value: Any, name: str) -> str:
    turns = as_turns(value, name, "assistant")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise RowError(f"wrong turn: '{name}' must be one answer; it has {len(turns)} message(s)")
    if turns[0].tool_calls and not turns[0].text:
        return canonical_json([dict(call) for call in turns[0].tool_calls])
    return turns[0].text


def _whole_conversations(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """Two conversations that part at some answer: (turns before it, better answer, worse answer).

    What follows the point of parting is left out: the two sides then answer different things.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if same == len(chosen) == len(rejected):
        raise RowError("same answer: chosen and rejected are the same")
    if same == min(len(chosen), len(rejected)):
        raise RowError("no pair: one conversation is the beginning of the other")
    if chosen[same].role != "assistant" or rejected[same].role != "assistant":
        raise RowError("no common prompt: the conversations part at a user turn")
    return tuple(chosen[:same]), chosen[same].text, rejected[same].text


def _side_facts(row: dict) -> dict[str, Any]:
    """Graded strength, reason, safety flags and judge, where a pair file has them."""
    facts: dict[str, Any] = {}
    strength = first(row, "strength", "margin")
    if (value := as_number(strength)) is not None:
        if not math.isfinite(value):
            raise RowError(f"wrong value: strength is a finite number; got {strength!r:.40}")
        facts["strength"] = value
    for name in ("chosen_unsafe", "rejected_unsafe"):
        if (flag := as_bool(row.get(name))) is not None:
            facts[name] = flag
    if isinstance(row.get("reason"), str) and row["reason"].strip():
        facts["reason"] = row["reason"]
    if (value := as_number(row.get("soft_label"))) is not None:
        facts["soft_label"] = value
    if isinstance(row.get("judge"), str):
        facts["judgements"] = (f"{row['judge']}/chosen/{facts.get('strength', 1.0):g}",)
    return facts


def _pair(row: dict, ctx: Context) -> list[Preference]:
    chosen, rejected = json_turns(row["chosen"], "chosen"), json_turns(row["rejected"], "rejected")
    asked_here = any(
        row.get(name) is not None
        for name in ("prompt", "conversations", "messages", "instruction", "question", "query", "input")
    )
    if (
        isinstance(chosen, list)
        and isinstance(rejected, list)
        and (len(chosen) > 1 or len(rejected) > 1 or not asked_here)
    ):
        turns, better, worse = _whole_conversations(messages_of(chosen, "chosen"), messages_of(rejected, "rejected"))
    else:
        turns, better, worse = _prompt_turns(row), _answer(chosen, "chosen"), _answer(rejected, "rejected")
    asked = prompt(turns, ctx, tools=tools_of(row), tags=common_tags(row))
    return [
        preference(
            asked,
            response(asked, better, name="chosen", policy=_text_or(row, "chosen_model")),
            response(asked, worse, name="rejected", policy=_text_or(row, "rejected_model")),
            **_side_facts(row),
        )
    ]


def _text_or(row: dict, name: str) -> str:
    return row[name] if isinstance(row.get(name), str) else ""


def _output_pair(row: dict, ctx: Context) -> list[Preference]:
    """`output: [better, worse]`, the older spelling of LLaMA-Factory."""
    if len(row["output"]) != 2:
        raise RowError(f"wrong number of answers: 'output' has {len(row['output'])}, wanted 2")
    return _pair({**row, "chosen": row["output"][0], "rejected": row["output"][1]}, ctx)


def _message_pair(row: dict, ctx: Context) -> list[Preference]:
    turns, better, worse = _whole_conversations(
        messages_of(row["chosen_messages"], "chosen_messages"),
        messages_of(row["rejected_messages"], "rejected_messages"),
    )
    asked = prompt(turns, ctx, tools=tools_of(row))
    return [preference(asked, response(asked, better, name="chosen"), response(asked, worse, name="rejected"))]


# HH transcripts

_HH = re.compile(r"\n\n(Human|Assistant):")


def transcript(text: Any, name: str) -> tuple[Message, ...]:
    """ "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages."""
    if not isinstance(text, str):
        raise RowError(f"wrong type: '{name}' must be text; it is {type(text).__name__}")
    pieces = _HH.split("\n\n" + text.lstrip())
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(f"no transcript: '{name}' does not begin with 'Human:'")
    return tuple(
        Message(role="user" if who == "Human" else "assistant", text=said.strip())
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def _hh(row: dict, ctx: Context) -> list[Preference]:
    return [_hh_pair(row["chosen"], row["rejected"], ctx, **_side_facts(row))]


def _hh_pair(better: Any, worse: Any, ctx: Context, **more: Any) -> Preference:
    turns, a, b = _whole_conversations(transcript(better, "chosen"), transcript(worse, "rejected"))
    asked = prompt(turns, ctx)
    return preference(asked, response(asked, a, name="chosen"), response(asked, b, name="rejected"), **more)


def _text_score(row: dict, ctx: Context) -> Found:
    texts, scores = row["text"], row.get("score")
    if (
        not isinstance(scores, list)
        or len(scores) != len(texts)
        or not all(isinstance(s, (int, float)) for s in scores)
    ):
        raise RowError(f"wrong type: 'score' must hold {len(texts)} numbers")
    found: Found = []
    for (a, score_a), (b, score_b) in itertools.combinations(zip(texts, scores, strict=True), 2):
        better, worse = (a, b) if score_a >= score_b else (b, a)
        tie = score_a == score_b
        with keeping(found):
            found.append(_hh_pair(better, worse, ctx, soft_label=0.5 if tie else 1.0, strength=0.0 if tie else 1.0))
    return found


# Cells


def as_number(value: Any) -> float | None:
    """A number, also one that a table wrote as text."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def as_bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return {
        "true": True,
        "false": False,
        "1": True,
        "0": False,
        "1.0": True,
        "0.0": False,
        "yes": True,
        "no": False,
    }.get(str(value).strip().lower())


def _native_pair(row: dict, ctx: Context) -> list[Preference]:
    return [Preference.from_dict(row)]


def is_native(row: dict) -> bool:
    return isinstance(row.get("prompt"), dict) and "messages" in row["prompt"]


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


FORMATS = (
    Format(
        name="native-preferences",
        kind="preferences",
        convert=_native_pair,
        about="rows of our own snapshots",
        matches=lambda r: is_native(r) and isinstance(r.get("chosen"), dict),
    ),
    Format(
        name="chosen-messages",
        kind="preferences",
        convert=_message_pair,
        about="chosen_messages and rejected_messages",
        matches=lambda r: "chosen_messages" in r and "rejected_messages" in r,
    ),
    Format(
        name="hh",
        kind="preferences",
        convert=_hh,
        about="chosen and rejected transcripts with Human: and Assistant:",
        matches=lambda r: _is_transcript(r.get("chosen")) and "rejected" in r,
    ),
    Format(
        name="text-score",
        kind="preferences",
        convert=_text_score,
        about="text[transcripts] and score[]",
        matches=lambda r: isinstance(r.get("text"), list) and "score" in r,
    ),
    Format(
        name="trl",
        kind="preferences",
        matches=lambda r: "chosen" in r and "rejected" in r,
        convert=_pair,
        about="prompt (or conversations, messages, instruction), chosen, rejected: text or messages; prompt may be implicit",
    ),
    Format(
        name="output-pair",
        kind="preferences",
        convert=_output_pair,
        about="instruction, input, output[better, worse]",
        matches=lambda r: "instruction" in r and isinstance(r.get("output"), list),
    ),
)
