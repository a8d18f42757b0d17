"""What all formats are made of: small builders that turn foreign fields into our nouns, and say what is wrong with a row.

Every record gets the group of its first user turn (`family`), so that one conversation at two depths, one question
in two files, or a pair and an example of the same prompt fall on the same side of a split.
"""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.errors import UserError, nearest
from tutelage.core.words import Example, Judgement, Label, Message, Preference, Prompt, Response, prompt_id

KINDS: dict[str, type] = {"examples": Example, "preferences": Preference, "labels": Label, "prompts": Prompt}
Kept = Example | Preference | Label | Prompt

ROLES = {  # the names that data sets give to the four roles
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "client": "user",
    "seeker": "user",
    "speaker": "user",
    "customer": "user",
    "usr": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "counselor": "assistant",
    "supporter": "assistant",
    "listener": "assistant",
    "agent": "assistant",
    "bing": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "api": "tool",
    "function_response": "tool",
    "ipython": "tool",
}


class RowError(ValueError):
    """Why one row cannot become a record.  The text before the first colon is what the summary counts."""


Found = list["Kept | RowError"]  # what one row gives: records, and why parts of it gave none


@contextmanager
def keeping(found: Found) -> Iterator[None]:
    """One part of a row that gives several records: its fault costs this part only, and is kept among the records."""
    try:
        yield
    except RowError as error:
        found.append(error)


@dataclass(slots=True)
class Context:
    """What a converter knows beside its row."""

    source: str = ""  # name of the file or set, without its endings
    license: str = ""
    state: dict[str, Any] = field(default_factory=dict)  # for formats in which rows lean on the rows before them


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One foreign shape: how it is recognised and what it becomes."""

    name: str
    kind: str  # a key of KINDS
    matches: Callable[[dict], bool]
    convert: Callable[[dict, Context], Sequence[Kept | RowError]]
    as_examples: Callable[[dict, Context], Sequence[Example | RowError]] | None = (
        None  # where it says more than `as_kind` would
    )
    about: str = ""


# Fields


def need_text(row: dict, *names: str) -> str:
    """The first of the fields that is there, a string that is not blank.  RowError otherwise."""
    value = first(row, *names)
    if value is None:
        present = [name for name in names if name in row]
        raise RowError(f"missing field: '{names[0]}'" if not present else f"empty field: '{present[0]}' is null")
    return checked_text(value, next(name for name in names if row.get(name) is not None))


def checked_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"wrong type: '{name}' must be text; it is {type(value).__name__}")
    if not value.strip():
        raise RowError(f"empty field: '{name}' has no text")
    return value


def column(row: dict, names: tuple[str, ...]) -> str | None:
    """The row's own spelling of the first of these columns, whatever its case."""
    lower = {str(name).lower(): name for name in row}
    return next((lower[name] for name in names if name in lower), None)


