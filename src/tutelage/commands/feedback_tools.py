"""Judgements as other tools keep them: with every annotator, question and order shown.  Written and read back.

    judgements     our own: a row a judgement, nothing left out
    label-studio   tasks with `data` and `annotations` (https://labelstud.io/guide/export#Raw-JSON-format-of-completed-tasks)
    argilla        records with `fields` and `responses` (Argilla's JSON of feedback records)
    spans          marked answers, for `tutelage span-reward`; written only

A task of Label Studio or a record of Argilla shows its answers in one order, so an item that was shown in two orders becomes
two of them; the reader puts them together again.  A preference is a choice named left-3 .. left-1, tie, right-1 .. right-3 or both-bad
(levels of the rubric's scale): neither tool has graded preferences of its own.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tutelage.core.errors import UserError
from tutelage.core.words import Message, Prompt, Response
from tutelage.data.formats_chat import messages_of
from tutelage.data.records import Context, RowError, prompt
from tutelage.store.answers import BOTH_BAD
from tutelage.store.collected import Collected
from tutelage.store.feedback import Item
from tutelage.store.rubrics import Question, Rubric


class Said(NamedTuple):
    """One person's answers on one item."""

    item: Item
    person: str
    order: tuple[int, ...]  # of the item's responses, as shown
    values: dict[str, Any]  # as in store/answers.py, in the order shown
    seconds: float | None = None


class Reader(NamedTuple):
    matches: Callable[[dict], bool]
    rubric: Callable[[dict], str]  # the rubric that a row names, or nothing
    read: Callable[[Any, Rubric], Iterable[Said]]


# -- our own --------------------------------------------------------------------------------------------------------


def judgement_rows(items: dict[str, Item], rows: Iterable[Collected], rubrics: dict[str, Rubric]) -> Iterator[dict[str, Any]]:
    for row in rows:
        item = items[row.item]
        yield {"person": row.person, "at": _iso(row.at), "seconds": row.seconds, "rubric": row.rubric, "order": list(row.order),
               "values": row.values, "judgements": [each.to_dict() for each in row.judgements], "item": {
                   "id": item.id, "kind": item.kind, "prompt": item.prompt and item.prompt.to_dict(),
                   "responses": [response.to_dict() for response in item.responses]}}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read_judgement(row: dict, rubric: Rubric) -> list[Said]:
    item = row["item"]
    return [Said(
        Item(kind=item["kind"], prompt=item.get("prompt") and Prompt.from_dict(item["prompt"]),
             responses=tuple(Response.from_dict(each) for each in item["responses"])),
        row["person"], tuple(row["order"]), dict(row["values"]), row.get("seconds"))]


def span_rows(items: dict[str, Item], rows: Iterable[Collected], rubrics: dict[str, Rubric]) -> Iterator[dict[str, Any]]:
    """What `tutelage span-reward` reads: a row an answer and person.  A span called good is worth 1, any other -1."""
    for row in rows:
        item = items[row.item]
        for said in row.judgements:
            if said.kind != "spans":
                continue
            if item.prompt is None or len(item.prompt.messages) != 1:
                raise UserError(f"item {item.id}: a file of spans has prompts of one message; this one has several")
            for response in item.responses:
                spans = [{"start": span.start, "end": span.end, "label": span.label, "value": 1.0 if span.label == "good" else -1.0}
                         for span in said.spans if span.response == response.id]
                yield {"prompt": item.prompt.messages[0].text, "response": response.text, "spans": spans, "annotator": row.person}


# -- what both tools share ------------------------------------------------------------------------------------------


def pair_word(value: Any) -> str:
    """
    >>> [pair_word(each) for each in (-3, 0, 1, "both_bad")]
    ['left-3', 'tie', 'right-1', 'both-bad']
    """
    if value == BOTH_BAD:
        return "both-bad"
    return f"{'left' if value < 0 else 'right'}-{abs(value)}" if value else "tie"


def pair_value(word: str) -> int | str:
    """
    >>> [pair_value(each) for each in ("left-3", "left", "tie", "right-1", "both-bad")]
    [-3, -1, 0, 1, 'both_bad']
    """
    side, _, level = str(word).partition("-")
    if word == "both-bad":
        return BOTH_BAD
    if word == "tie":
        return 0
    if side not in ("left", "right") or (level and level not in "1234"):
        raise UserError(f"unknown verdict: {str(word)[:40]!r}, wanted left-3 ... left-1, tie, right-1 ... right-3 or both-bad")
    return int(level or 1) * (-1 if side == "left" else 1)


