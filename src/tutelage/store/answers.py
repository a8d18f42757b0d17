"""What a person gives for an item: checked against the rubric, and made into Judgements.

Everything is in the order *shown*; the left answer is position 0.  Values by kind of question:

    pair         -3..3 (7 levels; negative: left is better, 0 a tie), -4..4 without 0 (4 levels), or "both_bad"
    rank         [2, 1, 2]: the rank of each answer, 1 is best, equal numbers are a tie
    rating       [4, 5]: one number of the scale for each answer
    good_bad     [True, False]
    safe_unsafe  [{"unsafe": True, "categories": ["violence"]}, {"unsafe": False}]
    edit         {"response": 1, "text": "the corrected answer"}
    spans        [{"response": 0, "start": 3, "end": 9, "label": "wrong"}], in code points, the end exclusive
    reason       "text";  write: "text";  flags: ["needs-expert"]

A question that is not required may be left out, or be None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.errors import UserError, nearest
from tutelage.core.files import sha256_bytes
from tutelage.core.words import Dimension, Judgement, Response, Span
from tutelage.store.checks import MOST_ANSWER, finite, need_seconds, stored_json, whole
from tutelage.store.rubrics import Question, Rubric

BOTH_BAD = "both_bad"
# Llama 2's four levels (significantly, better, slightly, negligibly better or unsure).  The last keeps its direction, at half
# a step: a tie would throw away what the person was made to choose.
STRENGTH_OF_4 = {4: 3.0, 3: 2.0, 2: 1.0, 1: 0.5}
MOST_SPANS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A filled-in form."""

    values: Mapping[str, Any] = field(default_factory=dict)  # name of the question -> value, see above
    seconds: float | None = None  # active time

    def __post_init__(self):
        if not isinstance(self.values, Mapping) or not all(isinstance(name, str) for name in self.values):
            raise UserError(f"answers are one value a question, by its name; got {type(self.values).__name__}")
        need_seconds(self.seconds, "the active time")

    def given(self) -> dict[str, Any]:
        """Without the questions that were left empty."""
        return {name: value for name, value in self.values.items() if value is not None}


def check_answers(rubric: Rubric, answers: Answers, *, kind: str, shown: Sequence[str], partly: bool = False) -> None:
    """UserError names the first question whose answer is not one.

    `kind` of the item; `shown`: the texts of its responses in the order shown; `partly`: required ones may be missing (gold).
    """
    given = answers.given()
    stored_json(given, "the answers", most=MOST_ANSWER)
    for name in given:
        rubric.question(name)
    for question in rubric.questions:
        if question.name not in given:
            if not partly and kind != "chat" and (question.required or (question.kind == "write" and question.name == kind)):
                # whoever is asked for a prompt writes one, whatever else the rubric offers
                raise UserError(f"question {question.name}: an answer is needed")
            continue
        if fault := CHECKS[question.kind](question, given[question.name], shown, rubric):
            raise UserError(f"question {question.name}: {fault}")
    if not given and kind != "chat":  # its turns are judged one by one, as items of their own
        raise UserError("nothing was answered; answer a question, or skip the item")


