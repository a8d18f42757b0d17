"""Picking among answers against plain sorting, the bound on the KL against exact sums, best-of-k against every subset."""

import itertools
import math
import random

import pytest
import torch

from tutelage.algos.best_of_n import (
    best_and_worst,
    best_of_group,
    expected_best,
    group_size,
    kl_bound,
    rank_in_group,
    top_of_group,
)

SCORES = torch.tensor([3.0, 7.0, 5.0, 7.0, -1.0, 5.0, 2.0])
GROUPS = torch.tensor([0, 1, 0, 1, 1, 0, 2])  # 3, 5, 5; 7, 7, -1; 2 alone


def test_ranks_by_hand():
    """Of equal ones the earlier comes first."""
    assert rank_in_group(SCORES, GROUPS).tolist() == [2, 0, 0, 1, 2, 1, 0]


def test_ranks_are_those_of_a_stable_sort():
    rng = random.Random(0)
    groups = [rng.randrange(4) for _ in range(40)]
    scores = [float(rng.randrange(5)) for _ in range(40)]  # many ties
    wanted = [sorted((i for i in range(40) if groups[i] == groups[at]), key=lambda i: -scores[i]).index(at) for at in range(40)]
    assert rank_in_group(torch.tensor(scores), torch.tensor(groups)).tolist() == wanted


def test_group_sizes_by_hand():
    assert group_size(GROUPS).tolist() == [3, 3, 3, 3, 3, 3, 1]


def test_best_of_group_is_one_a_prompt():
    assert best_of_group(SCORES, GROUPS).tolist() == [False, True, True, False, False, False, True]


@pytest.mark.parametrize("share, threshold, kept", [
    (0.34, None, [1, 2, 3, 5, 6]),  # ceil(1.02) = 2 of three, 1 of one
    (0.33, None, [1, 2, 6]),  # ceil(0.99) = 1
    (1.0, None, [0, 1, 2, 3, 4, 5, 6]),
    (1.0, 5.0, [1, 2, 3, 5]),  # at least 5
    (0.33, 6.0, [1]),  # the best of the others is not good enough
    (1.0, 8.0, []),
])
def test_top_share_by_hand(share, threshold, kept):
    got = top_of_group(SCORES, GROUPS, share=share, threshold=threshold)
    assert got.nonzero()[:, 0].tolist() == kept


def test_a_share_that_comes_out_even_is_not_rounded_up():
    assert math.ceil(0.28 * 25) == 8  # 7.000000000000001
    assert top_of_group(torch.arange(25.0), torch.zeros(25), share=0.28).sum() == 7
    assert top_of_group(torch.arange(4.0), torch.zeros(4), share=0.2501).sum() == 2  # 1.0004 is more than 1


def test_best_and_worst_by_hand():
    pair = best_and_worst(SCORES, GROUPS)
    assert pair.chosen_P.tolist() == [2, 1] and pair.rejected_P.tolist() == [0, 4]  # the lone answer makes no pair


def test_answers_that_score_alike_make_no_pair():
    pair = best_and_worst(torch.tensor([1.0, 2.0, 1.0, 3.0]), torch.tensor([5, 0, 5, 0]))
    assert pair.chosen_P.tolist() == [3] and pair.rejected_P.tolist() == [1]
    assert len(best_and_worst(torch.zeros(4), torch.tensor([0, 0, 1, 1])).chosen_P) == 0


def exact_kl(atoms: int, n: int) -> float:
    """KL(best of n || one), answers equally likely, scores distinct: P(best is the i-th) = (i^n - (i - 1)^n) / atoms^n."""
    best = [(i / atoms) ** n - ((i - 1) / atoms) ** n for i in range(1, atoms + 1)]
    return sum(q * math.log(q * atoms) for q in best)


def test_kl_bound_by_hand():
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_bound(4) == pytest.approx(0.6362943611, abs=1e-10)
    with pytest.raises(ValueError, match="n must be >= 1; got 0"):
        kl_bound(0)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_kl_bound_bounds_and_is_reached_by_rare_answers(n):
    assert all(exact_kl(atoms, n) < kl_bound(n) for atoms in (2, 3, 10, 100))
    assert exact_kl(20_000, n) == pytest.approx(kl_bound(n), abs=2e-3)


def best_of_every_subset(scores: list[float], k: int, worth: list[float]) -> float:
    chosen = [max(subset, key=lambda i: scores[i]) for subset in itertools.combinations(range(len(scores)), k)]
    return sum(worth[i] for i in chosen) / len(chosen)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_expected_best_is_the_mean_over_every_subset_of_k(k):
    rng = random.Random(k)
    scores = [[rng.gauss(0, 1) for _ in range(6)] for _ in range(3)]
    worth = [[rng.gauss(0, 1) for _ in range(6)] for _ in range(3)]
    score_GN, worth_GN = (torch.tensor(x, dtype=torch.float64) for x in (scores, worth))
    own = [best_of_every_subset(row, k, row) for row in scores]
    other = [best_of_every_subset(row, k, by) for row, by in zip(scores, worth, strict=True)]
    assert expected_best(score_GN, k).tolist() == pytest.approx(own, rel=1e-12)
    assert expected_best(score_GN, k, worth_GN=worth_GN).tolist() == pytest.approx(other, rel=1e-12)


def test_expected_best_of_1_is_the_mean_and_of_all_the_best():
    score = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(expected_best(score, 1), score.mean(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(expected_best(score, 9), score.amax(1))
    assert expected_best(torch.randn(1, 2000), 64).isfinite().all()  # binomials far beyond what a float holds


def test_of_answers_that_score_alike_the_later_one_counts_as_better():
    """A rule, so that the figure is the same on every machine."""
    worth = torch.arange(5000.0)[None]
    assert expected_best(torch.zeros(1, 5000), 5000, worth_GN=worth).item() == 4999


def test_expected_best_of_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="k must be from 1 to the 3 samples of a prompt; got 4"):
        expected_best(torch.zeros(1, 3), 4)
    with pytest.raises(ValueError, match="got 0"):
        expected_best(torch.zeros(1, 3), 0)
