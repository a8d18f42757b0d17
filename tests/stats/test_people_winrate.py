"""The win rate by people: hand counts, a linear witness, and what happens at the edges."""

import numpy as np
import pytest

from tutelage.stats.people_winrate import people_win_rate
from tutelage.stats.simulate import Crowd, simulate
from tutelage.stats.votes import PairVote


def test_sides_are_balanced_by_hand():
    # A on the left: 6 wins, 2 ties, 0 losses = 7/8.  A on the right: 1 win, 1 loss = 1/2.  Balanced: 11/16, raw 8/10.
    votes = ([PairVote("A", "B", 2, f"r{i}") for i in range(6)] + [PairVote("A", "B", 0, "r1"), PairVote("A", "B", 0, "r2")]
             + [PairVote("B", "A", -1, "r3"), PairVote("B", "A", 3, "r4")])
    got = people_win_rate(votes, "A", "B", variance="sandwich")
    assert got.rate.estimate == pytest.approx(11 / 16) and got.raw == pytest.approx(0.8)
    assert (got.wins, got.ties, got.losses, got.raters) == (7, 2, 1, 6)
    assert got.left_bonus == pytest.approx((7 / 8 - 1 / 2) / 2)
    back = people_win_rate(votes, "B", "A", variance="sandwich")
    assert back.rate.estimate == pytest.approx(5 / 16) and back.left_bonus == pytest.approx(got.left_bonus)
    assert back.rate.low == pytest.approx(1 - got.rate.high)


@pytest.mark.parametrize("variance, name", [("sandwich", "CV1"), ("jackknife", "CV3")])
def test_interval_equals_a_plain_loop(variance, name):
    votes = [v for v in simulate(Crowd(raters=9), seed=1) if {v.left, v.right} == {"m0", "m1"}]
    rows = [(v.rater, v.left == "m0", 0.5 + 0.5 * np.sign(v.level) * (1 if v.left == "m0" else -1)) for v in votes]

    def rate(rows):
        return np.mean([np.mean([y for _, left, y in rows if left == side]) for side in (True, False)])

    raters = sorted({r for r, _, _ in rows})
    G, middle = len(raters), rate(rows)
    if variance == "jackknife":
        V = (G - 1) / G * sum((rate([row for row in rows if row[0] != r]) - middle) ** 2 for r in raters)
    else:
        mean = {side: np.mean([y for _, left, y in rows if left == side]) for side in (True, False)}
        count = {side: sum(left == side for _, left, _ in rows) for side in (True, False)}
        V = G / (G - 1) * sum(sum((y - mean[s]) / (2 * count[s]) for w, s, y in rows if w == r) ** 2 for r in raters)
    got = people_win_rate(votes, "m0", "m1", variance=variance).rate
    assert got.estimate == pytest.approx(middle, abs=1e-9)
    assert got.high - got.estimate == pytest.approx(2.3060041350333704 * np.sqrt(V), rel=1e-9)  # t(8)


def test_a_liking_for_the_left_cancels_although_sides_are_lopsided():
    random = np.random.default_rng(0)
    votes = []
    for i in range(8000):  # equal answers, left wins 70 %, A stands left three times of four
        left, right = ("A", "B") if random.random() < 0.75 else ("B", "A")
        votes.append(PairVote(left, right, 1 if random.random() < 0.7 else -1, f"r{i % 20}"))
    got = people_win_rate(votes, "A", "B")
    assert got.raw == pytest.approx(0.6, abs=0.02) and got.rate.estimate == pytest.approx(0.5, abs=0.03)  # 4 standard errors
    assert got.left_bonus == pytest.approx(0.2, abs=0.03) and not got.rate.excludes(0.5)


def test_edges_are_explained():
    same = people_win_rate([PairVote("A", "B", 1, f"r{i % 3}") for i in range(30)], "A", "B")
    assert same.rate.estimate == 1 and same.rate.low < 0.5 and same.rate.n == 3  # 30 votes of 3 people are 3 people
    assert any("every time" in note for note in same.notes) and any("Wilson" in note for note in same.notes)
    one = people_win_rate([PairVote("A", "B", 1, "r"), PairVote("B", "A", 1, "r"), PairVote("A", "B", -1, "r")] * 5, "A", "B")
    assert any("one rater only" in note for note in one.notes)
    lone = [PairVote("A", "B", (-1) ** i, f"r{i % 4}") for i in range(15)]
    lone += [PairVote("B", "A", 1, "r9"), PairVote("B", "A", -1, "r9")]  # nobody else saw A on the right
    assert any("plain sandwich" in note for note in people_win_rate(lone, "A", "B").notes)
    with pytest.raises(ValueError, match="no vote compares 'A' with 'C'"):
        people_win_rate(lone, "A", "C")


def test_one_raters_votes_on_one_prompt_are_not_independent_votes():
    votes = [PairVote("a", "b", 1 if unit % 3 else -1, "ann", str(unit)) for unit in range(60) for _ in range(5)]  # five copies each
    once = [vote for at, vote in enumerate(votes) if at % 5 == 0]
    copied, single = people_win_rate(votes, "a", "b", by_unit=True).rate, people_win_rate(once, "a", "b").rate
    assert copied.estimate == single.estimate
    # copies add nothing to know; the sandwich and the jackknife differ by a hair at 60 clusters
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.02)
    naive = people_win_rate(votes, "a", "b").rate
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)