def _check_pair(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    if len(shown) != 2:
        return f"a pair needs two answers to choose from; {len(shown)} were shown"
    if value == BOTH_BAD:
        return "" if question.both_bad else "both_bad is not offered; choose the one that is less bad"
    most = 3 if question.levels == 7 else 4
    if whole(value, -most, most) and (value or question.levels == 7):
        return ""
    return f"a whole number from -{most} (left much better) to {most} (right much better)" + (
        ", 0 is a tie" if question.levels == 7 else ", but not 0") + f"; got {value!r:.60}"


def _each(value: Any, shown: Sequence[str], right: Callable[[Any], bool], wanted: str) -> str:
    if not shown:
        return "there is no answer to judge"
    if isinstance(value, (list, tuple)) and len(value) == len(shown) and all(map(right, value)):
        return ""
    return f"{wanted} for each of the {len(shown)} answers; got {value!r:.60}"


def _check_rank(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    fault = _each(value, shown, lambda each: whole(each, 1, len(shown)), f"a rank from 1 (best) to {len(shown)}")
    return fault or ("" if 1 in value else "one answer at least has rank 1")


def _check_rating(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    return _each(value, shown, lambda each: finite(each, question.low, question.high),
                 f"a number from {question.low} to {question.high}")


def _check_good_bad(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    return _each(value, shown, lambda each: isinstance(each, bool), "true (good) or false (bad)")


def _check_safety(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    def right(each: Any) -> bool:
        if not isinstance(each, Mapping) or set(each) - {"unsafe", "categories"} or not isinstance(each.get("unsafe"), bool):
            return False
        named = each.get("categories", [])
        return isinstance(named, (list, tuple)) and all(name in rubric.categories for name in named) and (
            each["unsafe"] or not named)

    known = ", ".join(rubric.categories) or "none"
    return _each(value, shown, right, f"{{'unsafe': true or false, 'categories': of what is unsafe (known: {known})}}")


def _check_edit(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    right = isinstance(value, Mapping) and set(value) == {"response", "text"} and whole(value["response"], 0, len(shown) - 1)
    if right and isinstance(value["text"], str) and value["text"].strip():
        return ""
    return f"{{'response': position of the answer that was edited, 'text': what it should be}}; got {value!r:.60}"


def _check_spans(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    if not isinstance(value, (list, tuple)) or len(value) > MOST_SPANS:
        return f"a list of at most {MOST_SPANS} spans"
    for at, span in enumerate(value):
        if not isinstance(span, Mapping) or set(span) != {"response", "start", "end", "label"}:
            return f"span {at} needs response, start, end and label; got {span!r:.60}"
        if span["label"] not in question.labels:
            return f"span {at}: unknown label {span['label']!r:.60}{nearest(str(span['label']), question.labels)}"
        if not whole(span["response"], 0, len(shown) - 1):
            return f"span {at}: response is the position of an answer, from 0; got {span['response']!r:.60}"
        length = len(shown[span["response"]])
        if not (whole(span["start"], 0, length) and whole(span["end"], 0, length) and span["start"] < span["end"]):
            return f"span {at}: start and end lie in the answer's {length} characters; got {span['start']!r:.20}, {span['end']!r:.20}"
    return ""


def _check_text(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    least = max(question.min_length, 1)
    if isinstance(value, str) and len(value.strip()) >= least:
        return ""
    return f"a text of at least {least} characters; got {len(value.strip()) if isinstance(value, str) else repr(value)[:60]}"


def _check_flags(question: Question, value: Any, shown: Sequence[str], rubric: Rubric) -> str:
    if isinstance(value, (list, tuple)) and all(each in question.labels for each in value) and len(set(value)) == len(value):
        return ""
    return f"a list of some of {', '.join(question.labels)}; got {value!r:.60}"


CHECKS = {
    "pair": _check_pair, "rank": _check_rank, "rating": _check_rating, "good_bad": _check_good_bad,
    "safe_unsafe": _check_safety, "edit": _check_edit, "spans": _check_spans, "reason": _check_text, "write": _check_text,
    "flags": _check_flags,
}


# -- to Judgements --------------------------------------------------------------------------------------------------


def judgement_rows(rubric: Rubric, answers: Answers, responses: Sequence[Response], *, judge: str, at: str,
                   submission: str, flags: tuple[str, ...] = ()) -> tuple[Judgement, ...]:
    """One Judgement a question (safe_unsafe: one a response), `responses` in the order shown; reason and flags on the first.

    `dimensions` names the question.  Ranks stay ranks (1 best); good_bad is 1 and 0; safe_unsafe is 1 for unsafe.
    """
    given = answers.given()
    rows = [row for question in rubric.questions if question.name in given
            for row in _rows(question, given[question.name], responses)]
    said = [given[question.name] for question in rubric.questions if question.kind == "reason" and question.name in given]
    raised = [flag for question in rubric.questions if question.kind == "flags" for flag in given.get(question.name, ())]
    if not rows and responses and (said or raised):
        rows = [{"kind": "label", "responses": tuple(each.id for each in responses)}]
    for number, row in enumerate(rows):
        first = {"reason": "\n\n".join(said) or None, "flags": (*row.get("flags", ()), *raised)} if number == 0 else {}
        row |= first
        row["flags"] = (*row.get("flags", ()), *flags)
    return tuple(
        Judgement(judge=judge, rubric=rubric.ref, at=at, seconds=answers.seconds,
                  id=sha256_bytes(f"{submission}:{number}".encode())[:32], **row)
        for number, row in enumerate(rows))


def _rows(question: Question, value: Any, responses: Sequence[Response]) -> list[dict[str, Any]]:
    """The fields of the Judgements of one answer."""
    ids = tuple(response.id for response in responses)

    def row(kind: str, values: tuple[float, ...] = (), **more: Any) -> dict[str, Any]:
        return {"kind": kind, "responses": ids, "values": values, "dimensions": (Dimension(name=question.name, values=values),),
                **more}

    if question.kind == "pair" and value == BOTH_BAD:
        return [row("pair", (0.0, 0.0), flags=("both-bad",))]
    if question.kind == "pair":
        strength = float(abs(value)) if question.levels == 7 else STRENGTH_OF_4[abs(value)]
        return [row("pair", (strength, 0.0) if value < 0 else (0.0, strength))]
    if question.kind in ("rank", "rating"):
        return [row(question.kind, tuple(float(each) for each in value))]
    if question.kind == "good_bad":
        return [row("label", tuple(float(each) for each in value))]
    if question.kind == "safe_unsafe":
        return [{"kind": "label", "responses": (at,), "values": (unsafe,),
                 "dimensions": (Dimension(name=question.name, values=(unsafe,)),),
                 "flags": (f"unsafe:{at}",) if unsafe else (), "categories": tuple(each.get("categories", ()))}
                for at, each in zip(ids, value, strict=True) for unsafe in (float(each["unsafe"]),)]
    if question.kind == "edit":
        return [{"kind": "edit", "responses": (ids[value["response"]],), "edit": value["text"],
                 "dimensions": (Dimension(name=question.name, values=()),)}]
    if question.kind == "spans":
        return [row("spans", spans=tuple(
            Span(response=ids[each["response"]], start=each["start"], end=each["end"], label=each["label"]) for each in value))]
    return []  # reason and flags stand on another row; what was written is no judgement
