"""Judges of spans: what they say of parts of answers, and that their parts add up."""

import math

import pytest
from toys import remainders

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Message, Prompt, Response, Span
from tutelage.judges.rules import repeated_share
from tutelage.judges.spans import RepetitionSpans, SpanJudge, StepJudge, sentences_of, steps_of

PROMPT = Prompt(messages=(Message(role="user", text="Count."),))


def answers(*texts: str) -> list[Response]:
    return [Response(prompt_id=PROMPT.id, text=text, index=at) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    "text, steps",
    [
        ("", []),
        ("one", ["one"]),
        ("a\nb", ["a\n", "b"]),
        ("a\n\nb\n", ["a\n\n", "b\n"]),
        ("\n\na\nb\n  \n", ["\n\na\n", "b\n  \n"]),
        (" \n ", []),
    ],
)
def test_steps_end_with_their_mark(text, steps):
    assert [text[start:end] for start, end in steps_of(text)] == steps


def test_steps_of_another_mark():
    text = "x=1 ## 2x=2 ## done"
    assert [text[s:e] for s, e in steps_of(text, " ##")] == ["x=1 ##", " 2x=2 ##", " done"]
    with pytest.raises(UserError, match="must not be empty"):
        steps_of("a", "")


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("Hi. You?", ["Hi.", "You?"]),
        ('He said "no." Then left', ['He said "no."', "Then left"]),
        ("It is 3.5 m", ["It is 3.5 m"]),
        ("好的。是！", ["好的。", "是！"]),
        ("a list:\n- one\n\n- two", ["a list:", "- one", "- two"]),
        ("  ", []),
    ],
)
def test_sentences(text, sentences):
    assert [text[start:end] for start, end in sentences_of(text)] == sentences


def test_a_users_function_becomes_spans_of_the_right_answers():
    def marks(prompts, responses):
        assert prompts == [PROMPT, PROMPT]
        return [[(0, 1, 0.5), (1, 3, -1, "rude")], []]

    first, second = answers("abc", "d")
    (found,) = SpanJudge(marks).judge([(PROMPT, [first, second])])
    assert found.kind == "spans" and found.judge == "spans:marks" and found.values == (-0.5, 0.0)
    assert found.spans == (
        Span(response=first.id, start=0, end=1, label="span", value=0.5),
        Span(response=first.id, start=1, end=3, label="rude", value=-1.0),
    )
    assert remainders(found) == (0.0, 0.0)  # all of it was earned by spans
    assert Judgement.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    "span", [(0, 4, 1.0), (-1, 2, 1.0), (2, 2, 1.0), (0, 1, math.nan), (0, 1), (0, 1, "x"), (0, 1, 1.0, "a", "b")]
)
def test_a_span_outside_the_answer_or_without_a_number_is_refused(span):
    with pytest.raises(UserError, match=r"is no span of the answer to prompt .*Count.*0 <= start < end <= 3"):
        SpanJudge(lambda prompts, responses: [[span]]).judge([(PROMPT, answers("abc"))])


def test_one_list_an_answer_is_wanted():
    with pytest.raises(UserError, match="it got 2 answers and returned 1 lists"):
        SpanJudge(lambda prompts, responses: [[]]).judge([(PROMPT, answers("a", "b"))])


def test_steps_are_judged_one_by_one():
    seen = []

    def right(prompts, steps):
        seen.extend(steps)
        return [[1.0 if "=" in step else -1.0 for step in each] for each in steps]

    found = StepJudge(right).judge([(PROMPT, answers("1+1=2\nso\n", ""))])[0]
    assert seen == [["1+1=2\n", "so\n"], []]
    assert [(span.start, span.end, span.value, span.label) for span in found.spans] == [
        (0, 6, 1.0, "step"),
        (6, 9, -1.0, "step"),
    ]
    with pytest.raises(UserError, match=r"one number a step; the answers have \[2\] steps, it returned \[1\]"):
        StepJudge(lambda prompts, steps: [[1.0]]).judge([(PROMPT, answers("a\nb"))])


@pytest.mark.parametrize("text", ["", "a b c", "a b a b a b", "the cat. The cat! the dog", "好好好好", "x y z " * 5])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_spans_add_up_to_minus_the_repeated_share(text, n):
    found = RepetitionSpans(n=n).judge([(PROMPT, answers(text))])[0]
    assert found.values[0] == pytest.approx(-repeated_share(text, n=n))


def test_a_repetition_is_fined_where_it_ends():
    text = "go on, Go on now"
    spans = RepetitionSpans(n=2).spans(text)  # grams: go on | on go | go on (again) | on now
    assert [(text[start:end], value) for start, end, value, _ in spans] == [("Go on", -0.25)]
