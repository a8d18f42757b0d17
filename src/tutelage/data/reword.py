"""Change the words of a record and keep the rest of it true: ids, groups and answers go on pointing at each other.

A cleaning step is a function of strings; `reword` carries it through an Example, Prompt, Preference or Label.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from tutelage.core.files import canonical_json, sha256_bytes
from tutelage.core.words import Example, Label, Message, Preference, Prompt, Response

Cleanable: TypeAlias = Example | Preference | Label | Prompt
CLEANABLE = (Example, Preference, Label, Prompt)


class Parts(NamedTuple):
    """The texts of a record, in order."""

    question: tuple[str, ...]  # what the model is given
    answers: tuple[str, ...]  # what it learns to say (first) or to avoid; empty for a Prompt


def parts(record: Cleanable) -> Parts:
    """Question and answers.  A Preference has two answers: chosen, then rejected.

    >>> parts(Prompt(messages=(Message(role="user", text="hi"),)))
    Parts(question=('hi',), answers=())
    """
    if isinstance(record, Example):
        return Parts(tuple(m.text for m in record.messages if not is_learnt(m)),
                     tuple(m.text for m in record.messages if is_learnt(m)))
    question = tuple(m.text for m in prompt_of(record).messages)
    if isinstance(record, Preference):
        return Parts(question, (record.chosen.text, record.rejected.text))
    return Parts(question, (record.response.text,) if isinstance(record, Label) else ())


def is_learnt(message: Message) -> bool:
    return message.role == "assistant" and message.weight > 0


def prompt_of(record: Preference | Label | Prompt) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


def tags_of(record: Cleanable) -> tuple[str, ...]:
    return record.tags if isinstance(record, Example) else prompt_of(record).tags


def with_tag(record: Cleanable, tag: str) -> Cleanable:
    """The record with `tag`, which stands on the prompt where the record has none of its own."""
    if tag in tags_of(record):
        return record
    if isinstance(record, (Example, Prompt)):
        return replace(record, tags=(*record.tags, tag))
    return replace(record, prompt=with_tag(record.prompt, tag))


_VERDICT = ("strength", "soft_label", "weight", "judgements", "chosen_unsafe", "rejected_unsafe",
            "desirable", "unsafe", "rating", "label")


def verdict(record: Cleanable) -> str:
    """What was judged of the answers, as one word: equal exactly where the verdicts are equal."""
    row = record.to_dict()
    return sha256_bytes(canonical_json({name: row.get(name) for name in _VERDICT}).encode("utf-8"))


def content_digest(record: Cleanable) -> str:
    """SHA-256 of what a record says: provenance (source, license, tags, group, policy, sampling) does not count.

    Verdicts count (strength, ratings, judgement ids): two people who judge the same pair leave two records.
    """
    row = record.to_dict()
    for name in ("group", "tags", "source", "license", "author", "id"):
        row.pop(name, None)
    if "prompt" in row:
        row["prompt"] = row["prompt"]["messages"]
    for name in ("chosen", "rejected", "response"):
        if name in row:
            row[name] = row[name]["text"]
    row["type"] = type(record).__name__
    return sha256_bytes(canonical_json(row).encode("utf-8"))


def reword(record: Cleanable, change: Callable[[str], str]) -> Cleanable:
    """Every text of the record through `change`; the very same object when nothing changed.

    ValueError from the record when the new texts no longer make a valid one (an answer changed to nothing).
    """
    if isinstance(record, Example):
        messages = _messages(record.messages, change)
        if messages == record.messages:
            return record
        default = replace(record, group="").group  # keep a group that was given, compute one that was computed
        return replace(record, messages=messages, group="" if record.group == default else record.group)
    if isinstance(record, Prompt):
        return _prompt(record, change)
    prompt = _prompt(record.prompt, change)
    if isinstance(record, Label):
        response = _response(record.response, change, prompt_id=prompt.id)
        same = prompt is record.prompt and response is record.response
        return record if same else replace(record, prompt=prompt, response=response)
    chosen = _response(record.chosen, change, prompt_id=prompt.id)
    rejected = _response(record.rejected, change, prompt_id=prompt.id)
    reason = None if record.reason is None else change(record.reason)
    if prompt is record.prompt and chosen is record.chosen and rejected is record.rejected and reason == record.reason:
        return record
    return replace(record, prompt=prompt, chosen=chosen, rejected=rejected, reason=reason)


def _prompt(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    messages = _messages(prompt.messages, change)
    references = tuple(change(text) for text in prompt.references)
    if messages == prompt.messages and references == prompt.references:
        return prompt
    group = "" if prompt.group == prompt.id else prompt.group
    return replace(prompt, messages=messages, references=references, id="", group=group)


def _response(response: Response, change: Callable[[str], str], *, prompt_id: str) -> Response:
    text = change(response.text)
    if text == response.text and prompt_id == response.prompt_id:
        return response
    computed = replace(response, id="").id == response.id  # an id that was given stays, one that was computed follows
    changed = replace(response, text=text, prompt_id=prompt_id, id="" if computed else response.id)
    if text == response.text:
        return changed
    # The sampled ids and their log-probs spell the old text: keeping them would train on words that nobody sees.
    return replace(changed, token_ids=None, logps=None)


def _messages(messages: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    out = []
    for message in messages:
        text = change(message.text)
        calls = tuple(_leaves(call, change) for call in message.tool_calls)
        same = text == message.text and calls == message.tool_calls
        out.append(message if same else replace(message, text=text, tool_calls=calls))
    return tuple(out)


def _leaves(value: Any, change: Callable[[str], str]) -> Any:
    """The strings inside a tool call.  A number that `change` rewrites (a telephone number) becomes a string."""
    if isinstance(value, dict):
        return {key: _leaves(each, change) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_leaves(each, change) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if change(str(value)) == str(value) else change(str(value))
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("{", "["):  # arguments as JSON text: rewriting it as text could break it
        try:
            inner = json.loads(value)
        except json.JSONDecodeError:
            return change(value)
        changed = _leaves(inner, change)
        return value if changed == inner else json.dumps(changed, ensure_ascii=False)
    return change(value)
