"""Agreement against numbers worked out by hand and against evalica (another implementation)."""

import numpy as np
import pandas as pd
import pytest
from evalica import alpha as evalica_alpha

from tutelage.stats.agreement import cohens_kappa, krippendorff_alpha, ratings_table, raw_agreement, shared_agreement
from tutelage.stats.intervals import cluster_draws

# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), example C: 4 observers, 12 units, missing data.
# Published there: nominal 0.743, ordinal 0.815, interval 0.849.
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


@pytest.mark.parametrize("scale, published", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_equals_the_published_example(scale, published):
    got = krippendorff_alpha(EXAMPLE, scale=scale)
    assert got.value == pytest.approx(published, abs=5e-4)
    assert got.n == 11  # unit 12 has one rating only


@pytest.mark.parametrize("scale", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_evalica(scale, seed):
    random = np.random.default_rng(seed)
    table = random.integers(1, 6, size=(4, 30)).astype(float)
    table[random.random(table.shape) < 0.2] = np.nan
    witness = evalica_alpha(pd.DataFrame(table), distance=scale).alpha
    ours = krippendorff_alpha([[None if np.isnan(x) else x for x in row] for row in table], scale=scale)
    assert ours.value == pytest.approx(witness, abs=1e-9)


def test_kappa_by_hand():
    # 50 items: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.  observed 0.7, expected 0.5*0.6 + 0.5*0.4 = 0.5
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(a, b).value == pytest.approx(0.4)
    assert raw_agreement(a, b).value == pytest.approx(0.7)


def test_missing_ratings_are_left_out():
    assert raw_agreement([1, None, 2, 2], [1, 1, None, 3]).value == 0.5
    assert cohens_kappa([1, None, 2, 2, 1], [1, 1, None, 2, 1]).n == 3


def test_undefined_says_why():
    assert "same value every time" in cohens_kappa(["a", "a"], ["a", "a"]).undefined
    assert "every rating is 3" in krippendorff_alpha([[3, 3], [3, 3]], scale="interval").undefined
    assert "two raters" in krippendorff_alpha([[1, None], [None, 2]]).undefined
    assert "both raters" in raw_agreement([None], [1]).undefined
    for got in (cohens_kappa(["a"], ["a"]), krippendorff_alpha([[1], [1]])):
        assert got.value is None and "undefined" in str(got)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        krippendorff_alpha([[1, 2], [1]])
    with pytest.raises(ValueError, match="nominal, ordinal, interval"):
        krippendorff_alpha([[1, 2]], scale="ratio")


def test_agreement_of_many_raters_equals_counting_their_pairs():
    random = np.random.default_rng(3)
    table = [[None if random.random() < 0.3 else int(random.integers(3)) for _ in range(40)] for _ in range(5)]
    shares = []
    for column in zip(*table, strict=True):
        pairs = [(a, b) for i, a in enumerate(column) for b in column[i + 1:] if a is not None and b is not None]
        shares += [np.mean([a == b for a, b in pairs])] if pairs else []
    got = shared_agreement(table)
    assert got.value == pytest.approx(np.mean(shares), abs=1e-12) and got.n == len(shares)
    assert shared_agreement(table[:2]).value == pytest.approx(raw_agreement(*table[:2]).value)
    assert "two raters" in shared_agreement([[1], [None]]).undefined


def noisy(seed, *, units=60, raters=4, keep=0.8, copies=1):
    """Raters who report the truth of a unit with probability `keep`, else anything of 0..3; each unit `copies` times."""
    random = np.random.default_rng(seed)
    truth = random.integers(4, size=units)
    return [[int(t) if random.random() < keep else int(random.integers(4)) for t in truth] * copies for _ in range(raters)]


@pytest.mark.parametrize("scale", ["nominal", "ordinal", "interval"])
def test_each_bootstrap_draw_is_alpha_of_the_table_with_units_repeated(scale):
    table, draws = noisy(1, units=12), []
    for weights in next(cluster_draws(12, 200, 5)):
        columns = [u for u in range(12) for _ in range(int(weights[u]))]
        draws.append(krippendorff_alpha([[row[u] for u in columns] for row in table], scale=scale).value)
    got = krippendorff_alpha(table, scale=scale, seed=5, resamples=200).interval
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12)


def test_copies_of_a_unit_do_not_narrow_a_clustered_interval():
    one = krippendorff_alpha(noisy(2), seed=0).interval
    ten = noisy(2, copies=10)
    naive = krippendorff_alpha(ten, seed=0).interval
    clustered = krippendorff_alpha(ten, seed=0, clusters=[u % 60 for u in range(600)]).interval
    assert clustered.high - clustered.low == pytest.approx(one.high - one.low, rel=0.15)
    assert naive.high - naive.low < 0.5 * (one.high - one.low)
    raw = shared_agreement(ten, seed=0, clusters=[u % 60 for u in range(600)])
    assert raw.interval.n == 60 and raw.interval.low < raw.value < raw.interval.high


def test_alpha_interval_covers_the_long_run_value():
    # Right with probability k, else any of four: P(equal pair) = k^2 + (1 - k^2) / 4, so alpha = k^2, 0.49 at k = 0.7.
    # 100 intervals at 93 % or better cover fewer than 85 about once in 700 runs.
    intervals = [krippendorff_alpha(noisy(seed, keep=0.7), seed=1, resamples=300).interval for seed in range(100)]
    inside = sum(not interval.excludes(0.49) for interval in intervals)
    assert inside >= 85


def test_shuffled_labels_agree_as_chance_would():
    random = np.random.default_rng(11)
    got = krippendorff_alpha([list(random.permutation(row)) for row in noisy(4, units=500)], scale="ordinal", seed=0)
    assert abs(got.value) < 0.06 and not got.interval.excludes(0)


def test_what_an_interval_cannot_say_is_said():
    assert krippendorff_alpha([[3, 3], [3, 3]], seed=0).interval is None
    nearly = krippendorff_alpha([[1, 1, 1, 1], [1, 1, 1, 2]], seed=0, resamples=200)  # 3 of 4 units never vary
    assert nearly.interval is None and "all ratings were equal" in nearly.note and nearly.value is not None
    assert "fewer than 2" in krippendorff_alpha([[1, 2], [2, 2]], clusters=["q", "q"], seed=0).note
    assert "only 12 independent units" in krippendorff_alpha(noisy(1, units=12), seed=0, resamples=100).note
    assert "95% " in str(krippendorff_alpha(noisy(1), seed=0, resamples=100))
    with pytest.raises(ValueError, match="3 units but 2 names"):
        krippendorff_alpha([[1, 2, 1], [1, 2, 2]], clusters=["a", "b"], seed=0)


def test_records_become_a_table():
    rows, raters, units = ratings_table([("u1", "bob", 3), ("u2", "ann", 1), ("u1", "ann", 2)])
    assert (rows, raters, units) == ([[2, 1], [3, None]], ["ann", "bob"], ["u1", "u2"])
    with pytest.raises(ValueError, match="'ann' rated unit 'u1' twice"):
        ratings_table([("u1", "ann", 3), ("u1", "ann", 1)])
