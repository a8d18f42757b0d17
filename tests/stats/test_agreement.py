"""Agreement against numbers worked out by hand and against evalica (another implementation)."""

import numpy as np
import pandas as pd
import pytest
from evalica import alpha as evalica_alpha

from tutelage.stats.agreement import cohens_kappa, krippendorff_alpha, raw_agreement

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