def has_text(row: dict, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def first(row: dict, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def optional_text(row: dict, *names: str) -> str:
    value = first(row, *names)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"wrong type: '{names[0]}' must be text; it is {type(value).__name__}")
    return value


def as_json(value: Any, name: str) -> Any:
    """A value that may stand as a JSON string inside the JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"broken inner JSON: '{name}': {error}") from error


def dotted(row: Any, path: str) -> Any:
    """`row["a"]["b"][0]` for the path "a.b.0"; None where it leads nowhere.

    >>> dotted({"a": [{"b": 3}]}, "a.0.b")
    3
    """
    if isinstance(row, dict) and path in row:
        return row[path]
    for part in path.split("."):
        if isinstance(row, dict):
            row = row.get(part)
        elif isinstance(row, list) and part.isdigit() and int(part) < len(row):
            row = row[int(part)]
        else:
            return None
    return row


def role_of(name: Any) -> str:
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise RowError(f"unknown role: {str(name)[:40]!r}")
    return role


def tags_of(row: dict, *names: str, **fixed: str | None) -> tuple[str, ...]:
    """`name:value` for the named scalar fields that are there, and for the fixed ones."""
    found = [(name, row.get(name)) for name in names] + list(fixed.items())
    return tuple(
        f"{name.strip('_').lower().replace(' ', '_')}:{value}"
        for name, value in found
        if isinstance(value, (str, int, float)) and str(value).strip() and len(str(value)) <= 200
    )


# Records


def family(text: str) -> str:
    """Group id of a question: the same text up to case, white space and unicode form gives the same group.

    >>> family("How are  you?") == family("how are you? ")
    True
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return prompt_id((Message(role="user", text=plain),))


def group_of(messages: Sequence[Message]) -> str:
    opening = next((m for m in messages if m.role == "user"), messages[0] if messages else None)
    return family(opening.text if opening else "")


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", text=text),)


def check_turns(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages, start=1):
        if not message.text.strip() and not message.tool_calls and message.role != "system":
            raise RowError(
                f"empty answer: message {number}"
                if message.role == "assistant"
                else f"empty message: message {number} ({message.role})"
            )


def example(
    messages: Iterable[Message],
    ctx: Context,
    *,
    group: str = "",
    author: str = "",
    tools: Sequence[dict] = (),
    tags: Sequence[str] = (),
) -> Example:
    """A conversation, cut after its last answer: nothing can be learned from turns that nobody answered."""
    messages = tuple(m for m in messages if m.role != "system" or m.text.strip())
    check_turns(messages)
    while messages and messages[-1].role != "assistant":
        messages = messages[:-1]
    if not messages:
        raise RowError("no answer: no assistant turn in the conversation")
    return _made(
        Example,
        messages=messages,
        group=group or group_of(messages),
        author=author,
        tools=tuple(tools),
        tags=tuple(tags),
        source=ctx.source,
        license=ctx.license,
    )


def prompt(
    messages: Iterable[Message],
    ctx: Context,
    *,
    group: str = "",
    tools: Sequence[dict] = (),
    references: Iterable[str] = (),
    label: str | None = None,
    tags: Sequence[str] = (),
) -> Prompt:
    messages = tuple(m for m in messages if m.role != "system" or m.text.strip())
    check_turns(messages)
    if not messages:
        raise RowError("empty prompt: no message before the answer")
    if messages[-1].role == "assistant":
        raise RowError("wrong turn: the prompt ends with an answer, wanted a turn to answer")
    return _made(
        Prompt,
        messages=messages,
        group=group or group_of(messages),
        tools=tuple(tools),
        references=tuple(dict.fromkeys(r for r in references if r.strip())),
        label=label,
        tags=tuple(tags),
        source=ctx.source,
        license=ctx.license,
    )


def response(asked: Prompt, text: Any, *, name: str = "response", policy: str = "", index: int = 0) -> Response:
    text = checked_text(text, name)
    return _made(Response, prompt_id=asked.id, text=text, policy=policy, index=index)


def preference(asked: Prompt, chosen: Response, rejected: Response, **more: Any) -> Preference:
    if chosen.text.strip() == rejected.text.strip():
        raise RowError("same answer: chosen and rejected are the same")
    return _made(Preference, prompt=asked, chosen=chosen, rejected=rejected, **more)


def label(asked: Prompt, answer: Response, **more: Any) -> Label:
    return _made(Label, prompt=asked, response=answer, **more)


def _made(noun: type, **values: Any) -> Any:
    try:
        return noun(**values)
    except ValueError as error:
        raise RowError(f"not a valid {noun.__name__}: {error}") from error


# Votes.  A row with several annotators is one Preference; who voted how stands in its `judgements`.


def fold_votes(asked: Prompt, a: Response, b: Response, votes: Sequence[tuple[str, float]], **more: Any) -> Preference:
    """One preference from votes on a and b: (judge, +strength where a is better, -strength for b, 0 for a tie).

    soft_label is the share of votes for the chosen one, a tie counting half; strength is the mean margin.  With as many
    votes on either side (all ties, say) soft_label is 0.5 and a stands as chosen, which then means nothing.
    """
    if not votes:
        raise RowError("no verdict: nobody voted on this pair")
    share = sum(1.0 if value > 0 else 0.5 if value == 0 else 0.0 for _, value in votes) / len(votes)
    flipped = share < 0.5
    sign = -1 if flipped else 1
    marks = tuple(
        f"{judge}/{'chosen' if sign * value > 0 else 'rejected' if value else 'tie'}/{abs(value):g}"
        for judge, value in votes
    )
    margin = sign * sum(value for _, value in votes) / len(votes)
    return preference(
        asked,
        b if flipped else a,
        a if flipped else b,
        soft_label=1 - share if flipped else share,
        strength=max(margin, 0.0),
        judgements=marks,
        **more,
    )


def votes(pair: Preference) -> list[Judgement]:
    """The single judgements behind an imported preference, as read from its marks `judge/chosen|rejected|tie/strength`."""
    found = []
    for mark in pair.judgements:
        judge, _, rest = mark.partition("/")
        side, _, strength = rest.partition("/")
        if side not in ("chosen", "rejected", "tie"):
            continue
        value = float(strength or 1)
        values = {"chosen": (value, 0.0), "rejected": (0.0, value), "tie": (0.0, 0.0)}[side]
        found.append(Judgement(judge=judge, kind="pair", responses=(pair.chosen.id, pair.rejected.id), values=values))
    return found


# Kinds


def kind_of(record: Kept) -> str:
    return next(kind for kind, noun in KINDS.items() if isinstance(record, noun))


def as_kind(record: Kept, kind: str) -> list[Kept]:
    """The same content as another noun.  RowError where it holds too little for that; UserError for an unknown kind."""
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, KINDS)}")
    if isinstance(record, KINDS[kind]):
        return [record]
    home = getattr(record, "prompt", record)
    ctx = Context(source=home.source, license=home.license)
    if kind == "examples":
        return [_to_example(record, ctx)]
    if kind == "prompts":
        return [_to_prompt(record)]
    if kind == "labels" and isinstance(record, Preference) and record.soft_label != 0.5:
        return [
            Label(prompt=record.prompt, response=answer, desirable=good, unsafe=unsafe, judgements=record.judgements)
            for answer, good, unsafe in (
                (record.chosen, True, record.chosen_unsafe),
                (record.rejected, False, record.rejected_unsafe),
            )
        ]
    raise RowError(f"not convertible: {kind_of(record)} into {kind}")


