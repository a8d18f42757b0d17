"""Checks of a person's votes against cases worked out by hand."""

import numpy as np
import pytest

from tutelage.stats.habits import Timing, flip_consistency, intransitivity, left_rate, modified_z, time_outliers, too_fast
from tutelage.stats.votes import PairVote


def test_flips_by_hand():
    votes = [
        PairVote("a", "b", 2, "ann", "q1"), PairVote("b", "a", -1, "ann", "q1"),  # a both times: held
        PairVote("a", "b", 1, "ann", "q2"), PairVote("b", "a", 1, "ann", "q2"),  # left both times: side
        PairVote("a", "b", 0, "ann", "q3"), PairVote("b", "a", 0, "ann", "q3"),  # a tie both times: held
        PairVote("a", "b", 1, "ann", "q4"), PairVote("b", "a", 0, "ann", "q4"),  # changed its mind, no side
        PairVote("b", "a", 3, "ann", "q7"), PairVote("a", "b", -1, "ann", "q7"),  # b both times: held
        PairVote("a", "b", 1, "ann", "q5"), PairVote("b", "a", 1, "bob", "q5"),  # two people: no pair
        PairVote("a", "b", 1, "ann", "q6"), PairVote("a", "b", -1, "ann", "q6"),  # never swapped
    ]
    got = flip_consistency(votes)
    assert (got.n, got.same_side, got.rate.estimate) == (5, 1, 0.6)
    assert "both ways round" in flip_consistency(votes[:1]).undefined


@pytest.mark.parametrize("levels, cyclic", [
    ((1, 1, 1), False),  # a > b > c, a > c
    ((1, 1, -3), True),  # a > b > c > a
    ((-1, -1, 1), True),  # the other way round
    ((1, 0, -1), True),  # a > b = c > a
    ((1, 0, 1), False),  # a > b = c, a > c
    ((0, 0, 0), False),
    ((0, 0, 1), True),  # a = b = c but a > c
])
def test_circles_by_hand(levels, cyclic):
    ab, bc, ac = levels
    votes = [PairVote("a", "b", ab, "ann"), PairVote("c", "b", -bc, "ann"), PairVote("a", "c", ac, "ann")]
    got = intransitivity(votes)
    assert got.n == 1 and got.rate.estimate == float(cyclic)


def test_a_coin_goes_round_in_one_triple_of_four():
    random = np.random.default_rng(0)
    votes = [PairVote(x, y, random.choice([-1, 1]), "ann", f"q{q}")
             for q in range(2000) for x, y in (("a", "b"), ("b", "c"), ("a", "c"))]
    assert intransitivity(votes).rate.estimate == pytest.approx(0.25, abs=0.04)  # 4 standard errors
    assert "all three pairs" in intransitivity(votes[:2]).undefined


def test_left_rate_by_hand():
    votes = [PairVote("a", "b", 1, "ann")] * 9 + [PairVote("a", "b", -2, "ann")] + [PairVote("a", "b", 0, "ann")] * 5
    got = left_rate(votes)
    assert (got.n, got.ties, got.rate.estimate) == (10, 5, 0.9)
    assert got.p_value == pytest.approx(2 * (1 + 10) / 1024)  # both tails: 0, 1, 9 or 10 of 10
    assert left_rate(votes[-5:]).rate is None and "no vote" in left_rate(votes[-5:]).undefined


def test_modified_z_by_hand():
    # median 3, distances 2 1 0 1 97: MAD 1
    assert modified_z(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(np.array([-2, -1, 0, 1, 97]) / 1.4826)
    # half the values the same: MAD 0, mean distance 10 / 5
    assert modified_z(np.array([1.0, 1, 1, 1, 11])) == pytest.approx(np.array([0, 0, 0, 0, 10]) / (1.2533 * 2))
    assert modified_z(np.ones(9)) is None


def test_a_hasty_vote_a_hasty_person_and_a_newcomer_are_told_apart():
    random = np.random.default_rng(2)
    times = [Timing(f"ann{r}", float(200 * 0.15 * np.exp(random.normal(0, 0.3))), 200, f"{r}/{i}")
             for r in range(10) for i in range(40)]
    times += [Timing("hasty", float(200 * 0.004 * np.exp(random.normal(0, 0.3))), 200, f"hasty/{i}") for i in range(40)]
    times += [Timing("ann3", 0.5, 200, "slip"), Timing("new", 30.0, 200)]
    got = time_outliers(times)
    assert [rater for rater, z in got.raters] == ["hasty"] and got.raters[0][1] < -3.5
    assert "slip" in [time.key for time, z in got.votes if z < 0] and len(got.votes) < 6
    assert got.unchecked == ["new"]
    warnings = too_fast(times)
    assert list(warnings) == ["hasty"] and "40 of 40" in warnings["hasty"]
    with pytest.raises(ValueError, match="above 0; got 0"):
        time_outliers([Timing("ann", 0, 3)])


def test_long_answers_read_in_no_time_are_too_fast_although_seconds_pass():
    assert "reading over" in too_fast([Timing("ann", 10.0, 2000)])["ann"]  # 12,000 words a minute
    assert too_fast([Timing("ann", 60.0, 300)]) == {}
