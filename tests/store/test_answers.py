"""Every kind of question: what is accepted, what is refused, and what Judgement comes of it."""

import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Response
from tutelage.store.answers import Answers, check_answers, judgement_rows
from tutelage.store.rubrics import QUESTION_KINDS, Question, Rubric

SHOWN = [Response(prompt_id="p", text=text, id=f"r{at}") for at, text in enumerate(("left", "right 🙂"))]


def one(kind: str, **more) -> Rubric:
    return Rubric(name="x", version=3, categories=("violence", "hate"), questions=(Question(name="q", kind=kind, **more),))


def rows(rubric: Rubric, values: dict, shown=SHOWN):
    answers = Answers(values=values, seconds=1.0)
    check_answers(rubric, answers, kind="pair", shown=[each.text for each in shown])
    return judgement_rows(rubric, answers, shown, judge="human:a", at="t", submission="s")


@pytest.mark.parametrize("levels, value, values", [
    (7, -3, (3.0, 0.0)), (7, -1, (1.0, 0.0)), (7, 0, (0.0, 0.0)), (7, 2, (0.0, 2.0)),
    (4, -4, (3.0, 0.0)), (4, 3, (0.0, 2.0)), (4, 2, (0.0, 1.0)), (4, -1, (0.5, 0.0)),  # negligibly better keeps its side
])
def test_a_pair_gives_the_better_one_its_strength(levels, value, values):
    [row] = rows(one("pair", levels=levels), {"q": value})
    assert (row.kind, row.responses, row.values, row.rubric) == ("pair", ("r0", "r1"), values, "x@3")
    assert (row.dimensions[0].name, row.dimensions[0].values) == ("q", values)


def test_both_bad_is_a_tie_with_a_flag():
    [row] = rows(one("pair"), {"q": "both_bad"})
    assert (row.values, row.flags) == ((0.0, 0.0), ("both-bad",))


@pytest.mark.parametrize("kind, value, made", [
    ("rank", [2, 1], ("rank", (2.0, 1.0))), ("rank", [1, 1], ("rank", (1.0, 1.0))),
    ("rating", [1, 4.5], ("rating", (1.0, 4.5))), ("good_bad", [True, False], ("label", (1.0, 0.0))),
])
def test_one_value_a_response_in_the_order_shown(kind, value, made):
    [row] = rows(one(kind), {"q": value})
    assert (row.kind, row.values, row.responses) == (*made, ("r0", "r1"))


def test_safety_is_a_judgement_a_response_with_its_own_categories():
    safe, unsafe = rows(one("safe_unsafe"), {"q": [{"unsafe": False}, {"unsafe": True, "categories": ["hate"]}]})
    assert (safe.responses, safe.values, safe.flags, safe.categories) == (("r0",), (0.0,), (), ())
    assert (unsafe.responses, unsafe.values, unsafe.flags, unsafe.categories) == (("r1",), (1.0,), ("unsafe:r1",), ("hate",))


def test_an_edit_and_spans_name_the_response_that_was_shown_there():
    [edit] = rows(one("edit"), {"q": {"response": 1, "text": "better\0 \u202e"}})
    assert (edit.kind, edit.responses, edit.edit) == ("edit", ("r1",), "better\0 \u202e")
    [spans] = rows(one("spans", labels=("wrong",)), {"q": [{"response": 1, "start": 6, "end": 7, "label": "wrong"}]})
    assert [(each.response, each.start, each.end, each.label) for each in spans.spans] == [("r1", 6, 7, "wrong")]  # the emoji: 1 code point


def test_reason_and_flags_stand_on_the_first_judgement_or_on_their_own():
    questions = (Question(name="why", kind="reason"), Question(name="mark", kind="flags", labels=("odd", "rude")),
                 Question(name="a", kind="rating", required=False), Question(name="b", kind="rating", required=False))
    rubric = Rubric(name="x", version=1, questions=questions)
    first, second = rows(rubric, {"why": "so", "mark": ["odd"], "a": [1, 1], "b": [1, 1]})
    assert (first.reason, first.flags, second.reason, second.flags) == ("so", ("odd",), None, ())
    assert first.id != second.id  # equal values, two dimensions
    [alone] = rows(rubric, {"why": "so", "mark": []})
    assert (alone.kind, alone.reason, alone.values) == ("label", "so", ())


def test_a_megabyte_is_an_answer():
    [row] = rows(one("edit"), {"q": {"response": 0, "text": "x" * 1_000_000}})
    assert len(row.edit) == 1_000_000


WRONG = {
    "pair": [4, -4, 1.0, True, "left", [1], {}, float("nan")],
    "rank": [[1], [0, 1], [2, 2], [1, 3], [1, "2"], "12", [1.0, 2.0]],
    "rating": [[0, 1], [1, 6], [1], [True, 1], [float("nan"), 1], ["1", 1], 3],
    "good_bad": [[1, 0], [True], True],
    "safe_unsafe": [[True, False], [{"unsafe": True}], [{"unsafe": 1}, {"unsafe": False}], [{}, {}],
                    [{"unsafe": True, "categories": ["other"]}, {"unsafe": False}],
                    [{"unsafe": False, "categories": ["hate"]}, {"unsafe": False}],
                    [{"unsafe": True, "categories": [["hate"]]}, {"unsafe": False}]],
    "edit": ["text", {"response": 2, "text": "x"}, {"response": 0, "text": "  "}, {"response": 0}, {"response": "0", "text": "x"}],
    "spans": [[{"response": 0, "start": 0, "end": 5, "label": "wrong"}], [{"response": 0, "start": 2, "end": 2, "label": "wrong"}],
              [{"response": 0, "start": 0, "end": 1, "label": "other"}], [{"start": 0, "end": 1, "label": "wrong"}], {},
              [{"response": 2, "start": 0, "end": 1, "label": "wrong"}], [{"response": 0, "start": -1, "end": 1, "label": "wrong"}]],
    "reason": ["", "   ", "ab", 7, ["long enough"]],
    "write": ["", 7],
    "flags": [["other"], "wrong", ["wrong", "wrong"], [["wrong"]]],
}


@pytest.mark.parametrize("kind, value", [(kind, value) for kind, values in WRONG.items() for value in values])
def test_what_is_no_answer_is_refused_by_the_name_of_its_question(kind, value):
    rubric = one(kind, labels=("wrong",), min_length=3)
    with pytest.raises(UserError, match="question q|the answers"):
        rows(rubric, {"q": value})


def test_every_kind_of_question_has_its_wrong_answers_above():
    assert set(WRONG) == set(QUESTION_KINDS)


def test_missing_unknown_and_empty_forms_are_refused():
    for rubric, values, told in (
        (one("pair"), {}, "an answer is needed"), (one("pair"), {"q": None}, "an answer is needed"),
        (one("pair", required=False), {}, "nothing was answered"), (one("pair"), {"q": 1, "r": 1}, "no question 'r'"),
        (one("pair", both_bad=False), {"q": "both_bad"}, "not offered"), (one("pair", levels=4), {"q": 0}, "but not 0"),
        (one("reason"), {"q": "\ud800"}, "surrogate"), (one("reason"), {"q": "x" * 9_000_000}, "too many"),
    ):
        with pytest.raises(UserError, match=told):
            rows(rubric, values)
    with pytest.raises(UserError, match="two answers to choose from; 1"):
        rows(one("pair"), {"q": 1}, SHOWN[:1])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "3"])
def test_active_time_is_a_number(seconds):
    with pytest.raises(UserError, match="seconds"):
        Answers(values={}, seconds=seconds)