def _to_example(record: Kept, ctx: Context) -> Example:
    if isinstance(record, Preference):
        asked, answer, author = record.prompt, record.chosen.text, record.chosen.policy
        if record.soft_label == 0.5:
            raise RowError("a tie: no answer is the better one")
    elif isinstance(record, Label):
        asked, answer, author = record.prompt, record.response.text, record.response.policy
        if record.desirable is False or record.unsafe:
            raise RowError("undesirable answer: nothing to imitate")
    else:
        asked, answer, author = record, record.references[0] if record.references else record.label or "", ""
        if not answer:
            raise RowError("no answer: the prompt has no reference")
    return example(
        (*asked.messages, Message(role="assistant", text=answer)),
        ctx,
        group=asked.group,
        author=author,
        tools=asked.tools,
        tags=asked.tags,
    )


def _to_prompt(record: Kept) -> Prompt:
    if isinstance(record, Preference):
        return (
            dataclasses.replace(record.prompt, references=(record.chosen.text,))
            if record.soft_label > 0.5
            else record.prompt
        )
    if isinstance(record, Label):
        return dataclasses.replace(record.prompt, label=record.label or record.prompt.label)
    *before, last = record.messages
    if not before or last.tool_calls:
        raise RowError(
            "no question: nothing stands before the answer" if not before else "not convertible: ends with a tool call"
        )
    final = re.search(r"####\s*(\S.*)\s*$", last.text)  # gsm8k writes its final answer so
    return prompt(
        before,
        Context(source=record.source, license=record.license),
        group=record.group,
        tools=record.tools,
        references=(last.text,),
        label=final[1].strip() if final else None,
        tags=record.tags,
    )
