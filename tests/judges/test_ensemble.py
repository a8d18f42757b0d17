"""Several judges as one: weighted as they are, or each normalised first."""

import statistics

import pytest
from toys import remainders

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Message, Prompt, Response
from tutelage.judges.ensemble import NormalisedSum, WeightedSum, scale_of, scaled_by
from tutelage.judges.rules import FunctionJudge
from tutelage.judges.spans import SpanJudge

PROMPTS = [Prompt(messages=(Message(role="user", text=text),)) for text in ("a", "b")]
ITEMS = [
    (prompt, [Response(prompt_id=prompt.id, text=text, index=at) for at, text in enumerate(("x", "yy", "zzz"))])
    for prompt in PROMPTS
]


def length(prompts, responses):
    return [float(len(r.text)) for r in responses]


def marks(prompts, responses):
    return [[(0, 1, 1.0), (0, len(r.text), 2.0)] for r in responses]


def test_a_weighted_sum_by_hand_with_spans_weighed_alike():
    judge = WeightedSum(
        [(FunctionJudge(length), 2.0), (FunctionJudge(lambda ps, rs: [1.0] * len(rs)), -1.0), (SpanJudge(marks), 0.5)]
    )
    for found in judge.judge(ITEMS):
        assert found.values == (2.5, 4.5, 6.5)  # 2 x length - 1 + 0.5 x 3
        assert sorted(span.value for span in found.spans) == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
        assert remainders(found) == (1.0, 3.0, 5.0)


def test_a_normalised_sum_before_normalising_is_the_plain_sum_and_tells_its_parts():
    judge = NormalisedSum({"long": (FunctionJudge(length), 2.0), "marked": (SpanJudge(marks), 0.5)})
    found = judge.judge(ITEMS)[0]
    assert found.values == (3.5, 5.5, 7.5)
    assert [(d.name, d.values) for d in found.dimensions] == [("long", (1.0, 2.0, 3.0)), ("marked", (3.0, 3.0, 3.0))]
    assert Judgement.from_dict(found.to_dict()) == found


def test_each_member_is_put_at_mean_0_and_deviation_1_before_it_is_weighed():
    thousand = FunctionJudge(lambda ps, rs: [1000.0 * len(r.text) for r in rs])
    small = FunctionJudge(lambda ps, rs: [0.001 * (p.messages[0].text == "b") for p in ps])
    judge = NormalisedSum({"big": (thousand, 0.7), "small": (small, 0.3)})
    judge.normalise(judge.judge(ITEMS))
    found = judge.judge(ITEMS)
    parts = {
        d.name: [v for j in found for e in j.dimensions if e.name == d.name for v in e.values] for d in found[0].dimensions
    }
    for values in parts.values():
        assert statistics.fmean(values) == pytest.approx(0, abs=1e-9) and statistics.pstdev(values) == pytest.approx(1)
    whole = [value for j in found for value in j.values]
    assert whole == pytest.approx([0.7 * a + 0.3 * b for a, b in zip(parts["big"], parts["small"], strict=True)])


def test_spans_are_scaled_with_their_judge_and_not_shifted():
    judge = NormalisedSum({"marked": (SpanJudge(lambda ps, rs: [[(0, 1, 4.0 * len(r.text))] for r in rs]), 0.5)})
    judge.normalise(judge.judge(ITEMS))
    found = judge.judge(ITEMS)[0]
    spread = statistics.pstdev([4.0, 8.0, 12.0])
    assert [span.value for span in found.spans] == pytest.approx([0.5 * 4 / spread, 0.5 * 8 / spread, 0.5 * 12 / spread])
    assert remainders(found) == pytest.approx([-0.5 * 8 / spread] * 3)  # the mean, taken off the answer as a whole
    assert sum(found.values) == pytest.approx(0)


def test_values_that_are_all_the_same_are_only_shifted():
    assert scale_of([3.0, 3.0]) == (3.0, 1.0)
    assert scale_of([1.0, 3.0]) == (2.0, 1.0)
    one = FunctionJudge(length).judge(ITEMS)[0]
    assert scaled_by(one, 1.0, 10.0).values == (0.0, 10.0, 20.0)


def test_weights_must_be_finite_and_judgements_must_be_values():
    with pytest.raises(UserError, match="must be a finite number"):
        WeightedSum([(FunctionJudge(length), float("nan"))])

    class Pairs:
        id = "pairs"

        def judge(self, items):
            return [
                Judgement(judge="pairs", kind="pair", responses=tuple(r.id for r in rs)[:2], values=(1, 0)) for _, rs in items
            ]

    with pytest.raises(UserError, match="pairs gave a 'pair' judgement"):
        WeightedSum([(Pairs(), 1.0)]).judge(ITEMS)