def _shown(items: dict[str, Item], rows: Iterable[Collected]) -> Iterator[tuple[Item, tuple[int, ...], list[Collected]]]:
    """(item, order, what was said of it in that order)."""
    groups: dict[tuple, list[Collected]] = {}
    for row in rows:
        groups.setdefault((row.item, row.order, row.rubric), []).append(row)
    for (key, order, _), said in groups.items():
        yield items[key], order, said


def _facts(item: Item, order: Sequence[int], rubric: str) -> dict[str, Any]:
    return {"item": item.id, "kind": item.kind, "rubric": rubric, "group": item.prompt.group if item.prompt else "",
            "models": [item.responses[at].policy for at in order],
            "conversation": [{"role": m.role, "content": m.text} for m in item.prompt.messages] if item.prompt else []}


def _read_item(conversation: Any, facts: dict, texts: list[str]) -> Item:
    """The item of a task, answers in the order shown."""
    turns = messages_of(conversation) if isinstance(conversation, list) else (Message(role="user", text=str(conversation)),)
    try:
        asked = prompt(turns, Context(source="import"), group=facts.get("group") or "")
    except RowError as error:
        raise UserError(str(error)) from error
    models = facts.get("models") or [""] * len(texts)
    responses = tuple(Response(prompt_id=asked.id, text=text, policy=str(model or ""), index=at)
                      for at, (text, model) in enumerate(zip(texts, models, strict=True)))
    return Item(kind=facts.get("kind") or {1: "single", 2: "pair"}.get(len(texts), "set"), prompt=asked, responses=responses)


def _numbered(row: dict, name: str) -> list[str]:
    """row[name + "1"], row[name + "2"], ..."""
    out: list[str] = []
    while f"{name}{len(out) + 1}" in row:
        out.append(row[f"{name}{len(out) + 1}"])
    if not all(isinstance(text, str) for text in out):
        raise UserError(f"wrong type: {name}1, {name}2, ... must be texts")
    return out


# -- Label Studio ---------------------------------------------------------------------------------------------------


def label_studio_rows(items: dict[str, Item], rows: Iterable[Collected], rubrics: dict[str, Rubric]) -> Iterator[dict[str, Any]]:
    for number, (item, order, said) in enumerate(_shown(items, rows), start=1):
        facts = _facts(item, order, said[0].rubric)
        data = {"prompt": item.prompt.messages[-1].text if item.prompt else "", **facts,
                **{f"answer{at}": item.responses[place].text for at, place in enumerate(order, start=1)}}
        yield {"id": number, "data": data, "annotations": [
            {"id": row.seq, "completed_by": {"email": row.person}, "lead_time": row.seconds, "created_at": _iso(row.at),
             "was_cancelled": False,
             "result": [part for name, value in row.values.items() for part in _results(rubrics[row.rubric].question(name), value)]}
            for row in said]}


def _result(name: str, kind: str, to: int, **value: Any) -> dict[str, Any]:
    """`to`: number of the answer from 1; 0: the task as a whole."""
    return {"from_name": name, "to_name": f"answer{to}" if to else "prompt", "type": kind, "value": value}


def _results(question: Question, value: Any) -> list[dict[str, Any]]:
    name, kind = question.name, question.kind
    if kind == "pair":
        return [_result(name, "choices", 0, choices=[pair_word(value)])]
    if kind in ("rank", "rating"):
        return [_result(name, "number", at, number=each) for at, each in enumerate(value, start=1)]
    if kind == "good_bad":
        return [_result(name, "choices", at, choices=["good" if each else "bad"]) for at, each in enumerate(value, start=1)]
    if kind == "safe_unsafe":
        return [_result(name, "choices", at, choices=["unsafe", *each.get("categories", ())] if each["unsafe"] else ["safe"])
                for at, each in enumerate(value, start=1)]
    if kind == "edit":
        return [_result(name, "textarea", value["response"] + 1, text=[value["text"]])]
    if kind == "spans":
        return [_result(name, "labels", each["response"] + 1, start=each["start"], end=each["end"], labels=[each["label"]])
                for each in value]
    return [_result(name, "choices", 0, choices=list(value))] if kind == "flags" else [_result(name, "textarea", 0, text=[value])]


def _read_label_studio(row: dict, rubric: Rubric) -> list[Said]:
    data = row["data"]
    texts = _numbered(data, "answer")
    item = _read_item(data.get("conversation") or data["prompt"], data, texts)
    out = []
    for each in row["annotations"]:
        if each.get("was_cancelled"):
            continue
        who = each.get("completed_by")
        person = who.get("email") or f"user-{who.get('id')}" if isinstance(who, dict) else f"user-{who}"
        parts: dict[str, list[dict]] = {}
        for part in each["result"]:
            parts.setdefault(part["from_name"], []).append(part)
        values = {name: _value(rubric.question(name), found) for name, found in parts.items()}
        out.append(Said(item, person, tuple(range(len(texts))), values, each.get("lead_time")))
    return out


