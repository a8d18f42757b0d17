import pytest

from tutelage.core.errors import UserError
from tutelage.core.words import Judgement, Message, Prompt, Response
from tutelage.evals.winrate import win_rate
from tutelage.stats.intervals import wilson


class Longer:
    """More characters, more value."""

    id = "rule:longer"

    def judge(self, items):
        return [self.say(rs, [float(len(r.text)) for r in rs]) for _, rs in items]

    def say(self, rs, values, kind="rating"):
        return Judgement(judge=self.id, kind=kind, responses=tuple(r.id for r in rs), values=tuple(values))


class FirstPlace(Longer):
    """Likes whatever stands first: a biased judge."""

    id = "llm:first"

    def judge(self, items):
        return [self.say(rs, [1.0, 0.0]) for _, rs in items]


class Ranker(Longer):
    id = "llm:rank"

    def judge(self, items):
        return [self.say(rs, [1.0 + (len(r.text) < max(len(x.text) for x in rs)) for r in rs], kind="rank") for _, rs in items]


def game(rows, group=lambda i: ""):
    prompts = [Prompt(messages=(Message(role="user", text=f"q{i}"),), group=group(i), tags=(f"task:{task}",))
               for i, (task, *_) in enumerate(rows)]
    a = [Response(prompt_id=p.id, text=row[1], policy="A") for p, row in zip(prompts, rows, strict=True)]
    b = [Response(prompt_id=p.id, text=row[2], policy="B") for p, row in zip(prompts, rows, strict=True)]
    return prompts, a, b


ROWS = [("qa", "aaaa", "b"), ("qa", "aa", "bb"), ("qa", "a", "bb"), ("chat", "aaa", "b"), ("chat", "same", "same")]


@pytest.mark.parametrize("judge", [Longer(), Ranker()])
def test_counts_by_hand(judge):
    got = win_rate(judge, *game(ROWS), judge_accuracy=wilson(7, 10))
    assert (got.a, got.b, got.wins, got.ties, got.losses, got.judge) == ("A", "B", 2, 2, 1, judge.id)
    assert got.rate == pytest.approx(0.6) and got.judge_accuracy == wilson(7, 10)
    assert (got.interval.low, got.interval.high) == pytest.approx((wilson(3, 5).low, wilson(3, 5).high))
    assert got.by_task["qa"].estimate == pytest.approx(0.5) and got.by_task["chat"].estimate == pytest.approx(0.75)
    assert [v.score for v in got.per_prompt] == [1, 0.5, 0, 1, 0.5]


def test_the_other_way_round_is_the_complement():
    prompts, a, b = game(ROWS)
    assert win_rate(Longer(), prompts, a, b).rate + win_rate(Longer(), prompts, b, a).rate == pytest.approx(1)


def test_a_judge_of_places_favours_nobody():
    prompts, a, b = game([("qa", f"a{i}", f"b{i}") for i in range(40)])
    assert win_rate(FirstPlace(), prompts, a, b).rate == 0.5


def test_length_matched_looks_at_alike_lengths_only():
    rows = [("qa", "one two three four", "one")] * 10 + [("qa", "a bb", "aa bbb")] * 5
    got = win_rate(Longer(), *game(rows))
    assert got.rate == pytest.approx(10 / 15) and got.length_matched.estimate == 0 and got.length_matched.n == 5


def test_interval_is_clustered_by_group():
    rows = [("qa", "aaa", "b") if i // 10 % 2 else ("qa", "a", "bbb") for i in range(400)]  # runs of ten alike
    alone = win_rate(Longer(), *game(rows)).interval
    grouped = win_rate(Longer(), *game(rows, group=lambda i: f"g{i // 10}")).interval
    assert grouped.n == 40 and alone.n == 400 and grouped.estimate == alone.estimate
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)  # sqrt(10) in theory


def test_errors():
    with pytest.raises(UserError, match="at least one prompt"):
        win_rate(Longer(), [], [], [])
    prompts, a, b = game(ROWS)
    with pytest.raises(UserError, match="b left 1 of 5"):
        win_rate(Longer(), prompts, a, b[1:])
