"""A rubric's questions as a form, and the form's fields as answers.

A field's name is the question's behind "q.", with the position of the answer where there is one for each: "q.preference",
"q.helpful.0", "q.safety.1", "q.safety.1.categories", "q.edit.text".  All values are in the order shown.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.datastructures import FormData

from tutelage.core.errors import UserError
from tutelage.store.answers import BOTH_BAD
from tutelage.store.queue import Handed
from tutelage.store.rubrics import Question, Rubric
from tutelage.web.auth import text
from tutelage.web.texts import harm_word, of_language

LETTERS = "ABCDEFGHIJKLMNOPQRST"
DIGITS = "123456789"


class Choice(NamedTuple):
    value: str
    label: str
    key: str  # the key that chooses it; empty: none
    checked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One group of buttons, of which one (or, `many`, several) may be chosen."""

    name: str
    legend: str
    choices: tuple[Choice, ...]
    many: bool = False
    needs: str = ""  # "q.safety.0=unsafe": only asked when that is chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One question as it stands in the form."""

    question: Question
    label: str
    cells: tuple[Cell, ...] = ()
    text: str = ""  # of a text field
    value: Any = None  # as given before, for spans and edits


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes fields: the words, and what was answered before (a draft)."""

    t: Callable[..., str]
    lang: str
    count: int  # answers shown
    kind: str  # of the item
    given: dict[str, Any] = field(default_factory=dict)

    def fields(self, rubric: Rubric) -> list[Field]:
        return [self.make(question, rubric) for question in rubric.questions if self.asked(question)]

    def asked(self, question: Question) -> bool:
        """A project may hold items of several kinds: a question about two answers is not put to one."""
        if question.kind == "write":
            if self.kind == "demonstration" and question.name == "prompt" and not question.required:
                return False  # the prompt is given
            return self.kind not in ("pair", "set", "single") or question.required
        if question.kind == "pair":
            return self.count == 2 or question.required
        return question.kind in ("reason", "flags") or self.count > 0 or question.required

    def make(self, question: Question, rubric: Rubric) -> Field:
        value = self.given.get(question.name)
        label = of_language(question.text, self.lang, question.name)
        if not question.text and question.kind in ("reason", "flags"):
            label = self.t(f"question.{question.kind}")
        cells = _CELLS[question.kind](self, question, rubric, value) if question.kind in _CELLS else ()
        return Field(question=question, label=label, cells=tuple(cells), value=value,
                     text=value if isinstance(value, str) and question.kind in ("reason", "write") else "")

    def each(self, question: Question, value: Any, choices: Callable[[Any], Sequence[Choice]]) -> list[Cell]:
        """A cell for each answer shown."""
        values = value if isinstance(value, list) and len(value) == self.count else [None] * self.count
        return [Cell(name=f"q.{question.name}.{at}", legend=self.t("answer.letter", letter=LETTERS[at]),
                     choices=tuple(choices(one))) for at, one in enumerate(values)]


def _pair(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    levels = range(-3, 4) if question.levels == 7 else [-4, -3, -2, -1, 1, 2, 3, 4]
    choices = [Choice(str(level), _level(m, level, question.levels), key, value == level and type(value) is int)
               for key, level in zip(DIGITS, levels, strict=False)]
    if question.both_bad:
        choices.append(Choice(BOTH_BAD, m.t("pair.both_bad"), "0", value == BOTH_BAD))
    return [Cell(name=f"q.{question.name}", legend="", choices=tuple(choices))]


def _level(m: Maker, level: int, levels: int) -> str:
    if level == 0:
        return m.t("pair.same")
    return m.t(f"pair{levels}.{abs(level)}", letter="A" if level < 0 else "B")


def _rank(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    ranks = range(1, m.count + 1)
    return m.each(question, value, lambda one: [
        Choice(str(rank), str(rank), str(rank) if rank <= 9 else "", one == rank) for rank in ranks])


def _rating(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    scale = range(question.low, question.high + 1)
    return m.each(question, value, lambda one: [
        Choice(str(step), str(step), str(step) if 0 <= step <= 9 else "", one == step) for step in scale])


def _good_bad(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    return m.each(question, value, lambda one: [
        Choice("good", m.t("good_bad.good"), "1", one is True), Choice("bad", m.t("good_bad.bad"), "2", one is False)])


def _safety(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    verdict = lambda one: one.get("unsafe") if isinstance(one, dict) else None
    out = []
    for cell, one in zip(m.each(question, value, lambda one: [
            Choice("safe", m.t("safe_unsafe.safe"), "1", verdict(one) is False),
            Choice("unsafe", m.t("safe_unsafe.unsafe"), "2", verdict(one) is True)]),
            value if isinstance(value, list) and len(value) == m.count else [None] * m.count, strict=True):
        out.append(cell)
        if rubric.categories:
            named = one.get("categories", []) if isinstance(one, dict) else []
            out.append(Cell(name=f"{cell.name}.categories", many=True, needs=f"{cell.name}=unsafe",
                            legend=m.t("safe_unsafe.categories", answer=cell.legend), choices=tuple(
                                Choice(name, harm_word(name, m.lang), DIGITS[at] if at < 9 else "", name in named)
                                for at, name in enumerate(rubric.categories))))
    return out


def _flags(m: Maker, question: Question, rubric: Rubric, value: Any) -> list[Cell]:
    return [Cell(name=f"q.{question.name}", legend="", many=True, choices=tuple(
        Choice(label, label, "", label in (value or [])) for label in question.labels))]


_CELLS = {"pair": _pair, "rank": _rank, "rating": _rating, "good_bad": _good_bad, "safe_unsafe": _safety, "flags": _flags}


def fields_of(handed: Handed, *, t: Callable[..., str], lang: str, given: dict[str, Any] | None = None) -> list[Field]:
    """The questions of an item; `given` (or its draft) fills them in."""
    given = given if given is not None else handed.draft or {}
    return Maker(t, lang, len(handed.shown), handed.item.kind, given).fields(handed.rubric)


def own_keys(fields: Sequence[Field]) -> bool:
    """Number keys answer everything that is asked here: the last one may send it."""
    return all(field.cells or not field.question.required for field in fields) and any(
        field.cells and field.question.kind != "flags" for field in fields)


# -- back from the browser --------------------------------------------------------------------------------------------


def values_of(form: FormData, handed: Handed) -> dict[str, Any]:
    """What was answered, by question; a question that was left empty is not in it.  What makes no sense the store refuses."""
    out = {}
    for question in handed.rubric.questions:
        value = _READ[question.kind](form, question, [each.text for each in handed.shown])
        if value is not None:
            out[question.name] = value
    return out


def _read_pair(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    value = text(form, f"q.{question.name}")
    return value if value == BOTH_BAD else _number(value)


def _number(value: str) -> int | str | None:
    """An integer where it is one; else what came, so that the refusal can name it."""
    try:
        return int(value) if value else None
    except ValueError:
        return value[:60]


def _read_each(form: FormData, question: Question, shown: Sequence[str], read: Callable[[str], Any]) -> list[Any] | None:
    values = [read(text(form, f"q.{question.name}.{at}")) for at in range(len(shown))]
    return None if all(value is None for value in values) else values


def _read_numbers(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    return _read_each(form, question, shown, _number)


def _read_good_bad(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    return _read_each(form, question, shown, {"good": True, "bad": False}.get)


def _read_safety(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    verdicts = _read_each(form, question, shown, {"safe": False, "unsafe": True}.get)
    return verdicts and [
        {"unsafe": unsafe, "categories": form.getlist(f"q.{question.name}.{at}.categories") if unsafe else []}
        for at, unsafe in enumerate(verdicts)]


def _read_edit(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    changed, response = text(form, f"q.{question.name}.text"), _number(text(form, f"q.{question.name}.response"))
    if not changed.strip() or (type(response) is int and 0 <= response < len(shown)
                               and changed == shown[response].replace("\r\n", "\n")):
        return None  # an answer that was opened and left as it was is no correction
    return {"response": response, "text": changed}


def _read_spans(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    given = text(form, f"q.{question.name}")
    try:
        spans = json.loads(given) if given else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"question {question.name}: the spans are not JSON: {error}") from error
    return spans if spans or question.required else None


def _read_text(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    return text(form, f"q.{question.name}") if text(form, f"q.{question.name}").strip() else None


def _read_flags(form: FormData, question: Question, shown: Sequence[str]) -> Any:
    return form.getlist(f"q.{question.name}") or None


_READ = {
    "pair": _read_pair, "rank": _read_numbers, "rating": _read_numbers, "good_bad": _read_good_bad, "safe_unsafe": _read_safety,
    "edit": _read_edit, "spans": _read_spans, "reason": _read_text, "write": _read_text, "flags": _read_flags}