def _value(question: Question, parts: list[dict]) -> Any:
    """Undo `_results`; Label Studio's own Pairwise control (selected: left or right) is understood, too."""
    kind, first = question.kind, parts[0]["value"]
    if kind == "pair":
        return pair_value(first["selected"] if "selected" in first else first["choices"][0])
    parts = sorted(parts, key=_to) if kind in ("rank", "rating", "good_bad", "safe_unsafe") else parts
    if kind in ("rank", "rating"):
        return [each["value"].get("number", each["value"].get("rating")) for each in parts]
    if kind == "good_bad":
        return [{"good": True, "bad": False}[each["value"]["choices"][0]] for each in parts]
    if kind == "safe_unsafe":
        return [{"unsafe": True, "categories": [c for c in each["value"]["choices"] if c != "unsafe"]}
                if "unsafe" in each["value"]["choices"] else {"unsafe": False, "categories": []} for each in parts]
    if kind == "edit":
        return {"response": _to(parts[0]) - 1, "text": first["text"][0]}
    if kind == "spans":
        return [{"response": _to(each) - 1, "start": each["value"]["start"], "end": each["value"]["end"],
                 "label": each["value"]["labels"][0]} for each in parts]
    return list(first["choices"]) if kind == "flags" else "\n\n".join(first["text"])


def _to(part: dict) -> int:
    return int(part["to_name"].removeprefix("answer"))


# -- Argilla --------------------------------------------------------------------------------------------------------


def argilla_rows(items: dict[str, Item], rows: Iterable[Collected], rubrics: dict[str, Rubric]) -> Iterator[dict[str, Any]]:
    for number, (item, order, said) in enumerate(_shown(items, rows), start=1):
        fields = {"prompt": item.prompt.messages[-1].text if item.prompt else ""}
        fields |= {f"response-{at}": item.responses[place].text for at, place in enumerate(order, start=1)}
        yield {"id": str(number), "fields": fields, "metadata": _facts(item, order, said[0].rubric), "responses": [
            {"user_id": row.person, "status": "submitted", "inserted_at": _iso(row.at), "seconds": row.seconds,
             "values": {name: {"value": _argilla(rubrics[row.rubric].question(name), value)} for name, value in row.values.items()}}
            for row in said]}


def _argilla(question: Question, value: Any) -> Any:
    """Ranks as Argilla has them; a verdict on a single answer without its list; the rest as it is."""
    if question.kind == "pair":
        return pair_word(value)
    if question.kind == "rank":
        return [{"value": f"response-{at}", "rank": rank} for at, rank in enumerate(value, start=1)]
    return value[0] if question.kind == "rating" and len(value) == 1 else value


def _read_argilla(row: dict, rubric: Rubric) -> list[Said]:
    facts = row.get("metadata") or {}
    facts = json.loads(facts) if isinstance(facts, str) else facts
    fields = row["fields"]
    texts = _numbered(fields, "response-") or _numbered(fields, "response")
    item = _read_item(facts.get("conversation") or fields["prompt"], facts, texts)
    out = []
    for each in row["responses"]:
        if each.get("status") != "submitted":
            continue
        values = {name: _unargilla(rubric.question(name), given["value"]) for name, given in each["values"].items()}
        out.append(Said(item, str(each["user_id"]), tuple(range(len(texts))), values, each.get("seconds")))
    return out


def _unargilla(question: Question, value: Any) -> Any:
    if question.kind == "pair":
        return pair_value(value)
    if question.kind == "rank":
        return [each["rank"] for each in sorted(value, key=lambda each: int(each["value"].rpartition("-")[2]))]
    return [value] if question.kind == "rating" and isinstance(value, (int, float)) else value


READERS = {
    "judgements": Reader(lambda r: {"item", "person", "order", "values"} <= set(r), lambda r: str(r.get("rubric") or ""),
                         _read_judgement),
    "label-studio": Reader(lambda r: isinstance(r.get("data"), dict) and isinstance(r.get("annotations"), list),
                           lambda r: str(r["data"].get("rubric") or ""), _read_label_studio),
    "argilla": Reader(lambda r: isinstance(r.get("fields"), dict) and isinstance(r.get("responses"), list),
                      lambda r: str((r.get("metadata") or {}).get("rubric") or "") if isinstance(r.get("metadata"), dict) else "",
                      _read_argilla),
}
WRITERS = {"judgements": judgement_rows, "label-studio": label_studio_rows, "argilla": argilla_rows, "spans": span_rows}
